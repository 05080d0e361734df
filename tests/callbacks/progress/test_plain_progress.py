"""Progress where there is no terminal: plain lines, few of them. All three bars write the same ones there."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from typing import Any

import pytest
from tests.callbacks.progress.terminal import LoggingModel, Terminal, run_in_pipe, screen, trainer

from inazuma.callbacks.progress import PlainProgressBar, RichProgressBar, TQDMProgressBar
from inazuma.callbacks.progress.views import Count, clock, line

BARS: list[type[Any]] = [PlainProgressBar, TQDMProgressBar, RichProgressBar]

PROGRAM = """
import torch
from inazuma import Trainer
from inazuma.callbacks.progress import PlainProgressBar, RichProgressBar, TQDMProgressBar
from inazuma.testing import BoringModel, RandomDataset

class Model(BoringModel):
    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        pass

def trainer(bar, **arguments):
    callbacks = [] if bar is None else [bar]
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks, **arguments)

def loader(batches):
    return torch.utils.data.DataLoader(RandomDataset(32, batches))
"""


def test_ten_thousand_steps_in_a_pipe_are_less_than_sixty_lines() -> None:
    output = run_in_pipe(
        PROGRAM
        + """
run = trainer(None, max_epochs=2, val_check_interval=500, limit_val_batches=2)
run.fit(Model(), loader(5000), loader(2))
run.test(Model(), [loader(1)] * 9, verbose=False)
print("done")
"""
    )
    lines = output.splitlines()
    assert len(lines) < 60
    assert lines[-1] == "done"
    assert "\r" not in output
    assert "\x1b" not in output
    assert re.search(r"^Epoch 1/1: 5000/5000 \(100%\) in 0:\d\d, \d+\.\d\d it/s, loss=", output, re.MULTILINE)
    assert re.search(r"^Testing DataLoader 8: 1/1 \(100%\)", output, re.MULTILINE)


@pytest.mark.parametrize("bar_class", BARS)
def test_a_short_run_has_the_line_of_its_last_epoch(bar_class: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    trainer(bar_class(), max_epochs=50, limit_train_batches=1, limit_val_batches=1).fit(LoggingModel())
    lines = capsys.readouterr().out.splitlines()
    # One epoch a second at most: 50 take less than 20.
    assert 1 <= len(lines) < 20
    assert re.match(r"Epoch 49(/49)?: 1/1 \(100%\) in 0:00, .* it/s, loss=.*, val_loss=.*, score=0.5$", lines[-1])


def test_an_interval_of_zero_writes_every_batch(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(PlainProgressBar(line_interval_s=0), num_sanity_val_steps=1)
    run.fit(LoggingModel())
    positions = [line[: line.index(" (")] for line in capsys.readouterr().out.splitlines()]
    sanity = [f"Sanity Checking DataLoader 0: {n}/1" for n in range(2)]
    validation = [f"Validation DataLoader 0: {n}/2" for n in range(3)]
    epochs = [[f"Epoch {epoch}/1: {n}/3" for n in range(4)] for epoch in range(2)]
    expected = [
        *sanity,
        epochs[0][0],  # training begins, and then its first epoch
        *epochs[0],
        *validation,
        epochs[0][3],  # the epoch ends
        *epochs[1],
        *validation,
        epochs[1][3],
    ]
    assert positions == expected


def test_a_line_tells_speed_rest_and_metrics() -> None:
    count = Count("Epoch 0/9", total=100, done=30)
    count.began -= 3
    text = line(count, {"loss": 0.123456, "v_num": 3, "name": "x"})
    assert re.fullmatch(
        r"Epoch 0/9: 30/100 \(30%\) in 0:03, 0:0[67] to go, \d+\.\d\d it/s, loss=0.1235, v_num=3, name=x", text
    )
    endless = Count("Epoch 0", total=float("inf"), done=30)
    assert re.fullmatch(r"Epoch 0: 30/\? in 0:00, \d+\.\d\d it/s", line(endless, {}))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.9, "0:07"), (61, "1:01"), (3723, "1:02:03"), (None, "-:--")]
)
def test_durations_are_written_like_a_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("bar_class", BARS)
def test_a_notebook_without_widgets_has_one_line(bar_class: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class OutStream(io.StringIO):
        """stdout of a Jupyter kernel: a carriage return works, control codes do not."""

    OutStream.__module__ = "ipykernel.iostream"
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with contextlib.redirect_stdout(OutStream()) as cell:
        trainer(bar_class()).fit(LoggingModel())
    assert "\x1b" not in cell.getvalue()
    assert len(screen(cell.getvalue())) == 1
    assert "3/3 (100%)" in screen(cell.getvalue())[0]


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    trainer(PlainProgressBar()).fit(LoggingModel())
    assert "\r" not in terminal.output
    assert "Epoch 1/1: 3/3 (100%)" in terminal.output


def test_the_line_in_a_terminal_is_cut_to_its_width(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    trainer(PlainProgressBar()).fit(LoggingModel())
    assert [len(text) for text in terminal.lines] == [29]
