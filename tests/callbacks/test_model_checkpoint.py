"""ModelCheckpoint: the same program runs on Lightning and on inazuma, and must leave the same files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from inazuma.callbacks.model_checkpoint import retain
from inazuma.errors import MisconfigurationException
from inazuma.strategies.strategy import SingleDeviceStrategy

NAN = float("nan")
BATCHES = 4  # in an epoch


def make_model(pl: Any, metrics: Sequence[float | None], crash_at: int | None = None) -> Any:
    """A module that logs `val` at the end of each validation: the next of `metrics`, nothing for None."""

    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.validations = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == crash_at:
                raise ValueError("crash")
            self.log("train", float(self.global_step))
            self.log("train_mean", float(self.current_epoch), on_epoch=True, on_step=False)
            return self.layer(batch).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def on_validation_epoch_end(self) -> None:
            if self.trainer.sanity_checking:
                return
            value = metrics[min(self.validations, len(metrics) - 1)]
            self.validations += 1
            if value is not None:
                self.log("val", value)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Model()


def make_trainer(pl: Any, checkpoint: Any, **arguments: Any) -> Any:
    arguments = {
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "callbacks": [checkpoint],
        **arguments,
    }
    return pl.Trainer(**arguments)


def loader(batches: int) -> Any:
    return DataLoader(torch.ones(batches, 2), batch_size=1)


def fit(pl: Any, checkpoint: Any, metrics: Sequence[float | None] = (0.3, 0.2, 0.1), **arguments: Any) -> Any:
    """Train; returns the trainer. Keyword arguments: the Trainer's, `ckpt_path` and `crash_at`."""
    ckpt_path, crash_at = arguments.pop("ckpt_path", None), arguments.pop("crash_at", None)
    trainer = make_trainer(pl, checkpoint, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(make_model(pl, metrics, crash_at), loader(BATCHES), loader(1), ckpt_path=ckpt_path)
    return trainer


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def report(checkpoint: Any, directory: Path) -> dict[str, Any]:
    """What a user sees afterwards: files and attributes."""

    def number(value: Any) -> Any:
        return None if value is None else repr(value.item())

    return {
        "files": names(directory),
        "best": os.path.basename(checkpoint.best_model_path),
        "kth": os.path.basename(checkpoint.kth_best_model_path),
        "last": os.path.basename(checkpoint.last_model_path),
        "kept": {os.path.basename(path): number(score) for path, score in checkpoint.best_k_models.items()},
        "best_score": number(checkpoint.best_model_score),
        "current": number(checkpoint.current_score),
        "kth_value": number(checkpoint.kth_value),
        "state keys": list(checkpoint.state_dict()),
    }


def run(pl: Any, directory: Path, checkpoint: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Fit with `ModelCheckpoint(**checkpoint)` and report; an exception is part of the report."""
    directory.mkdir(exist_ok=True)
    callback = pl.callbacks.ModelCheckpoint(dirpath=directory, **checkpoint)
    error = ""
    try:
        fit(pl, callback, **arguments)
    except Exception as exception:
        error = type(exception).__name__
    return {**report(callback, directory), "error": error}


def step_in(path: str | Path) -> int:
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


SAME_AS_LIGHTNING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "keep all": ({"save_top_k": -1}, {}),
    "keep none": ({"save_top_k": 0}, {}),
    "constant name": ({"filename": "c"}, {}),
    "constant name, keep all": ({"filename": "c", "save_top_k": -1}, {}),
    "improves": ({"monitor": "val"}, {"metrics": [0.3, 0.2, 0.1]}),
    "worsens": ({"monitor": "val"}, {"metrics": [0.1, 0.2, 0.3]}),
    "max": ({"monitor": "val", "mode": "max", "save_top_k": 2}, {"metrics": [0.1, 0.3, 0.2]}),
    "best of all": ({"monitor": "val", "save_top_k": -1}, {"metrics": [0.1, 0.3, 0.05]}),
    "ties": ({"monitor": "val", "save_top_k": 2}, {"metrics": [0.1, 0.1, 0.1, 0.05], "max_epochs": 4}),
    "ties, max": ({"monitor": "val", "save_top_k": 2, "mode": "max"}, {"metrics": [1, 1, 1, 2], "max_epochs": 4}),
    "nan": ({"monitor": "val", "save_top_k": 2}, {"metrics": [NAN, 0.2, NAN, 0.1], "max_epochs": 4}),
    "nan, max": ({"monitor": "val", "save_top_k": 1, "mode": "max"}, {"metrics": [NAN, NAN, 0.1]}),
    "inf": ({"monitor": "val", "save_top_k": 2}, {"metrics": [float("inf"), -float("inf"), 0.1]}),
    "constant name, top 2": ({"monitor": "val", "filename": "c", "save_top_k": 2}, {"metrics": [0.3, 0.4, 0.2]}),
    "no versions": (
        {"monitor": "val", "filename": "c", "save_top_k": 2, "enable_version_counter": False},
        {"metrics": [0.3, 0.4, 0.2]},
    ),
    "newest two": ({"monitor": "step", "mode": "max", "save_top_k": 2}, {}),
    "newest two epochs": ({"monitor": "epoch", "mode": "max", "save_top_k": 2}, {}),
    "newest two by steps": ({"monitor": "step", "mode": "max", "save_top_k": 2, "every_n_train_steps": 2}, {}),
    "template": ({"filename": "{epoch:02d}-{val:.2f}-{train}-{missing}-{missing:.1f}", "save_top_k": -1}, {}),
    "template without names": ({"filename": "e{epoch}_v{val:.3f}", "auto_insert_metric_name": False}, {}),
    "subfolder": ({"filename": "{epoch}/{val:.1f}", "monitor": "val", "save_top_k": 2}, {}),
    "every second epoch": ({"every_n_epochs": 2, "save_top_k": -1}, {"max_epochs": 5}),
    "never": ({"every_n_epochs": 0}, {}),
    "steps": ({"every_n_train_steps": 3, "save_top_k": -1}, {}),
    "steps, newest": ({"every_n_train_steps": 3}, {}),
    "steps, train metric": ({"every_n_train_steps": 2, "monitor": "train", "mode": "max", "save_top_k": 2}, {}),
    "steps, accumulate": ({"every_n_train_steps": 1, "save_top_k": -1}, {"accumulate_grad_batches": 3}),
    "steps, validation inside": (
        {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}-{val}"},
        {"val_check_interval": 2},
    ),
    "time": ({"train_time_interval": timedelta(0), "save_top_k": -1}, {}),
    "time, long": ({"train_time_interval": timedelta(days=1), "save_top_k": -1}, {}),
    "validation twice an epoch": ({"save_top_k": -1}, {"val_check_interval": 0.5}),
    "validation after each batch": ({"save_top_k": -1}, {"val_check_interval": 1}),
    "validation across epochs": ({"save_top_k": -1}, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "validation twice, saved at epoch end": (
        {"save_top_k": -1, "save_on_train_epoch_end": True},
        {"val_check_interval": 0.5},
    ),
    "saved after validation": ({"save_top_k": -1, "save_on_train_epoch_end": False}, {}),
    "validation every second epoch": ({"save_top_k": -1}, {"check_val_every_n_epoch": 2, "max_epochs": 5}),
    "validation every second epoch, monitor": (
        {"monitor": "val", "save_top_k": -1},
        {"check_val_every_n_epoch": 2, "max_epochs": 4},
    ),
    "validation twice, monitor": (
        {"monitor": "val", "save_top_k": 2},
        {"val_check_interval": 0.5, "metrics": [6, 5, 4, 7, 3, 2]},
    ),
    "train metric of the epoch": ({"monitor": "train_mean", "mode": "max", "save_top_k": 2}, {}),
    "no validation": ({"save_top_k": -1}, {"limit_val_batches": 0}),
    "missing, no validation": ({"monitor": "val"}, {"limit_val_batches": 0}),
    "missing": ({"monitor": "vall"}, {}),
    "missing, validation inside": ({"monitor": "vall"}, {"val_check_interval": 2}),
    "missing first": ({"monitor": "val"}, {"metrics": [None, 0.1]}),
    "max_steps": ({"save_top_k": -1}, {"max_steps": 6}),
    "fast_dev_run": ({}, {"fast_dev_run": True}),
    "last": ({"save_last": True}, {}),
    "last, worsens": ({"save_last": True, "monitor": "val"}, {"metrics": [0.1, 0.2, 0.3]}),
    "last only": ({"save_last": True, "save_top_k": 0}, {}),
    "last only, steps": ({"save_last": True, "save_top_k": 0, "every_n_train_steps": 2}, {}),
    "last, trigger never reached": ({"save_last": True, "every_n_epochs": 10}, {}),
    "last, all": ({"save_last": True, "save_top_k": -1, "every_n_train_steps": 2}, {}),
    "link": ({"save_last": "link", "monitor": "val", "save_top_k": 2}, {"metrics": [0.1, 0.3, 0.2]}),
    "link, none kept": ({"save_last": "link", "save_top_k": 0}, {}),
    "weights only": ({"save_weights_only": True}, {}),
    "exception": ({"save_on_exception": True}, {"crash_at": 6}),
    "exception, last": ({"save_on_exception": True, "save_last": True}, {"crash_at": 6}),
    "exception, saved already": ({"save_on_exception": True, "save_top_k": -1}, {"crash_at": 8}),
    "exception, none kept": ({"save_on_exception": True, "save_top_k": 0}, {"crash_at": 6}),
    "exception, unknown metric": (
        {"save_on_exception": True, "monitor": "vall", "every_n_train_steps": 100},
        {"crash_at": 6},
    ),
    "exception, not asked for": ({}, {"crash_at": 6}),
}


@pytest.mark.parametrize("case", SAME_AS_LIGHTNING)
def test_files_and_attributes_are_those_of_lightning(case: str, tmp_path: Path) -> None:
    checkpoint, arguments = SAME_AS_LIGHTNING[case]
    expected = run(lightning.pytorch, tmp_path / "lightning", checkpoint, **arguments)
    assert run(inazuma, tmp_path / "inazuma", checkpoint, **arguments) == expected


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any], str, list[float]]] = {
    "from last": ({"monitor": "val", "save_last": True}, {}, "last", [0.2, 0.1]),
    "from best": ({"monitor": "val", "save_top_k": 2}, {}, "best", [0.1, 0.2]),
    "from best, steps": ({"every_n_train_steps": 2, "save_top_k": -1}, {}, "best", [0.1]),
    "more kept": ({"monitor": "val", "save_top_k": 2}, {"save_top_k": 3}, "best", [0.2, 0.1]),
    "other mode": ({"monitor": "val"}, {"mode": "max"}, "best", [0.1, 0.2]),
}


# Files that Lightning forgets when it resumes from an earlier one: inazuma ranks them with the others.
FORGOTTEN = {"from best": {"a/epoch=1-step=8.ckpt"}}


@pytest.mark.parametrize("same_directory", [True, False])
@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_leaves_the_files_of_lightning(case: str, same_directory: bool, tmp_path: Path) -> None:
    arguments, changes, start, metrics = RESUMED[case]
    reports = []
    for pl in (lightning.pytorch, inazuma):
        root = tmp_path / pl.__name__
        a, b = root / "a", root / ("a" if same_directory else "b")
        before = pl.callbacks.ModelCheckpoint(dirpath=a, **arguments)
        fit(pl, before, metrics, max_epochs=2)
        path = before.last_model_path if start == "last" else before.best_model_path
        after = pl.callbacks.ModelCheckpoint(dirpath=b, **{**arguments, **changes})
        fit(pl, after, [0.3, 0.05, 0.4], max_epochs=5, ckpt_path=path)
        reports.append({**report(after, root), "start": os.path.basename(path)})
    if same_directory:
        reports[0]["files"] = [name for name in reports[0]["files"] if name not in FORGOTTEN.get(case, ())]
    assert reports[1] == reports[0]


def test_a_second_run_in_the_directory_gets_versions(tmp_path: Path) -> None:
    for pl in (lightning.pytorch, inazuma):
        for _ in range(3):
            run(pl, tmp_path / pl.__name__, {"save_last": True}, max_epochs=1)
    assert names(tmp_path / "inazuma") == names(tmp_path / "lightning.pytorch")
    assert "last-v2.ckpt" in names(tmp_path / "inazuma")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"monitor": "a", "mode": "max"},
        {"every_n_train_steps": 3},
        {"every_n_train_steps": 0},
        {"every_n_epochs": 2},
        {"train_time_interval": timedelta(minutes=2)},
    ],
)
def test_state_is_laid_out_as_lightnings(arguments: dict[str, Any]) -> None:
    theirs, ours = lightning.pytorch.callbacks.ModelCheckpoint(**arguments), ModelCheckpoint(**arguments)
    assert ours.state_key == theirs.state_key
    assert ours.state_dict() == theirs.state_dict()
    assert ours.every_n_epochs == theirs.every_n_epochs


@pytest.mark.parametrize("auto_insert", [True, False])
@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        "plain",
        "{epoch}",
        "{epoch:03d}-{step}",
        "{val/loss:.2f}",
        "v={val}",
        "{no:d}{no:.1f}",
        "{a.b:.3e}_{val}",
        "x{val}y{valu}",
    ],
)
@pytest.mark.parametrize("more", [{}, {"ver": 3}, {"prefix": "p"}, {"ver": 0, "prefix": "p"}])
def test_names_are_formatted_like_lightnings(template: str | None, auto_insert: bool, more: dict[str, Any]) -> None:
    metrics = {"epoch": 2, "step": torch.tensor(7), "val/loss": torch.tensor(0.5), "val": torch.tensor(0.1)}
    metrics |= {"a.b": torch.tensor(3), "valu": torch.tensor(2.0)}
    theirs, ours = (
        Checkpoint(dirpath="/somewhere", auto_insert_metric_name=auto_insert).format_checkpoint_name(
            metrics, template, **more
        )
        for Checkpoint in (lightning.pytorch.callbacks.ModelCheckpoint, ModelCheckpoint)
    )
    assert ours == theirs


def test_class_attributes_shape_the_names(tmp_path: Path) -> None:
    class Mine(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = "-"
        CHECKPOINT_NAME_LAST = "{epoch}_newest"
        FILE_EXTENSION = ".pt"
        STARTING_VERSION = 5

    (tmp_path / "epoch-0_step-4.pt").touch()
    checkpoint = Mine(tmp_path, save_last=True, save_top_k=-1)
    trainer = fit(inazuma, checkpoint, max_epochs=2)
    assert names(tmp_path) == [
        "epoch-0_step-4.pt",
        "epoch-0_step-4_v5.pt",
        "epoch-1_newest.pt",
        "epoch-1_step-8.pt",
    ]
    assert checkpoint.find_last_checkpoints(trainer) == {checkpoint.last_model_path}


def test_last_files_are_found_with_their_versions_and_nothing_else(tmp_path: Path) -> None:
    for name in ("last.ckpt", "last-v1.ckpt", "last-2.ckpt", "lastly.ckpt", "last.txt", "epoch=0-step=1.ckpt"):
        (tmp_path / name).touch()
    found = ModelCheckpoint(tmp_path).find_last_checkpoints(make_trainer(inazuma, ModelCheckpoint(tmp_path)))
    assert {os.path.basename(path) for path in found} == {"last.ckpt", "last-v1.ckpt", "last-2.ckpt"}


# ------------------------------------------------------------------- where inazuma differs from Lightning on purpose


def test_last_is_the_newest_state_and_not_a_copy_of_the_best(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", save_last=True)
    fit(inazuma, checkpoint, [0.1, 0.2, 0.3])
    assert step_in(checkpoint.best_model_path) == 1 * BATCHES
    assert step_in(tmp_path / "last.ckpt") == 3 * BATCHES


def test_last_is_the_newest_state_when_training_ends_between_two_saves(tmp_path: Path) -> None:
    fit(inazuma, ModelCheckpoint(tmp_path, every_n_epochs=2, save_last=True))
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "last.ckpt"]
    assert step_in(tmp_path / "last.ckpt") == 12


def test_last_is_written_at_each_epoch_even_if_no_other_file_is(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=0, save_last=True)
    with pytest.raises(ValueError, match="crash"):
        fit(inazuma, checkpoint, crash_at=6)
    assert step_in(checkpoint.last_model_path) == 4


def test_last_is_written_while_ranked_saves_wait_for_their_first_metric(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", every_n_train_steps=2, save_last=True)
    with pytest.raises(ValueError, match="crash"):
        fit(inazuma, checkpoint, crash_at=3)
    assert names(tmp_path) == ["last.ckpt"]
    assert step_in(checkpoint.last_model_path) == 2


def test_each_file_knows_itself_and_last(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", save_last=True)
    fit(inazuma, checkpoint, [0.1], max_epochs=1)
    for path in (checkpoint.best_model_path, checkpoint.last_model_path):
        state = torch.load(path, weights_only=True)["callbacks"][checkpoint.state_key]
        assert state["best_model_path"] == checkpoint.best_model_path
        assert list(state["best_k_models"]) == [checkpoint.best_model_path]
        assert state["last_model_path"] == checkpoint.last_model_path


def test_a_run_resumed_from_its_best_goes_on_with_the_same_last(tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path, monitor="val", save_last=True)
    fit(inazuma, first, [0.1, 0.2], max_epochs=2)
    fit(inazuma, ModelCheckpoint(tmp_path, monitor="val", save_last=True), ckpt_path=first.best_model_path)
    assert "last-v1.ckpt" not in names(tmp_path)
    assert step_in(tmp_path / "last.ckpt") == 12


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (2, ["step=10-val=0.2", "step=12-val=0.2", "step=4-val=0.3", "step=6-val=0.3", "step=8-val=0.3"]),
        (3, ["step=12-val=0.2", "step=4-val=0.3", "step=6-val=0.3", "step=9-val=0.2"]),
    ],
)
def test_a_save_by_steps_waits_for_a_metric_not_logged_yet(steps: int, expected: list[str], tmp_path: Path) -> None:
    """Lightning drops the saves of the first epoch. As there, a metric that is known is taken as it stands."""
    checkpoint = ModelCheckpoint(
        tmp_path, monitor="val", every_n_train_steps=steps, save_top_k=-1, filename="{step}-{val:.1f}"
    )
    fit(inazuma, checkpoint, [0.3, 0.2, 0.1])
    assert names(tmp_path) == [f"{name}.ckpt" for name in expected]


def test_a_save_at_the_end_of_an_epoch_waits_for_validation_if_saves_do(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path, monitor="val", every_n_train_steps=2, save_top_k=-1, filename="{step}-{val:.1f}"
    )
    fit(inazuma, checkpoint, [0.4, 0.3, 0.2, 0.1], val_check_interval=2, max_epochs=2)
    assert names(tmp_path) == [f"step={n}-val={v}.ckpt" for n, v in [(2, 0.4), (4, 0.3), (6, 0.3), (8, 0.1)]]


def test_a_save_by_time_waits_for_the_metric_of_validation(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", train_time_interval=timedelta(0), save_top_k=-1)
    fit(inazuma, checkpoint, [0.3], max_epochs=1)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]


def test_a_save_by_steps_waits_for_a_metric_of_the_training_epoch(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="train_mean", every_n_train_steps=3, mode="max", save_top_k=-1)
    fit(inazuma, checkpoint, max_epochs=1)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]


def test_without_validation_files_are_saved_whatever_its_interval(tmp_path: Path) -> None:
    """Lightning saves nothing at all."""
    fit(inazuma, ModelCheckpoint(tmp_path, save_top_k=-1), limit_val_batches=0, check_val_every_n_epoch=2)
    assert len(names(tmp_path)) == 3


def test_fewer_files_may_be_kept_by_a_resumed_run(tmp_path: Path) -> None:
    """Lightning dies with a KeyError."""
    first = ModelCheckpoint(tmp_path, monitor="val", save_top_k=3)
    fit(inazuma, first, [0.3, 0.2, 0.1])
    second = ModelCheckpoint(tmp_path, monitor="val", save_top_k=1)
    fit(inazuma, second, [0.05], max_epochs=4, ckpt_path=first.best_model_path)
    assert names(tmp_path) == ["epoch=2-step=12.ckpt", "epoch=3-step=16.ckpt"]  # the file it came from stays
    assert list(second.best_k_models) == [str(tmp_path / "epoch=3-step=16.ckpt")]


def test_an_exception_does_not_overwrite_a_ranked_file(tmp_path: Path) -> None:
    """Lightning writes over the best file when the name is constant."""
    checkpoint = ModelCheckpoint(tmp_path, filename="best", monitor="val", save_on_exception=True)
    with pytest.raises(ValueError, match="crash"):
        fit(inazuma, checkpoint, crash_at=6)
    assert names(tmp_path) == ["best-v1.ckpt", "best.ckpt"]
    assert step_in(checkpoint.best_model_path) == 4


def test_fast_dev_run_saves_nothing_at_all(tmp_path: Path) -> None:
    """Lightning writes `last.ckpt` at its end."""
    fit(inazuma, ModelCheckpoint(tmp_path, save_last=True), fast_dev_run=True)
    assert names(tmp_path) == []


def test_a_run_resumed_inside_an_accumulation_window_saves_what_the_straight_run_saves(tmp_path: Path) -> None:
    def checkpoint(directory: str) -> ModelCheckpoint:
        return ModelCheckpoint(
            tmp_path / directory, monitor="train", mode="max", every_n_train_steps=1, save_top_k=-1, filename="{step}"
        )

    fit(inazuma, checkpoint("straight"), accumulate_grad_batches=2)
    fit(inazuma, checkpoint("resumed"), accumulate_grad_batches=2, max_steps=1)
    start = tmp_path / "resumed" / "step=1.ckpt"
    fit(inazuma, checkpoint("resumed"), accumulate_grad_batches=2, ckpt_path=start)
    assert names(tmp_path / "resumed") == names(tmp_path / "straight")


def test_another_rank_may_veto_a_ranked_save(tmp_path: Path) -> None:
    class VetoingRank(SingleDeviceStrategy):
        def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
            return decision and not all

    fit(inazuma, ModelCheckpoint(tmp_path, monitor="val", save_last=True), strategy=VetoingRank("cpu"))
    assert names(tmp_path) == ["last.ckpt"]


def test_two_fits_with_one_callback_save_the_same_steps(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(inazuma, checkpoint, max_epochs=1)
    fit(inazuma, checkpoint, max_epochs=1)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]  # the same name: written over, as `best_model_path` is its own
    assert checkpoint.best_model_path == str(tmp_path / "epoch=0-step=4.ckpt")


@pytest.mark.parametrize(("arguments", "files"), [
    ({}, ["epoch=0-step=4.ckpt", "last.ckpt"]),
    ({"save_last": True}, ["epoch=0-step=4.ckpt", "last.ckpt"]),
    ({"save_last": "link"}, ["epoch=0-step=4.ckpt", "last.ckpt"]),
    ({"save_top_k": 0, "save_weights_only": True}, ["last.ckpt"]),
])  # fmt: skip
def test_a_run_that_must_end_writes_the_newest_state_at_once(
    arguments: dict[str, Any], files: list[str], tmp_path: Path
) -> None:
    class EndOfTime(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 6:
                paths = [checkpoint.save_now(trainer, "signal") for _ in range(2)]
                assert paths == [str(tmp_path / "last.ckpt")] * 2
                raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, **arguments)
    with pytest.raises(SystemExit):
        fit(inazuma, checkpoint, callbacks=[EndOfTime(), checkpoint])
    assert names(tmp_path) == files
    assert step_in(tmp_path / "last.ckpt") == 6
    assert "optimizer_states" in torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert fit(inazuma, ModelCheckpoint(tmp_path), ckpt_path=tmp_path / "last.ckpt").global_step == 12


def test_what_is_saved_already_is_not_written_again(tmp_path: Path) -> None:
    class EndOfTime(Checkpoint):
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            paths.append(checkpoint.save_now(trainer, "signal"))

    paths: list[str] = []
    checkpoint = ModelCheckpoint(tmp_path)
    assert checkpoint.save_now(make_trainer(inazuma, checkpoint), "signal") == ""
    fit(inazuma, checkpoint, callbacks=[checkpoint, EndOfTime()], max_epochs=1)
    assert paths == [str(tmp_path / "epoch=0-step=4.ckpt")]
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]


# ------------------------------------------------------------------------------------------------------- retention


class Reference:
    """The retention rules, said once more: keep the best k; only a strictly better file takes a place."""

    def __init__(self, k: int, mode: str) -> None:
        self.k, self.mode = k, mode
        self.kept: list[tuple[str, float]] = []  # oldest first

    def offer(self, path: str, score: float) -> None:
        if self.k == 0:
            return
        if score != score:
            score = float("inf") if self.mode == "min" else float("-inf")
        if self.k != -1 and len(self.kept) == self.k:
            worst = (max if self.mode == "min" else min)(value for _, value in self.kept)
            if not (score < worst if self.mode == "min" else score > worst):
                return
            self.kept.remove(next(entry for entry in self.kept if entry[1] == worst))
        self.kept.append((path, score))

    @property
    def best(self) -> str:
        return (min if self.mode == "min" else max)(self.kept, key=lambda entry: entry[1])[0] if self.kept else ""


SCORES = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([NAN, float("inf"), float("-inf"), 0.5]))


@given(scores=st.lists(SCORES, max_size=20), k=st.integers(-1, 4), mode=st.sampled_from(["min", "max"]))
def test_retention_agrees_with_the_reference(scores: list[float], k: int, mode: str) -> None:
    reference, kept = Reference(k, mode), dict[str, float]()
    for number, score in enumerate(scores):
        joins, leaving = retain(kept, score, k, mode)
        kept = {path: old for path, old in kept.items() if path not in leaving}
        if joins:
            kept[str(number)] = score
        reference.offer(str(number), score)
        assert list(kept) == [path for path, _ in reference.kept]


@given(
    metrics=st.lists(st.one_of(st.none(), SCORES), min_size=1, max_size=5),
    k=st.integers(-1, 3),
    mode=st.sampled_from(["min", "max"]),
    stop=st.integers(1, 4),
    save_last=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_and_its_resume_keep_what_the_reference_keeps(
    metrics: list[float | None],
    k: int,
    mode: str,
    stop: int,
    save_last: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / "foreign.ckpt").touch()
    metrics = [0.0, *metrics]  # a first value: after it, a missing one leaves the value before
    stop = min(stop, len(metrics))
    reference, value = Reference(k, mode), 0.0
    for epoch, logged in enumerate(metrics):
        value = value if logged is None else logged
        reference.offer(f"epoch={epoch}-step={(epoch + 1) * BATCHES}.ckpt", value)

    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(directory, monitor="val", mode=mode, save_top_k=k, save_last=save_last)

    parts = [(checkpoint(), metrics[:stop], stop, None)]
    if stop < len(metrics) and save_last and metrics[stop] is not None:
        parts.append((checkpoint(), metrics[stop:], len(metrics), str(directory / "last.ckpt")))
    else:
        parts = [(checkpoint(), metrics, len(metrics), None)]
    for callback, logged_values, max_epochs, ckpt_path in parts:
        fit(inazuma, callback, logged_values, max_epochs=max_epochs, ckpt_path=ckpt_path)
    expected = {"foreign.ckpt", *(path for path, _ in reference.kept), *(["last.ckpt"] if save_last else [])}
    assert set(names(directory)) == expected
    assert os.path.basename(callback.best_model_path) == reference.best
    if save_last:
        assert step_in(directory / "last.ckpt") == len(metrics) * BATCHES


# ------------------------------------------------------------------------------------------------- the other rules


def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.ckpt"
    outside.touch()
    checkpoint = ModelCheckpoint(tmp_path / "run")
    checkpoint.best_model_path = str(outside)
    fit(inazuma, checkpoint)
    assert outside.exists()


def test_the_file_a_run_was_resumed_from_stays(tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path, monitor="val")
    fit(inazuma, first, [0.3], max_epochs=1)
    fit(inazuma, ModelCheckpoint(tmp_path, monitor="val"), [0.2, 0.1], ckpt_path=first.best_model_path)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=2-step=12.ckpt"]


@pytest.mark.parametrize(
    "named",
    ["{run}/sub", "{run}/sub/theirs.ckpt", "{run}/folder.ckpt", "{run}/link/theirs.ckpt", "{run}/../theirs.ckpt"],
)
@pytest.mark.parametrize("as_last", [False, True])
def test_a_state_without_notes_that_names_what_is_not_its_own_removes_nothing(
    named: str, as_last: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for path in ("theirs.ckpt", "run/sub/theirs.ckpt", "run/folder.ckpt/theirs.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, tmp_path / path)
    (run / "link").symlink_to(tmp_path)
    before = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    first = ModelCheckpoint(run, monitor="val", mode="max", save_last=True)
    fit(inazuma, first, max_epochs=1)
    content = torch.load(first.last_model_path, weights_only=True)
    del content["inazuma"]  # as a file of Lightning
    state = content["callbacks"][first.state_key]
    state["best_k_models"] = {named.format(run=run): torch.tensor(-1.0)}
    state["last_model_path"] = named.format(run=run) if as_last else ""
    torch.save(content, tmp_path / "crafted")
    second = ModelCheckpoint(run, monitor="val", mode="max", save_last=True)
    fit(inazuma, second, metrics=(0.7, 0.8, 0.9), ckpt_path=tmp_path / "crafted")
    assert second.best_model_path
    assert {path for path in before if path.exists()} == before


def test_a_resume_in_another_directory_knows_the_best_of_the_run(tmp_path: Path) -> None:
    """Lightning forgets its score, and calls the first file in the new directory the best."""
    first = ModelCheckpoint(tmp_path / "a", monitor="val")
    fit(inazuma, first, [0.1], max_epochs=1)
    second = ModelCheckpoint(tmp_path / "b", monitor="val")
    second.dirpath = str(tmp_path / "b")
    with pytest.warns(UserWarning, match="only `best_model_path` and `best_model_score` are taken"):
        second.load_state_dict(first.state_dict())
    assert second.best_k_models == {}
    fit(inazuma, second, [0.3, 0.2], max_epochs=3, ckpt_path=first.best_model_path)
    assert second.best_model_path == str(tmp_path / "a" / "epoch=0-step=4.ckpt")
    assert second.best_model_score == pytest.approx(0.1)
    assert names(tmp_path) == ["a/epoch=0-step=4.ckpt", "b/epoch=2-step=12.ckpt"]  # each directory keeps its best


def test_state_survives_a_round_trip_through_a_file(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", save_top_k=2, save_last=True)
    fit(inazuma, checkpoint)
    torch.save(checkpoint.state_dict(), tmp_path / "state")
    other = ModelCheckpoint(tmp_path, monitor="val", save_top_k=2)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.state_dict() == checkpoint.state_dict()


@pytest.mark.parametrize("links_are_allowed", [True, False])
def test_link_points_to_the_newest_ranked_file(
    links_are_allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no right to make links")

    if not links_are_allowed:
        monkeypatch.setattr(os, "symlink", refuse)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", save_top_k=2, save_last="link")
    fit(inazuma, checkpoint, [0.1, 0.3, 0.2])
    last = tmp_path / "last.ckpt"
    assert last.is_symlink() == links_are_allowed
    if links_are_allowed:
        assert os.readlink(last) == "epoch=2-step=12.ckpt"
    assert step_in(last) == 12
    assert names(tmp_path) == ["epoch=0-step=4.ckpt", "epoch=2-step=12.ckpt", "last.ckpt"]


def test_a_link_that_a_killed_process_left_half_made_is_gone_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.tmp").symlink_to("epoch=0-step=4.ckpt")
    (tmp_path / "users.ckpt.tmp").symlink_to("epoch=0-step=4.ckpt")
    fit(inazuma, ModelCheckpoint(tmp_path, save_last="link", every_n_epochs=9))
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "users.ckpt.tmp"]


def test_files_with_weights_only_hold_no_optimizer(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, save_weights_only=True)
    fit(inazuma, checkpoint)
    content = torch.load(checkpoint.best_model_path, weights_only=True)
    assert "state_dict" in content
    assert not {"optimizer_states", "lr_schedulers", "callbacks"} & set(content)


def test_keyboard_interrupts_are_saved_too(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                raise KeyboardInterrupt

    checkpoint = ModelCheckpoint(tmp_path, save_on_exception=True, save_last=True)
    with pytest.raises(SystemExit):
        fit(inazuma, checkpoint, callbacks=[Interrupt(), checkpoint])
    assert names(tmp_path) == ["epoch=0-step=2.ckpt", "last.ckpt"]


def test_a_failed_save_leaves_files_and_attributes_as_they_were_and_training_goes_on(tmp_path: Path) -> None:
    """In Lightning it ends training."""

    class FullDisk(inazuma.Trainer):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            if self.global_step in (8, 12):
                raise OSError("No space left on device")
            super().save_checkpoint(*args, **kwargs)

    class Look(Checkpoint):
        def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
            seen.append((names(tmp_path), os.path.basename(checkpoint.best_model_path), len(checkpoint.best_k_models)))

    seen: list[Any] = []
    checkpoint = ModelCheckpoint(tmp_path, monitor="val")
    trainer = FullDisk(
        max_epochs=4,
        callbacks=[checkpoint, Look()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.warns(UserWarning, match="was not saved.*No space left.*Training goes on") as caught:
        trainer.fit(make_model(inazuma, [0.3, 0.2, 0.15, 0.1]), loader(BATCHES), loader(1))
    told = [str(w.message) for w in caught if "was not saved" in str(w.message)]
    assert [text.split()[0] for text in told] == [str(tmp_path / f"epoch={n}-step={4 * n + 4}.ckpt") for n in (1, 2)]
    assert seen[1:] == [(["epoch=0-step=4.ckpt"], "epoch=0-step=4.ckpt", 1)] * 3
    assert names(tmp_path) == ["epoch=3-step=16.ckpt"]
    assert list(checkpoint.best_k_models) == [checkpoint.best_model_path]


def test_loggers_hear_of_each_save(tmp_path: Path) -> None:
    heard = []

    class Listener(inazuma.loggers.CSVLogger):
        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            heard.append(os.path.basename(checkpoint_callback.best_model_path))

    checkpoint = ModelCheckpoint(tmp_path / "files", save_last=True)
    fit(inazuma, checkpoint, max_epochs=2, logger=Listener(tmp_path))
    assert heard == ["epoch=0-step=4.ckpt"] * 2 + ["epoch=1-step=8.ckpt"] * 2


def test_the_default_directory_is_the_loggers(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint()
    fit(inazuma, checkpoint, logger=inazuma.loggers.CSVLogger(tmp_path, name="name", version=3))
    assert checkpoint.dirpath == str(tmp_path / "name" / "version_3" / "checkpoints")
    checkpoint = ModelCheckpoint()
    fit(inazuma, checkpoint, default_root_dir=tmp_path)
    assert checkpoint.dirpath == str(tmp_path / "checkpoints")


def test_kept_files_are_listed_as_yaml(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    checkpoint = ModelCheckpoint(tmp_path, monitor="val", save_top_k=2)
    fit(inazuma, checkpoint, [0.5, 0.25, 0.75])
    checkpoint.to_yaml()
    checkpoint.to_yaml(tmp_path / "other.yaml")
    for name in ("best_k_models.yaml", "other.yaml"):
        assert yaml.safe_load((tmp_path / name).read_text()) == {
            str(tmp_path / "epoch=0-step=4.ckpt"): 0.5,
            str(tmp_path / "epoch=1-step=8.ckpt"): 0.25,
        }


def test_public_questions_are_answered(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val")
    trainer = fit(inazuma, checkpoint, [0.5], max_epochs=1)
    assert checkpoint.file_exists(checkpoint.best_model_path, trainer)
    assert not checkpoint.file_exists(tmp_path / "no.ckpt", trainer)
    assert checkpoint.check_monitor_top_k(trainer, torch.tensor(0.4))
    assert not checkpoint.check_monitor_top_k(trainer, torch.tensor(0.5))
    assert not checkpoint.check_monitor_top_k(trainer)


def test_verbose_tells_of_each_decision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inazuma"):
        fit(inazuma, ModelCheckpoint(tmp_path, monitor="val", verbose=True), [0.1, 0.2], max_epochs=2)
    assert "Epoch 0, global step 4: 'val' reached 0.1, saving to" in caplog.text
    assert "Epoch 1, global step 8: 'val' was 0.2, not in top 1" in caplog.text


def test_it_works_beside_early_stopping(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val")
    fit(inazuma, checkpoint, [0.1, 0.2, 0.3], callbacks=[EarlyStopping("val", patience=1), checkpoint], max_epochs=9)
    assert names(tmp_path) == ["epoch=0-step=4.ckpt"]


# ---------------------------------------------------------------------------------------------- errors and warnings


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"save_top_k": -2}, r"save_top_k=-2\) should be at least 0"),
        ({"save_top_k": 3}, r"save_top_k=3, monitor=None\) has nothing to rank files by"),
        ({"mode": "best"}, r"mode='best'\): `mode` can be 'min'"),
        ({"every_n_epochs": -1}, r"every_n_epochs=-1\) should be at least 0"),
        ({"every_n_train_steps": -3}, r"every_n_train_steps=-3\) should be at least 0"),
        ({"every_n_epochs": 1, "every_n_train_steps": 2}, "mutually exclusive"),
        ({"every_n_epochs": 1, "train_time_interval": timedelta(1)}, "mutually exclusive"),
        ({"save_last": "yes"}, r"save_last='yes'\) should be True, False or 'link'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(MisconfigurationException, match=text):
        ModelCheckpoint(**arguments)


def test_links_need_a_local_path() -> None:
    with pytest.raises(ValueError, match=r"saves in 's3://bucket/run', which is not a local path"):
        ModelCheckpoint(dirpath="s3://bucket/run", save_last="link")


def test_a_metric_that_validation_did_not_log_is_reported_with_the_names_known(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException) as error:
        fit(inazuma, ModelCheckpoint(tmp_path, monitor="vall"))
    assert "ModelCheckpoint(monitor='vall') found no metric of this name" in str(error.value)
    assert "Known are: 'val', 'epoch', 'step', 'train', 'train_mean'. Did you mean 'val'?" in str(error.value)
    assert "self.log('vall', value)" in str(error.value)


def test_a_metric_missing_for_a_save_by_steps_is_reported_after_validation(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="monitor='vall'"):
        fit(inazuma, ModelCheckpoint(tmp_path, monitor="vall", every_n_train_steps=1))


@pytest.mark.parametrize("trigger", [{}, {"every_n_train_steps": 2}])
def test_without_validation_a_missing_metric_is_a_warning(trigger: dict[str, int], tmp_path: Path) -> None:
    trainer = make_trainer(inazuma, ModelCheckpoint(tmp_path, monitor="vall", **trigger), limit_val_batches=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_model(inazuma, [0.1]), loader(BATCHES))
    assert len([w for w in caught if "monitor='vall') found no metric" in str(w.message)]) == 1
    assert names(tmp_path) == []


def test_a_format_that_does_not_fit_is_reported_with_the_template() -> None:
    with pytest.raises(MisconfigurationException, match=r"filename='\{val:d\}'\): the format of '\{val:d\}'"):
        ModelCheckpoint().format_checkpoint_name({"val": torch.tensor(0.5)}, "{val:d}")


def test_a_directory_with_files_of_another_run_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "foreign").touch()
    trainer = make_trainer(inazuma, ModelCheckpoint(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_model(inazuma, [0.1]), loader(BATCHES), loader(1))
    assert [w for w in caught if f"directory {tmp_path} of ModelCheckpoint exists and is not empty" in str(w.message)]


def test_a_resumed_run_is_not_warned_of_its_own_files(tmp_path: Path) -> None:
    first = ModelCheckpoint(tmp_path)
    fit(inazuma, first, max_epochs=1)
    trainer = make_trainer(inazuma, ModelCheckpoint(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_model(inazuma, [0.1]), loader(BATCHES), loader(1), ckpt_path=first.best_model_path)
    assert not [w for w in caught if "is not empty" in str(w.message)]
