"""The progress bar drawn with tqdm."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.progress.paced_progress import PacedProgressBar
from inazuma.callbacks.progress.views import Bar, Count, LineView, View, is_notebook, is_terminal

if TYPE_CHECKING:
    from tqdm import tqdm
    from tqdm import tqdm as Tqdm

    from inazuma.trainer import Trainer

__all__ = ["TQDMProgressBar", "Tqdm", "convert_inf"]

NUMBER_WIDTH = 5  # characters of a float behind the bar


class TQDMProgressBar(PacedProgressBar):
    """A progress bar drawn with `tqdm` on stdout; training, and while it runs validation below it.

    Where stdout is no terminal (a pipe, nohup, a batch job; also a notebook without `ipywidgets`) bars would come out
    as a flood of lines. There a plain line is printed instead, as `PlainProgressBar` does, and `train_progress_bar`
    and its kin are bars that swallow everything.

    To change a bar, override one of the `init_*_tqdm` methods::

        class MyBar(TQDMProgressBar):
            def init_validation_tqdm(self):
                checking = super().init_validation_tqdm()
                checking.colour = "green"
                return checking

    Args:
        refresh_rate: the bar is redrawn at multiples of this many batches (and at most ten times a second); 0 shows
            nothing. The environment variable `TQDM_MINITERS` raises it.
        process_position: lines to leave free above, for bars of your own.
        leave: keep the bar of each epoch on the screen instead of reusing its line.
        line_interval_s: seconds between two plain lines where stdout is no terminal; 0 prints one per batch.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
        ValueError: `refresh_rate` or `line_interval_s` is negative.
    """

    _BEHIND = "| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"  # never seconds per batch
    BAR_FORMAT = "{l_bar}{bar}" + _BEHIND

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False, line_interval_s: float = 10.0
    ) -> None:
        _need_tqdm(type(self).__name__)
        refresh_rate = max(refresh_rate, int(os.environ.get("TQDM_MINITERS", refresh_rate)))
        super().__init__(refresh_rate, line_interval_s)
        self._every_n_batches = max(refresh_rate, 1)
        self._process_position = process_position
        self._leave = leave
        self._bars: dict[Bar, tqdm[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bars": {}}

    @property
    def refresh_rate(self) -> int:
        return int(self._refresh_rate)

    @property
    def process_position(self) -> int:
        return self._process_position

    @property
    def train_progress_bar(self) -> tqdm[Any]:
        """The bar of training; likewise `val_`, `test_` and `predict_progress_bar`.

        Raises:
            TypeError: it does not exist yet.
        """
        return self._bar("train")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: tqdm[Any]) -> None:
        self._bars["train"] = bar

    @property
    def val_progress_bar(self) -> tqdm[Any]:
        """The bar of validation, and before training that of the sanity check."""
        return self._bar("validation")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: tqdm[Any]) -> None:
        self._bars["validation"] = bar

    @property
    def test_progress_bar(self) -> tqdm[Any]:
        return self._bar("test")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: tqdm[Any]) -> None:
        self._bars["test"] = bar

    @property
    def predict_progress_bar(self) -> tqdm[Any]:
        return self._bar("predict")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: tqdm[Any]) -> None:
        self._bars["predict"] = bar

    def _bar(self, name: Bar) -> tqdm[Any]:
        if name in self._bars:
            return self._bars[name]
        if self._trainer is not None and not isinstance(self._view, TqdmView):
            return tqdm_class()(disable=True)  # nothing is drawn here, and code written for a terminal still runs
        raise TypeError(f"The {name} bar of `{type(self).__name__}` has not been set yet: it appears with its stage.")

    def init_sanity_tqdm(self) -> tqdm[Any]:
        """Make the bar of the sanity check. Override it to change the bar; likewise the methods below."""
        return self._make_bar(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> tqdm[Any]:
        return self._make_bar(self.train_description, smoothing=0)

    def init_validation_tqdm(self) -> tqdm[Any]:
        is_alone = self.trainer.state.fn == "validate"  # otherwise it stands in the line below the bar of training
        return self._make_bar(self.validation_description, leave=is_alone, line=0 if is_alone else 1)

    def init_test_tqdm(self) -> tqdm[Any]:
        return self._make_bar(self.test_description)

    def init_predict_tqdm(self) -> tqdm[Any]:
        return self._make_bar(self.predict_description, smoothing=0)

    def _make_bar(self, description: str, leave: bool = True, line: int = 0, smoothing: float = 0.3) -> tqdm[Any]:
        return tqdm_class()(
            desc=description,
            position=2 * self._process_position + line,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=smoothing,
            bar_format=self.BAR_FORMAT,
        )

    def _epoch_title(self, trainer: Trainer) -> str:
        return f"Epoch {trainer.current_epoch}"

    def _make_view(self) -> View:
        if not is_terminal(sys.stdout) and not (is_notebook() and find_spec("ipywidgets") is not None):
            return LineView(self._line_interval_s, in_place=is_notebook())
        makers = {
            "sanity": self.init_sanity_tqdm,
            "train": self.init_train_tqdm,
            "validation": self.init_validation_tqdm,
            "test": self.init_test_tqdm,
            "predict": self.init_predict_tqdm,
        }
        return TqdmView(self._bars, makers, self._leave)


class TqdmView(View):
    """Shows progress in bars of tqdm.

    Args:
        bars: where the bars are put when they are opened, and looked up at each use: users put their own there.
        makers: makes each bar.
        leave: whether each epoch has a bar of its own that stays.
    """

    def __init__(self, bars: dict[Bar, tqdm[Any]], makers: Mapping[str, Callable[[], tqdm[Any]]], leave: bool) -> None:
        self._bars = bars
        self._makers = makers
        self._leave = leave
        self._counts: dict[Bar, Count] = {}
        self._epoch_stays = False  # the bar of training shows an epoch that is over, and is to stay so
        if leave:
            self.end_pause_s = 0.0

    def open(self, bar: Bar) -> None:
        self._bars[bar] = self._makers[bar]()
        if bar == "sanity":
            self._bars["validation"] = self._bars[bar]

    def start(self, bar: Bar, count: Count) -> None:
        if self._epoch_stays and bar == "train":
            self._epoch_stays = False
            self._bars[bar].close()
            self.open(bar)
        self._counts[bar] = count
        tqdm_bar = self._bars[bar]
        tqdm_bar.set_description(count.title, refresh=False)
        tqdm_bar.total = convert_inf(count.total)  # reset() would keep the old total where the new one is None
        tqdm_bar.reset(tqdm_bar.total)
        tqdm_bar.initial = tqdm_bar.n = count.done

    def show(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        tqdm_bar = self._bars[bar]
        tqdm_bar.n = self._counts[bar].done
        if metrics:
            scalars = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
            tqdm_bar.set_postfix(scalars, refresh=False)
        tqdm_bar.refresh()

    def finish(self, bar: Bar, metrics: Mapping[str, Any]) -> None:
        self.show(bar, metrics)
        self._epoch_stays = self._leave and bar == "train"

    def close(self, bar: Bar) -> None:
        if bar in self._counts:
            self._bars[bar].n = self._counts[bar].done
        self._bars[bar].close()

    def stop(self) -> None:
        inner_first = sorted(self._bars, key=lambda bar: bar != "validation")  # the outer one ends the line
        for bar in inner_first:
            self._bars[bar].close()

    def print(
        self, *args: Any, sep: str | None = None, end: str | None = None, file: Any = None, flush: bool = False
    ) -> None:
        file = sys.stdout if file is None else file
        text = (" " if sep is None else sep).join(str(arg) for arg in args)
        tqdm_class().write(text, file=file, end="\n" if end is None else end)
        if flush:
            file.flush()


@functools.cache
def tqdm_class() -> type[tqdm[Any]]:
    """The class `Tqdm`: a tqdm whose numbers keep their width, so that the text behind the bar stands still.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
    """
    _need_tqdm("Tqdm")
    has_widgets = is_notebook() and find_spec("ipywidgets") is not None
    base: Any = importlib.import_module("tqdm.auto" if has_widgets else "tqdm").tqdm

    class Tqdm(base):  # type: ignore[misc]
        monitor_interval = 0  # no thread that redraws: frames are drawn by us

        @staticmethod
        def format_num(n: int | float | str) -> str:
            """Floats get zeros up to five characters: "0.5" becomes "0.500"."""
            text = n if isinstance(n, str) else str(base.format_num(n))
            if not isinstance(n, float) or not math.isfinite(n) or "e" in text:
                return text
            return (text if "." in text or len(text) >= NUMBER_WIDTH else text + ".").ljust(NUMBER_WIDTH, "0")

    return Tqdm


def _need_tqdm(name: str) -> None:
    if find_spec("tqdm") is None:
        raise ModuleNotFoundError(f"`{name}` needs tqdm, which is not installed. Run `pip install inazuma[tqdm]`.")


def convert_inf(total: float | None) -> float | None:
    """`total` as tqdm wants it: None when there is no end."""
    return None if total is None or math.isinf(total) else total


def __getattr__(name: str) -> Any:
    if name == "Tqdm":  # made when somebody asks for it: importing this file must not need tqdm
        return tqdm_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
