"""Training and evaluation mode, per submodule: a frozen part stays in the mode that its owner gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
