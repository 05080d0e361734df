"""A batch's way to the device: the three transfer hooks of the module or datamodule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from inazuma.datahooks import DataHooks
from inazuma.hooks import Hooks, overrides
from inazuma.ranks import rank_zero_warn

Transfer = Callable[..., Any]  # (batch, dataloader_idx=0) -> the batch on the device


def make_transfer(
    module: DataHooks, datamodule: DataHooks | None, hooks: Hooks, convert: Callable[[Any], Any], device: torch.device
) -> Transfer:
    """Who moves a batch, decided once.

    Args:
        module: its hooks are used, except those that the datamodule overrides.
        datamodule: None if there is none.
        hooks: knows what runs now.
        convert: the precision's cast of a batch, before all hooks.
        device: where batches go.
    """
    before = _owner("on_before_batch_transfer", module, datamodule)
    move = _owner("transfer_batch_to_device", module, datamodule)
    after = _owner("on_after_batch_transfer", module, datamodule)
    if not any(overrides(hook.__self__, hook.__name__, DataHooks) for hook in (before, after)):  # type: ignore[attr-defined]

        def transfer_only(batch: Any, dataloader_idx: int = 0) -> Any:
            return hooks.call("transfer_batch_to_device", move, convert(batch), device, dataloader_idx)

        return transfer_only

    def transfer(batch: Any, dataloader_idx: int = 0) -> Any:
        batch = hooks.call("on_before_batch_transfer", before, convert(batch), dataloader_idx)
        batch = hooks.call("transfer_batch_to_device", move, batch, device, dataloader_idx)
        return hooks.call("on_after_batch_transfer", after, batch, dataloader_idx)

    return transfer


def _owner(hook: str, module: DataHooks, datamodule: DataHooks | None) -> Callable[..., Any]:
    if datamodule is None or not overrides(datamodule, hook, DataHooks):
        return getattr(module, hook)  # type: ignore[no-any-return]
    if overrides(module, hook, DataHooks):
        rank_zero_warn(
            f"You have overridden `{hook}` in both the module and the datamodule. Only the datamodule's is called: "
            "remove the other."
        )
    return getattr(datamodule, hook)  # type: ignore[no-any-return]
