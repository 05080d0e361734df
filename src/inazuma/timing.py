"""Where the time of a run goes: each moment belongs to one activity, so that the shares add up to the whole.

    setup          before the first batch, and after the last
    data           waiting for the next training batch
    transfer       its way to the device
    step           forward and backward
    optimizer      the rest of an optimizer's step, clipping included
    validation     all of it, but for callbacks and saving; in `trainer.test()` and the like, data and step as above
    logging        writing rows to loggers
    saving         writing checkpoints, as far as the run waits for it
    <a name>       a callback, or the hooks of the module, by the name of the class
    trainer        what is left: the loop itself

An accelerator works on its own: its time shows where the program waits for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

T = TypeVar("T")
_PARTS = frozenset(["data", "transfer", "step"])  # of a validation, which is told as one
_END = object()


class Timing:
    """A stop watch that always runs for exactly one activity. Switching it costs some tenths of a microsecond."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._activity, self._since = "setup", perf_counter()
        self._whole: str | None = None  # what all parts of it are told as
        self._is_running = True

    def switch(self, activity: str) -> str:
        """From now on the time is that of `activity`. Returns what it was before, to switch back to."""
        if self._whole is not None and activity in _PARTS:
            activity = self._whole
        now, before = perf_counter(), self._activity
        if self._is_running:
            self._seconds[before] += now - self._since
        self._since, self._activity = now, activity
        return before

    @contextmanager
    def during(self, activity: str, is_whole: bool = False) -> Iterator[None]:
        """Inside of the block the time is that of `activity`; `is_whole`: what is done for it in parts too."""
        before, outer = self.switch(activity), self._whole
        if is_whole:
            self._whole = activity
        try:
            yield
        finally:
            self._whole = outer
            self.switch(before)

    def of(self, activity: str, call: Callable[..., T]) -> Callable[..., T]:
        """`call`, with its time booked."""

        def run(*args: Any, **kwargs: Any) -> T:
            before = self.switch(activity)
            try:
                return call(*args, **kwargs)
            finally:
                self.switch(before)

        return run

    def waiting(self, activity: str, stream: Iterable[T]) -> Iterator[T]:
        """The items of `stream`, with the time booked that it takes to get each."""
        items = iter(stream)
        while True:
            before = self.switch(activity)
            try:
                item: Any = next(items, _END)
            finally:
                self.switch(before)
            if item is _END:
                return
            yield item

    def stop(self) -> None:
        """The run is over. What is done with the Trainer afterwards does not count."""
        self.switch("")
        self._is_running = False

    # Reading

    @property
    def seconds(self) -> dict[str, float]:
        """Of wall time, for each activity, the longest first."""
        seconds = dict(self._seconds)
        if self._is_running:
            seconds[self._activity] = seconds.get(self._activity, 0.0) + perf_counter() - self._since
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """The part of the whole time that each activity took, from 0 to 1, the longest first."""
        seconds, total = self.seconds, self.total_s or 1.0
        return {activity: each / total for activity, each in seconds.items()}

    def __str__(self) -> str:
        shares = [f"{activity} {share:.0%}" for activity, share in self.shares.items() if share >= 0.005]
        return f"{self.total_s:.1f} s: {', '.join(shares)}"
