"""Save checkpoints while training: when, under which name, and which to keep."""

from __future__ import annotations

import os
import re
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from inazuma import files
from inazuma.callbacks import saved
from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.callbacks.monitor import check_mode, check_monitor, epoch_end_sees_all, missing_metric
from inazuma.callbacks.saved import Saved
from inazuma.errors import CheckpointNotSaved, MisconfigurationException
from inazuma.ranks import WarningCache, rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer

_FIELD = re.compile(r"\{([^{}:]*)(:[^{}]*)?\}")  # {name} or {name:format}


class _Moment(Enum):
    """The ends at which a save may happen."""

    BATCH = "training batch"
    VALIDATION = "validation"
    EPOCH = "training epoch"


def retain(scores: Mapping[str, float], new: float, k: int, mode: str) -> tuple[bool, list[str]]:
    """Decide whether a file with the score `new` joins the best `k`, and which files leave for it.

    It joins while there is room, and then only if it is strictly better than the worst that would stay. NaN is worse
    than every number. Among equals the oldest leaves first.

    Args:
        scores: of the files kept so far, oldest first.
        new: the score of the file to come.
        k: how many files to keep; -1 keeps all.
        mode: "min" or "max".

    Returns:
        Whether the new file joins, and the paths that leave, worst first; none if it does not join.
    """
    if k == 0:
        return False, []
    surplus = 0 if k == -1 else max(0, len(scores) + 1 - k)
    # more than one leaves only if a resumed run keeps fewer files than the one before
    leaving = sorted(scores, key=lambda path: badness(scores[path], mode), reverse=True)[:surplus]
    if leaving and not badness(new, mode) < badness(scores[leaving[-1]], mode):
        return False, []
    return True, leaving


def badness(score: float, mode: str) -> float:
    """Orders scores: lower is better, and NaN is as bad as can be."""
    if score != score:
        return float("inf")
    return score if mode == "min" else -score


class ModelCheckpoint(Checkpoint):
    """Save checkpoints during `fit`, keep the best of them, and the newest as `last.ckpt`.

    One of three triggers asks for a save: `every_n_epochs` (the default, with 1), `every_n_train_steps` or
    `train_time_interval`. A save that `monitor`s a metric waits for it: while validation follows the batch, or the
    metric was not logged yet, it is made as soon as the metric is there. At most one ranked file is written per step.

    `best_model_path` and `best_model_score` tell the best file, `last_model_path` the newest, `best_k_models` all kept
    ones with their scores. They hold over all resumes of a run. Each file's note says which run and which callback
    wrote it, under which name and with which score (`callbacks.saved`): a resumed run finds its files by them, and no
    other file is written over or removed.

    A file that cannot be written (a full disk, a quota, an error of a store) is warned of and does not end training:
    what was there stays, and the next save is tried as usual.

    Args:
        dirpath: where to save, a local path or an address for fsspec. Default: `checkpoints` in the first logger's
            directory of this run, or in `default_root_dir` without a logger.
        filename: template without extension. `{name}` and `{name:format}` stand for a logged metric, `epoch` (from 0)
            or `step`; unknown names give 0. Default: `{epoch}-{step}`.
        monitor: the metric that ranks the files. None: the newest is the best.
        verbose: tell of each save.
        save_last: True also writes the newest state as `last.ckpt` whenever a save is due, whether or not it ranks
            among the best, and at the end of training. "link" makes `last.ckpt` a link to the newest ranked file.
        save_top_k: keep this many of the best files; -1 keeps all, 0 none.
        save_on_exception: save when `fit` ends by an exception, Ctrl-C among them.
        save_weights_only: leave optimizers, schedules and callbacks out of the file.
        mode: "min" if a lower metric is better, "max" if a higher one is.
        auto_insert_metric_name: put `name=` before each value in file names.
        every_n_train_steps: save when `global_step` is a multiple of it; 0 never.
        train_time_interval: save after the first batch that ends this long after the last such save.
        every_n_epochs: save at the end of every n-th epoch; 0 never.
        save_on_train_epoch_end: True saves at the end of the training epoch, False at the end of validation. None:
            True if validation runs once, at the end of each epoch, or not at all.
        enable_version_counter: never write over a file of another run, but append `-v1`, `-v2`...

    Raises:
        MisconfigurationException: an argument outside its range; more than one trigger; a ranking without a `monitor`;
            later, a `monitor` that validation did not log.
        ValueError: `save_last="link"` with a `dirpath` that is not local.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: files.PathLike | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__()
        _check_arguments(monitor, save_last, save_top_k, mode)
        _check_triggers(every_n_train_steps, train_time_interval, every_n_epochs)
        self.dirpath = files.resolve(dirpath) if dirpath else None
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        has_trigger = any(trigger is not None for trigger in (every_n_train_steps, train_time_interval, every_n_epochs))
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._every_n_epochs = (every_n_epochs or 0) if has_trigger else 1
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter
        if self.dirpath is not None:
            self._check_link(self.dirpath)

        self.current_score: Tensor | None = None
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = self._worst_score
        self.best_model_score: Tensor | None = None
        self.best_model_path = ""
        self.last_model_path = ""

        self._is_postponed = False  # a save is due and waits for its metric
        self._has_validated = False  # since training began, so that a metric still missing will not come
        self._due_step = 0  # global step at which every_n_train_steps last asked for a save
        self._ranked_step = 0  # global step of the newest ranked file; nothing is saved before the first step
        self._last_step = 0  # global step in `last`
        self._newest = ""  # the newest file beside `last`
        self._runs: set[str] = set()  # the runs that this callback saved for; a resume has the id of the run before
        self._saved: dict[str, Saved] = {}  # what this callback keeps, by path
        self._surplus: list[str] = []  # files found at a resume that are not among the best any more
        self._interval_began_s: float | None = None  # monotonic clock; None before training
        self._warnings = WarningCache()

    @property
    def every_n_epochs(self) -> int | None:
        """Save at the end of every n-th epoch; 0 where another trigger is used."""
        return self._every_n_epochs

    @property
    def _worst_score(self) -> Tensor:
        return torch.tensor(float("inf" if self.mode == "min" else "-inf"))

    # State

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._train_time_interval,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": self.best_k_models,
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave. From another directory only the best is taken, its path and score."""
        self.best_model_path = state_dict["best_model_path"]
        self.best_model_score = state_dict.get("best_model_score", self.best_model_score)
        saved_in = state_dict.get("dirpath", self.dirpath)
        if saved_in != self.dirpath:
            rank_zero_warn(
                f"The checkpoint was saved by a ModelCheckpoint in {saved_in!r}, and this run saves in "
                f"{self.dirpath!r}. Of its state only `best_model_path` and `best_model_score` are taken: files of the "
                f"run in {self.dirpath!r} are ranked among themselves, and those in the other directory are left "
                "alone. Give the same `dirpath` to continue the ranking."
            )
            return
        for name in ("current_score", "best_k_models", "kth_best_model_path", "last_model_path"):
            setattr(self, name, state_dict.get(name, getattr(self, name)))
        self.kth_value = state_dict.get("kth_value", self.kth_value)

    # Hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        dirpath = trainer.strategy.broadcast(self.dirpath or self._default_dirpath(trainer))
        self._check_link(dirpath)
        self.dirpath = dirpath
        if stage == "fit":
            self._interval_began_s = None
            if trainer.is_global_zero:
                for folder in self._folders(dirpath):
                    files.remove_leftovers(folder)
                for path in files.listdir(dirpath) if self.save_last == "link" else ():
                    if path.endswith(".tmp") and os.path.islink(path) and self._is_last(path.removesuffix(".tmp")):
                        os.remove(path)  # of a process that was killed in `_link`
            self._warn_of_other_files(trainer, dirpath)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval_began_s = time.monotonic()
        self._has_validated = self._is_postponed = False
        self._ranked_step = self._last_step = 0  # what an earlier run saved says nothing about the steps of this one
        self._due_step = trainer.global_step  # a resumed run continues behind the batch that made this step
        self._runs.add(trainer.run_id)
        if trainer.ckpt_path:
            self._take_up(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._every_n_train_steps or self._train_time_interval is not None:
            self._reach(trainer, _Moment.BATCH)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_off(trainer):
            self._has_validated = True
            self._reach(trainer, _Moment.VALIDATION)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach(trainer, _Moment.EPOCH)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_off(trainer):
            return
        if self._is_postponed:
            self._tell_missing(self._metrics(trainer))
        if self.save_last and not self._has_saved(trainer):
            self._save(trainer, "last")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        is_training = self._interval_began_s is not None
        if not (self.save_on_exception and is_training) or self._is_off(trainer) or self._has_saved(trainer):
            return
        if path := self._save(trainer, "exception"):
            rank_zero_info(f"{type(exception).__name__} ended training. The state at that time is in {path!r}.")

    def save_now(self, trainer: Trainer, kind: str) -> str:
        """Write the newest state as `last`, whatever `save_last` says, for a run that has to end here.

        The file holds all that a resume needs, also with `save_weights_only`.

        Args:
            trainer: the one that trains.
            kind: why it is written, for the file's note, as "signal".

        Returns:
            The path of the file with the state of this step, which may have been there already. "" where nothing is
            saved: outside of training, in the sanity check, with `fast_dev_run`, and after a warning if it fails.
        """
        if self._interval_began_s is None or self._is_off(trainer):
            return ""
        self._settle(trainer)
        if trainer.global_step == self._last_step:
            return self.last_model_path
        if trainer.global_step == self._ranked_step and not self.save_weights_only:
            return self._newest
        path = self._save(trainer, kind, now=True)
        trainer.strategy.checkpoint_io.wait()  # whoever asks goes by what stands at the path
        self._settle(trainer)
        return path if trainer.global_step == self._last_step else ""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._settle(trainer)

    # When

    def _is_off(self, trainer: Trainer) -> bool:
        return bool(trainer.fast_dev_run) or trainer.state.fn != "fit" or trainer.sanity_checking

    def _has_saved(self, trainer: Trainer) -> bool:
        return trainer.global_step in (self._ranked_step, self._last_step)

    def _reach(self, trainer: Trainer, moment: _Moment) -> None:
        """Save if it is due at this end, or was due and had to wait until now."""
        if self._is_off(trainer):
            return
        is_due = self._is_due(trainer, moment)
        if moment is _Moment.BATCH:
            if is_due:
                self._is_postponed = self._must_wait(trainer)
                if not (self._is_postponed and trainer.validation_follows):
                    self._save(trainer, "last" if self._is_postponed else "best")  # `last` needs no metric
            return
        # after validation a metric that is still missing will not come: say so rather than wait for ever
        is_final = self._has_validated and moment is self._epoch_moment(trainer)
        if is_due or (self._is_postponed and (is_final or self._knows_monitor(trainer))):
            self._is_postponed = False
            self._save(trainer)

    def _is_due(self, trainer: Trainer, moment: _Moment) -> bool:
        """Whether the trigger asks for a save at this end. The only place that knows the triggers."""
        if moment is not _Moment.BATCH:
            n = self._every_n_epochs
            return n > 0 and moment is self._epoch_moment(trainer) and (trainer.current_epoch + 1) % n == 0
        if self._train_time_interval is not None:
            now, began = time.monotonic(), self._interval_began_s
            is_over = began is not None and now - began >= self._train_time_interval.total_seconds()
            is_over = trainer.strategy.broadcast(is_over)  # clocks differ between ranks
            if is_over:
                self._interval_began_s = now
            return is_over
        n, step = self._every_n_train_steps, trainer.global_step
        is_due = n > 0 and step % n == 0 and step != self._due_step  # batches that only accumulate make no step
        if is_due:
            self._due_step = step
        return is_due

    def _must_wait(self, trainer: Trainer) -> bool:
        """Whether a save due after a batch waits for its metric: it is missing, or the epoch's validation renews it."""
        if self.monitor is None or self.save_top_k == 0:
            return False
        renewed = trainer.is_last_batch and trainer.validation_follows
        is_renewed_too_late = self._epoch_moment(trainer) is _Moment.EPOCH
        return (renewed and not is_renewed_too_late) or not self._knows_monitor(trainer)

    def _knows_monitor(self, trainer: Trainer) -> bool:
        return trainer.strategy.broadcast(self.monitor in {"epoch", "step", *trainer.callback_metrics})

    def _epoch_moment(self, trainer: Trainer) -> _Moment:
        """The end at which a save by epochs is made."""
        at_epoch_end = self._save_on_train_epoch_end
        if at_epoch_end is None:
            at_epoch_end = epoch_end_sees_all(trainer)
        return _Moment.EPOCH if at_epoch_end else _Moment.VALIDATION

    # What to keep

    def _save(self, trainer: Trainer, kind: str = "best", now: bool = False) -> str:
        """Write the state as a file of its own, if it is to have one, and as `last`.

        Each file tells of all that are kept then, so that its place is found before its first byte is written. What
        leaves for it goes only when it is whole; if it cannot be written, all is as before.

        Args:
            trainer: the one that trains.
            kind: "best" writes a ranked file if the state is among the best, "exception" a file that is not ranked,
                "last" none but `last`.
            now: write `last` only, for a resume, and whatever `save_last` says; `kind` is for its note.

        Returns:
            The file written, `last` if both; "" if none was, after a warning if the disk or the store did not take it.
        """
        self._settle(trainer)
        step, metrics, previous = trainer.global_step, self._metrics(trainer), self.last_model_path
        path, written, leaving, obsolete = "", "", list[str](), list[str]()
        before = vars(self).copy()
        try:
            if kind == "best" and not now and step != self._ranked_step:
                path, leaving = self._rank(trainer, metrics)
            elif kind == "exception" and not now:
                leaving = self._again(trainer, kind)
                path = self._free_path(trainer, metrics, leaving)
            links = self.save_last == "link" and not now and bool(path or self._newest)
            writes_last = now or (bool(self.save_last) and not links and step != self._last_step)
            if writes_last or (links and path):
                self.last_model_path = self._free_path(trainer, metrics, [previous], self.CHECKPOINT_NAME_LAST)
            if path:
                self._write(trainer, metrics, path, kind, self.save_weights_only, without=leaving)
                self._newest, self._ranked_step, written = path, step, path
                obsolete += leaving
                before = {**vars(self), "last_model_path": previous}  # this much is whole
            if writes_last:
                weights_only = self.save_weights_only and not now
                last_kind = kind if now else "last"
                self._write(trainer, metrics, self.last_model_path, last_kind, weights_only, without=[previous])
                self._last_step, written = step, self.last_model_path
            elif links and path:
                _link(trainer, path, self.last_model_path)
            obsolete.append(previous)
        except BaseException as error:  # a file that was not written must not be called the best
            vars(self).update(before)
            if not isinstance(error, CheckpointNotSaved):
                raise
            ends = now or kind == "exception"
            rank_zero_warn(f"{error}{'' if ends else ' Training goes on, and the next save is tried as usual.'}")
        if written:
            obsolete, self._surplus = obsolete + self._surplus, []
        for other in obsolete:  # after all new files are there
            if other != path:
                self._remove(trainer, other)
        return written

    def _rank(self, trainer: Trainer, metrics: dict[str, Tensor]) -> tuple[str, list[str]]:
        """Find the place of the present state among the best; "" if it has none. Also returns who leaves for it."""
        leaving: list[str] = []
        if self.save_top_k == 0:
            return "", leaving
        again = self._again(trainer, "best")
        if self.monitor is None:
            leaving = [self.best_model_path, *again]
            self.best_model_path = self._free_path(trainer, metrics, leaving)
            return self.best_model_path, leaving if self.save_top_k == 1 else again
        if self.monitor not in metrics:
            self._tell_missing(metrics)
            return "", leaving
        score = metrics[self.monitor]
        if again and again[0] in self.best_k_models:
            # The run was resumed before this step and comes here once more; if it is exact, with the same score.
            leaving = again
            is_worse = badness(score.item(), self.mode) > badness(float(self.best_k_models[again[0]]), self.mode)
            joins = trainer.strategy.reduce_boolean_decision(not is_worse)
        else:
            _, leaving = retain(_as_floats(self.best_k_models), score.item(), self.save_top_k, self.mode)
            leaving += again
            joins = self.check_monitor_top_k(trainer, score)
        if not joins:
            if self.verbose:
                rank_zero_info(
                    f"Epoch {trainer.current_epoch}, global step {trainer.global_step}: {self.monitor!r} was "
                    f"{score.item():g}, not in top {self.save_top_k}"
                )
            return "", []
        path = self._free_path(trainer, metrics, leaving)
        self.current_score = self._worst_score if torch.isnan(score) else score
        kept = {old: value for old, value in self.best_k_models.items() if old not in leaving}
        self.best_k_models = {**kept, path: self.current_score}
        self._find_best_and_kth()
        if self.verbose:
            rank_zero_info(
                f"Epoch {trainer.current_epoch}, global step {trainer.global_step}: {self.monitor!r} reached "
                f"{score.item():g}, saving to {path!r}"
            )
        return path, leaving

    def _find_best_and_kth(self) -> None:
        scores = _as_floats(self.best_k_models)
        best, worst = (min, max) if self.mode == "min" else (max, min)
        best_here = best(scores, key=scores.__getitem__)
        # The best of all may lie in another directory, where an earlier part of the run saved.
        elsewhere = None if self._is_inside(self.best_model_path) else self.best_model_score
        if elsewhere is None or best(float(elsewhere), scores[best_here]) != float(elsewhere):
            self.best_model_path, self.best_model_score = best_here, self.best_k_models[best_here]
        if self.save_top_k in (-1, len(scores)):
            self.kth_best_model_path = worst(scores, key=scores.__getitem__)
            self.kth_value = self.best_k_models[self.kth_best_model_path]

    def _again(self, trainer: Trainer, kind: str) -> list[str]:
        """The file that this run wrote at this step before it was resumed from an earlier one; empty without."""
        at = (kind, trainer.run_id, trainer.global_step)
        found = [path for path, file in self._saved.items() if at == (file.kind, file.run, file.step)]
        return [path for path in found if not self._is_last(path)][:1]

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a state with the score `current` belongs to the best `save_top_k`, in the view of all ranks."""
        if current is None:
            return False
        joins, _ = retain(_as_floats(self.best_k_models), current.item(), self.save_top_k, self.mode)
        return trainer.strategy.reduce_boolean_decision(joins)

    def _metrics(self, trainer: Trainer) -> dict[str, Tensor]:
        """The logged metrics with `epoch` and `step`, as rank 0 has them, so that all ranks decide alike."""
        metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}  # waits for the GPU
        for name, value in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
            metrics[name] = metrics[name].int() if name in metrics else torch.tensor(value)
        return trainer.strategy.broadcast(metrics)

    def _tell_missing(self, metrics: Mapping[str, Tensor]) -> None:
        assert self.monitor is not None
        message = missing_metric("ModelCheckpoint", self.monitor, metrics)
        if self._has_validated and self.current_score is None and self.best_model_score is None:
            raise MisconfigurationException(message)  # never seen: a mistake rather than a value left out for once
        self._warnings.warn(f"{message} No file was saved for it.")

    # Where

    def _default_dirpath(self, trainer: Trainer) -> str:
        if not trainer.loggers:
            return files.join(trainer.default_root_dir, "checkpoints")
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return files.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version, "checkpoints")

    def _check_link(self, dirpath: str) -> None:
        if self.save_last == "link" and not files.is_local(dirpath):
            raise ValueError(
                f"ModelCheckpoint(save_last='link') saves in {dirpath!r}, which is not a local path, so that no link "
                "can be made there. Use save_last=True."
            )

    def _warn_of_other_files(self, trainer: Trainer, dirpath: str) -> None:
        """Warn if the directory holds files that this run did not write and does not continue from."""
        if self.save_top_k == 0 or self.best_model_path or self.last_model_path or not trainer.is_global_zero:
            return
        if trainer.ckpt_path and Path(dirpath) in Path(files.resolve(trainer.ckpt_path)).parents:
            return
        if files.listdir(dirpath):
            rank_zero_warn(f"The directory {dirpath} of ModelCheckpoint exists and is not empty: runs may mix there.")

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Fill in a file name template.

        Args:
            metrics: values for the names in the template; a name that is not there gives 0.
            filename: the template, by default this callback's.
            ver: version to append, as in `-v1`.
            prefix: to put in front of the name.

        Returns:
            The name with its extension, behind `dirpath` where that is known. Example: `epoch=2-val_loss=0.12.ckpt`.

        Raises:
            MisconfigurationException: a format that does not fit the value.
        """
        template = filename or self.filename or f"{{epoch}}{self.CHECKPOINT_JOIN_CHAR}{{step}}"

        def fill(field: re.Match[str]) -> str:
            name, spec = field[1], field[2] or ""
            value = metrics.get(name, 0)
            value = value.item() if isinstance(value, Tensor) else value
            try:
                text = format(value, spec[1:])
            except ValueError as error:
                raise MisconfigurationException(
                    f"ModelCheckpoint(filename={template!r}): the format of {field[0]!r} does not fit the value "
                    f"{value!r} ({error})."
                ) from error
            return f"{name}{self.CHECKPOINT_EQUALS_CHAR}{text}" if self.auto_insert_metric_name else text

        parts = [prefix, _FIELD.sub(fill, template), None if ver is None else f"v{ver}"]
        name = self.CHECKPOINT_JOIN_CHAR.join(part for part in parts if part) + self.FILE_EXTENSION
        return files.join(self.dirpath, name) if self.dirpath else name

    def _free_path(
        self,
        trainer: Trainer,
        metrics: Mapping[str, Tensor],
        replaces: Sequence[str] = (),
        filename: str | None = None,
    ) -> str:
        """The path to write to: with a version where a file stands already that is not one of those to replace."""
        path = self.format_checkpoint_name(metrics, filename)
        version = self.STARTING_VERSION
        while self._enable_version_counter and self._is_taken(trainer, path, replaces):
            path = self.format_checkpoint_name(metrics, filename, ver=version)
            version += 1
        return path

    def _is_taken(self, trainer: Trainer, path: str, replaces: Sequence[str]) -> bool:
        """Whether a file stands there that is not one to replace, or was put in the place of that one by others."""
        if not self.file_exists(path, trainer):
            return False
        return path not in replaces or not trainer.strategy.broadcast(trainer.is_global_zero and self._is_ours(path))

    def file_exists(self, filepath: files.PathLike, trainer: Trainer) -> bool:
        """Whether rank 0 sees a file or directory there; the same answer on all ranks."""
        return trainer.strategy.broadcast(files.exists(filepath) if trainer.is_global_zero else False)

    def find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """All files named like `last` in the directory of this callback, for `ckpt_path="last"`."""
        return {path for path in files.listdir(self.dirpath or self._default_dirpath(trainer)) if self._is_last(path)}

    def find_checkpoints(self, trainer: Trainer) -> list[str]:
        """All files with the extension of this callback in its directory, whoever wrote them."""
        folders = self._folders(self.dirpath or self._default_dirpath(trainer))
        return [path for folder in folders for path in files.listdir(folder) if path.endswith(self.FILE_EXTENSION)]

    def find_earlier(self, trainer: Trainer) -> list[str]:
        """The files of earlier starts of the same program, where each start has a directory of its own.

        So it is without a `dirpath`, under a logger that counts versions: `<save_dir>/<name>/version_<n>/checkpoints`.
        """
        if self.dirpath is not None or not trainer.loggers or isinstance(trainer.loggers[0].version, str):
            return []
        below, above = self._default_dirpath(trainer).rsplit("version_", 1)[0], re.compile(r"version_\d+")
        versions = [path for path in files.listdir(below) if above.fullmatch(os.path.basename(path))]
        folders = [folder for path in versions for folder in self._folders(files.join(path, "checkpoints"))]
        return [path for folder in folders for path in files.listdir(folder) if path.endswith(self.FILE_EXTENSION)]

    def _is_last(self, path: str) -> bool:
        """Whether a file is named like `last`."""
        last = _FIELD.split(self.CHECKPOINT_NAME_LAST)[::3]  # the text between the fields
        stem = ".*".join(re.escape(text) for text in last) + rf"({re.escape(self.CHECKPOINT_JOIN_CHAR)}v?\d+)?"
        return re.fullmatch(stem + re.escape(self.FILE_EXTENSION), os.path.basename(path)) is not None

    def _folders(self, dirpath: str) -> list[str]:
        """The directory, and those below it that `filename` names."""
        level, folders = [dirpath], [dirpath]
        for _ in range((self.filename or "").count("/")):
            level = [path for folder in level for path in files.listdir(folder) if files.isdir(path)]
            folders += level
        return folders

    def to_yaml(self, filepath: files.PathLike | None = None) -> None:
        """Write `best_k_models` as YAML: one line with path and score for each.

        Args:
            filepath: a local path; default `best_k_models.yaml` in `dirpath`.

        Raises:
            ImportError: PyYAML is not installed.
        """
        try:
            import yaml
        except ImportError as error:
            raise ImportError("ModelCheckpoint.to_yaml needs the package pyyaml: pip install inazuma[yaml]") from error
        target = filepath if filepath is not None else files.join(self.dirpath or "", "best_k_models.yaml")
        with open(target, "w") as file:
            yaml.safe_dump({path: score.item() for path, score in self.best_k_models.items()}, file)

    # Files

    def _write(
        self,
        trainer: Trainer,
        metrics: Mapping[str, Tensor],
        path: str,
        kind: str,
        weights_only: bool,
        without: Sequence[str],
    ) -> None:
        """Write one file, with a note of what it is and which others are kept: all that are known but those `without`.

        Raises:
            CheckpointNotSaved: the disk or the store did not take it; on all ranks.
        """
        score = metrics.get(self.monitor or "")
        kept = [file for other, file in self._saved.items() if other not in (path, *without)]
        trainer.checkpoint_note = {
            "kind": kind,
            "time": time.time(),
            "name": self._name(path),
            "callback": self.state_key,
            "monitor": self.monitor,
            "mode": self.mode,
            "score": _as_json(score),
            "best": {"name": self._name(self.best_model_path), "score": _as_json(self.best_model_score)},
            "kept": [
                {"name": self._name(file.path), "kind": file.kind, "global_step": file.step}
                | {"score": file.note.get("score"), "sha256": file.sha256}
                for file in kept
            ],
        }
        failure: OSError | None = None
        try:
            trainer.save_checkpoint(path, weights_only)
        except OSError as error:
            failure = error
        finally:
            note, trainer.checkpoint_note = trainer.checkpoint_note, {}
        told = None if failure is None else str(failure)
        if failure is not None and not isinstance(failure, CheckpointNotSaved):  # of a CheckpointIO of the user's
            told = f"{path} was not saved: {failure!r}."
        if (told := trainer.strategy.broadcast(told)) is not None:
            raise CheckpointNotSaved(told) from failure
        file = saved.read(path)
        if file is None or file.time_s != note["time"]:  # its store keeps no notes, or is still at it
            file = Saved(path, {"run": trainer.run_id, "global_step": trainer.global_step, **note}, note["time"])
        self._saved = {**self._saved, path: file}
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(weakref.proxy(self))

    def _name(self, path: str) -> str:
        """A path as seen from `dirpath`, which may have moved when somebody reads this."""
        assert self.dirpath is not None
        if not path or not files.is_local(path):
            return path.removeprefix(self.dirpath.rstrip("/") + "/")
        return os.path.relpath(path, self.dirpath).replace(os.sep, "/")

    def _wrote(self, file: Saved) -> bool:
        """Whether a file's note says that this callback wrote it, for this run and to this place."""
        note, name = file.note, self._name(file.path)
        is_link = self.save_last == "link" and self._is_last(file.path)  # has the note of what it points to
        is_here = is_link or note.get("name") == name
        return file.run in self._runs and note.get("callback") == self.state_key and is_here

    def _is_ours(self, path: str) -> bool:
        """Whether the file that stands at `path` now is this run's to write over and to remove."""
        file, known = saved.read(path), self._saved.get(path)
        if file is None or not file.note:  # no notes are kept there: what was written there is taken to be there still
            return known is not None and known.sha256 is None
        return self._wrote(file)

    def _settle(self, trainer: Trainer) -> None:
        """Learn what became of files that were still being written when their save returned; forget what is lost."""
        store = trainer.strategy.checkpoint_io
        pending = [file for file in self._saved.values() if file.sha256 is None and file.run in self._runs]
        if not pending or not store.keeps_notes:
            return
        store.wait()
        now = {file.path: saved.read(file.path) for file in pending}
        whole = {path: file for path, file in now.items() if file is not None and file.sha256 is not None}
        if trainer.strategy.broadcast(all(f.path in whole and whole[f.path].time_s == f.time_s for f in pending)):
            self._saved = {**self._saved, **whole}
            return
        if self.last_model_path not in whole:
            self.last_model_path = ""
        self._ranked_step = self._last_step = 0  # the state of this step is to be saved again
        self._take_up(trainer)  # what was to leave for a lost file is still there

    def _take_up(self, trainer: Trainer) -> None:
        """Find what this run has left in the directory: the best of it stay, whichever file it was resumed from."""
        found: list[Saved] = []
        if trainer.is_global_zero:
            all_files = map(saved.read, self.find_checkpoints(trainer))
            found = [file for file in all_files if file is not None and self._wrote(file)]
            if trainer.ckpt_path:
                found += self._without_notes(trainer, {file.path for file in found})
        oldest_first = trainer.strategy.broadcast(sorted(found, key=lambda file: (file.step, file.time_s)))
        self._saved = {file.path: file for file in oldest_first}
        lasts = [path for path in self._saved if self._is_last(path)]
        ranked = {path: file for path, file in self._saved.items() if file.kind == "best" and path not in lasts}
        if lasts:
            self.last_model_path = lasts[-1]
        is_elsewhere = not self._is_inside(self.best_model_path) and files.exists(self.best_model_path)
        if self.best_model_path not in ranked and not trainer.strategy.broadcast(is_elsewhere):
            self.best_model_path, self.best_model_score = "", None
        if self.monitor is None:
            kept = list(ranked)[-1:]
            self.best_model_path = kept[0] if kept else self.best_model_path
        else:
            scores = {path: _as_tensor(file.score, self._worst_score) for path, file in ranked.items()}
            best_first = sorted(scores, key=lambda path: badness(float(scores[path]), self.mode))
            kept = best_first if self.save_top_k < 1 else best_first[: self.save_top_k]
            self.best_k_models = {path: score for path, score in scores.items() if path in kept}
            self.kth_best_model_path, self.kth_value = "", self._worst_score
            if self.best_k_models:
                self._find_best_and_kth()
        keeps_all = self.save_top_k < 1
        self._surplus = lasts[:-1] + [path for path in ranked if path not in kept and not keeps_all]

    def _without_notes(self, trainer: Trainer, found: set[str]) -> list[Saved]:
        """Files that the loaded state names and that have no notes: of Lightning, or of a CheckpointIO without any.

        A state may name anything: only what this callback itself could have put there is taken, and a directory only
        where the CheckpointIO is the user's.
        """
        here, are_files = set(self.find_checkpoints(trainer)), trainer.strategy.checkpoint_io.keeps_notes
        source = saved.read(files.resolve(trainer.ckpt_path))
        others = source.note.get("kept", []) if source is not None else []
        bare = {other["name"] for other in others if other["sha256"] is None}
        named = {self.last_model_path: None, self.best_model_path: self.best_model_score, **self.best_k_models}
        result = []
        for path, score in named.items():
            may_be_bare = source is None or not source.note or self._name(path) in bare
            if path in here and path not in found and self._is_inside(path) and may_be_bare:
                file = saved.read(path)
                if (file is None and not are_files) or (file is not None and not file.note):
                    kind = "last" if path == self.last_model_path else "best"
                    result.append(Saved(path, {"kind": kind, "score": _as_json(score)}, file.time_s if file else 0.0))
        return result

    def _is_inside(self, path: str) -> bool:
        """Whether a path is in the directory of this callback."""
        assert self.dirpath is not None
        if files.is_local(path):
            folder = Path(files.resolve(os.path.dirname(path)))  # the file itself may be a link, as `last` is
            return Path(files.resolve(self.dirpath)) in (folder, *folder.parents)
        return path.startswith(self.dirpath.rstrip("/") + "/")

    def _remove(self, trainer: Trainer, path: str) -> None:
        """Remove a file that left the ranking, unless it is in use, or not this run's to remove."""
        if not path or path in {*self.best_k_models, self.best_model_path, self.last_model_path}:
            return
        is_source = bool(trainer.ckpt_path) and files.resolve(trainer.ckpt_path) == files.resolve(path)
        may = not is_source and self._is_inside(path) and trainer.is_global_zero and self._is_ours(path)
        self._saved = {other: file for other, file in self._saved.items() if other != path}
        if trainer.strategy.broadcast(may):
            try:
                trainer.strategy.remove_checkpoint(path)
            except OSError as error:
                rank_zero_warn(f"ModelCheckpoint does not need {path} any more, but could not remove it: {error}")


def _link(trainer: Trainer, target: str, link: str) -> None:
    """Put a relative link to `target` in place of `link`, or a copy where links are not allowed.

    Raises:
        CheckpointNotSaved: neither can be made; on rank 0.
    """
    temporary = f"{link}.tmp"

    def make() -> None:
        try:
            files.remove(temporary)  # of a process that was killed here
            try:
                os.symlink(os.path.relpath(target, os.path.dirname(link)), temporary)
            except OSError:  # Windows without the right to make links
                copy = shutil.copytree if os.path.isdir(target) else shutil.copy
                copy(target, temporary)
            if os.path.isdir(link) and not os.path.islink(link):
                files.remove(link)
            os.replace(temporary, link)
        except OSError as error:
            files.remove(temporary)
            raise CheckpointNotSaved(f"{link} does not point to {target}: {error}.") from error

    if trainer.is_global_zero:
        trainer.strategy.checkpoint_io.after_saving(make)
    trainer.strategy.barrier("ModelCheckpoint link")


def _as_floats(scores: Mapping[str, Tensor]) -> dict[str, float]:
    return {path: float(score) for path, score in scores.items()}


def _as_json(score: Tensor | None) -> int | float | str | None:
    return None if score is None else saved.as_json(score.item())


def _as_tensor(score: int | float | None, worst: Tensor) -> Tensor:
    """A score as it was logged: a note has the digits of a float32, or of a float64 where those are more."""
    if score is None or score != score:
        return worst
    short = torch.tensor(score)
    return short if short.item() == score else torch.tensor(score, dtype=torch.float64)


def _check_arguments(monitor: str | None, save_last: object, save_top_k: int, mode: str) -> None:
    check_mode("ModelCheckpoint", mode)
    if monitor is not None:
        check_monitor("ModelCheckpoint", monitor)
    if not isinstance(save_top_k, int) or save_top_k < -1:
        raise MisconfigurationException(
            f"ModelCheckpoint(save_top_k={save_top_k!r}) should be at least 0, the number of files to keep, "
            "or -1 to keep all."
        )
    if monitor is None and save_top_k > 1:
        raise MisconfigurationException(
            f"ModelCheckpoint(save_top_k={save_top_k}, monitor=None) has nothing to rank files by. Name a logged "
            "metric as `monitor`, for example 'step' with mode='max' to keep the newest, or use save_top_k=1 or -1."
        )
    if save_last not in (None, True, False, "link"):
        raise MisconfigurationException(f"ModelCheckpoint(save_last={save_last!r}) should be True, False or 'link'.")


def _check_triggers(
    every_n_train_steps: int | None, train_time_interval: timedelta | None, every_n_epochs: int | None
) -> None:
    for name, value in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
        if value is not None and not (isinstance(value, int) and value >= 0):
            raise MisconfigurationException(
                f"ModelCheckpoint({name}={value!r}) should be at least 0, where 0 is never."
            )
    if not isinstance(train_time_interval, (timedelta, type(None))):
        raise MisconfigurationException(
            f"ModelCheckpoint(train_time_interval={train_time_interval!r}) should be a `datetime.timedelta`, as in "
            "timedelta(minutes=30)."
        )
    if bool(every_n_train_steps) + (train_time_interval is not None) + bool(every_n_epochs) > 1:
        raise MisconfigurationException(
            f"ModelCheckpoint(every_n_train_steps={every_n_train_steps!r}, every_n_epochs={every_n_epochs!r}, "
            f"train_time_interval={train_time_interval!r}): these triggers are mutually exclusive. Use one of them, "
            "and a second ModelCheckpoint for another."
        )
