"""Loggers as the Trainer drives them, beside Lightning where the result can be compared."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import inazuma
from inazuma import Trainer, seed_everything
from inazuma.loggers import CSVLogger, DummyLogger, Logger, TensorBoardLogger, select
from inazuma.testing import BoringModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning
    from lightning.pytorch.demos.boring_classes import BoringModel as TheirBoringModel
    from lightning.pytorch.loggers import CSVLogger as TheirCSVLogger
    from lightning.pytorch.loggers.logger import Logger as TheirLogger

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


class Talks:
    """Logs numbers that do not depend on training, in every way there is."""

    def __init__(self, lr: float = 0.5, sizes: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        self.save_hyperparameters()  # type: ignore[attr-defined]
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train", float(batch_idx), on_step=True, on_epoch=True)  # type: ignore[attr-defined]
        self.seen += 1
        if self.seen == 4:
            self.log("rare", 0.1)  # type: ignore[attr-defined]
        return super().training_step(batch, batch_idx)  # type: ignore[misc]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"val/a": batch_idx + 0.5, "val/b": 1.0}, on_step=True, on_epoch=True)  # type: ignore[attr-defined]


class Ours(Talks, BoringModel):
    pass


class Theirs(Talks, TheirBoringModel):
    pass


ARGUMENTS = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 2, "log_every_n_steps": 2, **QUIET}


@pytest.mark.filterwarnings("ignore")  # Lightning's
def test_the_files_of_a_run_are_those_of_lightning(tmp_path: Path) -> None:
    ours, theirs = CSVLogger(tmp_path, "ours"), TheirCSVLogger(tmp_path, "theirs")
    Trainer(logger=ours, **ARGUMENTS).fit(Ours(lr=0.25))
    lightning.Trainer(logger=theirs, **ARGUMENTS).fit(Theirs(lr=0.25))
    read = [Path(logger.log_dir) for logger in (ours, theirs)]
    assert (read[0] / "metrics.csv").read_text() == (read[1] / "metrics.csv").read_text()
    hparams = [yaml.safe_load((folder / "hparams.yaml").read_text()) for folder in read]
    assert hparams == [{"lr": 0.25, "sizes": [1, 2]}] * 2


def test_the_default_logger_makes_the_tree_of_lightning(tmp_path: Path) -> None:
    for version in range(2):
        trainer = Trainer(default_root_dir=tmp_path, **ARGUMENTS)
        assert isinstance(trainer.logger, TensorBoardLogger)
        trainer.fit(Ours())
        folder = tmp_path / "lightning_logs" / f"version_{version}"
        assert trainer.log_dir == str(folder)
        events, hparams = sorted(path.name for path in folder.iterdir())
        assert events.startswith("events.out.tfevents")
        assert hparams == "hparams.yaml"
    read = EventAccumulator(str(folder))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train_step")] == [
        (1, 1),
        (3, 3),
        (5, 0),
        (7, 2),
        (9, 4),
    ]
    assert [(event.step, event.value) for event in read.Scalars("train_epoch")] == [(4, 2), (9, 2)]
    assert [(event.step, event.value) for event in read.Scalars("val/a_epoch")] == [(4, 1), (9, 1)]
    assert [event.value for event in read.Scalars("hp_metric")] == [-1]


def test_several_loggers_get_the_same(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, "a"), TensorBoardLogger(tmp_path, "b"), CSVLogger(tmp_path, "c")]
    trainer = Trainer(logger=loggers, **ARGUMENTS)
    trainer.fit(Ours())
    assert trainer.log_dir == str(tmp_path / "a" / "version_0")
    first, second = ((tmp_path / name / "version_0" / "metrics.csv").read_text() for name in ("a", "c"))
    assert first == second
    assert (tmp_path / "b" / "version_0" / "hparams.yaml").exists()


@pytest.mark.parametrize("folders", [{"log_dir": "a"}, {"log_dir": "a", "save_dir": "b"}, {"save_dir": "b"}, {}])
@pytest.mark.filterwarnings("ignore")  # Lightning's
def test_the_log_dir_is_that_of_lightning_with_a_logger_of_ones_own(folders: dict[str, str], tmp_path: Path) -> None:
    found = []
    for package, base in ((lightning, TheirLogger), (inazuma, Logger)):
        methods = {"log_metrics": lambda *_, **__: None, "log_hyperparams": lambda *_, **__: None}
        own = type("Own", (base,), {"name": "own", "version": 1, **methods, **folders})
        found.append(package.Trainer(logger=own(), default_root_dir=tmp_path, **QUIET).log_dir)
    assert found[1] == found[0] == folders.get("save_dir")


def test_a_logger_serves_one_run_after_another(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = Trainer(logger=logger, **ARGUMENTS)
    model = Ours()
    trainer.fit(model)
    rows = len((Path(logger.log_dir) / "metrics.csv").read_text().splitlines())
    trainer.validate(model, verbose=False)
    assert len((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()) > rows
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


def test_fast_dev_run_and_no_logger_leave_no_files(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path, fast_dev_run=True, **QUIET)
    trainer.fit(Ours())
    assert isinstance(trainer.logger, DummyLogger)
    Trainer(default_root_dir=tmp_path, fast_dev_run=True, **{**QUIET, "logger": False}).fit(BoringModel())
    assert list(tmp_path.iterdir()) == []


class Graphed(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.ones(1, 32)


def test_drawing_the_graph_does_not_change_training(tmp_path: Path) -> None:
    weights = []
    for log_graph in (False, True):
        seed_everything(1, verbose=False)
        model = Graphed()
        logger = TensorBoardLogger(tmp_path, log_graph=log_graph)
        Trainer(logger=logger, **ARGUMENTS).fit(model)
        weights.append(model.layer.weight.detach().clone())
        read = EventAccumulator(logger.log_dir)
        read.Reload()
        assert read.Tags()["graph"] is log_graph
    assert torch.equal(*weights)


def test_what_is_no_logger_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Trainer\(logger=...\): 'csv' is no `inazuma.loggers.Logger`"):
        Trainer(logger=["csv"], **QUIET)  # type: ignore[list-item]


def test_a_slurm_job_gives_the_default_logger_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (chosen,) = select(True, tmp_path, fast_dev_run=False)
    assert chosen.version == 0
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    (chosen,) = select(None, tmp_path, fast_dev_run=False)
    assert chosen.log_dir == str(tmp_path / "lightning_logs" / "123")
