"""From `Trainer(accelerator=..., devices=...)` to a list of `torch.device`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

import torch

from inazuma.errors import MisconfigurationException

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


def select(accelerator: str = "auto", devices: int | str | Sequence[int] | None = "auto") -> list[torch.device]:
    """The devices that a run uses on this machine.

    Args:
        accelerator: "cpu", "cuda" or "mps"; "gpu" is the one of the last two that is there; "auto" falls back to "cpu".
        devices: "auto" is all CUDA devices, the one MPS device, or one process on the CPU. A number n is the first n
            devices, on the CPU n processes. A list or "0,2" are indices; -1 is all.

    Returns:
        As many devices as processes. On the CPU they are all the same one.

    Raises:
        ValueError: no such accelerator.
        MisconfigurationException: the accelerator or a device is not there, or `devices` asks for none.
        ModuleNotFoundError: "tpu" without torch_xla.
        TypeError: `devices` has a type or form that means nothing here; for the CPU, anything but a number.
    """
    if accelerator not in ACCELERATORS:
        raise ValueError(
            f"You selected an invalid accelerator name: Trainer(accelerator={accelerator!r}). "
            f"Use one of {', '.join(ACCELERATORS)}."
        )
    if accelerator == "tpu":
        _refuse_tpu()
    kind = _kind(accelerator)
    if devices in (0, "0", "", [], ()):
        raise MisconfigurationException(
            f"`Trainer(devices={devices!r})` asks for no device of the accelerator {kind!r}, but a run needs one. "
            "Use a number above 0, or devices='auto'."
        )
    if kind == "cpu":
        return [torch.device("cpu")] * _process_count(devices)
    present = available(kind)
    indices = _indices(devices, len(present), kind)
    if kind == "cuda" and devices == "auto" and hasattr(sys, "ps1"):
        indices = indices[
            :1
        ]  # nobody asked for several processes, and a notebook or prompt cannot start them from a script
    return [present[index] for index in indices]


def available(kind: str) -> list[torch.device]:
    """The devices of one kind on this machine: "cpu", "cuda" or "mps"."""
    if kind == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if kind == "mps":
        return [torch.device("mps", 0)] if torch.backends.mps.is_available() else []
    return [torch.device("cpu")]


def describe(devices: Sequence[torch.device]) -> str:
    """What a run says about its devices at the start, in one line."""
    used = devices[0].type
    gpu = next((kind for kind in ("cuda", "mps") if available(kind)), None)
    if gpu is None:
        return "GPU available: False, used: False"
    return f"GPU available: True ({gpu}), used: {used == gpu}"


def _kind(accelerator: str) -> str:
    """Of "cpu", "cuda" and "mps", the one that is meant; it is there."""
    gpus = [kind for kind in ("mps", "cuda") if available(kind)]
    if accelerator == "auto":
        return gpus[0] if gpus else "cpu"
    if accelerator == "gpu":
        if not gpus:
            raise MisconfigurationException(
                f"`Trainer(accelerator='gpu')`: No supported gpu backend found! {_torch()} sees neither a CUDA nor an "
                "MPS device. Use accelerator='auto' to fall back to the CPU."
            )
        return gpus[0]
    if accelerator != "cpu" and accelerator not in gpus:
        raise MisconfigurationException(
            f"`Trainer(accelerator={accelerator!r})` can not run on this machine: {_torch()} sees no such device. "
            f"Available here: {['cpu', *gpus]}."
        )
    return accelerator


def _torch() -> str:
    return f"torch {torch.__version__} (built for CUDA: {torch.version.cuda})"


def _process_count(devices: int | str | Sequence[int] | None) -> int:
    if devices == "auto":
        return 1
    if isinstance(devices, str) and devices.strip().isdecimal():
        devices = int(devices)
    if not isinstance(devices, int) or devices < 1:
        raise TypeError(
            f"`devices` selected with the cpu accelerator should be an int > 0, the number of processes; "
            f"it is {devices!r}."
        )
    return int(devices)


def _indices(devices: int | str | Sequence[int] | None, present: int, kind: str) -> list[int]:
    """Which of the `present` devices are meant."""
    meant = _numbers(devices) if isinstance(devices, str) and devices != "auto" else devices
    if meant in ("auto", -1):
        return list(range(present))
    numbers = [meant] if isinstance(meant, int) else meant
    if not isinstance(numbers, (list, tuple)) or any(type(number) is not int for number in numbers):
        raise TypeError(
            f"`Trainer(devices={devices!r})` is no selection of devices ({kind}). Use a number, a list of their ids, a "
            "string of either, or 'auto'."
        )
    indices = list(range(meant)) if isinstance(meant, int) else list(numbers)
    if len(set(indices)) < len(indices):
        raise MisconfigurationException(f"`Trainer(devices={devices!r})` names a device twice: ids must be unique.")
    if not indices or any(index not in range(present) for index in indices):
        raise MisconfigurationException(
            f"`Trainer(devices={devices!r})` asks for devices {indices or meant} of {kind!r}, but this machine has "
            f"{list(range(present))}."
        )
    return indices


def _numbers(devices: str) -> int | list[int]:
    try:
        return [int(item) for item in devices.split(",") if item.strip()] if "," in devices else int(devices)
    except ValueError:
        raise ValueError(
            f"`Trainer(devices={devices!r})` cannot be read. Use 'auto', a number as '2', or indices as '0,2'."
        ) from None


def _refuse_tpu() -> NoReturn:
    if find_spec("torch_xla") is None:
        raise ModuleNotFoundError(
            "`Trainer(accelerator='tpu')` needs the package torch_xla, which is not installed: "
            "`pip install torch_xla[tpu]`."
        )
    raise MisconfigurationException(
        "`Trainer(accelerator='tpu')` is not supported by inazuma yet. Use accelerator='cuda', 'mps' or 'cpu'."
    )
