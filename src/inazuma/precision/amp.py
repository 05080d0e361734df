"""Automatic mixed precision: weights in float32, most of the forward pass in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from inazuma.errors import MisconfigurationException
from inazuma.optim import GradClipAlgorithmType, params_of
from inazuma.precision.precision import Precision


class MixedPrecision(Precision):
    """Run forward passes under `torch.autocast`; with float16, scale the loss so that small gradients survive.

    With a scaler, gradients are scaled only between the backward pass and whoever needs them first: `clip_gradients`
    or the step. Fused optimizers are welcome, because they see gradients that are unscaled already.

    Args:
        precision: "16-mixed" or "bf16-mixed".
        device: type of the device that computes, as "cuda".
        scaler: for "16-mixed"; a new `torch.amp.GradScaler` if None. bfloat16 has the range of float32 and needs none.

    Raises:
        ValueError: another `precision`.
        MisconfigurationException: a scaler for "bf16-mixed".
    """

    def __init__(self, precision: str, device: str | torch.device, scaler: GradScaler | None = None) -> None:
        if precision not in ("16-mixed", "bf16-mixed"):
            raise ValueError(
                f"`MixedPrecision(precision={precision!r})` mixes nothing. Use '16-mixed' or 'bf16-mixed'."
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise MisconfigurationException(
                f"`MixedPrecision('bf16-mixed', scaler={scaler})`: bfloat16 has the range of float32 and does not use "
                "a scaler. Leave it out, or use '16-mixed'."
            )
        self.precision = precision
        self.device = torch.device(device).type
        self.scaler = GradScaler(self.device) if precision == "16-mixed" and scaler is None else scaler
        self._dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
        self._unscaled: set[int] = set()  # id of each optimizer whose gradients are true and which has not stepped yet
        self._stepped: set[int] = set()  # id of each optimizer that has stepped since the scale last changed

    @property
    def checks_gradients(self) -> bool:
        return self.scaler is not None

    def forward_context(self) -> torch.autocast:
        # No cache: a weight first used under no_grad would be cached without its graph, and get no gradient afterwards.
        return torch.autocast(self.device, dtype=self._dtype, cache_enabled=False)

    def scale_loss(self, loss: Tensor) -> Tensor:
        if self.scaler is None:
            return loss
        self._update_scale()
        return self.scaler.scale(loss)

    def step(self, optimizer: Optimizer, closure: Callable[[], Any], ready: Callable[[], None], **kwargs: Any) -> Any:
        """As in `Precision`; with a scaler, the weights stay as they are when a gradient is infinite or NaN.

        Raises:
            MisconfigurationException: `LBFGS` with a scaler.
        """
        if self.scaler is None:
            return super().step(optimizer, closure, ready, **kwargs)
        if isinstance(optimizer, LBFGS):
            raise MisconfigurationException(
                "A loss scaler and LBFGS are not compatible: LBFGS runs forward and backward several times in one "
                "step, and a scaled loss cannot be compared between them. Use precision='bf16-mixed' or '32-true'."
            )
        loss = closure()
        if id(optimizer) in self._stepped:  # a second step without a backward pass in between
            self._update_scale()
        has_gradients = any(param.grad is not None for param in params_of(optimizer))
        if has_gradients:
            self._unscale(optimizer)
        ready()
        if has_gradients:
            self.scaler.step(optimizer, **kwargs)  # waits for the GPU to know whether all gradients are finite
            self._unscaled.discard(id(optimizer))
            self._stepped.add(id(optimizer))
        return loss

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: float | None,
        algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> Tensor | None:
        if self.scaler is not None and clip_val is not None and clip_val > 0:
            self._unscale(optimizer)
        return super().clip_gradients(optimizer, clip_val, algorithm)

    def give_up_step(self) -> None:
        if self.scaler is not None and self._unscaled:
            self._unscaled.clear()
            self.scaler._per_optimizer_states.clear()  # torch has no public way to give a step up

    def teardown(self) -> None:
        # An exception may have come between unscaling and stepping; the next run begins with neither done.
        self._unscaled.clear()
        self._stepped.clear()
        if self.scaler is not None:
            self.scaler._per_optimizer_states.clear()  # torch has no public way to give a step up

    def state_dict(self) -> dict[str, Any]:
        if self.scaler is None:
            return {}
        self._update_scale()
        return self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state_dict)

    def _unscale(self, optimizer: Optimizer) -> None:
        """Make the gradients of an optimizer true, once."""
        assert self.scaler is not None
        if id(optimizer) not in self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def _update_scale(self) -> None:
        """Let the scaler choose the next scale, once the optimizers have made their steps with the present one.

        Called before the next backward pass and not right after a step: in manual optimization, another optimizer may
        still hold gradients of the present scale.
        """
        assert self.scaler is not None
        if self._stepped and not self._unscaled:
            self.scaler.update()
            self._stepped.clear()
