"""Modes of modules: training or evaluation, per submodule; and modules made without initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode


def training_modes(module: nn.Module) -> dict[nn.Module, bool]:
    """Every submodule with whether it is in training mode."""
    return {child: child.training for child in module.modules()}


def restore_modes(modes: dict[nn.Module, bool]) -> None:
    """Undo what was done since `training_modes`. Flags are set one by one: `train()` may be overridden."""
    for child, is_training in modes.items():
        child.training = is_training


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a `with` block."""
    modes = training_modes(module)
    for child in modes:
        child.training = False
    try:
        yield
    finally:
        restore_modes(modes)


class WithoutInit(TorchFunctionMode):
    """Inside this context `torch.nn.init` does nothing: new modules keep the memory they got."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
