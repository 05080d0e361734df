"""SimpleProfiler: a table of how often each action ran and how long it took."""

from __future__ import annotations

import math
import time
from array import array
from collections import defaultdict

from inazuma.files import PathLike
from inazuma.profilers.profiler import Profiler


class SimpleProfiler(Profiler):
    """Report the mean and the total duration of every action, the most expensive first. Actions contain each other.

    Args:
        dirpath, filename: see `Profiler`.
        extended: also show how often each action ran, and its share of the time since the profiler was made.

    Raises:
        ValueError: an action is started while it runs, or stopped while it does not.
    """

    def __init__(self, dirpath: PathLike | None = None, filename: str | None = None, extended: bool = True) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.start_time = time.perf_counter()
        self.current_actions: dict[str, float] = {}  # when each running action began
        # Durations in seconds. An array takes 8 bytes a call, a quarter of a list: a long run makes millions of calls.
        self.recorded_durations: defaultdict[str, array[float]] = defaultdict(_durations)

    def start(self, action_name: str) -> None:
        """The action begins now."""
        if action_name in self.current_actions:
            raise ValueError(f"The action {action_name!r} was started while it was already running.")
        self.current_actions[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """The action ends now."""
        now = time.perf_counter()
        if action_name not in self.current_actions:
            raise ValueError(f"The action {action_name!r} was stopped, but never started.")
        self.recorded_durations[action_name].append(now - self.current_actions.pop(action_name))

    def summary(self) -> str:
        """The table. Times are in seconds."""
        elapsed_s = time.perf_counter() - self.start_time
        totals = {action: (math.fsum(times), len(times)) for action, times in self.recorded_durations.items()}
        if self.extended:
            header = ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
            calls = sum(count for _, count in totals.values())
            rows = [["Total", "-", f"{calls}", f"{elapsed_s:.5}", "100 %"]]
            for action, (total, count) in sorted(totals.items(), key=lambda item: -item[1][0]):
                rows.append([action, f"{total / count:.5}", f"{count}", f"{total:.5}", f"{100 * total / elapsed_s:.5}"])
        else:
            header = ["Action", "Mean duration (s)", "Total time (s)"]
            by_mean = sorted(totals.items(), key=lambda item: -item[1][0] / item[1][1])
            rows = [[action, f"{total / count:.5}", f"{total:.5}"] for action, (total, count) in by_mean]
        return self.report_of({}) + "\n\n" + _table(header, rows) + "\n"


def _durations() -> array[float]:
    return array("d")


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their longest cell, with a ruler around the header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["|  " + "  |  ".join(map(str.ljust, row, widths)) + "  |" for row in [header, *rows]]
    ruler = "-" * len(lines[0])
    return "\n".join([ruler, lines[0], ruler, *lines[1:], ruler])
