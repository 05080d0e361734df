"""Measure how long a run takes, and end training when its time is up."""

from __future__ import annotations

import time
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.callback import Callback
from inazuma.duration import Duration, parse_duration
from inazuma.errors import MisconfigurationException
from inazuma.ranks import rank_zero_info

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


STAGES = ("train", "sanity_check", "validate", "test", "predict")


class Interval(str, Enum):
    """When a `Timer` looks at the clock."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measure the time spent in each stage, and ask the Trainer to stop when `duration` is used up by training.

    A stage is one of "train", "sanity_check", "validate", "test" and "predict"; "train" includes the validation in it.
    The time of training goes on counting when a run is resumed from a checkpoint.

    Args:
        duration: how long to train: "DD:HH:MM:SS", a `timedelta`, or a dict of its arguments. None only measures.
        interval: look at the clock after each batch ("step") or each "epoch".
        verbose: say so when the time is up.

    Raises:
        MisconfigurationException: `duration` or `interval` is none of these.
    """

    def __init__(self, duration: Duration | None = None, interval: str = Interval.step, verbose: bool = True) -> None:
        super().__init__()
        if interval not in list(Interval):
            raise MisconfigurationException(
                f"Unsupported parameter value `Timer(interval={interval!r})`. "
                f"Its choices are: {', '.join(word.value for word in Interval)}."
            )
        self._duration_s = None if duration is None else parse_duration(duration, "Timer(duration=...)").total_seconds()
        self._interval = Interval(interval)
        self._verbose = verbose
        self._start_s: dict[str, float] = {}  # monotonic clock, by stage
        self._end_s: dict[str, float] = {}
        self._trained_before_s = 0.0  # in the runs that this one continues

    def start_time(self, stage: str = "train") -> float | None:
        """When the stage began last, in seconds on the monotonic clock; None before."""
        return self._start_s.get(_known(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """When the stage ended, in seconds on the monotonic clock; None before."""
        return self._end_s.get(_known(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Seconds spent in the stage, so far if it still runs; for "train" with those before a resume."""
        start, end = self.start_time(stage), self.end_time(stage)
        before = self._trained_before_s if stage == "train" else 0.0
        if start is None:
            return before
        return before + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = "train") -> float | None:
        """Seconds left of `duration`; None without one."""
        return None if self._duration_s is None else self._duration_s - self.time_elapsed(stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._duration_s is not None:  # a resumed run may have no time left
            self._stop_if_time_is_up(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("train")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("train")

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("sanity_check")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("sanity_check")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start("predict")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end("predict")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._duration_s is not None and self._interval is Interval.step:
            self._stop_if_time_is_up(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._duration_s is not None and self._interval is Interval.epoch:
            self._stop_if_time_is_up(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in STAGES}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._trained_before_s = state_dict.get("time_elapsed", {}).get("train", 0.0)

    def _start(self, stage: str) -> None:
        self._start_s[stage] = time.monotonic()
        self._end_s.pop(stage, None)

    def _end(self, stage: str) -> None:
        self._end_s[stage] = time.monotonic()

    def _stop_if_time_is_up(self, trainer: Trainer) -> None:
        assert self._duration_s is not None
        # the clocks of the ranks differ, and all must stop after the same batch: rank 0 decides; a collective
        is_up = trainer.strategy.broadcast(self.time_elapsed() >= self._duration_s)
        if is_up and self._verbose and not trainer.should_stop:
            elapsed = timedelta(seconds=int(self.time_elapsed()))
            rank_zero_info(f"Time limit reached: {elapsed} of training have passed. Signaling Trainer to stop.")
        trainer.should_stop = trainer.should_stop or is_up


def _known(stage: str) -> str:
    if stage not in STAGES:
        raise ValueError(f"Timer: {stage!r} is no stage. Use one of {', '.join(STAGES)}.")
    return str(stage.value) if isinstance(stage, Enum) else stage
