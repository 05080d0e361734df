"""Walks over nested batches: lists, tuples, mappings and dataclasses with tensors as leaves."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


class Movable(ABC):  # noqa: B024 - `to` must not be abstract: nobody subclasses this
    """Any class with a method `to(device)`."""

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        return callable(getattr(subclass, "to", None))


def apply_to_collection(data: Any, dtype: type | tuple[type, ...], fn: Callable[..., Any], *args: Any) -> Any:
    """Copy a nested structure with `fn(leaf, *args)` in the place of each `leaf` of type `dtype`.

    Args:
        data: lists, tuples, named tuples, mappings and dataclass instances are walked and keep their type; whatever
            else is not of type `dtype` is kept as it is.
        dtype: tested first, so that a container of this type is a leaf.
        fn: called depth first, in order.
        args: passed on to `fn`.
    """
    if isinstance(data, dtype):
        return fn(data, *args)
    if isinstance(data, (list, tuple)):
        items = [apply_to_collection(item, dtype, fn, *args) for item in data]
        kind = type(data)
        if kind is list:
            return items
        return kind(*items) if hasattr(kind, "_fields") else kind(items)  # a named tuple takes its items one by one
    if isinstance(data, Mapping):
        values = {key: apply_to_collection(value, dtype, fn, *args) for key, value in data.items()}
        if type(data) is dict:
            return values
        if not isinstance(data, MutableMapping):
            return type(data)(values)  # type: ignore[call-arg]
        changed: MutableMapping[Any, Any] = copy.copy(data)  # keeps what the type holds besides, as a default_factory
        changed.update(values)
        return changed
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        result = copy.copy(data)
        for name, value in _fields(data):
            object.__setattr__(result, name, apply_to_collection(value, dtype, fn, *args))  # frozen ones too
        return result
    return data


def move_data_to_device(batch: Any, device: str | torch.device) -> Any:
    """Copy a nested batch with everything that has a method `to(device)` moved.

    Args:
        batch: see `apply_to_collection`. An object whose `to` returns None is taken to have moved itself.
        device: tensors in pinned memory go to an accelerator without waiting for it.
    """
    if isinstance(device, str):
        device = torch.device(device)
    if type(batch) is list and all(type(item) is Tensor for item in batch):  # what most loaders give
        return [item.to(device, non_blocking=device.type not in ("cpu", "mps")) for item in batch]
    return apply_to_collection(batch, Movable, _move, device, device.type not in ("cpu", "mps"))


def _move(leaf: Any, device: torch.device, non_blocking: bool) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.to(device, non_blocking=non_blocking)
    moved = leaf.to(device)
    return leaf if moved is None else moved


def recursive_detach(tree: Any, to_cpu: bool = False) -> Any:
    """Copy a nested structure with its tensors detached from their graph and, with `to_cpu`, moved to the CPU."""
    return apply_to_collection(tree, Tensor, lambda tensor: tensor.detach().cpu() if to_cpu else tensor.detach())


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of a nested structure, depth first."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for _, value in _fields(tree):
            yield from tensors(value)


def size_bytes(tree: Any) -> int:
    """How much memory the tensors of a nested structure take, counted once where they share it."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in tensors(tree)
        if tensor.layout is torch.strided
    }
    return sum(storages.values())


def convert_tensors_to_scalars(tree: Any) -> Any:
    """Copy a nested structure with its tensors as Python numbers; waits for the GPU.

    Raises:
        ValueError: a tensor does not have exactly one element.
    """
    return apply_to_collection(tree, Tensor, _to_scalar)


def _to_scalar(tensor: Tensor) -> int | float | bool | complex:
    if tensor.numel() != 1:
        raise ValueError(
            f"The metric `{tensor}` is no scalar, as it does not contain a single element: "
            f"its shape is {list(tensor.shape)}. Reduce it first, for example with `.mean()`."
        )
    return tensor.item()


def batch_size_of(batch: Any) -> tuple[int | None, bool]:
    """Guess how many samples a batch holds: the first dimension of its first tensor, looked for depth first.

    Returns:
        The size (None if there is no tensor) and whether it is certain. It is not when, behind the first tensor,
        another tensor has another size or something is no tensor. A tensor without dimensions counts as 1 sample.
    """
    if type(batch) in (list, tuple) and batch and all(type(item) is Tensor for item in batch):  # most batches
        plain = [item.size(0) if item.ndim else 1 for item in batch]
        return plain[0], plain.count(plain[0]) == len(plain)
    sizes = _sizes(batch)
    first = next((size for size in sizes if size is not None), None)
    return first, first is not None and all(size == first for size in sizes)


def _sizes(tree: Any) -> Iterator[int | None]:
    """The first dimension of each leaf, depth first; None for a leaf that is no tensor."""
    if isinstance(tree, Tensor):
        yield tree.size(0) if tree.ndim > 0 else 1
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _sizes(value)
    elif _is_walkable(tree):
        for item in tree:
            yield from _sizes(item)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for _, value in _fields(tree):
            yield from _sizes(value)
    else:
        yield None


def _is_walkable(tree: Any) -> bool:
    """An iterator would be used up, an array or a text is one leaf."""
    return (
        isinstance(tree, Iterable) and not isinstance(tree, (str, bytes, Iterator)) and not hasattr(tree, "__array__")
    )


def _fields(instance: Any) -> list[tuple[str, Any]]:
    """Names and values of a dataclass instance; a field without default that was never set is left out."""
    names = [field.name for field in dataclasses.fields(instance)]
    return [(name, getattr(instance, name)) for name in names if hasattr(instance, name)]
