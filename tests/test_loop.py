"""The pseudocode at the head of loop.py is the loop, and the loop is as near to the user's step as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import inazuma.loop
from inazuma import Callback, LightningModule, Trainer
from inazuma.loggers.logger import DummyLogger

ROOT = Path(__file__).parents[1]

# What the pseudocode says in words -> what a run shows then. Names of hooks stand for themselves.
WORDS = {
    "sanity check": "on_sanity_check_start",
    "transfer to the device": "transfer_batch_to_device",
    "optimizer step": "optimizer_step",
    "training_step": "training_step",
    "zero grad": "optimizer_zero_grad",
    "backward": "backward",
    "clipping": "configure_gradient_clipping",
    "step the schedules": "lr_scheduler_step",
    "every n steps": "row",
    "validate": "on_validation_start",
    "the means of the epoch": "row",
}


def pseudocode() -> list[str]:
    """What the docstring of loop.py tells, in its order: the second column of a line, where it names events."""
    longest_first = sorted(WORDS, key=len, reverse=True)
    pattern = re.compile(rf"\bon_\w+|\b(?:{'|'.join(longest_first)})\b")
    told: list[str] = []
    for line in str(inazuma.loop.__doc__).splitlines():
        if line.startswith("    "):
            title, *detail = re.split(" {2,}", line.strip())
            told += pattern.findall(" ".join(detail)) or pattern.findall(title)
    return [WORDS.get(word, word) for word in told]


class Net(LightningModule):
    """Notes each of its methods that the loop calls."""

    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self.layer, self.trace = nn.Linear(2, 1), trace

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trace.append("training_step")
        loss: Tensor = self.layer(batch).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def _noting(name: str) -> Any:
    def method(self: Net, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.training:  # validation transfers batches too
            self.trace.append(name)
        return getattr(LightningModule, name)(self, *args, **kwargs)

    return method


METHODS = ("transfer_batch_to_device", "optimizer_step", "optimizer_zero_grad", "backward")
for _name in (*METHODS, "configure_gradient_clipping", "lr_scheduler_step"):
    setattr(Net, _name, _noting(_name))


class Watch(Callback):
    """Notes each event."""

    def __init__(self, trace: list[str]) -> None:
        self.trace = trace


def _hearing(event: str) -> Any:
    return lambda self, *_: self.trace.append(event)


for _name in [name for name in dir(Callback) if name.startswith("on_")]:
    setattr(Watch, _name, _hearing(_name))


class Recorder(DummyLogger):
    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self.trace = trace

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.trace.append("row")


def test_the_pseudocode_tells_what_a_run_does_in_its_order() -> None:
    trace: list[str] = []
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=Recorder(trace),
        callbacks=[Watch(trace)],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    one_batch: Any = DataLoader(torch.ones(1, 2))  # type: ignore[arg-type]
    trainer.fit(Net(trace), one_batch, one_batch)
    told = pseudocode()
    assert len(told) >= 18
    sanity_check, training = trace[: trace.index("on_train_start")], trace[trace.index("on_train_start") :]
    assert told[0] in sanity_check
    seen = [word for word in training if word in told]
    assert seen == told[1:]


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """What `benchmarks/frames.py` finds, in a process of its own, since it silences logs and warnings."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "frames.py"), "inazuma"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_users_step_is_at_most_nine_frames_from_fit(measured: dict[str, float]) -> None:
    assert 0 < measured["frames"] <= 9


def test_a_batch_takes_at_most_sixty_calls_of_ours(measured: dict[str, float]) -> None:
    assert 0 < measured["calls_per_batch"] <= 60
    assert measured["calls_per_batch_one_log"] <= 80


@pytest.mark.parametrize("closes", [True, False])
def test_gradients_are_those_of_the_whole_window(closes: bool) -> None:
    """Three batches in windows of two: the last window has one batch, and its loss is divided by two all the same."""
    gradients: list[float] = []

    class Weight(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.weight * batch

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert self.weight.grad is not None
            gradients.append(self.weight.grad.item())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches: Any = [torch.tensor(value) for value in ((1.0, 2.0, 4.0, 8.0) if closes else (1.0, 2.0, 4.0))]
    Trainer(accelerator="cpu", barebones=True, max_epochs=1, accumulate_grad_batches=2).fit(
        Weight(), DataLoader(batches, batch_size=None)
    )
    assert gradients == ([1.5, 6.0] if closes else [1.5, 2.0])
