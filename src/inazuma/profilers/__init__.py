"""Where the time of a run goes: one file per profiler."""

from inazuma.errors import MisconfigurationException
from inazuma.profilers.advanced import AdvancedProfiler
from inazuma.profilers.base import PassThroughProfiler
from inazuma.profilers.profiler import Profiler
from inazuma.profilers.pytorch import PyTorchProfiler
from inazuma.profilers.simple import SimpleProfiler
from inazuma.profilers.xla import XLAProfiler

__all__ = [
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "SimpleProfiler",
    "XLAProfiler",
    "select",
]

NAMED = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler, "xla": XLAProfiler}


def select(profiler: Profiler | str | None) -> Profiler:
    """The profiler that `Trainer(profiler=...)` asks for.

    Raises:
        MisconfigurationException: no profiler, and no name of one.
    """
    if profiler is None:
        return PassThroughProfiler()
    if isinstance(profiler, Profiler):
        return profiler
    if isinstance(profiler, str) and profiler.lower() in NAMED:
        made: Profiler = NAMED[profiler.lower()]()
        return made
    raise MisconfigurationException(
        f"Trainer(profiler={profiler!r}) is neither a Profiler nor the name of one. The names are {list(NAMED)}."
    )
