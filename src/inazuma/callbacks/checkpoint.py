"""The mark of callbacks that save the run."""

from __future__ import annotations

from typing import ClassVar

from inazuma.callbacks.callback import Callback


class Checkpoint(Callback):
    """Base of callbacks that save the run. They come last, so that what they save holds what all others did."""

    runs_after_module: ClassVar[bool] = True
