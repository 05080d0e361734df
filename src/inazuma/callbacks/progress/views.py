"""Ways to show progress: the verbs they share, and the one that needs nothing but text."""

from __future__ import annotations

import math
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

Bar = Literal["sanity", "train", "validation", "test", "predict"]

FRAME_S = 0.1  # a bar is redrawn at most this often: faster than anybody reads


@dataclass
class Count:
    """Batches counted since `began`: one training epoch, or one dataloader of an evaluation."""

    title: str
    total: float  # inf when unknown
    first: int = 0  # batches done before, by the run that is resumed
    done: int = 0
    began: float = field(default_factory=monotonic)

    @property
    def text(self) -> str:
        """Like "3/10", or "3/?" without an end."""
        return f"{self.done}/{self.total if math.isfinite(self.total) else '?'}"

    @property
    def elapsed_s(self) -> float:
        return monotonic() - self.began

    @property
    def batches_per_s(self) -> float:
        elapsed_s = self.elapsed_s
        return (self.done - self.first) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds to go at this speed; None when nobody can tell."""
        speed = self.batches_per_s
        return (self.total - self.done) / speed if speed > 0 and math.isfinite(self.total) else None


class View(ABC):
    """Shows bars. Of the bars that are open the last one is counting; `validation` opens inside `train`."""

    pause_s: float = FRAME_S  # shortest time from one `show` to the next
    end_pause_s: float = FRAME_S  # shortest time between two epoch ends that are shown
    is_log: bool = False  # True: what is shown stays; so the first thing is shown after a pause, not before

    @abstractmethod
    def open(self, bar: Bar) -> None:
        """A stage begins."""

    @abstractmethod
    def start(self, bar: Bar, count: Count) -> None:
        """An epoch or a dataloader begins. `count.done` is kept up to date until the next `start`; show nothing yet."""

    @abstractmethod
    def show(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        """Show how far the count is."""

    @abstractmethod
    def finish(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        """Show the end of an epoch, or of a dataloader of an evaluation that is not part of a fit."""

    @abstractmethod
    def close(self, bar: Bar) -> None:
        """The stage is over."""

    @abstractmethod
    def stop(self) -> None:
        """Leave the terminal in order, whatever is open. May be called twice."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without damage to what is shown."""
        print(*args, **kwargs)


class LineView(View):
    """Progress as one line of text, without control codes.

    In place, the line is written over again and again (a terminal or notebook without a bar library). Otherwise there
    is a line every `interval_s` seconds, one at the end of each epoch and one at the end of a stage; of epochs that are
    shorter than a second, one a second.

    Args:
        interval_s: seconds from one line to the next; 0 prints a line per batch.
        in_place: whether a carriage return takes the cursor back.
    """

    def __init__(self, interval_s: float, in_place: bool) -> None:
        self.in_place = in_place
        self.is_log = not in_place
        self.pause_s = FRAME_S if in_place else interval_s
        self.end_pause_s = FRAME_S if in_place else min(1.0, interval_s)
        self._open: list[Bar] = []
        self._counts: dict[Bar, Count] = {}
        self._width = 0  # of the text that stands in the line now

    def open(self, bar: Bar) -> None:
        self._open.append(bar)

    def start(self, bar: Bar, count: Count) -> None:
        self._counts[bar] = count

    def show(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        self._write(line(self._counts[bar], metrics))

    def finish(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        self.show(bar, metrics)

    def close(self, bar: Bar) -> None:
        self._open.remove(bar)
        if not self._open:
            if bar == "sanity":
                self._erase()
            self._break_line()

    def stop(self) -> None:
        self._open.clear()
        self._break_line()

    def print(self, *args: Any, **kwargs: Any) -> None:
        self._erase()
        print(*args, **kwargs)

    def _write(self, text: str) -> None:
        if not self.in_place:
            print(text, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print("\r" + text.ljust(self._width), end="", flush=True)
        self._width = len(text)

    def _erase(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", flush=True)
            self._width = 0

    def _break_line(self) -> None:
        if self._width:
            print(flush=True)
            self._width = 0


def line(count: Count, metrics: Mapping[str, Any]) -> str:
    """Like "Epoch 0/9: 30/100 (30%) in 0:03, 0:07 to go, 10.23 it/s, loss=0.25"."""
    percent = f" ({int(100 * count.done / count.total)}%)" if count.total and math.isfinite(count.total) else ""
    parts = [f"{count.title}: {count.text}{percent} in {clock(count.elapsed_s)}"]
    if count.done < count.total and count.remaining_s is not None:
        parts.append(f"{clock(count.remaining_s)} to go")
    parts.append(f"{count.batches_per_s:.2f} it/s")
    parts += [f"{name}={number_text(value, '.4g')}" for name, value in metrics.items()]
    return ", ".join(parts)


def clock(seconds: float | None) -> str:
    """Like "0:07" or "1:02:03"; "-:--" for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def number_text(value: Any, spec: str) -> str:
    """A float or a scalar tensor formatted with `spec`; anything else as `str` shows it."""
    if hasattr(value, "item"):
        value = value.item()
    return format(value, spec) if isinstance(value, float) else str(value)


def is_terminal(stream: Any) -> bool:
    """Whether lines on `stream` can be rewritten because it is a terminal."""
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty()) and os.environ.get("TERM") != "dumb"


def is_notebook() -> bool:
    """Whether stdout is the output cell of a Jupyter kernel (Colab has one too)."""
    return type(sys.stdout).__module__ == "ipykernel.iostream"
