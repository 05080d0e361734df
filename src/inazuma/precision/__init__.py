"""The number formats a module can compute in. `select.select` finds the one that `Trainer(precision=...)` names."""

from inazuma.precision.amp import MixedPrecision
from inazuma.precision.double import DoublePrecision
from inazuma.precision.half import HalfPrecision
from inazuma.precision.precision import Precision

__all__ = ["DoublePrecision", "HalfPrecision", "MixedPrecision", "Precision"]
