"""Stop training when a metric stops improving."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from inazuma.callbacks.callback import Callback
from inazuma.callbacks.monitor import check_mode, check_monitor, missing_metric
from inazuma.errors import MisconfigurationException
from inazuma.ranks import log, rank_prefixed_message, rank_zero_warn

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class EarlyStoppingReason(IntEnum):
    """Why `EarlyStopping` asked for the end."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Ask the Trainer to stop when `monitor` did not improve for `patience` checks.

    A check is made at the end of each validation, or of each training epoch. After a stop, `stopped_epoch`,
    `stopping_reason` and `stopping_reason_message` tell when and why.

    Args:
        monitor: the metric to watch.
        min_delta: a change of at most this much is no improvement.
        patience: how many checks in a row without improvement end training.
        verbose: tell of each improvement, and of a missing metric.
        mode: "min" if a lower metric is better, "max" if a higher one is.
        strict: raise if the metric is missing at a check.
        check_finite: stop when the metric is NaN or infinite.
        stopping_threshold: stop when the metric is strictly better than this.
        divergence_threshold: stop when the metric is strictly worse than this.
        check_on_train_epoch_end: True checks at the end of the training epoch, False at the end of validation. None:
            True with `val_check_interval=1.0` and `check_val_every_n_epoch=1`, as they are by default.
        log_rank_zero_only: only rank 0 tells why it stops. False: each rank tells.

    Raises:
        MisconfigurationException: `mode` is neither "min" nor "max", or an argument is not of its kind.
        RuntimeError: at a check, `strict` and the metric was not logged.
    """

    # metrics that the module logs in its own on_train_epoch_end count
    runs_after_module: ClassVar[bool] = True

    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__()
        check_mode("EarlyStopping", mode)
        check_monitor("EarlyStopping", monitor)
        for name, value in (
            ("patience", patience),
            ("min_delta", min_delta),
            ("stopping_threshold", stopping_threshold),
            ("divergence_threshold", divergence_threshold),
        ):
            if value is None and name.endswith("threshold"):
                continue
            if not isinstance(value, (int, float)) or math.isnan(value):
                raise MisconfigurationException(f"EarlyStopping({name}={value!r}) should be a number.")
        self.monitor = monitor
        self.min_delta = min_delta if mode == "max" else -min_delta  # a value must be better than best + min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self._check_on_train_epoch_end = check_on_train_epoch_end

        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self.best_score = torch.tensor(float("inf" if mode == "min" else "-inf"))

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """`torch.lt` or `torch.gt`: whether the first value is better than the second."""
        return self.mode_dict[self.mode]

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": int(self.stopping_reason),  # an enum could not be read with weights_only=True
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the saved `patience` replaces the one of the constructor."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = state_dict["best_score"]
        self.patience = state_dict["patience"]
        # files of Lightning before 2.6 have no reason
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self._is_off(trainer) or self._checks_on_train_epoch_end(trainer) or trainer.enable_validation):
            rank_zero_warn(
                f"EarlyStopping(monitor={self.monitor!r}) checks at the end of validation, and this run validates "
                "nothing, so it will never stop. Use check_on_train_epoch_end=True to check each epoch."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_off(trainer) and not self._checks_on_train_epoch_end(trainer):
            self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_off(trainer) and self._checks_on_train_epoch_end(trainer):
            self._check(trainer)

    def _is_off(self, trainer: Trainer) -> bool:
        return bool(trainer.fast_dev_run) or trainer.state.fn != "fit" or trainer.sanity_checking

    def _checks_on_train_epoch_end(self, trainer: Trainer) -> bool:
        if self._check_on_train_epoch_end is not None:
            return self._check_on_train_epoch_end
        return trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0

    def _check(self, trainer: Trainer) -> None:
        """Compare the metric with the past, and ask for the end if it is time."""
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            self._tell_missing(metrics)
            return
        current = metrics[self.monitor].detach().squeeze()
        reason, message = self._judge(current)
        should_stop = reason is not EarlyStoppingReason.NOT_STOPPED
        if trainer.strategy.reduce_boolean_decision(should_stop, all=False):  # waits for the other ranks
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
        if should_stop:
            self.stopping_reason, self.stopping_reason_message = reason, message
        if message and (should_stop or self.verbose):
            self._tell(trainer, message)

    def _judge(self, current: Tensor) -> tuple[EarlyStoppingReason, str]:
        """The verdict on a new value, and a sentence about it; "" where there is nothing to say."""
        is_better = self.monitor_op
        better_sign = self.order_dict[self.mode]
        named = f"{self.monitor} = {current}"
        if self.check_finite and not torch.isfinite(current):
            return (
                EarlyStoppingReason.NON_FINITE_METRIC,
                f"Monitored metric {named} is not finite. The best value before was {self.best_score:.3f}. "
                "Signaling Trainer to stop.",
            )
        if self.stopping_threshold is not None and is_better(current, self.stopping_threshold):
            return (
                EarlyStoppingReason.STOPPING_THRESHOLD,
                f"Stopping threshold reached: {named} {better_sign} {self.stopping_threshold}. "
                "Signaling Trainer to stop.",
            )
        if self.divergence_threshold is not None and is_better(-current, -self.divergence_threshold):
            return (
                EarlyStoppingReason.DIVERGENCE_THRESHOLD,
                f"Divergence threshold reached: {named} is worse than {self.divergence_threshold}. "
                "Signaling Trainer to stop.",
            )
        if is_better(current - self.min_delta, self.best_score.to(current.device)):
            gain = abs(self.best_score - current.to(self.best_score.device))
            by = f" by {gain:.3f}" if torch.isfinite(gain) else ""
            self.best_score, self.wait_count = current, 0
            return EarlyStoppingReason.NOT_STOPPED, f"{self.monitor} improved{by} to {current:.3f}."
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, ""
        return (
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            f"{self.monitor} did not improve in {self.wait_count} checks; the best of all is "
            f"{self.best_score:.3f}. Signaling Trainer to stop.",
        )

    def _tell_missing(self, metrics: Mapping[str, Tensor]) -> None:
        message = missing_metric("EarlyStopping", self.monitor, metrics)
        if self.strict:
            raise RuntimeError(f"{message} Or use strict=False to skip checks while it is missing.")
        if self.verbose:
            rank_zero_warn(message, category=RuntimeWarning)

    def _tell(self, trainer: Trainer, message: str) -> None:
        if trainer.world_size == 1:
            log.info(message)
        elif not self.log_rank_zero_only or trainer.is_global_zero:
            log.info(rank_prefixed_message(message, trainer.global_rank))
