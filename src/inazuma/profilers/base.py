"""PassThroughProfiler: measures nothing."""

from __future__ import annotations

from inazuma.profilers.profiler import Profiler


class PassThroughProfiler(Profiler):
    """Measures nothing. `trainer.profiler` is one in a run without a profiler."""

    def start(self, action_name: str) -> None:
        """Nothing."""

    def stop(self, action_name: str) -> None:
        """Nothing."""
