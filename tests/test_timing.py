"""Where the time goes: shares that are known beforehand, a line at the end of the run, and the run's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from inazuma import Callback, Trainer
from inazuma.callbacks import RunDigest
from inazuma.testing import BoringModel, RandomDataset


class Clock:
    """Stands still, but for what somebody takes."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def take(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inazuma.timing.perf_counter", clock)
    return clock


class Slow(RandomDataset):
    def __init__(self, clock: Clock, length: int) -> None:
        super().__init__(32, length)
        self.clock = clock

    def __getitem__(self, index: int) -> Tensor:
        self.clock.take(5)
        return super().__getitem__(index)


class Stops(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.take(2)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.clock.take(1)

    def on_save_checkpoint(self, *_: Any) -> None:
        self.clock.take(40)


class Model(BoringModel):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.clock.take(7)
        self.log("loss", batch.sum())
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.clock.take(0.5)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.take(11)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.take(13)

    def setup(self, stage: str) -> None:
        self.clock.take(1000)

    def configure_optimizers(self) -> Any:
        clock = self.clock

        class Optimizer(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                loss = super().step(closure)
                clock.take(3)
                return loss

        return Optimizer(self.parameters(), lr=0.1)


def trainer_of(clock: Clock, folder: Path, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[Stops(clock), *arguments.pop("callbacks", [])],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 1, "limit_val_batches": 0, "logger": False, "enable_checkpointing": False, **arguments},
    )


def test_each_second_is_that_of_one_activity(clock: Clock, tmp_path: Path) -> None:
    trainer = trainer_of(clock, tmp_path, limit_val_batches=1.0)
    trainer.fit(Model(clock), DataLoader(Slow(clock, 10)), DataLoader(Slow(clock, 4)))
    before = trainer.timing.seconds
    trainer.save_checkpoint(tmp_path / "of the run that is over.ckpt")
    assert trainer.timing.seconds == before
    assert {name: seconds for name, seconds in before.items() if seconds} == {
        "Model": 1000 + 10 * 0.5,
        "step": 10 * 7,
        "validation": 4 * (5 + 11),
        "data": 10 * 5,
        "optimizer": 10 * 3,
        "Stops": 10 * 2 + 4,
    }
    assert sum(trainer.timing.shares.values()) == pytest.approx(1)
    assert trainer.timing.total_s == clock.now_s - 100 - 40


def test_saving_is_told_apart_from_the_callback_that_saves(clock: Clock, tmp_path: Path) -> None:
    trainer = trainer_of(clock, tmp_path, enable_checkpointing=True)
    trainer.fit(Model(clock), DataLoader(RandomDataset(32, 2)))
    seconds = trainer.timing.seconds
    assert (seconds["saving"], seconds["Stops"], seconds["ModelCheckpoint"]) == (40, 2 * 2, 0)


def test_an_evaluation_of_its_own_tells_its_parts(clock: Clock, tmp_path: Path) -> None:
    trainer = trainer_of(clock, tmp_path)
    trainer.test(Model(clock), DataLoader(Slow(clock, 3)), verbose=False)
    seconds = trainer.timing.seconds
    assert (seconds["data"], seconds["step"], seconds["Model"]) == (15, 39, 1000)


def test_one_line_is_told_at_the_end_and_advice_only_where_it_would_help(
    clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="inazuma")
    trainer_of(clock, tmp_path).fit(Model(clock), DataLoader(RandomDataset(32, 10)))
    (line,) = [message for message in caplog.messages if "took" in message]
    assert line.startswith("`Trainer.fit` took 1125.0 s: Model 89%, step 6%, optimizer 3%, Stops 2%")
    assert "num_workers" not in line

    class Quick(Model):
        setup = BoringModel.setup

    caplog.clear()
    trainer_of(clock, tmp_path).fit(Quick(clock), DataLoader(Slow(clock, 10)))
    (line,) = [message for message in caplog.messages if "took" in message]
    assert "data 29%" in line
    assert "with num_workers=0, loading is slower" in line


def test_the_record_of_a_run_holds_its_times(clock: Clock, tmp_path: Path) -> None:
    trainer_of(clock, tmp_path, callbacks=[RunDigest()]).fit(Model(clock), DataLoader(Slow(clock, 3)))
    session = json.loads((tmp_path / "run.json").read_text())["sessions"][0]
    assert session["seconds"]["data"] == 15
    assert session["seconds"]["step"] == 21
