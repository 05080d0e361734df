"""A run that was killed and resumed ends with the logged rows of the run that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inazuma import Trainer
from inazuma.loggers import CSVLogger, Logger, TensorBoardLogger
from inazuma.testing import BoringModel

pytestmark = pytest.mark.filterwarnings("ignore")

# The checkpoints are from step 15 (in a batch's end), after the epoch of 10, or after the validation of that epoch.
RUN = """
import csv, logging, os, signal, sys, warnings
warnings.simplefilter("ignore"); logging.disable()
import inazuma as pl
from inazuma.loggers import CSVLogger, TensorBoardLogger
from inazuma.testing import BoringModel

class Net(BoringModel):
    def training_step(self, batch, i):
        loss = self.step(batch)
        self.log("loss", loss, on_epoch=True)
        if self.global_step > 12:
            self.log("late", loss)  # a new column
        return loss
    def validation_step(self, batch, i):
        self.log("val_loss", self.step(batch))

class Saves(pl.Callback):
    def save(self, trainer, where):
        if not os.path.exists(f"{where}.ckpt"):
            trainer.save_checkpoint(f"{where}.ckpt")
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 15:
            self.save(trainer, "batch")
        if trainer.global_step == int(kill):
            os.kill(os.getpid(), signal.SIGKILL)
    def on_validation_end(self, trainer, module):
        if trainer.global_step == 10:
            self.save(trainer, "validation")
    def on_train_epoch_end(self, trainer, module):
        if trainer.global_step == 10:
            self.save(trainer, "epoch")

folder, kill, ckpt = sys.argv[1:]
pl.seed_everything(1, verbose=False)
loggers = [CSVLogger(folder, version=0), TensorBoardLogger(folder, version=0, default_hp_metric=False)]
trainer = pl.Trainer(max_epochs=3, limit_train_batches=10, limit_val_batches=2, log_every_n_steps=1, logger=loggers,
    num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[Saves()])
trainer.fit(Net(), ckpt_path=ckpt or None)
"""


def run(folder: str, cwd: Path, kill_at: int = 0, ckpt: str = "") -> None:
    process = subprocess.run(
        [sys.executable, "-c", RUN, folder, str(kill_at), ckpt], cwd=cwd, capture_output=True, text=True
    )
    assert process.returncode == (-signal.SIGKILL if kill_at else 0), process.stderr


def csv_rows(folder: Path) -> list[str]:
    return (folder / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "lightning_logs" / "version_0"))
    events.Reload()
    return {
        tag: sorted({(event.step, event.value) for event in events.Scalars(tag)}) for tag in events.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run("straight", folder)
    return folder


@pytest.mark.parametrize("where", ["batch", pytest.param("validation", marks=pytest.mark.slow), "epoch"])
def test_a_run_killed_at_step_17_and_resumed_ends_with_the_rows_of_the_straight_run(
    where: str, straight: Path, tmp_path: Path
) -> None:
    run("logs", tmp_path, kill_at=17)
    run("logs", tmp_path, ckpt=f"{where}.ckpt")
    assert csv_rows(tmp_path / "logs") == csv_rows(straight / "straight")
    assert len(csv_rows(tmp_path / "logs")) == 1 + 30 + 3 + 3
    assert curves(tmp_path / "logs") == curves(straight / "straight")


def quiet(logger: Any, **arguments: Any) -> Trainer:
    names = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(
        **dict.fromkeys(names, False), limit_train_batches=2, limit_val_batches=0, logger=logger, **arguments
    )


class Heard(CSVLogger):
    heard: list[Any]

    def resume(self, position: Any, step: int) -> None:
        self.heard = [position, step]


def test_a_logger_is_told_once_where_a_run_goes_on(tmp_path: Path) -> None:
    first = Heard(tmp_path, version=0)
    trainer = quiet(first, max_epochs=1)
    trainer.fit(BoringModel())
    assert not hasattr(first, "heard")
    trainer.save_checkpoint("a.ckpt")
    second = Heard(tmp_path, version=1)
    quiet(second, max_epochs=2).fit(BoringModel(), ckpt_path="a.ckpt")
    assert second.heard == [{"path": first.experiment.metrics_file_path, "rows": 0}, 2]


def test_a_resume_into_another_folder_leaves_the_old_rows_alone(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=0)
    trainer = quiet(first, max_epochs=1)
    trainer.fit(BoringModel())
    first.log_metrics({"a": 1.0}, 5)
    trainer.save_checkpoint("a.ckpt")
    first.log_metrics({"a": 2.0}, 6)
    first.save()
    second = CSVLogger(tmp_path, version=1)
    quiet(second, max_epochs=2).fit(BoringModel(), ckpt_path="a.ckpt")
    assert Path(first.log_dir, "metrics.csv").read_text().split() == ["a,step", "1.0,5", "2.0,6"]


def test_a_file_without_positions_is_cut_by_steps(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=0)
    for step in range(5):
        first.log_metrics({"a": step}, step)
    first.save()
    second = CSVLogger(tmp_path, version=0)
    second.resume(None, 3)
    second.log_metrics({"a": 9}, 3)
    second.save()
    assert Path(first.log_dir, "metrics.csv").read_text().split() == ["a,step", "0,0", "1,1", "2,2", "9,3"]


def test_a_purge_step_of_the_user_is_kept(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, purge_step=7)
    before = logger.experiment
    logger.resume(None, 3)
    assert logger.experiment is before
    logger.finalize("success")


def test_the_base_does_nothing_when_a_run_is_resumed() -> None:
    assert Logger.position(CSVLogger(".")) is None
    Logger.resume(CSVLogger("."), None, 3)
    assert os.listdir(".") == []
