"""The progress bar drawn with rich."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.progress.paced_progress import PacedProgressBar
from inazuma.callbacks.progress.views import (
    FRAME_S,
    Bar,
    Count,
    LineView,
    View,
    clock,
    is_notebook,
    is_terminal,
    number_text,
)
from inazuma.seed import isolate_rng

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.style import Style

    from inazuma.trainer import Trainer


@dataclass
class RichProgressBarTheme:
    """Styles of the parts of a `RichProgressBar`, as rich understands them ("bold red", "#6206E0", a `Style`).

    Args:
        description: "Epoch 0/9", "Testing" and so on.
        progress_bar: the done part of the bar.
        progress_bar_finished: the bar when all is done.
        progress_bar_pulse: the bar of a loader without a length.
        batch_progress: "30/100".
        time: elapsed and remaining time.
        processing_speed: batches per second.
        metrics: what is logged with `prog_bar=True`.
        metrics_text_delimiter: between two metrics.
        metrics_format: format of floats.
    """

    description: str | Style = ""
    progress_bar: str | Style = "#6206E0"
    progress_bar_finished: str | Style = "#6206E0"
    progress_bar_pulse: str | Style = "#6206E0"
    batch_progress: str | Style = ""
    time: str | Style = "dim"
    processing_speed: str | Style = "dim underline"
    metrics: str | Style = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(PacedProgressBar):
    """A progress bar drawn with `rich`; training, and while it runs validation below it.

    Where the console is no terminal (a pipe, nohup, a batch job; also a notebook without `ipywidgets`) rich shows
    nothing until the end. There a plain line is printed instead, as `PlainProgressBar` does, and `progress` is None.

    Args:
        refresh_rate: at most so many frames a second (never more than ten); 0 shows nothing.
        leave: keep the bar of each epoch on the screen instead of reusing its line.
        theme: the styles of its parts.
        console_kwargs: for `rich.reconfigure`: arguments of rich's global `Console`.
        line_interval_s: seconds between two plain lines where the console is no terminal; 0 prints one per batch.

    Raises:
        ModuleNotFoundError: rich is not installed.
        ValueError: `refresh_rate` or `line_interval_s` is negative.
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
        line_interval_s: float = 10.0,
    ) -> None:
        if find_spec("rich") is None:
            raise ModuleNotFoundError(
                f"`{type(self).__name__}` needs rich, which is not installed. Run `pip install inazuma[rich]`."
            )
        super().__init__(refresh_rate, line_interval_s)
        self.theme = RichProgressBarTheme() if theme is None else theme
        self.progress: Progress | None = None
        self._leave = leave
        self._console_kwargs = console_kwargs or {}
        self._tasks: dict[Bar, TaskID] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "progress": None, "_tasks": {}}

    @property
    def refresh_rate(self) -> float:
        return self._refresh_rate

    @property
    def train_progress_bar_id(self) -> TaskID | None:
        """The number of the training bar in `progress`; None while there is none. Likewise the four below."""
        return self._tasks.get("train")

    @property
    def val_sanity_progress_bar_id(self) -> TaskID | None:
        return self._tasks.get("sanity")

    @property
    def val_progress_bar_id(self) -> TaskID | None:
        return self._tasks.get("validation")

    @property
    def test_progress_bar_id(self) -> TaskID | None:
        return self._tasks.get("test")

    @property
    def predict_progress_bar_id(self) -> TaskID | None:
        return self._tasks.get("predict")

    @property
    def train_progress_bar(self) -> Task:
        """The training bar; likewise the three below.

        Raises:
            TypeError: there is none: training has not begun, or the console is no terminal.
        """
        return self._task("train")

    @property
    def val_sanity_check_bar(self) -> Task:
        return self._task("sanity")

    @property
    def val_progress_bar(self) -> Task:
        return self._task("validation")

    @property
    def test_progress_bar(self) -> Task:
        return self._task("test")

    def _task(self, bar: Bar) -> Task:
        if self.progress is None or bar not in self._tasks:
            raise TypeError(
                f"`{type(self).__name__}` has no {bar} bar: it appears with its stage, and only in a terminal. "
                "Ask whether `progress` is None."
            )
        return next(task for task in self.progress.tasks if task.id == self._tasks[bar])

    def refresh(self) -> None:
        """Draw what `progress` holds, now."""
        if self.progress is not None:
            self.progress.refresh()

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """The columns of a bar, from left to right; override it to change them.

        Besides what rich offers, a `Task` has the fields `count` ("30/100"), `time`, `speed` and `metrics`: text.
        """
        from rich.progress import BarColumn, TextColumn

        theme = self.theme
        return [
            TextColumn("{task.description}", style=theme.description, markup=False),
            BarColumn(
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            TextColumn("{task.fields[count]}", style=theme.batch_progress, markup=False),
            TextColumn("{task.fields[time]}", style=theme.time, markup=False),
            TextColumn("{task.fields[speed]}", style=theme.processing_speed, markup=False),
            TextColumn("{task.fields[metrics]}", style=theme.metrics, markup=False),
        ]

    @isolate_rng()  # rich draws a random number when it is imported
    def _make_view(self) -> View:
        import rich

        if self._console_kwargs:
            rich.reconfigure(**self._console_kwargs)
        console = rich.get_console()
        if not self._can_draw_on(console):
            return LineView(self._line_interval_s, in_place=is_notebook())
        from rich.progress import Progress

        columns = self.configure_columns(self.trainer)
        self.progress = Progress(*columns, console=console, auto_refresh=False)
        self._tasks.clear()
        return RichView(
            self.progress, self._tasks, self._metrics_text, self._leave, max(FRAME_S, 1 / self.refresh_rate)
        )

    def _can_draw_on(self, console: Console) -> bool:
        if is_notebook():
            return console.is_jupyter and find_spec("ipywidgets") is not None
        # Not `console.is_terminal`: FORCE_COLOR makes that true for a log file.
        return is_terminal(console.file) or bool(self._console_kwargs.get("force_terminal"))

    def _metrics_text(self, metrics: Mapping[str, Any]) -> str:
        texts = (f"{name}: {number_text(value, self.theme.metrics_format)}" for name, value in metrics.items())
        return self.theme.metrics_text_delimiter.join(texts)


class RichView(View):
    """Shows progress as tasks of one rich `Progress`, drawn when told to and by no thread.

    Args:
        progress: not started; it stands on the screen from the first bar to `stop`.
        tasks: where the number of each bar is put.
        metrics_text: writes metrics.
        leave: whether each epoch has a bar of its own that stays.
        pause_s: shortest time between two frames.
    """

    def __init__(
        self,
        progress: Progress,
        tasks: dict[Bar, TaskID],
        metrics_text: Callable[[Mapping[str, Any]], str],
        leave: bool,
        pause_s: float,
    ) -> None:
        self._progress = progress
        self._tasks = tasks
        self._metrics_text = metrics_text
        self._leave = leave
        self._counts: dict[Bar, Count] = {}
        self._epoch_stays = False  # the bar of training shows an epoch that is over, and is to stay so
        self.pause_s = pause_s
        self.end_pause_s = 0.0 if leave else pause_s

    def open(self, bar: Bar) -> None:
        self._progress.start()

    def start(self, bar: Bar, count: Count) -> None:
        if self._epoch_stays and bar == "train":
            self._epoch_stays = False
            # The bar of the last epoch stays as it is; below the new one there is room for a new bar of validation.
            del self._tasks["train"]
            if "validation" in self._tasks:
                self._progress.remove_task(self._tasks.pop("validation"))
        self._counts[bar] = count
        if bar not in self._tasks:
            self._tasks[bar] = self._progress.add_task(count.title, total=None, visible=False, **self._fields(bar, {}))
        task = next(task for task in self._progress.tasks if task.id == self._tasks[bar])
        task.total = count.total if math.isfinite(count.total) else None  # update() could not set None
        self._progress.update(task.id, description=count.title, completed=count.done, visible=True)

    def show(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        fields = self._fields(bar, metrics)
        self._progress.update(self._tasks[bar], completed=self._counts[bar].done, refresh=True, **fields)

    def finish(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        self.show(bar, metrics)
        self._epoch_stays = self._leave and bar == "train"

    def close(self, bar: Bar) -> None:
        is_aside = bar == "sanity" or (bar == "validation" and "train" in self._counts)
        if is_aside and bar in self._tasks:
            self._progress.update(self._tasks[bar], visible=False)

    def stop(self) -> None:
        self._progress.stop()

    def _fields(self, bar: Bar, metrics: Mapping[str, Any]) -> dict[str, Any]:
        count = self._counts[bar]
        return {
            "count": count.text,
            "time": f"{clock(count.elapsed_s)} • {clock(count.remaining_s)}",
            "speed": f"{count.batches_per_s:.2f}it/s",
            "metrics": self._metrics_text(metrics),
        }
