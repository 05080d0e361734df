"""The loaders of one stage: where they come from, how long they are, and how they are walked."""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from inazuma.data.combined import CombinedLoader
from inazuma.data.parts import Part, PlainPart, with_indices
from inazuma.errors import MisconfigurationException, PossibleUserWarning
from inazuma.progress import Limits, batches_of, length_of
from inazuma.ranks import rank_zero_warn
from inazuma.seed import pl_worker_init_function
from inazuma.signals import WorkerInit, shielding

if TYPE_CHECKING:
    from inazuma.run import Run


class Loaders:
    """The loaders of one stage, asked for when first needed.

    Args:
        stage: "train", "val", "test" or "predict".
        given: loaders passed to the Trainer; None where a hook gives them.
        owner: the datamodule or module whose `<stage>_dataloader` is asked; None where loaders were passed.
        passed_as: how the user passed them, for messages: "Trainer.fit(train_dataloaders=...)".
        limits: the Trainer's limits.
        exact: `Trainer(exact_resume=...)`.
    """

    def __init__(self, stage: str, given: Any, owner: Any, passed_as: str, limits: Limits, exact: bool) -> None:
        self.stage, self.given, self.owner, self.passed_as, self.limits = stage, given, owner, passed_as, limits
        self.exact = exact
        self.loaders: Any = None  # as the user made them: one, or a collection
        self.combined: CombinedLoader | None = None
        self.parts: list[Any] = []  # of the collection, in a flat list
        self.walks: list[Part | PlainPart] = []  # how each of them is walked
        self.batches: list[int | float] = []  # to take of each part
        self.seen: list[int] = []  # batches evaluated of each part, in this run
        self.opened_in_epoch: int | None = None
        self._theirs: list[tuple[DataLoader[Any], Any, Any]] = []  # loaders, with how they start workers without a run

    @property
    def hook(self) -> str:
        return f"{self.stage}_dataloader"

    @property
    def name(self) -> str:
        """Where the loaders come from, in the user's words."""
        return self.passed_as if self.owner is None else f"{type(self.owner).__name__}.{self.hook}()"

    @property
    def is_there(self) -> bool:
        """Whether there is anything to ask for loaders."""
        return self.owner is not None or self.given is not None

    @property
    def limit(self) -> int | float:
        return getattr(self.limits, f"limit_{self.stage}_batches")  # type: ignore[no-any-return]

    @property
    def is_several(self) -> bool:
        """Whether evaluation walks several loaders one after the other."""
        return len(self.parts) > 1 and self.combined is not None and self.combined.mode == "sequential"

    @property
    def num_batches(self) -> int | float:
        """The number of batches of one pass over loaders that are walked side by side; `inf` where unknown."""
        return self._side_by_side(self.batches)

    def _side_by_side(self, batches: list[int | float]) -> int | float:
        size = min if self.combined is not None and self.combined.mode == "min_size" else max
        return size(batches, default=0)

    def open(self, run: Run, epoch: int) -> bool:
        """Ask for the loaders if they are not there yet, or are to be asked for again. Returns whether to walk them."""
        if not self.is_there or self.limit == 0:
            return False
        every = self.limits.reload_dataloaders_every_n_epochs
        since = math.inf if self.opened_in_epoch is None else epoch - self.opened_in_epoch
        is_due = bool(every) and run.is_fitting and since >= every
        if self.combined is None or is_due:
            stands_for_older = not is_due and self.opened_in_epoch is not None  # those of the run that is resumed
            self._ask(run)
            if not stands_for_older and not (run.is_sanity_checking and not self.limits.validates_in_epoch(epoch)):
                self.opened_in_epoch = epoch
            if self.stage == "train" and self.num_batches:
                self.limits.set_val_check_batch(self.num_batches, run.validates)
                self._warn_of_log_interval(run)
        return self.num_batches > 0 if self.stage == "train" else sum(self.batches) > 0

    def _ask(self, run: Run) -> None:
        self.close()
        loaders = self.given
        if self.owner is not None:
            loaders = run.hooks.call(self.hook, getattr(self.owner, self.hook))
        mode = "max_size_cycle" if self.stage == "train" else "sequential"
        # of the user's own we walk a copy: what is set on it stays in this run
        combined = copy.copy(loaders) if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, mode)
        self._check_mode(combined)
        self.loaders, self.combined = loaders, combined
        self.parts = [self._ready(part, run) for part in combined.flattened]
        if any(new is not old for new, old in zip(self.parts, combined.flattened, strict=True)):
            combined.flattened = self.parts
            if not isinstance(loaders, CombinedLoader):
                self.loaders = combined.iterables
        self.walks = [Part(part, self.name) if self.exact else PlainPart(part) for part in self.parts]
        self.seen = [0] * max(len(self.parts), 1)
        self.batches = [self._length(part) for part in self.parts]
        combined.limits = self.batches

    def _check_mode(self, combined: CombinedLoader) -> None:
        if self.stage == "train" and combined.mode == "sequential":
            raise ValueError(
                f'`{self.name}` gave a `CombinedLoader(mode="sequential")`, which cannot be trained on. '
                "The available modes are: ['min_size', 'max_size_cycle', 'max_size']."
            )
        if self.stage == "predict" and combined.mode != "sequential":
            raise ValueError(
                f"`{self.name}` has `CombinedLoader(mode={combined.mode!r})`, but `trainer.predict()` takes one loader "
                "after the other. Use mode='sequential'."
            )

    def _ready(self, loader: Any, run: Run) -> Any:
        """Check one loader, and adapt it where the Trainer's arguments ask for it."""
        cannot_be_walked = not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__")
        if cannot_be_walked or isinstance(loader, (str, bytes, type)):
            problem = "is a class, not an instance of it" if isinstance(loader, type) else "cannot be iterated"
            if isinstance(loader, (str, bytes)):
                problem = "is a text, not data"
            raise TypeError(
                f"An invalid dataloader was given by `{self.name}`: {loader!r} {problem}. "
                "Give a DataLoader, any other iterable of batches, or a collection of them."
            )
        if not isinstance(loader, DataLoader):
            return loader
        if loader.num_workers and not isinstance(loader.worker_init_fn, WorkerInit):
            self._theirs.append((loader, loader.worker_init_fn, loader.multiprocessing_context))
            init = loader.worker_init_fn
            if init is None and os.environ.get("PL_SEED_WORKERS", "0") == "1":
                init = partial(pl_worker_init_function, rank=run.strategy.global_rank)
            loader.worker_init_fn = WorkerInit(init)
            loader.multiprocessing_context = shielding(loader.multiprocessing_context)
        is_map_style = not isinstance(loader.dataset, IterableDataset)
        if self.stage in ("train", "val") and self.limits.overfit_batches > 0 and run.is_fitting:
            if is_map_style and not isinstance(loader.sampler, SequentialSampler):
                rank_zero_warn(
                    f"Trainer(overfit_batches=...) wants the same batches in every epoch: turning off the {self.stage} "
                    "dataloader shuffling. Give a loader with shuffle=False to silence this."
                )
                return _unshuffled(loader)
        elif self.stage != "train" and isinstance(loader.sampler, RandomSampler):
            rank_zero_warn(
                f"Your `{self.hook}`'s sampler has shuffling enabled: outputs of two runs are hard to compare then. "
                "Use shuffle=False, as only training needs it.",
                category=PossibleUserWarning,
            )
        if self.stage == "predict" and is_map_style and getattr(loader.batch_sampler, "drop_last", False):
            return _with_last(loader)  # a prediction for each sample, whatever the loader was made for
        return loader

    def _length(self, part: Any) -> int | float:
        length = length_of(part)
        if length == 0:
            rank_zero_warn(
                f"The loader of `{self.name}` has no batches: `len()` of the `{type(part).__name__}` is 0. "
                "Is the data set empty, or smaller than a batch with `drop_last=True`?"
            )
        return batches_of(self.limit, length, f"limit_{self.stage}_batches", self.name)

    def _warn_of_log_interval(self, run: Run) -> None:
        every = self.limits.log_every_n_steps
        if run.logbook.loggers and self.num_batches < every and not self.limits.fast_dev_run:
            rank_zero_warn(
                f"The number of training batches per epoch, {self.num_batches}, is smaller than the logging interval: "
                f"some epochs log no steps. Use less than Trainer(log_every_n_steps={every}) to see each.",
                category=PossibleUserWarning,
            )

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers that want to know which epoch begins."""
        for part in self.parts:
            batch_sampler = getattr(part, "batch_sampler", None)
            for sampler in (getattr(part, "sampler", None), getattr(batch_sampler, "sampler", None)):
                if callable(tell := getattr(sampler, "set_epoch", None)):
                    tell(epoch)

    def streams(self, epoch: int, limit: int | float | None = None) -> Iterator[tuple[int, Iterable[Any]]]:
        """Each loader of an evaluation with its index; loaders that are walked in parallel count as one."""
        combined, most = self.combined, math.inf if limit is None else limit
        assert combined is not None
        if combined.mode == "sequential":
            for idx, (walk, batches) in enumerate(zip(self.walks, self.batches, strict=True)):
                count = min(batches, most)
                whole = None if math.isinf(count) else int(count)
                yield idx, islice(walk.begin(epoch, most=whole, is_training=False), whole) if count else ()
        else:
            batches = self._side_by_side([min(batches, most) for batches in self.batches])
            combined.open_part = lambda _, index: self.walks[index].begin(epoch, is_training=False)
            rows = (batch for batch, _, _ in combined)
            yield 0, rows if math.isinf(batches) else islice(rows, int(batches))

    def close(self) -> None:
        """End worker processes that live on between passes, and leave the user's loaders as they were."""
        for walk in self.walks:
            walk.close()
        if self.combined is not None:
            self.combined.let_go()
        for loader, worker_init_fn, context in self._theirs:
            loader.worker_init_fn, loader.multiprocessing_context = worker_init_fn, context
        self._theirs = []


def _unshuffled(loader: DataLoader[Any]) -> DataLoader[Any]:
    sampler = SequentialSampler(loader.dataset)  # type: ignore[arg-type]
    if loader.batch_sampler is None:
        return with_indices(loader, sampler=sampler)
    batches = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
    return with_indices(loader, sampler=sampler, batch_sampler=batches)


def _with_last(loader: DataLoader[Any]) -> DataLoader[Any]:
    batches = copy.copy(loader.batch_sampler)
    batches.drop_last = False  # type: ignore[union-attr]
    return with_indices(loader, batch_sampler=batches, drop_last=False)


def death_of_worker(error: BaseException) -> RuntimeError | None:
    """The error to raise in the place of what the main process sees when a worker of a DataLoader is killed.

    That is a broken connection, the end of a file, or torch's own error, whichever comes first. Torch's comes with a
    signal, at any moment: it is awaited here, so that it does not break into what is done at the end of a run.
    """
    said = str(error)
    if not isinstance(error, RuntimeError) or not said.startswith("DataLoader worker ("):
        frames = traceback.walk_tb(error.__traceback__)
        waits_for_worker = any(frame.f_code.co_name == "_try_get_data" for frame, _ in frames)
        if not waits_for_worker or not isinstance(error, (OSError, EOFError)):
            return None
        try:
            ended = wait([process.sentinel for process in active_children()], timeout=5)  # for the others, not long
            torch._C._error_if_any_worker_fails()
        except RuntimeError as of_torch:
            said = str(of_torch)
        else:
            if not ended:
                return None
            said = "DataLoader worker ended."
    return RuntimeError(
        f"{said.strip()} A process that `num_workers` asks for died: it was killed, as for want of memory, or its code "
        "crashed. num_workers=0 shows where; fewer workers and smaller batches need less memory."
    )


def message_first(error: BaseException) -> None:
    """Put what an exception of a DataLoader's worker says in front of its traceback; torch puts it behind."""
    text = error.args[0] if len(error.args) == 1 else None
    if not isinstance(text, str) or not text.startswith("Caught ") or "\nOriginal Traceback" not in text:
        return
    lines = text.rstrip().splitlines()
    behind = 1 + max(index for index, line in enumerate(lines) if line.startswith("  "))
    kind = type(error)
    said = "\n".join(lines[behind:]).removeprefix(f"{kind.__module__}.").removeprefix(f"{kind.__qualname__}: ")
    if said:
        error.args = (type(text)("\n".join([said, "", *lines[:behind]])),)  # torch gives KeyError its own kind of str


def request_error(stage: str) -> MisconfigurationException:
    """The error for a stage that nobody gives loaders for."""
    words = {"train": "training", "val": "validation", "test": "test", "predict": "prediction"}
    return MisconfigurationException(
        f"No {words[stage]} data: `{stage}_dataloader` must be implemented in the LightningModule or the "
        "LightningDataModule, or loaders must be passed to the Trainer."
    )
