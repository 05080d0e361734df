"""Short hashes of what training computes with: batches, gradients, weights and random generators.

On the CPU, memory is read where it lies: a CRC-32 of every byte up to `SMALL` bytes, and above that the sum of all
64-bit words together with a CRC-32 of `SAMPLE` of them at equal distances. Either way a change of any one bit changes
the hash; of two words that change places in a large tensor, the sample sees only what it holds.

On another device sums of all elements, as integers with weights that tell places apart, stay on the device until
`resolve` fetches many of them at once: nothing waits for the device before.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

SMALL = 16 * 1024  # bytes; from here on a sum is faster than a CRC
SAMPLE = 512  # words of a large tensor whose places count
ALL_PLACES = 1 << 16  # elements of a tensor on a device up to which all places count
_DEPTH = 8  # of a batch made of objects, lists and mappings
_CRC: Callable[..., int] = zlib.crc32
_WORD = struct.Struct("<q").pack
_region_type = lru_cache(maxsize=512)(lambda size_bytes: ctypes.c_char * size_bytes)


@dataclass(frozen=True)
class Pending:
    """A hash of which a part still lies on a device."""

    crc: int  # of what lay on the CPU
    sums: list[Tensor]  # scalars, int64


Hash: TypeAlias = int | Pending


def resolve(hashes: Sequence[Hash]) -> list[int]:
    """The numbers that these hashes are. Waits for the devices, once for each."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for each in hashes:
        for total in () if isinstance(each, int) else each.sums:
            by_device.setdefault(total.device, []).append(total)
    fetched = {device: iter(torch.stack(sums).tolist()) for device, sums in by_device.items()}
    return [
        each if isinstance(each, int) else _chain((next(fetched[total.device]) for total in each.sums), each.crc)
        for each in hashes
    ]


def _chain(numbers: Iterable[int], crc: int) -> int:
    for number in numbers:
        crc = _CRC(_WORD(number), crc)
    return crc


# ---------------------------------------------------------------------------------------------------- tensors


def of_tensors(tensors: Iterable[Tensor], before: Hash = 0) -> Hash:
    """The hash of tensors on any devices, in order, behind what was hashed `before`."""
    crc, sums = (before, []) if isinstance(before, int) else (before.crc, before.sums)
    elsewhere: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_cpu:
            crc = of_memory(tensor, crc)
        else:
            elsewhere.setdefault(tensor.device, []).extend(_dense(tensor))
    sums = [*sums, *map(sum_on_device, elsewhere.values())]
    return Pending(crc, sums) if sums else crc


def of_memory(tensor: Tensor, crc: int = 0) -> int:
    """The hash of one tensor on the CPU."""
    if tensor.layout is torch.strided and (tensor.is_contiguous() or _lies_in_one_piece(tensor)):
        region = _region_of(tensor)
        return _CRC(region, crc) if tensor.nbytes <= SMALL else _of_large(region, crc)
    for part in _dense(tensor):
        crc = of_memory(part.contiguous(), crc)
    return crc


def _region_of(tensor: Tensor) -> Any:
    """The memory of a tensor that fills it, as something that can be read like bytes."""
    return _region_type(tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""


def _of_large(region: Any, crc: int) -> int:
    count = len(region) // 8
    words = torch.frombuffer(region, dtype=torch.int64, count=count)
    crc = _CRC(_WORD(int(words.sum())), crc)
    crc = of_memory(words[:: count // SAMPLE].contiguous(), crc)
    return _CRC(region[8 * count :], crc)


def _lies_in_one_piece(tensor: Tensor) -> bool:
    """Whether the elements, though not in order, fill the memory behind `data_ptr`."""
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _dense(tensor: Tensor) -> list[Tensor]:
    """The tensors with strides that a tensor is made of."""
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    return [tensor.to_dense()]


def sum_on_device(tensors: Sequence[Tensor]) -> Tensor:
    """A scalar that changes with any one bit of the tensors, all of which are on one device; int64, on that device.

    Sums wrap around, and weights are odd: one change of an element never adds up to nothing. Costs one read of the
    memory, and about four small kernels more than there are tensors above `ALL_PLACES` elements.
    """
    ordered, totals = [], []
    for tensor in tensors:
        elements = _as_integers(tensor.detach())
        if elements.numel() > ALL_PLACES:
            totals.append(elements.sum(dtype=torch.int64))
            elements = elements[:: elements.numel() // SAMPLE]
        ordered.append(elements)
    hashed = _weighted(torch.cat(ordered).to(torch.int64))
    return hashed if not totals else hashed + _weighted(torch.stack(totals))


def _weighted(values: Tensor) -> Tensor:
    return (values * torch.arange(1, 2 * values.numel(), 2, device=values.device)).sum()


def _as_integers(tensor: Tensor) -> Tensor:
    """The elements in one row, as integers of the same bits."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.view(sizes[flat.element_size()])


# ---------------------------------------------------------------------------------------------------- batches


def of_batch(batch: Any) -> Hash:
    """The hash of a batch: of its tensors, arrays, numbers and texts. What is none of these counts by its type."""
    crc = 0
    for leaf in batch if type(batch) in (list, tuple) else (batch,):
        if type(leaf) is Tensor and leaf.is_cpu and leaf.is_contiguous() and 0 < leaf.nbytes <= SMALL:
            crc = _CRC(_region_type(leaf.nbytes).from_address(leaf.data_ptr()), crc)
        else:
            break
    else:
        return crc  # the usual batch of a small step, without the walk
    crc, tensors = 0, []
    for leaf in _leaves(batch, _DEPTH):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        else:
            crc = _CRC(leaf, crc)
    return of_tensors(tensors, crc)


def _leaves(tree: Any, depth: int) -> Iterator[Any]:
    """Tensors, and bytes that stand for everything else."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is None or isinstance(tree, (str, int, float, complex, bytes)):
        yield repr(tree).encode()
    elif hasattr(tree, "__array_interface__"):
        yield tree.tobytes()
    elif depth == 0:
        yield type(tree).__qualname__.encode()
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value, depth - 1)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _leaves(item, depth - 1)
    else:
        yield type(tree).__qualname__.encode()
        yield from _leaves(list(getattr(tree, "__dict__", {}).values()), depth - 1)


# ---------------------------------------------------------------------------------------------------- a module


class ModuleTensors:
    """The parameters and buffers of a module, each looked up anew where it stands, and hashed.

    Args:
        module: its submodules and their tensors' names are listed now; the tensors may be others later.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self._is_plain = all(tensor.is_cpu and tensor.layout is torch.strided for tensor in tensors)
        parameters: list[dict[str, Any]] = [each._parameters for each in module.modules()]
        buffers: list[dict[str, Any]] = [each._buffers for each in module.modules()]
        self._weights = [_Slot(owner, name) for owner in (*parameters, *buffers) for name in owner]
        self._gradients = [_Slot(owner, name) for owner in parameters for name in owner]

    def weights(self) -> Hash:
        """The hash of parameters and buffers."""
        if not self._is_plain:
            found = (slot.owner[slot.name] for slot in self._weights)
            return of_tensors(tensor for tensor in found if tensor is not None)
        crc = 0
        for slot in self._weights:
            if (tensor := slot.owner[slot.name]) is not None:
                if tensor.is_contiguous() and tensor.data_ptr() == slot.address and tensor.nbytes == slot.size_bytes:
                    crc = slot.hash(slot.region, crc)
                else:
                    crc = slot.find(tensor, crc)
        return crc

    def gradients(self, before: Hash = 0) -> Hash:
        """The hash of the gradients that are there, behind what was hashed `before`."""
        if not self._is_plain or not isinstance(before, int):
            found = (slot.owner[slot.name] for slot in self._gradients)
            gradients = (parameter.grad for parameter in found if parameter is not None)
            return of_tensors((gradient for gradient in gradients if gradient is not None), before)
        crc = before
        for slot in self._gradients:
            if (parameter := slot.owner[slot.name]) is not None and (gradient := parameter.grad) is not None:
                if (
                    gradient.is_contiguous()
                    and gradient.data_ptr() == slot.address
                    and gradient.nbytes == slot.size_bytes
                ):
                    crc = slot.hash(slot.region, crc)
                else:
                    crc = slot.find(gradient, crc)
        return crc


class _Slot:
    """One place of a module, and the memory that was found there last: most often it is the same again."""

    __slots__ = ("address", "hash", "name", "owner", "region", "size_bytes")

    def __init__(self, owner: dict[str, Any], name: str) -> None:
        self.owner, self.name = owner, name
        self.address = self.size_bytes = -1
        self.region: Any = None
        self.hash: Callable[[Any, int], int] = _CRC

    def find(self, tensor: Tensor, crc: int) -> int:
        """The hash of `tensor`, which lies elsewhere than the last one."""
        if not tensor.is_contiguous():
            return of_memory(tensor, crc)
        self.address, self.size_bytes, self.region = tensor.data_ptr(), tensor.nbytes, _region_of(tensor)
        self.hash = _CRC if tensor.nbytes <= SMALL else _of_large
        return self.hash(self.region, crc)


# ---------------------------------------------------------------------------------------------------- generators


class Generators:
    """The random generators of this process: torch's on the CPU and on CUDA devices, Python's and numpy's global ones.

    A generator's state is two and a half kilobytes, and asking Python's or numpy's for it costs more than all other
    hashes of a small step. So the hash is of the position in the state and of its first words, which the next refill
    changes, read in memory where that is found to lie as expected, and of the whole state elsewhere. numpy's one spare
    normal number is not seen until it is used.
    """

    def __init__(self) -> None:
        python = random.random.__self__  # type: ignore[attr-defined]  # the instance behind the module's functions
        self._python: Any = python
        self._head = _words_at(id(python) + object.__basicsize__) if sys.implementation.name == "cpython" else None
        state = random.getstate()[1]
        if self._head is not None and list(self._head) != [state[-1], *state[: _HEAD - 1]]:
            self._head = None  # another Python than those we know
        self._numpy = _numpy_state()
        self._torch = torch.default_generator
        self._cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]

    def hash(self) -> int:
        """The hash of all of them. Waits for no device."""
        crc = _of_torch(self._torch.get_state())
        if self._head is None:
            crc = _CRC(repr(random.getstate()).encode(), crc)
        elif (spare := self._python.gauss_next) is None:
            crc = _CRC(self._head, crc)
        else:
            crc = _CRC(struct.pack("<d", spare), _CRC(self._head, crc))
        for part in self._numpy():
            crc = _CRC(part, crc)
        for generator in self._cuda:
            crc = of_memory(generator.get_state(), crc)
        return crc


_HEAD = 17  # words of 32 bits
_FRONT, _TAIL = ctypes.c_char * 152, ctypes.c_char * 40  # of the state of torch's generator


def _words_at(address: int) -> Any:
    return (ctypes.c_uint32 * _HEAD).from_address(address)


def _of_torch(state: Tensor) -> int:
    """Of the state of a CPU generator (bytes): seed and position, 16 of 624 words, and spare normal numbers."""
    if state.numel() != 5056:
        return of_memory(state)
    address = state.data_ptr()
    return _CRC(_TAIL.from_address(address + 5016), _CRC(_FRONT.from_address(address)))


def _numpy_state() -> Callable[[], Iterable[Any]]:
    """A function that gives the state of numpy's global generator in parts; nothing where numpy is not in use."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "random"):
        return tuple

    def whole() -> Iterable[Any]:
        return [repr(numpy.random.get_state(legacy=False)).encode()]

    try:
        generator = numpy.random.get_bit_generator()  # since numpy 1.24
        address = generator.ctypes.state_address
    except AttributeError:
        return whole
    state = generator.state
    if state["bit_generator"] != "MT19937":
        return whole
    head, position = _words_at(address), ctypes.c_uint32.from_address(address + 4 * 624)
    if list(head) != state["state"]["key"][:_HEAD].tolist() or position.value != state["state"]["pos"]:
        return whole
    parts = (head, position)
    return lambda: parts
