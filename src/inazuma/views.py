"""`trainer.fit_loop` and its like: the names under which Lightning's users look at position and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inazuma.progress import Limits, Next, Progress

if TYPE_CHECKING:
    from inazuma.attributes import Attributes


class Counts:
    """How often something was done: `ready`, `started`, `processed` and `completed` times."""

    def __init__(self, done: int, is_open: bool = False) -> None:
        self.ready = self.started = done + is_open
        self.processed = self.completed = done


class Tracker:
    """`total` and `current` counts."""

    def __init__(self, total: Counts, current: Counts, is_last_batch: bool = False) -> None:
        self.total, self.current, self.is_last_batch = total, current, is_last_batch


class EpochLoopView:
    """`trainer.fit_loop.epoch_loop`."""

    def __init__(self, trainer: Attributes, at: Progress, limits: Limits) -> None:
        self.trainer, self._at, self._limits = trainer, at, limits

    @property
    def batch_idx(self) -> int:
        """The index of the batch in work, or of the last one; -1 before the first."""
        return self._at.batch - (self._at.next != Next.TAKE_BATCH)

    @property
    def total_batch_idx(self) -> int:
        return self._at.total_batches - (self._at.next != Next.TAKE_BATCH)

    @property
    def global_step(self) -> int:
        return self._at.step

    @property
    def batch_progress(self) -> Tracker:
        return Tracker(Counts(self._at.total_batches), Counts(self._at.batch), self._at.is_last_batch)

    @property
    def _batches_that_stepped(self) -> int:
        return self._at.stepped_batches

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, count: int) -> None:
        self._at.stepped_batches = count


class FitLoopView:
    """`trainer.fit_loop`: position and limits of training; limits can be set."""

    def __init__(self, trainer: Attributes, at: Progress, limits: Limits) -> None:
        self.trainer, self._at, self._limits = trainer, at, limits
        self.epoch_loop = EpochLoopView(trainer, at, limits)

    @property
    def max_epochs(self) -> int | None:
        return self._limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, value: int | None) -> None:
        self._limits.max_epochs = value

    @property
    def min_epochs(self) -> int | None:
        return self._limits.min_epochs

    @min_epochs.setter
    def min_epochs(self, value: int | None) -> None:
        self._limits.min_epochs = value

    @property
    def max_steps(self) -> int:
        return self._limits.max_steps

    @max_steps.setter
    def max_steps(self, value: int) -> None:
        self._limits.max_steps = value

    @property
    def min_steps(self) -> int | None:
        return self._limits.min_steps

    @min_steps.setter
    def min_steps(self, value: int | None) -> None:
        self._limits.min_steps = value

    @property
    def skip_backward(self) -> bool:
        """True: batches are only run forward; nothing is learned."""
        return self._limits.skip_backward

    @skip_backward.setter
    def skip_backward(self, value: bool) -> None:
        self._limits.skip_backward = value

    @property
    def max_batches(self) -> int | float:
        return self.trainer.num_training_batches

    @property
    def epoch_progress(self) -> Tracker:
        is_open = self._at.next != Next.START_EPOCH
        return Tracker(Counts(self._at.epoch, is_open), Counts(self._at.epoch, is_open))
