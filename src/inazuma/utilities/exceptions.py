"""A door: `inazuma.utilities.exceptions`."""

from inazuma.errors import MisconfigurationException, SIGTERMException

__all__ = [
    "MisconfigurationException",
    "SIGTERMException",
]
