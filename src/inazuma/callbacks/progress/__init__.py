"""Progress bars: the base, the three that come with inazuma, and the choice between them."""

from __future__ import annotations

from importlib.util import find_spec

from inazuma.callbacks.progress.plain_progress import PlainProgressBar
from inazuma.callbacks.progress.progress_bar import ProgressBar, get_standard_metrics
from inazuma.callbacks.progress.rich_progress import RichProgressBar, RichProgressBarTheme
from inazuma.callbacks.progress.tqdm_progress import TQDMProgressBar

__all__ = [
    "PlainProgressBar",
    "ProgressBar",
    "RichProgressBar",
    "RichProgressBarTheme",
    "TQDMProgressBar",
    "default_progress_bar",
    "get_standard_metrics",
]


def default_progress_bar() -> ProgressBar:
    """The bar of a Trainer that was given none: drawn with rich if that is installed, else with tqdm, else as text."""
    if find_spec("rich") is not None:
        return RichProgressBar()
    if find_spec("tqdm") is not None:
        return TQDMProgressBar()
    return PlainProgressBar()
