"""A progress bar of text alone: the one that is there when neither rich nor tqdm is installed."""

from __future__ import annotations

import sys

from inazuma.callbacks.progress.paced_progress import PacedProgressBar
from inazuma.callbacks.progress.views import LineView, View, is_notebook, is_terminal


class PlainProgressBar(PacedProgressBar):
    """Progress as a line of text: "Epoch 0/9: 30/100 (30%) in 0:03, 0:07 to go, 10.23 it/s, loss=0.25".

    In a terminal or a notebook the line is rewritten in place. Elsewhere (a pipe, nohup, a batch job) it is printed
    every `line_interval_s` seconds, at the end of an epoch (of epochs shorter than a second, once a second) and at the
    end of training, validation, testing or predicting; without carriage returns and control codes.

    Args:
        refresh_rate: 0 shows nothing.
        line_interval_s: seconds between two lines where they cannot be rewritten; 0 prints one per batch.

    Raises:
        ValueError: an argument is negative.
    """

    def __init__(self, refresh_rate: int = 1, line_interval_s: float = 10.0) -> None:
        super().__init__(refresh_rate, line_interval_s)

    def _make_view(self) -> View:
        return LineView(self._line_interval_s, in_place=is_terminal(sys.stdout) or is_notebook())
