"""Everything in 64 bits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from inazuma.precision.precision import M, Precision, cast_floats, default_dtype


class DoublePrecision(Precision):
    """Weights and floating point inputs in 64 bits."""

    precision = "64-true"

    def convert_module(self, module: M) -> M:
        return module.double()

    def convert_input(self, data: Any) -> Any:
        return cast_floats(data, torch.double)

    def convert_output(self, data: Any) -> Any:
        return cast_floats(data, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[None]:
        return default_dtype(torch.double)

    def init_context(self) -> AbstractContextManager[None]:
        return default_dtype(torch.double)
