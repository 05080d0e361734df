"""One process of `inazuma verify-resume`: the user's script, watched, and perhaps killed at a moment.

Reads a `Plan` as JSON, and leaves in its folder the digest of the first fit (`digest.bin`) and `Result` as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from inazuma.callbacks.run_digest import RunDigest
from inazuma.cli.program import Program
from inazuma.fingerprints import Generators, of_batch, resolve
from inazuma.seed import seed_everything
from inazuma.trainer import Trainer

if TYPE_CHECKING:
    from inazuma.module import LightningModule

RESULT_NAME = "result.json"
CHECKPOINT_NAME = "killed.ckpt"
WORDS = ("auto", "last", "best", "hpc")  # as `ckpt_path`: the newest file, or another, of those that there are
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


class Moment(NamedTuple):
    """When a hook is called."""

    hook: str
    epoch: int
    batches: int  # trained in this epoch
    inner: int = 0  # of a validation: its batches before this one
    loader: int = 0  # of a validation: which of its loaders
    window_is_open: bool = False  # the batch makes no optimizer step

    def __str__(self) -> str:
        behind = f"epoch {self.epoch}, behind batch {self.batches - 1}"
        if self.hook == "on_validation_batch_end":
            return f"{behind}, in batch {self.inner} of a validation"
        if self.hook == "on_train_epoch_end":
            return f"the end of epoch {self.epoch}"
        return f"{behind}, inside an accumulation window" if self.window_is_open else behind


@dataclass
class Plan:
    """What one process is to do.

    Args:
        program: name, argv, is_module of the `Program`.
        folder: where results go.
        seed: of the generators before the script begins, for scripts that do not seed.
        ckpt_path: what the first fit resumes from; None for the start, or for a file that the program names.
        kill: save a checkpoint at this moment, and then be killed; None to run to the end.
        later: how many moments after that.
    """

    program: dict[str, Any]
    folder: str
    seed: int
    ckpt_path: str | None = None
    kill: Moment | None = None
    later: int = 0


@dataclass
class Result:
    """What one process leaves behind. `end` is empty where it was killed."""

    fits: int = 0
    is_exact: bool = True  # `Trainer(exact_resume=...)`
    was_killed: bool = False  # as planned
    start: tuple[int, int] | None = None  # epoch and batches done when training began
    moments: list[Moment] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)


class Watcher(RunDigest):
    """The digest of a process's first fit, in the tool's folder; it saves and kills at the moment asked for."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.folder)
        self.plan, self.result = plan, Result()
        self._left: int | None = None  # how many moments until the kill

    @property
    def is_watching(self) -> bool:
        return self.result.fits == 1

    @property
    def decides(self) -> bool:
        return not self.result.fits

    def join(self, trainer: Trainer) -> None:
        trainer.callbacks = [*trainer.callbacks, self]

    def resume_from(self, ckpt_path: Any) -> Any:
        if self.plan.ckpt_path is not None:
            return self.plan.ckpt_path
        return None if ckpt_path in WORDS else ckpt_path  # the processes before have left files

    def state_dict(self) -> dict[str, int]:
        self.flush()
        return {}  # nothing of the tool is left in the user's checkpoints

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.result.fits += 1
            if self.is_watching:
                self.result.is_exact = trainer.exact_resume
            self._write()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_watching:
            self.result.start = (trainer.current_epoch, trainer.progress.batch)
            super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_open = not trainer.limits.closes_window(batch_idx, trainer.is_last_batch)
        self._moment(trainer, "on_train_batch_end", window_is_open=is_open)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._moment(trainer, "on_validation_batch_end", batch_idx, dataloader_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._moment(trainer, "on_train_epoch_end")

    def _moment(
        self, trainer: Trainer, hook: str, inner: int = 0, loader: int = 0, window_is_open: bool = False
    ) -> None:
        if not self.is_watching:
            return
        moment = Moment(hook, trainer.current_epoch, trainer.progress.batch, inner, loader, window_is_open)
        self.result.moments.append(moment)
        if self._left is not None:
            self._left -= 1
        elif moment == self.plan.kill:
            trainer.save_checkpoint(Path(self.plan.folder) / CHECKPOINT_NAME)
            self._left = self.plan.later
        if self._left == 0:
            self._kill()

    def _kill(self) -> None:
        self.flush()
        self.result.was_killed = True
        self._write()
        os.kill(os.getpid(), signal.SIGKILL)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if stage == "fit" and self.is_watching:
            if self._left is not None:  # the run ended before
                self._kill()
            self.result.end = end_of(trainer, pl_module)
            self._write()

    def _write(self) -> None:
        path = Path(self.plan.folder) / RESULT_NAME
        path.write_text(json.dumps(asdict(self.result)))


def end_of(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What the end of a training comes to, each part as a hash or number: what must be equal for it to be the same."""
    state = module.state_dict()
    parts = {f"weights of {name}": tensor for name, tensor in state.items()}
    for i, optimizer in enumerate(trainer.optimizers):
        parts[f"state of optimizer {i}"] = optimizer.state_dict()
    for i, config in enumerate(trainer.lr_scheduler_configs):
        parts[f"state of learning-rate schedule {i}"] = config.scheduler.state_dict()
    hashes = dict(zip(parts, resolve([of_batch(part) for part in parts.values()]), strict=True))
    metrics = {f"metric {name}": float(value).hex() for name, value in trainer.callback_metrics.items()}
    position = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
    return {**position, **hashes, **metrics, "random generators": Generators().hash()}


def main() -> None:
    """Do what the plan, a file named by the first argument, says."""
    content = json.loads(Path(sys.argv[1]).read_text())
    if content["kill"] is not None:
        content["kill"] = Moment(*content["kill"])
    plan = Plan(**content)
    before = {name: os.environ.get(name) for name in SEED_VARIABLES}
    seed_everything(plan.seed, verbose=False)
    for name, value in before.items():  # whether the script seeds is its own matter
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    Program(**plan.program).run(Watcher(plan))
