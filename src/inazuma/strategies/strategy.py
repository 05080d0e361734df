"""The boundary to the machine: a dozen verbs. This one knows a single device in a single process."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from inazuma.checkpoint_io import CheckpointIO, TorchCheckpointIO
from inazuma.tree import move_data_to_device

T = TypeVar("T")


class Strategy:
    """Where the work is done: devices, processes, and what goes between them.

    It knows nothing of callbacks, loggers, loops or precision. This base is one process with one device; strategies for
    several processes override the verbs.

    Args:
        root_device: the device of this process.
        checkpoint_io: reads and writes checkpoint files.
    """

    def __init__(self, root_device: torch.device, checkpoint_io: CheckpointIO | None = None) -> None:
        self.root_device = root_device
        self.checkpoint_io = checkpoint_io or TorchCheckpointIO()
        self.model: nn.Module | None = None  # what runs the steps: the module, or a wrapper of it
        self.lightning_module: Any = None

    global_rank = 0
    local_rank = 0
    node_rank = 0
    world_size = 1

    @property
    def is_global_zero(self) -> bool:
        return self.global_rank == 0

    # The module and its data

    def connect(self, module: nn.Module) -> None:
        """Take the module of the coming run."""
        self.model = self.lightning_module = module

    def module_to_device(self, module: nn.Module) -> None:
        module.to(self.root_device)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        return move_data_to_device(batch, device or self.root_device)

    def module_state(self) -> dict[str, Any]:
        """The weights, under the names of the module that the user wrote."""
        state: dict[str, Any] = self.lightning_module.state_dict()
        return state

    def load_module_state(self, state: dict[str, Any], strict: bool = True) -> None:
        self.lightning_module.load_state_dict(state, strict=strict)

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around backward passes whose gradients need not be reduced over processes yet."""
        return nullcontext()

    # Between processes

    def reduce(self, tensor: Tensor, group: Any = None, reduce_op: str | None = "mean") -> Tensor:
        """Reduce a tensor over all processes; every process gets the result."""
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all processes (or any) say yes."""
        return decision

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Give every process what process `src` has."""
        return obj

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes."""

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Stack the tensors of all processes: `[world_size, ...]`; with one process the tensor itself."""
        return tensor

    def all_gather_tree(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """`all_gather` of every tensor and number in nested lists, tuples and dicts."""

        def gather(leaf: Any) -> Any:
            if isinstance(leaf, (bool, int, float)):
                leaf = torch.tensor(leaf, device=self.root_device)
            return self.all_gather(leaf, group, sync_grads) if isinstance(leaf, Tensor) else leaf

        return tree_map(gather, data)

    # Files

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, on rank 0."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint into this process, with all tensors on the CPU."""
        return self.checkpoint_io.load_checkpoint(
            path, map_location=lambda storage, _: storage, weights_only=weights_only
        )

    def remove_checkpoint(self, path: Any) -> None:
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(path)

    def teardown(self) -> None:
        """Give back what the run held: the module and its data go to the CPU."""
        if self.lightning_module is not None and self.root_device.type != "cpu":
            self.lightning_module.cpu()
        self.checkpoint_io.teardown()


class SingleDeviceStrategy(Strategy):
    """One process with one device.

    Args:
        device: a torch device or its name, "cpu" by default.
        checkpoint_io: reads and writes checkpoint files.
    """

    strategy_name = "single_device"

    def __init__(self, device: torch.device | str | int = "cpu", checkpoint_io: CheckpointIO | None = None) -> None:
        super().__init__(
            torch.device("cuda", device) if isinstance(device, int) else torch.device(device), checkpoint_io
        )
