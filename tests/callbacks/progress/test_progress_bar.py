"""The base of the bars: what it counts, what it shows behind the bar, and which bar a Trainer takes by itself."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from tests.callbacks.progress.terminal import LoggingModel, Terminal, trainer
from torch.utils.data import DataLoader

from inazuma import Trainer
from inazuma.callbacks.progress import (
    PlainProgressBar,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
    default_progress_bar,
    get_standard_metrics,
)
from inazuma.loggers import CSVLogger
from inazuma.testing import RandomDataset, RandomIterableDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch.callbacks.progress.progress_bar import get_standard_metrics as reference_metrics

BARS: list[type[Any]] = [PlainProgressBar, TQDMProgressBar, RichProgressBar]


class Recorder(ProgressBar):
    """A bar from scratch: writes down the totals that the base tells."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: list[tuple[str, float]] = []
        self.is_on = True

    def enable(self) -> None:
        self.is_on = True

    def disable(self) -> None:
        self.is_on = False

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.totals += [("train", self.total_train_batches), ("all val", self.total_val_batches)]

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self.totals.append(("val", self.total_val_batches_current_dataloader))

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self.totals.append(("test", self.total_test_batches_current_dataloader))

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            self.totals.append(("predict", self.total_predict_batches_current_dataloader))


def loader(batches: int) -> Any:
    return DataLoader(RandomDataset(32, batches))


def test_a_bar_from_scratch_knows_the_totals_of_every_stage() -> None:
    bar = Recorder()
    run = trainer(bar, limit_val_batches=None, num_sanity_val_steps=1, max_epochs=1)
    run.fit(LoggingModel(), loader(9), [loader(4), loader(5)])
    # The tracker of loaders is the bar's own: it last saw the second loader.
    assert bar.totals == [("val", 1), ("val", 1), ("train", 3), ("all val", 9), ("val", 4), ("val", 5)]
    bar.totals.clear()
    run.test(LoggingModel(), [loader(1), loader(9)])
    assert bar.totals == [("test", 1), ("test", 2)]
    bar.totals.clear()
    bar.reset_dataloader_idx_tracker()
    run.predict(LoggingModel(), loader(9))
    assert bar.totals == [("predict", 2)]


def test_epochs_without_validation_have_no_validation_batches() -> None:
    bar = Recorder()
    trainer(bar, check_val_every_n_epoch=2).fit(LoggingModel())
    assert [total for name, total in bar.totals if name == "all val"] == [0, 2]


def test_a_stream_has_no_total_and_a_step_limit_gives_it_one() -> None:
    stream = DataLoader(RandomIterableDataset(32, 7))
    bar = Recorder()
    trainer(bar, limit_train_batches=1.0, limit_val_batches=0, max_epochs=1).fit(LoggingModel(), stream)
    assert bar.totals[0] == ("train", math.inf)
    bar = Recorder()
    limits = {"max_epochs": -1, "max_steps": 2, "accumulate_grad_batches": 2}
    trainer(bar, limit_train_batches=1.0, limit_val_batches=0, **limits).fit(LoggingModel(), stream)
    assert bar.totals[0] == ("train", 4)


def test_a_bar_must_say_how_it_is_switched_off() -> None:
    with pytest.raises(NotImplementedError, match="ProgressBar must override `disable"):
        ProgressBar().disable()
    with pytest.raises(NotImplementedError, match="ProgressBar must override `enable"):
        ProgressBar().enable()


def test_the_trainer_of_a_bar_is_known_from_setup_on() -> None:
    bar = Recorder()
    with pytest.raises(TypeError, match="`Recorder.trainer` reference has not been set yet"):
        _ = bar.trainer
    run = trainer(bar)
    run.fit(LoggingModel())
    assert bar.trainer is run


def test_the_descriptions_are_those_of_lightning() -> None:
    bar = ProgressBar()
    assert bar.sanity_check_description == "Sanity Checking"
    assert bar.train_description == "Training"
    assert bar.validation_description == "Validation"
    assert bar.test_description == "Testing"
    assert bar.predict_description == "Predicting"


@pytest.mark.parametrize("versions", [[], [1], ["version_12345"], [1, 2], [1, 1], ["abc", "def"], [""], [None]])
def test_the_version_of_the_loggers_is_shown_as_lightning_does(versions: list[Any]) -> None:
    run: Any = SimpleNamespace(loggers=[SimpleNamespace(version=version) for version in versions])
    assert get_standard_metrics(run) == reference_metrics(run)


def test_metrics_are_the_version_and_what_is_logged_for_the_bar() -> None:
    bar = Recorder()
    run = trainer(bar, logger=CSVLogger("logs"))
    model = LoggingModel()
    run.fit(model)
    metrics = bar.get_metrics(run, model)
    assert metrics.keys() == {"v_num", "loss", "val_loss", "score"}
    assert metrics["v_num"] == 0
    assert metrics["score"] == 0.5


def test_a_metric_that_hides_the_version_is_warned_of_once() -> None:
    class Hiding(LoggingModel):
        def on_train_epoch_end(self) -> None:
            self.log("v_num", 7.0, prog_bar=True)

    bar = Recorder()
    run = trainer(bar, logger=CSVLogger("logs"))
    model = Hiding()
    run.fit(model)
    with pytest.warns(UserWarning, match="shows a value of its own as 'v_num'.*Log under another name"):
        assert bar.get_metrics(run, model)["v_num"] == 7.0
    assert bar.get_metrics(run, model)["v_num"] == 7.0


@pytest.mark.parametrize(
    ("missing", "expected"),
    [([], RichProgressBar), (["rich"], TQDMProgressBar), (["rich", "tqdm"], PlainProgressBar)],
)
def test_the_default_bar_is_the_best_that_is_installed(
    missing: list[str], expected: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in missing:
        monkeypatch.setitem(sys.modules, package, None)
    assert type(default_progress_bar()) is expected
    assert type(Trainer(accelerator="cpu", logger=False).progress_bar_callback) is expected


# What the three bars have in common


@pytest.mark.parametrize("bar_class", BARS)
def test_the_terminal_shows_each_stage_in_its_line(bar_class: type[Any], terminal: Terminal) -> None:
    run = trainer(bar_class())
    run.fit(LoggingModel())
    lines = terminal.lines
    assert len(lines) == 1
    assert lines[0].startswith("Epoch 1")
    assert "3/3" in lines[0]
    for name in ("loss", "val_loss", "score"):
        assert name in lines[0]
    assert "Sanity Checking DataLoader 0" in terminal.output
    for function, word in ((run.validate, "Validation"), (run.test, "Testing"), (run.predict, "Predicting")):
        terminal.clear()
        function(LoggingModel(), **({"verbose": False} if word != "Predicting" else {}))
        assert [line[: len(word) + 13] for line in terminal.lines] == [f"{word} DataLoader 0"]


@pytest.mark.parametrize("bar_class", BARS)
def test_a_bar_that_is_off_writes_nothing(bar_class: type[Any], terminal: Terminal) -> None:
    off = bar_class(refresh_rate=0)
    assert off.is_disabled
    trainer(off).fit(LoggingModel())
    disabled = bar_class()
    disabled.disable()
    assert not disabled.is_enabled
    trainer(disabled).fit(LoggingModel())
    assert terminal.output == ""
    disabled.enable()
    trainer(disabled).fit(LoggingModel())
    assert terminal.output != ""


@pytest.mark.parametrize("bar_class", BARS)
def test_a_bar_can_be_switched_off_and_on_within_a_run(bar_class: type[Any], terminal: Terminal) -> None:
    written: list[str] = []

    class Switching(LoggingModel):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if (self.current_epoch, batch_idx) == (1, 0):
                bar.disable()
                terminal.clear()
            if (self.current_epoch, batch_idx) == (1, 2):
                written.append(terminal.output)
                bar.enable()

    bar = bar_class()
    trainer(bar, max_epochs=3).fit(Switching())
    assert written == [""]
    assert "Epoch 2" in terminal.lines[-1]


@pytest.mark.parametrize("bar_class", BARS)
def test_what_is_printed_stands_above_the_bar(bar_class: type[Any], terminal: Terminal) -> None:
    class Talking(LoggingModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.print("batch", batch_idx, sep="-", end="!\n")

    trainer(bar_class(), max_epochs=1).fit(Talking())
    lines = terminal.lines
    assert lines[:-1] == ["batch-0!", "batch-1!", "batch-2!"]
    assert lines[-1].startswith("Epoch 0")


@pytest.mark.parametrize("bar_class", BARS)
def test_print_without_a_run_is_the_built_in_print(bar_class: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    bar_class().print("a", "b", sep="", end="c", file=sys.stderr)
    assert capsys.readouterr().err == "abc"


@pytest.mark.parametrize("bar_class", BARS)
def test_a_failed_run_leaves_the_terminal_in_order(bar_class: type[Any], terminal: Terminal) -> None:
    class Failing(LoggingModel):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if not self.trainer.sanity_checking:
                raise ZeroDivisionError

    stdout = sys.stdout
    with pytest.raises(ZeroDivisionError):
        trainer(bar_class()).fit(Failing())
    assert sys.stdout is stdout
    print("next")
    assert terminal.lines[-1] == "next"
    assert terminal.output.count("\x1b[?25l") == terminal.output.count("\x1b[?25h")  # cursor hidden, shown


@pytest.mark.parametrize("bar_class", BARS)
def test_a_bar_can_be_copied_and_pickled_within_a_run(bar_class: type[Any], terminal: Terminal) -> None:
    copies: list[Any] = []

    class Copying(LoggingModel):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            copies.extend((copy.deepcopy(bar), pickle.loads(pickle.dumps(bar))))

    bar = bar_class()
    trainer(bar, max_epochs=1).fit(Copying())
    for one in copies:
        terminal.clear()
        trainer(one, max_epochs=1).fit(LoggingModel())
        assert len(terminal.lines) == 1


@pytest.mark.parametrize("bar_class", BARS)
def test_a_run_that_resumes_within_an_epoch_shows_where(bar_class: type[Any], terminal: Terminal) -> None:
    class Saving(LoggingModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                self.trainer.save_checkpoint("middle.ckpt")

    settings = {"max_epochs": 1, "limit_train_batches": 9, "limit_val_batches": 0}
    trainer(bar_class(), **settings).fit(Saving())
    terminal.clear()
    trainer(bar_class(), **settings).fit(LoggingModel(), ckpt_path="middle.ckpt")
    assert "5/9" in terminal.output
    assert "9/9" in terminal.lines[-1]


@pytest.mark.parametrize("bar_class", BARS)
def test_metrics_are_read_for_a_frame_and_not_for_a_batch(bar_class: type[Any], terminal: Terminal) -> None:
    class Counting(bar_class):  # type: ignore[misc]
        reads = 0

        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            self.reads += 1
            return dict(super().get_metrics(trainer, pl_module))

    bar = Counting()
    # As the clock of a batch the frame rate is far away: 200 batches of one linear layer take some milliseconds.
    trainer(bar, max_epochs=1, limit_train_batches=200, limit_val_batches=0).fit(LoggingModel(), loader(200))
    assert 0 < bar.reads < 100


@pytest.mark.parametrize("bar_class", BARS)
@pytest.mark.parametrize("argument", ["refresh_rate", "line_interval_s"])
def test_a_negative_argument_is_refused(bar_class: type[Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{bar_class.__name__}\({argument}=-1\) is negative. Use 0"):
        bar_class(**{argument: -1})


def test_other_ranks_show_nothing(terminal: Terminal) -> None:
    bar = TQDMProgressBar()
    other_rank: Any = SimpleNamespace(is_global_zero=False)
    bar.setup(other_rank, LoggingModel(), "fit")
    assert bar.is_disabled
