"""The verbs of a precision, and full precision itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from inazuma.optim import GradClipAlgorithmType, clip_by_norm, clip_by_value, params_of, runs_closure_first
from inazuma.tree import apply_to_collection

M = TypeVar("M", bound=Module)
_NOTHING = nullcontext()


class Precision:
    """In which number format a module computes. This class is "32-true": everything stays as the user made it.

    One call of the optimizer, as the loop makes it:

        optimizer.step(closure)  →  precision.step(optimizer, closure, ready)
            closure():  with forward_context(): training_step  →  scale_loss(loss).backward()
            gradients are true from here on
            ready():    on_before_optimizer_step, clip_gradients
            the weights change
    """

    precision: str = "32-true"

    @property
    def is_plain(self) -> bool:
        """Whether batch, forward pass and loss stay as they are: a loop then needs nothing from here but `step`."""
        verbs = ("convert_input", "convert_output", "forward_context", "scale_loss")
        return all(getattr(type(self), verb) is getattr(Precision, verb) for verb in verbs)

    @property
    def checks_gradients(self) -> bool:
        """Whether `step` itself leaves the weights alone when gradients are not finite."""
        return False

    def convert_module(self, module: M) -> M:
        """Cast the weights, in place."""
        return module

    def convert_input(self, data: Any) -> Any:
        """Cast the floating point tensors of a batch, before the module's transfer hooks see it."""
        return data

    def convert_output(self, data: Any) -> Any:
        """Cast the floating point tensors of an output to the default dtype."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around each `*_step` of the module, without the backward pass."""
        return _NOTHING

    def init_context(self) -> AbstractContextManager[Any]:
        """Around the code that creates a module, so that its weights are born in their final format."""
        return nullcontext()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return loss

    def step(self, optimizer: Optimizer, closure: Callable[[], Any], ready: Callable[[], None], **kwargs: Any) -> Any:
        """Run `closure`, then `ready` on true gradients, then change the weights.

        Args:
            optimizer: the user's own, not a proxy.
            closure: forward and backward; returns the loss, or None. In manual optimization it may do nothing.
            ready: fires `on_before_optimizer_step` and clips. Called after every run of the closure.
            kwargs: for `optimizer.step`.

        Returns:
            What `optimizer.step` returns, as a rule the loss.
        """

        if runs_closure_first(optimizer):
            loss = closure()
            ready()
            optimizer.step(**kwargs)
            return loss

        def run() -> Any:
            loss = closure()
            ready()
            return loss

        return optimizer.step(closure=run, **kwargs)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: float | None,
        algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> Tensor | None:
        """Clip the true gradients of one optimizer's parameters, in place.

        Args:
            optimizer: whose parameters.
            clip_val: upper bound, in the unit of the unscaled gradients. None, 0 or less clips nothing.
            algorithm: bound the joint norm, or every entry.

        Returns:
            The norm before clipping, `[]`, on the gradients' device; None when not clipped by norm.
        """
        if clip_val is None or clip_val <= 0:
            return None
        if algorithm is GradClipAlgorithmType.VALUE:
            clip_by_value(params_of(optimizer), clip_val)
            return None
        return clip_by_norm(params_of(optimizer), clip_val)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, under the `__qualname__` of the class; empty when there is nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def give_up_step(self) -> None:
        """A step ended by an exception before the weights changed, and its gradients are gone."""

    def teardown(self) -> None:
        """Called once at the end of a run."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside the context, new floating point tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast_floats(data: Any, dtype: torch.dtype) -> Any:
    """Copy a nested batch with its floating point tensors in `dtype`; integers, booleans and complex ones stay."""
    return apply_to_collection(data, Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
