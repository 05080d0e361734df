"""Which strategy a Trainer's arguments ask for."""

from __future__ import annotations

import torch

from inazuma.checkpoint_io import CheckpointIO
from inazuma.errors import MisconfigurationException
from inazuma.strategies.strategy import SingleDeviceStrategy, Strategy


def select(
    strategy: str | Strategy, devices: list[torch.device], num_nodes: int, checkpoint_io: CheckpointIO | None
) -> Strategy:
    """The strategy for these devices.

    Raises:
        ValueError: no strategy of this name, or `num_nodes` below 1.
        MisconfigurationException: several devices or nodes, which this version cannot use.
    """
    if not isinstance(num_nodes, int) or num_nodes < 1:
        raise ValueError(f"Trainer(num_nodes={num_nodes!r}): `num_nodes` must be a positive integer.")
    if isinstance(strategy, Strategy):
        if checkpoint_io is not None:
            raise MisconfigurationException(
                f"Trainer(strategy={strategy!r}, plugins=[{checkpoint_io!r}]): give the CheckpointIO to the strategy, "
                "or name the strategy by a string."
            )
        if strategy.world_size > 1:
            raise MisconfigurationException(
                f"Trainer(strategy={strategy!r}) has {strategy.world_size} processes; this version of inazuma "
                "trains in one. Use strategy='auto'."
            )
        return strategy
    if strategy not in ("auto", "single_device"):
        raise ValueError(
            f"Trainer(strategy={strategy!r}): this version of inazuma has the strategies 'auto' and 'single_device'."
        )
    if len(devices) > 1 or num_nodes > 1:
        raise MisconfigurationException(
            f"Trainer(devices={len(devices)}, num_nodes={num_nodes}): this version of inazuma trains on one device. "
            "Use devices=1 (a single index in a list picks a GPU: devices=[0])."
        )
    return SingleDeviceStrategy(devices[0], checkpoint_io)
