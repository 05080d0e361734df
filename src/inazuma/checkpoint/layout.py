"""What stands under "inazuma" in a checkpoint: looked at as a whole before any of it is used.

So a file that lacks something, being damaged or of another version, is refused with the place, and a run is never
continued from half of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Is(NamedTuple):
    """Values that a function accepts, and what to call them."""

    name: str
    accepts: Callable[[Any], bool]


COUNT = Is("a count", lambda value: isinstance(value, int) and 0 <= value < 2**63)
TORCH_STATE = Is("the state of a generator", lambda v: isinstance(v, Tensor) and v.dtype is torch.uint8)
PYTHON_STATE = Is("the state of a generator", lambda v: isinstance(v, (tuple, list)) and len(v) == 3)
RNG = {"torch": TORCH_STATE, "python": PYTHON_STATE, "numpy?": {"bit_generator": str, "state": dict}, "cuda?": list}
VALUES = {
    "is_empty": object,
    "last": object,
    "total": (None, Tensor),
    "weight": (int, float, Tensor),
    "computed": object,
}
WALKED_AS_TORCH_DOES = {"start": (None, {"at": COUNT}), "position": object}  # with `Trainer(exact_resume=False)`


def _start(value: Any) -> Any:
    """Of a pass over a loader: what its first batch was drawn with is there once it was drawn."""
    first = {"rng_of_first", "own_of_first"}
    kind = {"at": COUNT, "epoch": COUNT, "draws_seed": bool, "rng": RNG, "own": list}
    return kind | {"rng_of_first": RNG, "own_of_first": list} if first & set(value or ()) else kind


def _part(value: Any) -> Any:
    """Of the loaders, one."""
    if isinstance(value, Mapping) and set(value) == set(WALKED_AS_TORCH_DOES):
        return WALKED_AS_TORCH_DOES
    return {
        "num_workers": COUNT,
        "seed": (None, int),
        "start": (None, _start),
        "position": object,
        "noise": {"trials": (None, COUNT), "used": list},
        "own": list,
        "data": list,
    }


LAYOUT = {
    "progress": {
        "epoch": COUNT,
        "batch": COUNT,
        "step": COUNT,
        "total_batches": COUNT,
        "stepped_batches": COUNT,
        "schedule_steps": COUNT,
        "validated_batches": COUNT,
        "is_last_batch": COUNT,
        "next": COUNT,
        "dropped_steps?": COUNT,
        "dropped_in_a_row?": COUNT,
        "last_dropped_step?": COUNT,
        "drops_window?": COUNT,
    },
    "rng": RNG,
    "batches": (None, {"parts": [_part], "opened_in_epoch": (None, COUNT)}),
    "logbook": {
        "entries": [{"key": list, "flags": dict, "values": VALUES, "metric": object}],
        "moment": dict,
        "shown": {"callback": dict, "logged": dict, "progress_bar": dict},
        "is_behind": object,
    },
    "gradients": {"*": Tensor},
    "loggers?": list,
}


def problem(value: Any, kind: Any = LAYOUT, place: str = "inazuma") -> str | None:
    """What is wrong with a value: the first thing that is, with its place; None if nothing is.

    Args:
        value: what a checkpoint holds at a place.
        kind: what it should be. A type or an `Is`; None; a tuple of alternatives; a list of one kind, for a list of
            such; a dictionary, for one with these keys ("name?" may be missing, "*" is any); or a function that gives
            the kind for the value.
        place: keys that lead to the value.
    """
    if isinstance(kind, tuple) and not isinstance(kind, Is):
        problems = [problem(value, each, place) for each in kind]
        return None if None in problems else problems[-1]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _is_not(value, "a list", place)
        return _first((each, kind[0], f"{place}.{index}") for index, each in enumerate(value))
    if isinstance(kind, dict):
        if not isinstance(value, Mapping):
            return _is_not(value, "a dict", place)
        if "*" in kind:
            return _first((each, kind["*"], f"{place}.{key}") for key, each in value.items())
        if missing := [key for key in kind if not key.endswith("?") and key not in value]:
            return f"`{place}.{missing[0]}` is missing"
        kinds = {key.removesuffix("?"): each for key, each in kind.items()}
        return _first((value[key], each, f"{place}.{key}") for key, each in kinds.items() if key in value)
    if isinstance(kind, Is):
        return None if kind.accepts(value) else _is_not(value, kind.name, place)
    if kind is None:
        return None if value is None else _is_not(value, "None", place)
    if isinstance(kind, type):
        return None if isinstance(value, kind) else _is_not(value, f"a {kind.__name__}", place)
    return problem(value, kind(value), place)


def _first(entries: Iterable[tuple[Any, Any, str]]) -> str | None:
    return next((found for entry in entries if (found := problem(*entry)) is not None), None)


def _is_not(value: Any, wanted: str, place: str) -> str:
    text = repr(value) if value is None or isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
    return f"`{place}` is {text if len(text) <= 40 else text[:37] + '...'}, not {wanted}"
