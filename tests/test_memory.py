"""Memory: all is freed when the last name goes, without the garbage collector; and a long run needs no more than a
short one."""

from __future__ import annotations

import gc
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import inazuma as pl
from inazuma.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from inazuma.loggers import CSVLogger, TensorBoardLogger
from inazuma.testing import BoringDataModule, BoringModel, ManualOptimBoringModel, RandomDataset

ROOT = Path(__file__).parents[1]
ROUND = 64  # steps after which a run holds what it held: so many values of a name are kept, and then reduced together
pytestmark = pytest.mark.filterwarnings("ignore")

QUIET: dict[str, Any] = {
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "limit_predict_batches": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
ALL_ON = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), True)


class Logs(BoringModel):
    """Logs in training and validation, keeps its arguments, and a callback of its own that reads what it logs."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stopper = EarlyStopping("val_loss")

    def configure_callbacks(self) -> Any:
        return [self.stopper]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        self.log("loss", outputs["loss"], prog_bar=True, on_epoch=True)
        return outputs

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))


class Breaks(BoringModel):
    def on_train_batch_end(self, *_: Any) -> None:
        raise ValueError("broken")


@pytest.fixture(autouse=True, scope="module")
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(run: Callable[[], list[Any]]) -> list[str]:
    """What `run` returns and lives on once nobody names it, with its holders. The first call imports parts of torch."""
    run()
    living = [ref for ref in [weakref.ref(thing) for thing in run()] if ref() is not None]
    return [f"{type(ref()).__name__}, held by {holders(ref)}" for ref in living]


def holders(reference: weakref.ref[Any]) -> str:
    """Who refers to something, who refers to those, and so on, for the message of a failure."""
    ours = [frame for frame, _ in traceback.walk_stack(None)]
    level, told = [reference()], list[str]()
    seen = {id(ours), *map(id, ours), *map(id, level)}
    while level and len(told) < 20:
        seen.add(id(level))
        found = gc.get_referrers(*level)
        level = [holder for holder in found if id(holder) not in seen and not isinstance(holder, ModuleType)][:8]
        seen |= {id(found), *map(id, level)}
        told.append(", ".join(dict.fromkeys(map(title, level))))
    return " < ".join(told)


def title(thing: Any) -> str:
    if isinstance(thing, FrameType):
        return f"a frame of {thing.f_code.co_name}"
    return repr(thing) if isinstance(thing, BaseException) else type(thing).__name__


def fitted(module: type[BoringModel] = Logs, fn: str = "fit", **arguments: Any) -> list[Any]:
    model, trainer = module(), pl.Trainer(**{**QUIET, **arguments})
    getattr(trainer, fn)(model)
    return [model, trainer, *trainer.optimizers, *trainer.callbacks, *trainer.loggers, trainer.strategy]


CALLBACKS: dict[str, Callable[[], Callback]] = {
    "EarlyStopping": lambda: EarlyStopping("loss"),
    "LearningRateMonitor": LearningRateMonitor,
    "Timer": Timer,
    "GradientAccumulationScheduler": lambda: GradientAccumulationScheduler({1: 2}),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-2),
    "WeightAveraging": WeightAveraging,
    "EMAWeightAveraging": EMAWeightAveraging,
    "ModelCheckpoint": lambda: ModelCheckpoint(monitor="val_loss", save_last=True),
    "LambdaCallback": lambda: LambdaCallback(on_train_start=lambda trainer, module: None),
    "OnExceptionCheckpoint": lambda: OnExceptionCheckpoint("."),
}


@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_all_is_freed_after_a_call_with_everything_on(fn: str) -> None:
    assert alive(lambda: fitted(fn=fn, **ALL_ON)) == []


@pytest.mark.parametrize("name", CALLBACKS)
def test_all_is_freed_with_each_callback(name: str) -> None:
    arguments = {**ALL_ON, "enable_progress_bar": False, "max_epochs": 2}
    assert alive(lambda: fitted(callbacks=[CALLBACKS[name]()], **{**arguments, "logger": CSVLogger(".")})) == []


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_all_is_freed_with_each_profiler(profiler: str) -> None:
    assert alive(lambda: fitted(profiler=profiler)) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
        {"logger": TensorBoardLogger},
        {"detect_anomaly": True},
    ],
    ids=str,
)
def test_all_is_freed_with_each_way_to_train(arguments: dict[str, Any]) -> None:
    def run() -> list[Any]:
        made = {name: value(".") if isinstance(value, type) else value for name, value in arguments.items()}
        return fitted(**made)

    assert alive(run) == []


def test_all_is_freed_after_manual_optimization() -> None:
    assert alive(lambda: fitted(ManualOptimBoringModel)) == []


def test_all_is_freed_after_an_exception() -> None:
    def run() -> list[Any]:
        model, trainer = Breaks(), pl.Trainer(**QUIET)
        with pytest.raises(ValueError, match="broken"):
            trainer.fit(model)
        return [model, trainer, *trainer.optimizers]

    assert alive(run) == []


def test_a_datamodule_is_freed_with_its_data() -> None:
    def run() -> list[Any]:
        model, data, trainer = BoringModel(), BoringDataModule(), pl.Trainer(**QUIET)
        trainer.fit(model, datamodule=data)
        return [model, data, trainer]

    assert alive(run) == []


def fitted_with_workers(persistent: bool) -> list[Any]:
    loader = DataLoader(RandomDataset(32, 4), num_workers=1, persistent_workers=persistent)
    model, trainer = BoringModel(), pl.Trainer(**{**QUIET, "max_epochs": 2})
    trainer.fit(model, loader)
    return [model, trainer, loader, loader.dataset]


@pytest.mark.parametrize("persistent", [False, True])
def test_loaders_with_workers_are_freed(persistent: bool) -> None:
    # In a process of its own, without pytest. An error in a callback at a fork, its own or that of a signal that comes
    # just then, is only reported by Python; but pytest keeps it, with its traceback and the loader whose worker starts.
    code = (
        "import gc; from tests import test_memory as of; gc.collect(); gc.disable(); "
        f"print(of.alive(lambda: of.fitted_with_workers({persistent})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["[]"]), done.stdout + done.stderr[-2000:]


def test_twenty_fits_leave_no_tensor() -> None:
    def tensors() -> int:
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    def fit() -> None:
        fitted(**ALL_ON)

    fit()
    gc.collect()
    before = tensors()
    for _ in range(20):
        fit()
    assert tensors() <= before  # less where a thread of an earlier test came to its end


def test_a_module_names_its_trainer_as_long_as_that_lives() -> None:
    model, data, trainer = BoringModel(), BoringDataModule(), pl.Trainer(**QUIET)
    trainer.fit(model, datamodule=data)
    assert model.trainer is trainer
    assert data.trainer is trainer
    del trainer
    with pytest.raises(RuntimeError, match="is not attached to a `Trainer`.*as long as somebody holds it"):
        model.trainer  # noqa: B018
    assert data.trainer is None


def test_after_a_run_the_trainer_still_saves_steps_and_shows(tmp_path: Path) -> None:
    model, trainer = Logs(), pl.Trainer(**QUIET)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert "loss" in trainer.callback_metrics
    weights = model.layer.weight.clone()
    model.layer.weight.grad = torch.ones_like(weights)
    model.optimizers().step()
    assert not torch.equal(model.layer.weight, weights)
    with pytest.raises(pl.errors.MisconfigurationException, match="while no Trainer manages it"):
        model.log("late", 1.0)


class LogsTen(BoringModel):
    """Logs ten values in each step of training and validation, and notes what the process holds now and then."""

    def __init__(self, every_n_batches: int) -> None:
        super().__init__()
        self.every_n_batches = every_n_batches
        self.seen: list[tuple[int, int, int]] = []  # (batches, resident bytes, tensors)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.predict_step(batch, batch_idx)
        self.log_dict({f"a{n}": loss * n for n in range(5)}, on_step=True, on_epoch=True)
        self.log_dict({f"b{n}": float(n) for n in range(5)}, prog_bar=True)
        return loss

    validation_step = training_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        if (batch_idx + 1) % self.every_n_batches == 0:
            gc.collect()  # what is counted is what is held
            tensors = sum(isinstance(thing, Tensor) for thing in gc.get_objects())
            self.seen.append((batch_idx + 1, psutil.Process().memory_info().rss, tensors))
        return self.step(batch)


def growth(fn: str, steps: int, points: int) -> list[tuple[int, int, int]]:
    """What a run of so many steps holds at so many points, the first of which is left out: there it is still cold."""
    arguments = {**QUIET, "limit_train_batches": 1.0, "limit_val_batches": float(fn == "validate"), "logger": True}
    trainer = pl.Trainer(
        **{
            **arguments,
            "limit_predict_batches": 1.0,
        }
    )
    module, loader = LogsTen(steps // points), DataLoader(RandomDataset(32, steps))
    getattr(trainer, fn)(module, loader, **({"return_predictions": False} if fn == "predict" else {}))
    assert len(module.seen) == points
    return module.seen[1:]


@pytest.mark.parametrize("fn", ["fit", "validate", "predict"])
def test_the_number_of_tensors_does_not_grow_with_the_steps(fn: str) -> None:
    assert len({tensors for _, _, tensors in growth(fn, 3 * ROUND, 3)}) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fn", ["fit", "validate", "predict"])
def test_twenty_thousand_steps_need_no_more_memory_than_a_few(fn: str) -> None:
    seen = growth(fn, 320 * ROUND, 10)
    (first, before, _), (last, after, _) = seen[0], seen[-1]
    assert (after - before) / (last - first) * 10_000 < 2**20
    assert len({tensors for _, _, tensors in seen}) == 1
