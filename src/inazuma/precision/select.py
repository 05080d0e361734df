"""From `Trainer(precision=...)` to a `Precision`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NoReturn

import torch

from inazuma.errors import MisconfigurationException
from inazuma.precision.amp import MixedPrecision
from inazuma.precision.double import DoublePrecision
from inazuma.precision.half import HalfPrecision
from inazuma.precision.precision import Precision
from inazuma.ranks import rank_zero_info, rank_zero_warn

ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
FLAGS = (
    *("64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"),
    *("transformer-engine", "transformer-engine-float16"),
)


def select(flag: str | int | None, device: torch.device) -> Precision:
    """The precision that a flag names.

    Args:
        flag: one of `FLAGS`, or of `ALIASES` as a string or a number; None is "32-true".
        device: where the module will compute.

    Raises:
        ValueError: an unknown flag.
        ModuleNotFoundError: the package that the flag needs is not installed.
        MisconfigurationException: a flag that inazuma does not support yet.
    """
    if flag is None:
        return Precision()
    name = ALIASES.get(str(flag), str(flag))
    if name not in FLAGS:
        allowed = (*FLAGS, *ALIASES, *(int(alias) for alias in ALIASES if alias.isdigit()))
        raise ValueError(f"Precision {flag!r} is invalid. Use one of {allowed}.")
    if str(flag) in ("16", "bf16"):
        rank_zero_warn(
            f"`precision={flag}` is supported for historical reasons, and has two readings: it does not say "
            f"that only the computation has 16 bits. Write precision={name!r}, which means the same."
        )
    if name == "16-mixed" and device.type == "cpu":
        name = "bf16-mixed"
        rank_zero_warn(
            f"`Trainer(accelerator='cpu', precision='16-mixed')`: fp16 is not supported on CPU, so "
            f"`precision={name!r}` is used instead. Write that to silence this warning."
        )
    if name in ("16-mixed", "bf16-mixed"):
        rank_zero_info(f"Using {name}: weights in float32, computation in 16 bits where torch.autocast finds it safe.")
        return MixedPrecision(name, device)
    if name in ("16-true", "bf16-true"):
        return HalfPrecision(name)
    if name == "64-true":
        return DoublePrecision()
    if name == "32-true":
        return Precision()
    _refuse_transformer_engine(name)


def _refuse_transformer_engine(name: str) -> NoReturn:
    if find_spec("transformer_engine") is None:
        raise ModuleNotFoundError(
            f"precision={name!r} needs the package transformer_engine, which is not installed: "
            "`pip install --no-build-isolation transformer_engine[pytorch]`."
        )
    raise MisconfigurationException(
        f"precision={name!r} is not supported by inazuma yet. Use precision='bf16-true' or 'bf16-mixed', or replace "
        "the layers in your module by those of transformer_engine and open its `fp8_autocast` in the steps."
    )
