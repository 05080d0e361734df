"""A door: `inazuma.utilities.combined_loader`."""

from inazuma.data.combined import CombinedLoader

__all__ = [
    "CombinedLoader",
]
