"""What a checkpoint may hold: tensors and plain data, so that it opens with `torch.load(weights_only=True)` and without
inazuma. Anything else is refused when it is saved, where the run that knows it can still be changed."""

from __future__ import annotations

import collections
import enum
import io
import os
from typing import Any

import torch
from torch import Tensor, nn

from inazuma.errors import CheckpointError

# What torch reads with weights_only=True. Exact classes: a subclass would have to be imported.
_LEAVES = frozenset(
    [type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.device, torch.dtype]
)
_MAPPINGS = frozenset([dict, collections.OrderedDict, collections.Counter])
_SEQUENCES = frozenset([list, tuple, set])


def refuse_objects(value: Any, place: tuple[Any, ...] = ()) -> None:
    """Look through a checkpoint; costs about 0.1 µs per number and 0.3 µs per tensor.

    Args:
        value: a part of the checkpoint.
        place: the keys that lead to it.

    Raises:
        CheckpointError: there is an object in it; the message says where, and how to store what it holds.
    """
    kind = type(value)
    if kind in _LEAVES:
        return
    if kind in _MAPPINGS:
        for key, inner in value.items():
            if type(key) not in _LEAVES:
                refuse_objects(key, (*place, f"the key {key!r:.50}"))
            if type(inner) not in _LEAVES:
                refuse_objects(inner, (*place, key))
    elif kind in _SEQUENCES:
        for index, inner in enumerate(value):
            if type(inner) not in _LEAVES:
                refuse_objects(inner, (*place, index))
    elif kind is Tensor or kind is nn.Parameter:
        if value.__dict__:  # attributes are stored with it
            refuse_objects(value.__dict__, place)
    elif not _opens(value):
        where = " > ".join(map(str, place)) or "The checkpoint"
        raise CheckpointError(
            f"{where}: an object of class {kind.__module__}.{kind.__qualname__} cannot be stored in a checkpoint, "
            "which holds tensors and plain data only: its file would open only by running code that the file names. "
            f"{_instead(value)}"
        )


def _opens(value: Any) -> bool:
    """Whether torch reads this object back safely: tried, since what it allows grows with its versions and by users."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # the user's object may raise anything when it is pickled
        return False
    return True


def _instead(value: Any) -> str:
    if isinstance(value, nn.Module):
        return "Store its `state_dict()`."
    if type(value).__module__ == "numpy":
        return "Store a Python number, `value.item()`, or a tensor, `torch.from_numpy(value)`."
    if isinstance(value, os.PathLike):
        return "Store the text, `str(path)`."
    if isinstance(value, enum.Enum):
        return "Store its `value`."
    return "Store what it is made of: numbers, texts, tensors, and lists and dictionaries of these."
