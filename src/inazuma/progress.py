"""Where training stands (`Progress`), and when to stop, step, validate and log (`Limits`).

Every counter and every rule of the form "is it time?" is here, once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sized
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum

from inazuma.duration import parse_duration
from inazuma.errors import MisconfigurationException, PossibleUserWarning
from inazuma.ranks import rank_zero_info, rank_zero_warn


class Next(IntEnum):
    """What training does next. Written before an event is fired, so that a checkpoint saved in the event knows."""

    START_EPOCH = 0
    TAKE_BATCH = 1
    REPORT = 2  # hand the batch's metrics to the loggers
    VALIDATE = 3  # if it is time
    COUNT = 4  # schedules that wait for metrics; count the batch as stepped
    END_EPOCH = 5  # means of the epoch, on_train_epoch_end
    FINISH_EPOCH = 6  # schedules that wait for metrics; hand the epoch's metrics to the loggers


@dataclass
class Progress:
    """Where training stands. The loop writes it, a checkpoint stores it, a resume reads it."""

    epoch: int = 0  # the index of the running epoch, or how many are done
    batch: int = 0  # finished in this epoch
    step: int = 0  # optimizer steps, over all optimizers and epochs: `global_step`
    total_batches: int = 0  # finished in all epochs
    stepped_batches: int = 0  # batches that ended in an optimizer step: the x axis of loggers
    schedule_steps: int = 0  # of learning-rate schedules
    validated_batches: int = 0  # in this epoch
    is_last_batch: bool = False  # of the epoch
    next: Next = Next.START_EPOCH
    dropped_steps: int = 0  # bad ones, which were not made (`Trainer(bad_steps=...)`), over all epochs
    dropped_in_a_row: int = 0  # up to the last one of them
    last_dropped_step: int = 0  # what `step` was then
    drops_window: bool = False  # the window in work is bad and makes no step

    def state_dict(self) -> dict[str, int]:
        return {name: int(value) for name, value in vars(self).items()}

    def begin_anew(self) -> None:
        """Give up the place inside an epoch: a run that broke off is started again without a checkpoint."""
        if self.next == Next.FINISH_EPOCH:
            self.epoch += 1
        self.next = Next.START_EPOCH

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.__dict__.update(state, is_last_batch=bool(state["is_last_batch"]), next=Next(state["next"]))
        self.drops_window = bool(state.get("drops_window", False))


def as_limit(value: int | float | None, name: str, default: float = 1.0) -> int | float:
    """Check `Trainer(limit_*_batches=...)` and its like: an int is a number of batches, a float a share of them.

    Raises:
        MisconfigurationException: a negative number, or a float that is neither a share nor whole.
    """
    if value is None:
        return default
    is_number = isinstance(value, (int, float))
    if is_number and 0 <= value <= 1:
        if value == 1:
            batches = "1 batch" if isinstance(value, int) else "all batches"
            rank_zero_info(f"`Trainer({name}={value!r})` was configured so {batches} per epoch will be used.")
        return value
    if is_number and value > 1 and value % 1.0 == 0:
        return int(value)
    raise MisconfigurationException(
        f"Trainer({name}={value!r}) is neither a number of batches nor a share of them. "
        "Give an int of at least 0, or a float between 0.0 and 1.0."
    )


def batches_of(limit: int | float, length: int | float, name: str, hook: str) -> int | float:
    """How many of `length` batches (`inf` where unknown) the limit leaves.

    Raises:
        MisconfigurationException: a share of an unknown length, or a share that leaves no batch.
    """
    if isinstance(limit, int) or length == 0:
        return min(length, limit)
    if math.isinf(length):
        if limit in (0.0, 1.0):
            return length if limit else 0
        raise MisconfigurationException(
            f"Trainer({name}={limit!r}) is a share of the batches, but the loader of `{hook}` has no length. "
            f"Use an int, 0.0 or 1.0: an int k takes the first k batches."
        )
    count = int(length * limit)
    if count == 0 and limit > 0.0:
        raise MisconfigurationException(
            f"Trainer({name}={limit!r}) of the {length} batches of `{hook}` is less than one batch. "
            f"Use at least {name}={1 / length}."
        )
    return count


def length_of(loader: object) -> int | float:
    """The number of batches of a loader; `inf` where it does not say."""
    if not isinstance(loader, Sized):
        return math.inf
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # a DataLoader over an IterableDataset without a length
        return math.inf


# Arguments of the Trainer that are counts: the least value, and what more there is to say.
_COUNTS = (
    ("max_epochs", -1, " (-1 means no limit)"),
    ("max_steps", -1, " (-1 means no limit)"),
    ("min_epochs", 0, ""),
    ("min_steps", 0, ""),
    ("log_every_n_steps", 0, " (0 means never)"),
    ("accumulate_grad_batches", 1, "; `GradientAccumulationScheduler` takes another number for each epoch"),
    ("reload_dataloaders_every_n_epochs", 0, ""),
)
_MAY_BE_NONE = ("max_epochs", "min_epochs", "min_steps")


@dataclass
class Limits:
    """When to stop, step, validate and log: the Trainer's arguments on time, checked, in one place.

    Args: those of `Trainer` with the same names.

    Raises:
        MisconfigurationException: an argument outside its range.
    """

    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    limit_predict_batches: int | float = 1.0
    overfit_batches: int | float = 0.0
    fast_dev_run: int | bool = False
    val_check_interval: int | float | str | timedelta | dict[str, int] | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | float = 2
    log_every_n_steps: int = 50
    accumulate_grad_batches: int = 1
    reload_dataloaders_every_n_epochs: int = 0
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None

    should_stop: bool = field(default=False, init=False)  # somebody asked for the end
    skip_backward: bool = field(default=False, init=False)  # only forward passes: no gradients, no steps
    val_time_interval_s: float | None = field(default=None, init=False)
    val_check_batch: int | float | None = field(default=None, init=False)  # known once the train loader is
    last_validation_at_s: float = field(default=0.0, init=False)  # monotonic clock
    said: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._check_counts()
        for stage in ("train", "val", "test", "predict"):
            name = f"limit_{stage}_batches"
            setattr(self, name, as_limit(getattr(self, name), name))
        self.overfit_batches = as_limit(self.overfit_batches, "overfit_batches", default=0.0)
        self._set_validation_interval()
        if self.fast_dev_run is True:
            self.fast_dev_run = 1
        if self.fast_dev_run:
            self._set_fast_dev_run(int(self.fast_dev_run))
        if self.overfit_batches > 0:
            self.limit_train_batches = self.limit_val_batches = self.overfit_batches

    def _check_counts(self) -> None:
        for name, least, hint in _COUNTS:
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, int) or value < least:
                raise MisconfigurationException(
                    f"Trainer({name}={value!r}) should be an int of at least {least}{hint}."
                )
        if not isinstance(self.fast_dev_run, (bool, int)) or self.fast_dev_run < 0:
            raise MisconfigurationException(
                f"Trainer(fast_dev_run={self.fast_dev_run!r}) should be a bool or the number of batches to run, >= 0."
            )
        sanity = self.num_sanity_val_steps
        if sanity == -1:
            self.num_sanity_val_steps = math.inf
        elif sanity != math.inf and not (isinstance(sanity, int) and sanity >= 0):
            raise MisconfigurationException(
                f"Trainer(num_sanity_val_steps={sanity!r}) should be the number of validation batches before training: "
                "an int of at least 0, or -1 for all."
            )
        every = self.check_val_every_n_epoch
        if every is not None and not (isinstance(every, int) and every >= 1):
            raise MisconfigurationException(
                f"Trainer(check_val_every_n_epoch={every!r}) should be an int of at least 1, or None to count batches "
                "across epochs. limit_val_batches=0 switches validation off."
            )

    def _set_validation_interval(self) -> None:
        interval = self.val_check_interval
        if isinstance(interval, (str, timedelta, dict)):
            self.val_time_interval_s = parse_duration(interval, "Trainer(val_check_interval=...)").total_seconds()
            return
        if self.check_val_every_n_epoch is None and isinstance(interval, float):
            raise MisconfigurationException(
                f"Trainer(val_check_interval={interval!r}, check_val_every_n_epoch=None) asks for a share of an epoch "
                "while counting batches across epochs. Use an int, the number of batches between validations."
            )
        self.val_check_interval = as_limit(interval, "val_check_interval")
        if self.val_check_interval == 0 and isinstance(self.val_check_interval, int):
            raise MisconfigurationException(
                "Trainer(val_check_interval=0) asks for validation after every 0 batches. Use an int of at least 1, "
                "a share of an epoch such as 0.25, or limit_val_batches=0 to switch validation off."
            )

    def _set_fast_dev_run(self, batches: int) -> None:
        self.limit_train_batches = self.limit_val_batches = batches
        self.limit_test_batches = self.limit_predict_batches = batches
        self.max_steps, self.max_epochs = batches, 1
        self.num_sanity_val_steps = 0
        self.val_check_interval, self.val_time_interval_s, self.check_val_every_n_epoch = 1.0, None, 1
        rank_zero_info(
            f"Running in `fast_dev_run` mode: {batches} batch(es) of each loader; loggers, checkpoints, early stopping "
            "and tuners are off."
        )

    def resolve_max_epochs(self, has_timer: bool) -> None:
        """Fill in the limits left open: 1000 epochs when nothing else ends the run."""
        if self.max_epochs is None:
            bounded = self.max_steps != -1 or has_timer
            if not bounded:
                rank_zero_warn(
                    "`max_epochs` was not set, and no other limit either, so training ends after 1000 epochs. "
                    "Say how many you want, or max_epochs=-1 for no end.",
                    category=PossibleUserWarning,
                )
            self.max_epochs = -1 if bounded else 1000
        if self.min_epochs is None:
            self.min_epochs = 1 if self.min_steps else 0

    # Is it time? Each rule once.

    def closes_window(self, batch_idx: int, is_last: bool) -> bool:
        """Whether this batch ends an accumulation window. Windows start anew in each epoch."""
        return is_last or (batch_idx + 1) % self.accumulate_grad_batches == 0

    def steps_reached(self, at: Progress) -> bool:
        return self.max_steps != -1 and at.step >= self.max_steps

    def epochs_reached(self, at: Progress) -> bool:
        return self.max_epochs is not None and self.max_epochs != -1 and at.epoch >= self.max_epochs

    def may_stop_early(self, at: Progress) -> bool:
        """Whether `should_stop` may end the run: the least number of epochs and steps is done."""
        return at.epoch >= (self.min_epochs or 0) and at.step >= (self.min_steps or 0)

    def stops_now(self, at: Progress) -> bool:
        """Whether `should_stop` is set and may be followed."""
        if not self.should_stop:
            return False
        if self.may_stop_early(at):
            return True
        if "min" not in self.said:
            self.said.add("min")
            rank_zero_info(
                f"Trainer was signaled to stop, but goes on until both `min_epochs={self.min_epochs!r}` and "
                f"`min_steps={self.min_steps!r}` are done."
            )
        return False

    def training_done(self, at: Progress) -> str | None:
        """Why no further epoch is to be started; None if one is."""
        if self.steps_reached(at):
            return f"`max_steps={self.max_steps!r}` reached"
        if self.epochs_reached(at):
            return f"`max_epochs={self.max_epochs!r}` reached"
        return "`trainer.should_stop` was set" if self.stops_now(at) else None

    def logs_now(self, at: Progress) -> bool:
        """Whether the metrics of a stepping batch go to the loggers."""
        if not self.log_every_n_steps:
            return False
        is_time = (at.stepped_batches + 1) % self.log_every_n_steps == 0
        return is_time or self.should_stop or bool(self.fast_dev_run)

    def validates_in_epoch(self, epoch: int) -> bool:
        every = self.check_val_every_n_epoch
        return every is None or (epoch + 1) % every == 0

    @property
    def validates_at_epoch_end(self) -> bool:
        """Whether validation comes once, after the last batch of an epoch."""
        interval = self.val_check_interval
        return self.val_time_interval_s is None and isinstance(interval, float) and interval == 1.0

    def validation_due(self, at: Progress) -> bool:
        """Whether to validate after the batch just finished. Assumes that there is something to validate."""
        if not self.validates_in_epoch(at.epoch):
            return False
        if self.should_stop and self.may_stop_early(at):
            return True
        if self.val_time_interval_s is not None:
            return time.monotonic() - self.last_validation_at_s >= self.val_time_interval_s
        if self.val_check_batch == math.inf or (self.validates_at_epoch_end and self.check_val_every_n_epoch):
            return at.is_last_batch
        assert self.val_check_batch is not None
        count = at.total_batches if self.check_val_every_n_epoch is None else at.batch
        return count % self.val_check_batch == 0

    def set_val_check_batch(self, num_batches: int | float, validates: bool) -> None:
        """Turn `val_check_interval` into batches, now that the length of an epoch is known.

        Raises:
            ValueError: validation would never run.
            MisconfigurationException: a share of an epoch of unknown length.
        """
        interval = self.val_check_interval
        if self.val_time_interval_s is not None:
            self.val_check_batch = None
            self.last_validation_at_s = time.monotonic()
        elif isinstance(interval, int):
            self.val_check_batch = interval
            if validates and self.check_val_every_n_epoch is not None and interval > num_batches:
                raise ValueError(
                    f"Trainer(val_check_interval={interval}) asks for validation after {interval} batches, but an "
                    f"epoch has only {num_batches}, so validation would never run. Use {num_batches} or less, or "
                    "check_val_every_n_epoch=None to count batches across epochs, or limit_val_batches=0 to switch "
                    "validation off."
                )
        elif math.isinf(num_batches):
            if interval != 1.0:
                raise MisconfigurationException(
                    f"Trainer(val_check_interval={interval!r}) is a share of an epoch, but the train loader has no "
                    "length (an IterableDataset?). Use 1.0 for the end of the epoch, an int for a number of training "
                    "batches, or a time such as '00:01:00:00'."
                )
            self.val_check_batch = math.inf
        else:
            assert isinstance(interval, float)
            self.val_check_batch = max(1, int(num_batches * interval))

    def stepping_batches(self, num_batches: int | float) -> int | float:
        """How many optimizer steps `fit` will take when an epoch has `num_batches`; inf where nothing bounds them."""
        assert self.max_epochs is not None
        if self.max_epochs == -1:
            return math.inf if self.max_steps == -1 else self.max_steps
        if math.isinf(num_batches):
            return self.max_steps
        steps = math.ceil(num_batches / self.accumulate_grad_batches) * max(self.max_epochs, 1)
        return steps if self.max_steps < 0 else min(self.max_steps, steps)
