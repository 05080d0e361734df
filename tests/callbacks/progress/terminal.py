"""Terminals to look at: a stream that says it is one, a real one around a child process, and the screen both leave."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
import rich
from torch import Tensor

from inazuma import Trainer
from inazuma.testing import BoringModel

COLUMNS = 120
TOKEN = re.compile(r"\x1b\[(?P<argument>[0-9;?]*)(?P<command>[A-Za-z])|(?P<character>.)", re.DOTALL)


class Terminal:
    """A terminal `COLUMNS` wide in the place of stdout, for the time of a test."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._output = ""
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(COLUMNS))
        monkeypatch.setattr(rich, "_console", None)  # rich asks once what its global console can do
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)

    @property
    def output(self) -> str:
        """What was written to it."""
        self._output += self._capsys.readouterr().out
        return self._output

    @property
    def lines(self) -> list[str]:
        """What stands on its screen."""
        return screen(self.output)

    def clear(self) -> None:
        self._capsys.readouterr()
        self._output = ""


class LoggingModel(BoringModel):
    """Logs `loss`, `val_loss` and, when an epoch ends, `score` to the progress bar."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.step(batch), prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("test_loss", self.step(batch))

    def on_train_epoch_end(self) -> None:
        self.log("score", 0.5, prog_bar=True)


def trainer(bar: Any, **arguments: Any) -> Trainer:
    """A Trainer with this bar that writes no files: 2 epochs of 3 batches, each with a validation of 2."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_train_batches": 3,
        "limit_val_batches": 2,
        "limit_test_batches": 2,
        "limit_predict_batches": 2,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=[bar], **{**settings, **arguments})


def screen(output: str) -> list[str]:
    """The lines that stand on an endless screen after `output`, without blank ones at the end."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for token in TOKEN.finditer(output):
        argument, command, character = token.group("argument", "command", "character")
        if character == "\n":
            row, column = row + 1, 0
        elif character == "\r":
            column = 0
        elif command == "A":
            row = max(0, row - int(argument or 1))
        elif command == "K":
            rows[row] = [] if argument == "2" else rows[row][:column]
        elif character is not None and character >= " ":
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = character
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    lines = ["".join(cells).rstrip() for cells in rows]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def run_in_pipe(program: str) -> str:
    """Everything that `program`, a Python source, writes to a pipe that is its stdout and stderr."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
    return done.stdout


def run_in_terminal(program: str) -> str:
    """Everything that `program`, a Python source, writes to a terminal of its own, `COLUMNS` wide."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS=str(COLUMNS))
        os.execv(sys.executable, [sys.executable, "-W", "error", "-c", program])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    chunks = []
    while chunk := _read(terminal):
        chunks.append(chunk)
    os.close(terminal)
    os.waitpid(child, 0)
    return b"".join(chunks).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the child has closed its side
        return b""
