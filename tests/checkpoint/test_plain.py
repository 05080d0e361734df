"""Checkpoints hold tensors and plain data; anything else is refused when it is saved, with its place."""

from __future__ import annotations

import collections
import datetime
import enum
import re
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import inazuma as pl
from inazuma.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from inazuma.checkpoint.plain import refuse_objects
from inazuma.errors import CheckpointError
from inazuma.loggers import CSVLogger
from inazuma.testing import BoringDataModule, BoringModel

pytestmark = pytest.mark.filterwarnings("ignore")


class Color(enum.Enum):
    RED = 1


class Thing:
    pass


Pair = collections.namedtuple("Pair", "a b")


@dataclass
class Config:
    width: int = 3
    rest: list[int] = field(default_factory=list)


def quiet(**arguments: Any) -> pl.Trainer:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(
        **{
            **dict.fromkeys(names, False),
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "max_epochs": 1,
            **arguments,
        }
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Thing(), "an object of class .*Thing cannot be stored.*Store what it is made of"),
        (nn.Linear(1, 1), r"class torch.nn.modules.linear.Linear cannot be stored.*`state_dict\(\)`"),
        (np.float64(0.5), r"class numpy.float64.*`value.item\(\)`"),
        (np.ones(3), r"class numpy.ndarray.*torch.from_numpy"),
        (Path("a"), r"class pathlib.*`str\(path\)`"),
        (Color.RED, "Color cannot be stored.*Store its `value`"),
        (lambda: 0, "class builtins.function"),
        (Thing, "class builtins.type"),
        (datetime.datetime(2020, 1, 1), "class datetime.datetime"),
        (Pair(1, 2), "Pair"),
        (collections.defaultdict(int), "class collections.defaultdict"),
    ],
)
def test_an_object_is_refused_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=f"^callbacks > Mine > inner > 1: .*{says}"):
        refuse_objects({"callbacks": {"Mine": {"inner": [0, value]}}})


def test_an_object_as_a_key_or_on_a_tensor_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^a > the key .*Thing.*: an object of class .*Thing cannot"):
        refuse_objects({"a": {Thing(): 1}})
    weight = torch.ones(1)
    weight.origin = Thing()  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="^w > origin: "):
        refuse_objects({"w": weight})


def test_plain_data_passes_and_what_torch_reads_of_others() -> None:
    plain = [None, True, 1, 1.5, 1j, "x", b"x", bytearray(b"x"), {1}, (1, [2]), {"a": {1: 2}}, {(1, "a"): 3}]
    of_torch = [torch.ones(1), nn.Parameter(torch.ones(1)), torch.Size([1]), torch.device("cpu"), torch.float16]
    others = [torch.eye(2).to_sparse(), collections.OrderedDict(a=1), collections.Counter("ab"), torch.strided]
    refuse_objects({"all": [plain, of_torch, others]})


class OnSave(BoringModel):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = {"optimizer": Thing()}


class Keeps(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"model": nn.Linear(1, 1)}


class Adds(Callback):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = [Thing()]


class KeepsData(BoringDataModule):
    def state_dict(self) -> dict[str, Any]:
        return {"split": Thing()}


@pytest.mark.parametrize(
    ("module", "callback", "data", "place"),
    [
        (OnSave, Callback, BoringDataModule, "config > optimizer"),
        (BoringModel, Keeps, BoringDataModule, "callbacks > Keeps > model"),
        (BoringModel, Adds, BoringDataModule, "mine > 0"),
        (BoringModel, Callback, KeepsData, "KeepsData > split"),
    ],
)
def test_what_users_put_in_is_refused_when_it_is_saved(
    module: Any, callback: Any, data: Any, place: str, tmp_path: Path
) -> None:
    trainer = quiet(callbacks=[callback()])
    trainer.fit(module(), datamodule=data())
    with pytest.raises(CheckpointError, match=f"^{re.escape(place)}: an object of class .* cannot be stored"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.glob("*.ckpt")) == []


def test_the_look_through_is_cheap() -> None:
    state = {f"layer{i}": {"exp_avg": torch.empty(0), "step": torch.empty(0), "lr": 0.1} for i in range(5000)}
    began = time.process_time()
    refuse_objects(state)
    assert time.process_time() - began < 0.5  # 5 ms on an idle core


class Everything(BoringModel):
    """Arguments of every kind."""

    def __init__(self, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        self.log("loss", loss, prog_bar=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))


HPARAMS: dict[str, Any] = {
    "path": Path("a/b"),
    "color": Color.RED,
    "space": Namespace(a=1, b=Namespace(c=Path("x"))),
    "config": Config(),
    "array": np.arange(3.0),
    "scalar": np.float32(0.5),
    "when": datetime.datetime(2020, 1, 2, 3, 4, 5),
    "day": datetime.date(2020, 1, 2),
    "length": datetime.timedelta(days=1, seconds=2),
    "function": torch.relu,
    "anonymous": lambda x: x,
    "kind": nn.Linear,
    "net": nn.Linear(1, 1),
    "weight": torch.ones(2),
    "nested": {"list": [1, (2.0, None)], "object": Thing()},
}


class Manual(BoringModel):
    """Two optimizers, with schedules."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.step(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        made = [torch.optim.Adam(self.parameters()), torch.optim.RMSprop(self.parameters())]
        return made, [lr_scheduler.ExponentialLR(made[0], 0.9)]


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 1.0),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.2),
    "sequential": lambda o: lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o), lr_scheduler.LinearLR(o)], [1]),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o)]),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.1),
}


def scheduled(make: Any) -> BoringModel:
    class Scheduled(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [make(optimizer)]

    return Scheduled()


def test_files_of_all_kinds_of_runs_open_where_inazuma_cannot_be_imported(tmp_path: Path) -> None:
    def save(name: str, module: Any, **arguments: Any) -> None:
        trainer = quiet(**arguments)
        trainer.fit(module)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")

    callbacks = [EarlyStopping("val_loss"), LearningRateMonitor(), Timer(), GradientAccumulationScheduler({0: 2})]
    kept = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    save(
        "callbacks",
        Everything(**HPARAMS),
        callbacks=[*callbacks, kept],
        logger=CSVLogger("."),
        enable_checkpointing=True,
    )
    save("ema", Everything(), callbacks=[EMAWeightAveraging()])
    save("swa", BoringModel(), callbacks=[StochasticWeightAveraging(0.1)], max_epochs=2)
    save("manual", Manual())
    for precision in ("64-true", "bf16-true", "bf16-mixed"):
        save(precision, BoringModel(), precision=precision)
    for name, make in SCHEDULERS.items():
        save(name, scheduled(make))
    code = """if True:
        import sys, glob, torch
        sys.modules["inazuma"] = sys.modules["numpy.random"] = None  # an import of them fails
        for path in sorted(glob.glob("*.ckpt")):
            torch.load(path, weights_only=True)
            print(path)
    """
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == len(list(tmp_path.glob("*.ckpt"))) >= 7 + len(SCHEDULERS)
