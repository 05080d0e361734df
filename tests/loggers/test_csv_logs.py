from __future__ import annotations

import copy
import csv
import pickle
import tempfile
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inazuma.loggers import CSVLogger, ExperimentWriter
from inazuma.ranks import rank_zero_only

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch.loggers import CSVLogger as Reference


def rows_of(logger: CSVLogger) -> list[list[str]]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return list(csv.reader(file))


values = st.one_of(
    st.integers(-9, 9),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(['x,"y"\n', torch.tensor(2.5), torch.tensor([3])]),
)
rows = st.tuples(
    st.dictionaries(st.sampled_from(["b", "a", "B", "val/x", "step"]), values), st.integers(0, 300) | st.none()
)


@settings(deadline=None)
@given(calls=st.lists(st.one_of(rows, st.just("save")), max_size=12), prefix=st.sampled_from(["", "p"]))
def test_the_file_is_the_one_that_lightning_writes(calls: list[Any], prefix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for kind in (CSVLogger, Reference):
            logger = kind(folder, name=kind.__module__, prefix=prefix)
            for call in calls:
                if call == "save":
                    logger.save()
                else:
                    logger.log_metrics(*call)
            logger.finalize("success")
            file = Path(logger.log_dir) / "metrics.csv"
            files.append(file.read_bytes() if file.exists() else None)
        assert files[0] == files[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"name": ""},
        {"name": None},
        {"name": "a/b"},
        {"version": 4},
        {"version": "last"},
        {"name": "", "version": "x"},
    ],
)
def test_the_directories_are_those_of_lightning(arguments: dict[str, Any], tmp_path: Path) -> None:
    for _ in range(2):  # the second one finds the directory of the first
        ours, theirs = CSVLogger(tmp_path / "ours", **arguments), Reference(tmp_path / "theirs", **arguments)
        assert (ours.name, ours.version) == (theirs.name, theirs.version)
        for place in ("save_dir", "root_dir", "log_dir"):
            ours_at, theirs_at = getattr(ours, place), getattr(theirs, place)
            assert Path(ours_at).relative_to(tmp_path / "ours") == Path(theirs_at).relative_to(tmp_path / "theirs")
        Path(ours.log_dir).mkdir(parents=True, exist_ok=True)
        Path(theirs.log_dir).mkdir(parents=True, exist_ok=True)


def test_nothing_is_created_before_something_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    assert logger.version == 0
    assert logger.log_dir == str(tmp_path / "logs" / "lightning_logs" / "version_0")
    logger.finalize("success")
    assert not (tmp_path / "logs").exists()


def test_the_version_is_chosen_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    (tmp_path / "lightning_logs" / "version_3").mkdir(parents=True)
    assert logger.version == 4
    (tmp_path / "lightning_logs" / "version_9").mkdir()
    assert logger.version == 4


def test_a_home_directory_and_variables_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNS", str(tmp_path))
    logger = CSVLogger("$RUNS/logs")
    logger.log_metrics({"a": 1})
    logger.save()
    assert (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").exists()
    assert CSVLogger("~/logs").save_dir == str(Path.home() / "logs")


def test_rows_are_saved_by_save_or_every_n_steps(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    logger.log_metrics({"a": 1}, step=1)
    assert not (Path(logger.log_dir) / "metrics.csv").exists()
    logger.log_metrics({"a": 2}, step=2)
    assert rows_of(logger) == [["a", "step"], ["1", "1"], ["2", "2"]]
    logger.log_metrics({"a": 3}, step=3)
    logger.save()
    assert rows_of(logger)[3:] == [["3", "3"]]


def test_saved_rows_are_not_kept_in_memory(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in range(50):
        logger.log_metrics({"a": step}, step)
        logger.save()
    assert logger.experiment.metrics == []
    assert len(rows_of(logger)) == 51


def test_a_row_is_appended_and_the_file_written_anew_only_for_a_new_column(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    file = Path(logger.log_dir) / "metrics.csv"
    logger.log_metrics({"b": 1}, 0)
    logger.save()
    inode = file.stat().st_ino
    logger.log_metrics({"b": 2}, 1)
    logger.save()
    assert file.stat().st_ino == inode
    logger.log_metrics({"a": 3}, 2)
    logger.save()
    assert file.stat().st_ino != inode
    assert rows_of(logger) == [["a", "b", "step"], ["", "1", "0"], ["", "2", "1"], ["3", "", "2"]]
    assert [path.name for path in file.parent.iterdir()] == ["metrics.csv"]


def test_an_existing_file_is_deleted_with_a_warning(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, version=1)
    first.log_metrics({"a": 1})
    first.finalize("success")
    (Path(first.log_dir) / "other.txt").touch()
    second = CSVLogger(tmp_path, version=1)
    with pytest.warns(UserWarning, match="exists and is not empty: its metrics.csv is deleted"):
        second.log_metrics({"b": 1}, step=8)
    second.save()
    assert rows_of(second) == [["b", "step"], ["1", "8"]]
    assert (Path(first.log_dir) / "other.txt").exists()


def test_an_existing_file_is_continued_when_asked_for(tmp_path: Path) -> None:
    for step, name in enumerate(["b", "b", "a"]):
        logger = CSVLogger(tmp_path, version="run", append=True)
        logger.log_metrics({name: step}, step)
        logger.finalize("success")
    assert rows_of(logger) == [["a", "b", "step"], ["", "0", "0"], ["", "1", "1"], ["2", "", "2"]]


def test_hyperparameters_add_up_in_hparams_yaml(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 1e-05, "layers": (1, 2)})
    logger.log_hyperparams(Namespace(depth=3))
    logger.log_hyperparams(None)
    file = Path(logger.log_dir) / "hparams.yaml"
    assert yaml.safe_load(file.read_text()) == {"lr": 1e-05, "layers": [1, 2], "depth": 3}
    reference = Reference(tmp_path)
    reference.log_hyperparams({"lr": 1e-05, "layers": (1, 2), "depth": 3})
    assert yaml.safe_load((Path(reference.log_dir) / "hparams.yaml").read_text()) == yaml.safe_load(file.read_text())


def test_the_experiment_can_be_used_directly(tmp_path: Path) -> None:
    experiment = CSVLogger(tmp_path).experiment
    assert isinstance(experiment, ExperimentWriter)
    experiment.log_metrics({"a": 1.5})
    experiment.log_metrics({"a": 2.5})
    experiment.save()
    assert Path(experiment.metrics_file_path).read_text() == "a,step\n1.5,0\n2.5,1\n"
    assert experiment.metrics_keys == ["a", "step"]


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1})
    logger.log_hyperparams({"a": 1})
    logger.experiment.save()
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_logger_can_be_copied_and_sent_to_a_process(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        assert twin.version == 0
        assert twin.experiment.metrics == [{"a": 1, "step": 0}]


def test_a_remote_directory_is_written_through_fsspec() -> None:
    import fsspec

    address = "memory://bucket/logs"
    for version in range(2):
        logger = CSVLogger(address)
        assert logger.version == version
        logger.log_metrics({"b": 1}, 0)
        logger.save()
        logger.log_metrics({"a": 2}, 1)
        logger.log_hyperparams({"lr": 1})
        logger.finalize("success")
    assert logger.log_dir == "memory://bucket/logs/lightning_logs/version_1"
    with fsspec.open(f"{logger.log_dir}/metrics.csv", "r") as file:
        assert file.read() == "a,b,step\n,1,0\n2,,1\n"
    with fsspec.open(f"{logger.log_dir}/hparams.yaml", "r") as file:
        assert file.read() == "lr: 1\n"
