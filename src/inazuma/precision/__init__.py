"""The number formats a module can compute in."""

from inazuma.precision.amp import MixedPrecision
from inazuma.precision.double import DoublePrecision
from inazuma.precision.half import HalfPrecision
from inazuma.precision.precision import Precision
from inazuma.precision.select import select

__all__ = ["DoublePrecision", "HalfPrecision", "MixedPrecision", "Precision", "select"]
