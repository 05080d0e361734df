"""What the Trainer is doing: the function called, its stage, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class _Word(str, Enum):
    """An enum whose members are their words, so that `state.fn == "fit"` holds."""

    def __str__(self) -> str:
        return str(self.value)


class TrainerStatus(_Word):
    """How the last call of the Trainer stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        return self in (self.FINISHED, self.INTERRUPTED)


class TrainerFn(_Word):
    """The Trainer's function that was called."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class RunningStage(_Word):
    """What runs now; `fit` goes through several stages."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        return self in (self.VALIDATING, self.TESTING, self.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str | None:
        """The word of this stage in `<word>_dataloader` and `limit_<word>_batches`."""
        return "val" if self in (self.VALIDATING, self.SANITY_CHECKING) else self.value


@dataclass
class TrainerState:
    """The Trainer's public state: `status`, `fn` and `stage`; None where nothing was called yet."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        return self.status is TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        return self.status.stopped
