"""AdvancedProfiler: what Python's cProfile sees in each action."""

from __future__ import annotations

import cProfile
import io
import marshal
import pstats
from collections import defaultdict
from typing import Any

from inazuma.errors import MisconfigurationException
from inazuma.files import PathLike
from inazuma.profilers.profiler import Profiler


class AdvancedProfiler(Profiler):
    """Report the Python functions that each action called. Time spent in an inner action counts for that one alone.

    Args:
        dirpath, filename: see `Profiler`.
        line_count_restriction: how many functions to show for an action: a number of them, or a share from 0.0 to 1.0.
        dump_stats: also write what was measured, one `.prof` file for each action, to `dirpath`; `pstats` reads it.

    Raises:
        ValueError: an action is stopped that does not run.
    """

    def __init__(
        self,
        dirpath: PathLike | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: defaultdict[str, cProfile.Profile] = defaultdict(cProfile.Profile)
        self._running: list[str] = []  # innermost last; Python lets only one profile measure at a time

    def start(self, action_name: str) -> None:
        """The action begins; the one around it pauses."""
        if self._running:
            self.profiled_actions[self._running[-1]].disable()
        self._running.append(action_name)
        self.profiled_actions[action_name].enable()

    def stop(self, action_name: str) -> None:
        """The action ends; the one around it goes on."""
        if action_name not in self._running:
            raise ValueError(f"The action {action_name!r} was stopped, but never started.")
        self.profiled_actions[self._running[-1]].disable()
        self._running.reverse()  # of two with one name the inner one ends
        self._running.remove(action_name)
        self._running.reverse()
        if self._running:
            self.profiled_actions[self._running[-1]].enable()

    def summary(self) -> str:
        """One section for each action; with `dump_stats` the files are written now.

        Raises:
            MisconfigurationException: `dump_stats` without a directory.
        """
        sections = {}
        for action, profile in self.profiled_actions.items():
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text)
            if self.dump_stats:
                self._dump(action, stats)
            stats.strip_dirs().sort_stats("cumulative").print_stats(self.line_count_restriction)
            sections[action] = text.getvalue()
        return self.report_of(sections)

    def _dump(self, action: str, stats: Any) -> None:
        if self.dirpath is None:
            raise MisconfigurationException(
                "AdvancedProfiler(dump_stats=True) has no directory to write to: give it a dirpath=."
            )
        with self.open(self.file_name(action, ".prof"), "wb") as file:
            file.write(marshal.dumps(stats.stats))  # what `Stats.dump_stats` writes, but to any file

    def teardown(self, stage: str | None) -> None:
        """Forget what was measured: the next run makes a report of its own."""
        for profile in self.profiled_actions.values():
            profile.disable()
        self.profiled_actions.clear()
        self._running.clear()

    def __getstate__(self) -> dict[str, Any]:
        empty: defaultdict[str, cProfile.Profile] = defaultdict(cProfile.Profile)
        return {**self.__dict__, "profiled_actions": empty, "_running": []}  # a running profile cannot be pickled
