"""Lightning's import path of `RichModelSummary`."""

from inazuma.callbacks.model_summary import RichModelSummary

__all__ = ["RichModelSummary"]
