"""Everything in 16 bits: weights, inputs and computation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from inazuma.precision.precision import M, Precision, cast_floats, default_dtype


class HalfPrecision(Precision):
    """Weights and floating point inputs in 16 bits.

    Args:
        precision: "bf16-true" or "16-true".

    Raises:
        ValueError: another `precision`.
    """

    def __init__(self, precision: str = "16-true") -> None:
        if precision not in ("16-true", "bf16-true"):
            raise ValueError(
                f"`HalfPrecision(precision={precision!r})` is not half the width. Use '16-true' or 'bf16-true'."
            )
        self.precision = precision
        self._dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16

    def convert_module(self, module: M) -> M:
        return module.bfloat16() if self._dtype is torch.bfloat16 else module.half()  # both leave complex weights alone

    def convert_input(self, data: Any) -> Any:
        return cast_floats(data, self._dtype)

    def convert_output(self, data: Any) -> Any:
        return cast_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[None]:
        return default_dtype(self._dtype)

    def init_context(self) -> AbstractContextManager[None]:
        return default_dtype(self._dtype)
