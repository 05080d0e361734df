"""Average the weights over training: validate, test and keep the average, train on with the raw weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

from inazuma.callbacks.callback import Callback
from inazuma.errors import MisconfigurationException
from inazuma.ranks import rank_zero_info

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer

AvgFn = Callable[[Tensor, Tensor, Tensor], Tensor]
MultiAvgFn = Callable[[Any, Any, Any], None]


class WeightAveraging(Callback):
    """Keep an average of the module's weights: by default their mean over all optimizer steps.

    The average takes the place of the raw weights during validation, and for good when training ends. Until its first
    update there is no average, and the raw weights stand in. Checkpoints hold both: `state_dict` is the average, so
    that `test` and `load_from_checkpoint` use it, and `current_model_state` the raw weights, from which `fit` resumes.

    Override `should_update` to choose the moments.

    Args:
        device: where the average is kept; None for the device of the module.
        use_buffers: average buffers too; False copies them from the module at each update. Buffers of whole numbers,
            such as counters and masks, are always copied.
        avg_fn: the new average, from the tensors (average, current, number of updates so far). Default: the mean.
        multi_avg_fn: changes a list of averages in place, from (averages, current, number of updates so far); faster
            on a GPU.

    Raises:
        MisconfigurationException: both functions are given.
    """

    _average_model: AveragedModel | None
    _restored: dict[str, Any] | None  # the average in the checkpoint that is being restored
    _is_swapped: bool  # the module holds the average, and the average model the raw weights
    _latest_update_step: int  # in optimizer steps made: 1 is after the first one
    _steps_seen: int | None  # steps that `should_update` was asked about

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        avg_fn: AvgFn | None = None,
        multi_avg_fn: MultiAvgFn | None = None,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise MisconfigurationException(
                f"{type(self).__name__}(avg_fn=..., multi_avg_fn=...): both say how to average. Give one of the two."
            )
        self._device = None if device is None else torch.device(device)
        self._use_buffers = use_buffers
        self._avg_fn = _floats_only(multi_avg_fn or _one_by_one(avg_fn or get_swa_avg_fn()))  # type: ignore[no-untyped-call]
        self._forget()

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update the average now. Called after each optimizer step, and at the end of each epoch.

        Args:
            step_idx: index of the optimizer step just made, from 0; None at the end of an epoch.
            epoch_idx: index of the epoch just finished, from 0; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            pl_module.configure_model()  # here as well, so that the order of hooks is Lightning's
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: the module is complete now, holds the restored raw weights, and lies on its device.
        average = AveragedModel(
            pl_module,
            device=pl_module.device if self._device is None else self._device,
            multi_avg_fn=self._avg_fn,
            use_buffers=self._use_buffers,
        )
        if self._restored is not None:
            average.load_state_dict(self._restored, strict=pl_module.strict_loading)
            self._restored = None
        self._average_model = average

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._steps_seen is None:
            self._steps_seen = trainer.global_step
        self._update_after_steps(trainer, pl_module)  # of a checkpoint that was saved before its last step was averaged

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._update_after_steps(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._average.update_parameters(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self._has_average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self._is_swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_average:
            self._swap(pl_module)  # not a copy: a checkpoint saved from here on still holds the raw weights

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_average and not self._is_swapped:  # resumed where nothing was left to train
            self._swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and (trainer.validating or trainer.sanity_checking) and self._is_swapped:
            self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step = self._steps_seen = state_dict["latest_update_step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            return
        in_module = checkpoint["state_dict"]
        put_aside: dict[str, Any] = {}
        checkpoint["averaging_state"] = {}
        for name, value in self._average_model.state_dict().items():
            if name.startswith("module."):
                put_aside[name.removeprefix("module.")] = value
            else:
                checkpoint["averaging_state"][name] = value
        if self._is_swapped:
            checkpoint["current_model_state"] = put_aside
        else:
            checkpoint["current_model_state"] = in_module
            checkpoint["state_dict"] = put_aside if self._has_average else in_module

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            self._average_model, self._is_swapped = None, False  # of other weights than those loaded now
        elif "current_model_state" not in checkpoint:
            rank_zero_info(
                f"The checkpoint holds no averaged weights: `{type(self).__name__}` begins to average where it resumes."
            )
        else:
            average = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
            self._restored = {**average, **checkpoint["averaging_state"]}
            pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)

    def _forget(self) -> None:
        """Begin anew: a callback may serve several calls of `fit`."""
        self._average_model = self._restored = self._steps_seen = None
        self._is_swapped, self._latest_update_step = False, 0

    @property
    def _average(self) -> AveragedModel:
        assert self._average_model is not None
        return self._average_model

    @property
    def _has_average(self) -> bool:
        return bool(self._average.n_averaged > 0)  # waits for the GPU; asked around validation and saving only

    def _update_after_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask about each step since the last call: none while gradients accumulate, two with two optimizers."""
        assert self._steps_seen is not None
        new, self._steps_seen = range(self._steps_seen, trainer.global_step), trainer.global_step
        if any(self.should_update(step_idx=step_idx) for step_idx in new):
            self._average.update_parameters(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        """Exchange the values of module and average model. In place: optimizers and compiled code hold the tensors."""
        for average, current in zip(_tensors(self._average.module), _tensors(pl_module), strict=True):
            kept = average.clone()
            average.copy_(current)
            current.copy_(kept)
        self._is_swapped = not self._is_swapped


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights: `average = decay * average + (1 - decay) * weights`.

    The first update takes the weights as they are. See `WeightAveraging` for what the average is used for.

    Args:
        device: where the average is kept; None for the device of the module.
        use_buffers: average buffers too; False copies them from the module at each update.
        decay: share of the old average in the new one, 0 to 1.
        update_every_n_steps: update after the first optimizer step and each n-th one from there; 0 for no step.
        update_starting_at_step: not before the step of this index, counted from 0.
        update_starting_at_epoch: also update at the end of each epoch, from the epoch of this index on; None at none.

    Raises:
        MisconfigurationException: `update_every_n_steps` is negative.
        ValueError: `decay` is not between 0 and 1.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        if update_every_n_steps < 0:
            raise MisconfigurationException(
                f"EMAWeightAveraging(update_every_n_steps={update_every_n_steps}): give 1 or more, or 0 to update at "
                "the end of epochs only (update_starting_at_epoch=0)."
            )
        super().__init__(device=device, use_buffers=use_buffers, avg_fn=get_ema_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None:
            has_begun = self.update_starting_at_step is None or step_idx >= self.update_starting_at_step
            return has_begun and self.update_every_n_steps > 0 and step_idx % self.update_every_n_steps == 0
        assert epoch_idx is not None
        return self.update_starting_at_epoch is not None and epoch_idx >= self.update_starting_at_epoch


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())


def _one_by_one(avg_fn: AvgFn) -> MultiAvgFn:
    def average(averages: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        for old, new in zip(averages, current, strict=True):
            old.copy_(avg_fn(old, new, num_averaged))

    return average


def _floats_only(average: MultiAvgFn) -> MultiAvgFn:
    """Whole numbers and bools have no mean of their kind: they follow the module. A list is of one type."""

    @torch.no_grad()
    def floats_only(averages: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            average(averages, current, num_averaged)
        else:
            for old, new in zip(averages, current, strict=True):
                old.copy_(new)

    return floats_only
