"""A door: `inazuma.utilities.warnings`."""

from inazuma.errors import PossibleUserWarning

__all__ = [
    "PossibleUserWarning",
]
