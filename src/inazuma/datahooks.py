"""DataHooks: the methods about data that a module and a datamodule share, with their defaults."""

from __future__ import annotations

from typing import Any

import torch

from inazuma.errors import MisconfigurationException
from inazuma.tree import move_data_to_device


class DataHooks:
    """Where data comes from and how a batch reaches the device. What a datamodule overrides, it does for the module."""

    prepare_data_per_node: bool = True
    """Whether one process of each node calls `prepare_data`, instead of one process of all."""

    allow_zero_length_dataloader_with_multiple_devices: bool = False
    """Whether a loader without batches on some process of several is accepted."""

    def prepare_data(self) -> None:
        """Download or preprocess, once, while the other processes wait. Do not assign attributes here: they would be
        missing in the other processes; that is what `setup` is for."""

    def setup(self, stage: str) -> None:
        """Called in every process when a run begins; `stage` is "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Called in every process when a run ends; `stage` as for `setup`."""

    def train_dataloader(self) -> Any:
        """The loader or loaders to train with: any iterable, or a list or dictionary of them, nested as you like."""
        raise _not_implemented("train_dataloader")

    def val_dataloader(self) -> Any:
        """The loader or loaders to validate with; several run one after the other."""
        raise _not_implemented("val_dataloader")

    def test_dataloader(self) -> Any:
        """The loader or loaders to test with; several run one after the other."""
        raise _not_implemented("test_dataloader")

    def predict_dataloader(self) -> Any:
        """The loader or loaders to predict from; several run one after the other."""
        raise _not_implemented("predict_dataloader")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch before it goes to the device. Returns the batch."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch. The default moves everything with a method `to` in nested lists, tuples, mappings and
        dataclasses; override it for types of your own. Returns the batch."""
        return move_data_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change a batch on the device, as for augmentation there. Returns the batch."""
        return batch


def _not_implemented(method: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"`{method}` must be implemented, as no loaders were passed to the Trainer's method: define it in the "
        "LightningModule or the LightningDataModule, or pass dataloaders."
    )
