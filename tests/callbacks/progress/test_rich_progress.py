"""The bar drawn with rich: its public surface, and a real terminal."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import Any

import pytest
import rich
from rich.progress import TextColumn
from tests.callbacks.progress.terminal import LoggingModel, Terminal, run_in_pipe, run_in_terminal, screen, trainer
from tests.callbacks.progress.test_plain_progress import PROGRAM
from torch.utils.data import DataLoader

from inazuma.callbacks.progress import RichProgressBar, RichProgressBarTheme
from inazuma.testing import RandomIterableDataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch.callbacks import RichProgressBar as Reference
    from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme as ReferenceTheme


def test_a_real_terminal_has_one_line_for_each_stage() -> None:
    output = run_in_terminal(
        PROGRAM
        + """
run = trainer(None, max_epochs=5, val_check_interval=20, enable_model_summary=False)
run.fit(Model(), loader(100), loader(50))
run.test(Model(), loader(9), verbose=False)
print("done")
"""
    )
    lines = screen(output)
    assert [line for line in lines if "`Trainer.fit` stopped: `max_epochs=5` reached." in line]
    lines = [line for line in lines if "stopped" not in line and " took " not in line]
    assert len(lines) == 3
    assert lines[0].startswith("Epoch 4/4 ━")
    assert " 100/100 " in lines[0]
    assert "loss: " in lines[0]
    assert lines[1].startswith("Testing DataLoader 0 ━")
    assert lines[2] == "done"


def test_ctrl_c_in_a_real_terminal_gives_the_cursor_back() -> None:
    output = run_in_terminal(
        PROGRAM
        + """
import os, signal
class Interrupted(Model):
    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGINT)
run = trainer(RichProgressBar(), max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False)
run.fit(Interrupted(), loader(9))
"""
    )
    assert "\x1b[?25l" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert screen(output)[0].startswith("Epoch 0/")


def test_a_log_file_stays_clean_although_colors_are_forced() -> None:
    program = "import os\nos.environ['FORCE_COLOR'] = '1'\n" + PROGRAM
    run = "trainer(RichProgressBar(), max_epochs=1, enable_model_summary=False).fit(Model(), loader(3), loader(1))"
    output = run_in_pipe(program + run)
    assert "\x1b" not in output
    assert output.startswith("Epoch 0/0: 3/3 (100%)")


def test_the_bars_are_there_to_be_read(terminal: Terminal) -> None:
    bar = RichProgressBar()
    assert bar.progress is None
    assert bar.train_progress_bar_id is None
    with pytest.raises(TypeError, match="has no train bar: it appears with its stage, and only in a terminal"):
        _ = bar.train_progress_bar
    run = trainer(bar)
    run.fit(LoggingModel())
    assert bar.progress is not None
    assert (bar.train_progress_bar.completed, bar.train_progress_bar.total) == (3, 3)
    assert bar.train_progress_bar.id == bar.train_progress_bar_id
    assert bar.train_progress_bar.description == "Epoch 1/1"
    assert bar.val_progress_bar.id == bar.val_progress_bar_id
    assert not bar.val_progress_bar.visible
    assert bar.val_sanity_check_bar.id == bar.val_sanity_progress_bar_id
    run.test(LoggingModel(), verbose=False)
    assert (bar.test_progress_bar.id, bar.test_progress_bar.completed) == (bar.test_progress_bar_id, 2)
    run.predict(LoggingModel())
    assert bar.predict_progress_bar_id is not None
    assert bar.train_progress_bar_id is None


def test_leave_keeps_the_bar_of_each_epoch(terminal: Terminal) -> None:
    trainer(RichProgressBar(leave=True), max_epochs=3).fit(LoggingModel())
    assert [line[:9] for line in terminal.lines] == ["Epoch 0/2", "Epoch 1/2", "Epoch 2/2"]


def test_what_anybody_prints_stands_above_the_bar(terminal: Terminal) -> None:
    class Printing(LoggingModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            print("batch", batch_idx)

    trainer(RichProgressBar(), max_epochs=1).fit(Printing())
    lines = terminal.lines
    assert lines[:-1] == ["batch 0", "batch 1", "batch 2"]
    assert lines[-1].startswith("Epoch 0/0")


def test_columns_can_be_changed(terminal: Terminal) -> None:
    class Custom(RichProgressBar):
        def configure_columns(self, trainer: Any) -> list[Any]:
            return [*super().configure_columns(trainer)[:1], TextColumn("<{task.fields[count]}>", markup=False)]

    trainer(Custom()).fit(LoggingModel())
    assert terminal.lines == ["Epoch 1/1 <3/3>"]


def test_the_theme_says_how_metrics_look(terminal: Terminal) -> None:
    theme = RichProgressBarTheme(metrics_text_delimiter=" | ", metrics_format=".1e")
    trainer(RichProgressBar(theme=theme)).fit(LoggingModel())
    assert " | score: 5.0e-01" in terminal.lines[0]


def test_the_fields_of_the_theme_are_those_of_lightning() -> None:
    assert dataclasses.asdict(RichProgressBarTheme()) == dataclasses.asdict(ReferenceTheme())
    assert RichProgressBar().refresh_rate == Reference().refresh_rate == 100


def test_a_stream_has_a_bar_without_an_end(terminal: Terminal) -> None:
    stream = DataLoader(RandomIterableDataset(32, 5))
    settings = {"limit_train_batches": 1.0, "limit_val_batches": 0}
    trainer(RichProgressBar(), **settings).fit(LoggingModel(), stream)
    assert " 5/? " in terminal.lines[0]


def test_console_arguments_reach_the_console_of_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich, "_console", None)
    monkeypatch.setenv("COLUMNS", "120")
    trainer(RichProgressBar(console_kwargs={"stderr": True, "force_terminal": True})).fit(LoggingModel())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Epoch 1/1" in captured.err


def test_refresh_draws_now(terminal: Terminal) -> None:
    class Refreshing(LoggingModel):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            terminal.clear()
            bar.refresh()
            drawn.append(terminal.output != "")

    drawn: list[bool] = []
    bar = RichProgressBar()
    bar.refresh()  # nothing to draw yet
    trainer(bar).fit(Refreshing())
    assert drawn == [True] * 6


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ModuleNotFoundError, match=r"`RichProgressBar` needs rich.*`pip install inazuma\[rich\]`"):
        RichProgressBar()
