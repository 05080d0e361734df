"""What the bars of inazuma share: they count every batch and draw by the clock.

Per batch a bar remembers one number and looks at the clock once. Only when a frame is due does it read the metrics
(which may wait for the GPU), format and draw.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.progress.progress_bar import ProgressBar
from inazuma.callbacks.progress.views import Bar, Count, View

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer

REST = 99  # after a frame a bar rests this many times as long as the frame took: a bar costs at most 1 % of the time,
REST_AT_MOST_S = 1.0  # except where frames are so slow (or wait for the GPU so long) that it would seem to hang


class PacedProgressBar(ProgressBar):
    """A progress bar that hands what it counts to a `View`, at most once per frame.

    Args:
        refresh_rate: 0 shows nothing; otherwise as the subclass says.
        line_interval_s: seconds between two lines where stdout is no terminal.

    Raises:
        ValueError: a negative `refresh_rate` or `line_interval_s`.
    """

    # Behind the module's on_train_epoch_end, so that the line of an epoch has what the module logs there.
    runs_after_module = True

    _every_n_batches = 1  # frames are drawn at multiples of this many batches only

    def __init__(self, refresh_rate: float, line_interval_s: float) -> None:
        super().__init__()
        name = type(self).__name__
        if refresh_rate < 0:
            raise ValueError(f"{name}(refresh_rate={refresh_rate}) is negative. Use 0 to show nothing.")
        if line_interval_s < 0:
            raise ValueError(f"{name}(line_interval_s={line_interval_s}) is negative. Use 0 for a line per batch.")
        self._refresh_rate = refresh_rate
        self._line_interval_s = line_interval_s
        self._enabled = True
        self._view: View | None = None
        self._due = math.inf  # when the next frame is, on `monotonic`'s clock; never without a view
        self._end_due = math.inf  # when the next end of an epoch may be shown
        self._train = self._eval = Count("", math.inf)
        self._eval_bar: Bar = "validation"
        self._unfinished = False  # the last epoch ended too soon after another one to be shown

    @abstractmethod
    def _make_view(self) -> View:
        """The view for what stdout is now."""

    def __getstate__(self) -> dict[str, Any]:
        # What is on the screen stays with the original.
        return {**super().__getstate__(), "_view": None, "_due": math.inf, "_end_due": math.inf}

    @property
    def is_enabled(self) -> bool:
        return self._enabled and self._refresh_rate > 0

    @property
    def is_disabled(self) -> bool:
        return not self.is_enabled

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Like the built-in `print`, without damage to the bar."""
        if self._view is None:
            print(*args, **kwargs)
        else:
            self._view.print(*args, **kwargs)

    # The verbs of the hooks below

    def _open(self, bar: Bar) -> None:
        if self.is_disabled:
            return
        if self._view is None:
            self._view = self._make_view()
            self._due = monotonic() + self._view.pause_s if self._view.is_log else 0.0
            self._end_due = 0.0
        self._view.open(bar)

    def _start(self, bar: Bar, count: Count, pl_module: LightningModule | None) -> None:
        if self._view is not None:
            self._view.start(bar, count)
        self._show_if_due(bar, count, pl_module)

    def _show_if_due(self, bar: Bar, count: Count, pl_module: LightningModule | None) -> None:
        """Draw a frame. `pl_module` is given where metrics stand behind the bar: in training."""
        began = monotonic()
        if self._view is None or began < self._due or count.done % self._every_n_batches:
            return
        metrics = {} if pl_module is None else self.get_metrics(self.trainer, pl_module)
        self._view.show(bar, metrics)
        ended = monotonic()
        rest_s = 0.0 if self._view.is_log else min(REST * (ended - began), REST_AT_MOST_S)
        self._due = ended + max(rest_s, self._view.pause_s)

    def _finish(self, bar: Bar, pl_module: LightningModule | None) -> None:
        if self._view is None:
            return
        metrics = {} if pl_module is None else self.get_metrics(self.trainer, pl_module)
        self._view.finish(bar, metrics)
        now = monotonic()
        self._due = now + self._view.pause_s
        self._end_due = now + self._view.end_pause_s

    def _close(self, bar: Bar) -> None:
        if self._view is not None:
            self._view.close(bar)

    def _stop(self) -> None:
        if self._view is not None:
            self._view.stop()
        self._view, self._due, self._end_due = None, math.inf, math.inf

    # Training

    def _epoch_title(self, trainer: Trainer) -> str:
        epochs = trainer.max_epochs
        return f"Epoch {trainer.current_epoch}" + ("" if epochs is None or epochs == -1 else f"/{epochs - 1}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("train")
        self._unfinished = False
        # A run that resumes inside an epoch gets no on_train_epoch_start.
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self._train = Count(self._epoch_title(trainer), self.total_train_batches, first=done, done=done)
        self._start("train", self._train, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._view is None:
            self._open("train")  # the bar was enabled on the way
        self._train = Count(self._epoch_title(trainer), self.total_train_batches)
        self._start("train", self._train, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.done = batch_idx + 1
        if monotonic() >= self._due:
            self._show_if_due("train", self._train, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfinished = monotonic() < self._end_due
        if not self._unfinished:
            self._finish("train", pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._unfinished:
            self._finish("train", pl_module)
        self._close("train")
        self._stop()

    # Evaluation: one bar counts the batches of one dataloader. Within a fit it is an aside, without an end of its own.

    def _open_eval(self, bar: Bar) -> None:
        self._eval_bar = bar
        self._open(bar)

    def _start_eval(self, dataloader_idx: int, description: str, total: float) -> None:
        if dataloader_idx > 0 and monotonic() >= self._end_due:
            self._finish_eval()
        self._eval = Count(f"{description} DataLoader {dataloader_idx}", total)
        self._start(self._eval_bar, self._eval, None)

    def _count_eval(self, batch_idx: int) -> None:
        self._eval.done = batch_idx + 1
        if monotonic() >= self._due:
            self._show_if_due(self._eval_bar, self._eval, None)

    def _finish_eval(self) -> None:
        if self.trainer.state.fn != "fit":
            self._finish(self._eval_bar, None)

    def _close_eval(self) -> None:
        if self._current_eval_dataloader_idx is not None:  # at least one batch came
            self._finish_eval()
        self._close(self._eval_bar)
        self.reset_dataloader_idx_tracker()
        if self.trainer.state.fn != "fit":
            self._stop()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_eval("sanity")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_eval()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and (self._view is not None or trainer.state.fn == "validate"):
            self._open_eval("validation")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            is_sanity = trainer.sanity_checking
            description = self.sanity_check_description if is_sanity else self.validation_description
            self._start_eval(dataloader_idx, description, self.total_val_batches_current_dataloader)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_eval(batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._close_eval()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_eval("test")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self._start_eval(dataloader_idx, self.test_description, self.total_test_batches_current_dataloader)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_eval(batch_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_eval()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_eval("predict")

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self._start_eval(dataloader_idx, self.predict_description, self.total_predict_batches_current_dataloader)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_eval(batch_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_eval()

    # The end, good or bad

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()
