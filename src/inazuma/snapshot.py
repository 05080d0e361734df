"""Copies of a state in CPU memory, that whoever goes on training does not change."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TypeVar

import torch
from torch import Tensor, nn

from inazuma.tree import tensors

T = TypeVar("T")


class Snapshots:
    """Copies states, one at a time: each copy is made in the memory of the one before, which it overwrites.

    The first copy has to ask for memory, the later ones of the same shapes do not, and cost what a copy of the bytes
    costs. A state on a GPU comes into pinned memory.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[int, bool], list[Tensor]] = {}  # by size in bytes and whether it is pinned

    def take(self, state: T) -> T:
        """A copy of `state` with its tensors on the CPU. Tensors that share memory share it in the copy too.

        Args:
            state: anything that `copy.deepcopy` takes. Waits for the GPU if there are tensors on one.
        """
        taken: dict[tuple[int, bool], list[Tensor]] = defaultdict(list)
        copies: dict[int, torch.UntypedStorage] = {}  # by storage
        sources = list(tensors(state))  # held, so that no id comes twice
        with torch.inference_mode(False):  # memory made in inference mode could not be written to again outside
            memo = {id(tensor): self._copy(tensor, copies, taken) for tensor in sources}
            if any(is_pinned for _, is_pinned in taken):
                torch.cuda.synchronize()  # waits for the copies
            self._memory = taken
            return copy.deepcopy(state, memo)

    def forget(self) -> None:
        """Give the memory back. The last copy stays as it is."""
        self._memory = {}

    def _copy(
        self, tensor: Tensor, copies: dict[int, torch.UntypedStorage], taken: dict[tuple[int, bool], list[Tensor]]
    ) -> Tensor:
        if not _is_plain(tensor):
            copied = copy.deepcopy(tensor.detach())
            return copied if copied.is_meta else copied.cpu()
        storage = tensor.untyped_storage()
        if storage._cdata not in copies:
            key = storage.nbytes(), storage.device.type == "cuda"
            spare = self._memory.get(key)
            memory = spare.pop() if spare else torch.empty(key[0], dtype=torch.uint8, pin_memory=key[1])
            memory.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage), non_blocking=key[1])
            taken[key].append(memory)
            copies[storage._cdata] = memory.untyped_storage()
        copied = torch.empty(0, dtype=tensor.dtype)
        copied.set_(copies[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is its numbers in memory and no more."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or vars(tensor))
    )
