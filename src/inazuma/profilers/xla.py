"""XLAProfiler: a name that says why it is not there."""

from __future__ import annotations

from typing import Any


class XLAProfiler:
    """Lightning's profiler for TPUs. Not part of inazuma: it needs torch_xla, which no strategy here supports."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError(
            "XLAProfiler needs the package torch_xla, which inazuma does not support. "
            "Use PyTorchProfiler, or subclass inazuma.profilers.Profiler."
        )
