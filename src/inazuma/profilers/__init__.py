"""Where the time of a run goes: one file per profiler."""

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
]
