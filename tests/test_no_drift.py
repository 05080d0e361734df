"""What is added around training leaves it bit-equal: callbacks, loggers, profilers, progress bars, the sanity check,
validation. Training here draws from all three generators: shuffling, dropout, augmentation."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import inazuma as pl
from inazuma.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from inazuma.loggers import CSVLogger, TensorBoardLogger
from inazuma.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

pytestmark = pytest.mark.filterwarnings("ignore")


class Augmented(Dataset[Tensor]):
    """Samples with noise from torch, numpy and random."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index)) + torch.randn(4) + float(np.random.rand()) + random.random()


class Noisy(pl.LightningModule):
    """Dropout, batch norm and noise in its steps; logs in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        self.example_input_array = torch.ones(2, 4)
        self.trace: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x + torch.randn_like(x))
        return out

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch).pow(2).mean() * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        self.trace.append((loss.item(), batch.tolist(), *(p.double().sum().item() for p in self.parameters())))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self(batch).pow(2).mean() + random.random())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=1.0)}

    def train_dataloader(self) -> Any:
        return DataLoader(Augmented(), batch_size=4, shuffle=True)

    def val_dataloader(self) -> Any:
        random.random(), torch.rand(1)  # as `random_split` would draw
        return DataLoader(Augmented(), batch_size=4)


BARE: dict[str, Any] = {
    "max_epochs": 3,
    "limit_val_batches": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
ALL_ON: dict[str, Any] = {
    "logger": True,
    "enable_checkpointing": True,
    "enable_progress_bar": True,
    "enable_model_summary": True,
    "profiler": "simple",
    "log_every_n_steps": 1,
}


def trace(**arguments: Any) -> list[Any]:
    """Losses, batches and weights of each step of a run with these arguments."""
    pl.seed_everything(7, verbose=False)
    module = Noisy()
    pl.Trainer(**{**BARE, **arguments}).fit(module)
    return module.trace


@cache
def bare() -> list[Any]:
    return trace()


def saves(trainer: pl.Trainer, module: Any, *_: Any) -> None:
    trainer.save_checkpoint("x.ckpt")


MADE: dict[str, Callable[[], dict[str, Any]]] = {
    "EarlyStopping": lambda: {"callbacks": EarlyStopping("loss", patience=99)},
    "LearningRateMonitor": lambda: {
        "callbacks": LearningRateMonitor(),
        "logger": CSVLogger("."),
        "log_every_n_steps": 1,
    },
    "Timer": lambda: {"callbacks": Timer()},
    "GradientAccumulationScheduler": lambda: {"callbacks": GradientAccumulationScheduler({0: 1})},
    "WeightAveraging": lambda: {"callbacks": WeightAveraging()},
    "EMAWeightAveraging": lambda: {"callbacks": EMAWeightAveraging()},
    "LambdaCallback": lambda: {"callbacks": LambdaCallback(on_train_batch_end=lambda *_: None)},
    "OnExceptionCheckpoint": lambda: {"callbacks": OnExceptionCheckpoint("."), "enable_checkpointing": True},
    "a callback that saves in every batch": lambda: {"callbacks": LambdaCallback(on_train_batch_end=saves)},
    "a callback that saves inside of batches": lambda: {"callbacks": LambdaCallback(on_before_backward=saves)},
    "ModelCheckpoint": lambda: {"callbacks": ModelCheckpoint(save_last=True, monitor="loss"), **ALL_ON},
    "ModelCheckpoint every step": lambda: {
        "callbacks": ModelCheckpoint(every_n_train_steps=1, save_top_k=-1),
        "enable_checkpointing": True,
    },
    "ModelSummary": lambda: {"callbacks": ModelSummary(max_depth=-1), "enable_model_summary": True},
    "RichModelSummary": lambda: {"callbacks": RichModelSummary(), "enable_model_summary": True},
    "RichProgressBar": lambda: {"callbacks": RichProgressBar(), "enable_progress_bar": True},
    "TQDMProgressBar": lambda: {"callbacks": TQDMProgressBar(), "enable_progress_bar": True},
    "CSVLogger": lambda: {"logger": CSVLogger("."), "log_every_n_steps": 1},
    "TensorBoardLogger": lambda: {"logger": TensorBoardLogger(".", log_graph=True), "log_every_n_steps": 1},
    "SimpleProfiler": lambda: {"profiler": SimpleProfiler()},
    "AdvancedProfiler": lambda: {"profiler": AdvancedProfiler()},
    "PyTorchProfiler": lambda: {"profiler": PyTorchProfiler(record_module_names=True)},
    "detect_anomaly": lambda: {"detect_anomaly": True},
    "barebones": lambda: {"barebones": True, "logger": None, "num_sanity_val_steps": None},
    "sanity check": lambda: {"limit_val_batches": 1.0, "num_sanity_val_steps": 2, "check_val_every_n_epoch": 99},
    "validation": lambda: {"limit_val_batches": 1.0},
    "validation in the middle": lambda: {"limit_val_batches": 1.0, "val_check_interval": 1},
    "everything": lambda: {**ALL_ON, "limit_val_batches": 1.0, "num_sanity_val_steps": 2},
}


@pytest.mark.parametrize("added", MADE)
def test_what_is_added_leaves_training_bit_equal(added: str) -> None:
    assert trace(**MADE[added]()) == bare()


def test_the_first_run_of_a_process_is_like_a_later_one(tmp_path: Path) -> None:
    # What is imported while it runs must not draw, as rich does.
    first = (
        f"here = __import__('runpy').run_path({__file__!r}); assert here['trace'](**here['ALL_ON']) == here['bare']()"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", first], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_stochastic_weight_averaging_changes_nothing_before_it_starts() -> None:
    steps = 2 * 3  # it starts with the third epoch
    callback = StochasticWeightAveraging(0.01, swa_epoch_start=2)
    assert trace(callbacks=callback)[:steps] == bare()[:steps]


def test_the_training_compared_here_depends_on_every_generator() -> None:
    for disturb in (lambda: torch.rand(1), random.random, lambda: np.random.rand()):
        drawn = LambdaCallback(on_train_epoch_start=lambda *_, draw=disturb: draw())
        assert trace(callbacks=drawn) != bare()
