from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from inazuma.loggers import CSVLogger, TensorBoardLogger, default_logger
from inazuma.module import LightningModule
from inazuma.ranks import rank_zero_only

HPARAMS_SUMMARIES = {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}


def events(folder: str | Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalars(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    read = events(folder)
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def files_in(folder: Path) -> set[str]:
    """The files below a folder, event files as "events"."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: "events" if path.name.startswith("events.out.tfevents") else path.name for path in paths}
    return {str(path.parent.relative_to(folder) / name) for path, name in names.items()}


def test_events_and_hparams_stand_in_the_directory_of_the_version(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.5})
    logger.log_metrics({"loss": 1.5, "acc": torch.tensor(0.5), "n": 3}, step=4)
    logger.save()
    assert scalars(logger.log_dir) == {"hp_metric": [(0, -1.0)], "loss": [(4, 1.5)], "acc": [(4, 0.5)], "n": [(4, 3.0)]}
    logger.finalize("success")
    assert files_in(tmp_path) == {
        str(Path("lightning_logs/version_0/events")),
        str(Path("lightning_logs/version_0/hparams.yaml")),
    }
    assert TensorBoardLogger(tmp_path).version == 1


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ({}, "lightning_logs/version_0"),
        ({"name": ""}, "version_0"),
        ({"name": None, "version": 3}, "version_3"),
        ({"name": "a", "version": "best", "sub_dir": "x"}, "a/best/x"),
    ],
)
def test_arguments_choose_the_directory(arguments: dict[str, Any], folder: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, **arguments)
    assert Path(logger.log_dir) == tmp_path / folder
    assert logger.sub_dir == arguments.get("sub_dir")
    logger.log_metrics({"a": 1}, 0)
    logger.finalize("success")
    assert scalars(tmp_path / folder) == {"a": [(0, 1.0)]}


def test_a_dict_of_values_becomes_curves_of_one_chart(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="p")
    logger.log_metrics({"loss": {"train": 1.0, "val": 2.0}}, 3)
    logger.finalize("success")
    assert scalars(Path(logger.log_dir) / "p-loss_train") == {"p-loss": [(3, 1.0)]}
    assert scalars(Path(logger.log_dir) / "p-loss_val") == {"p-loss": [(3, 2.0)]}


@pytest.mark.parametrize("value", ["1.0", None, torch.zeros(2), object()])
def test_what_is_not_one_number_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot log 'a': .* and not one number"):
        TensorBoardLogger(tmp_path).log_metrics({"a": value}, 0)


@pytest.mark.parametrize(
    ("metrics", "arguments", "expected"),
    [
        (None, {}, {"hp_metric": [(0, -1.0)]}),
        (3, {}, {"hp_metric": [(0, 3.0)]}),
        ({"acc": 0.5, "loss": 2.0}, {"step": 5}, {"acc": [(5, 0.5)], "loss": [(5, 2.0)]}),
    ],
)
def test_hyperparameters_are_shown_with_their_metrics(
    metrics: Any, arguments: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    logger = TensorBoardLogger(tmp_path)
    params = Namespace(lr=0.5, net={"act": nn.ReLU, "sizes": [1, 2]}, none=None, flag=True)
    logger.log_hyperparams(params, metrics, **arguments)
    logger.finalize("success")
    assert scalars(logger.log_dir) == expected
    metadata = events(logger.log_dir).summary_metadata
    assert set(metadata) >= HPARAMS_SUMMARIES
    shown = str(metadata["_hparams_/session_start_info"].plugin_data.content)
    for text in ("net/act", "torch.nn.modules.activation.ReLU", "net/sizes", "[1, 2]", "lr", "flag"):
        assert text in shown
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {
        "lr": 0.5,
        "net": {"act": "torch.nn.modules.activation.ReLU", "sizes": [1, 2]},
        "none": None,
        "flag": True,
    }


def test_without_the_default_metric_hyperparameters_only_go_to_the_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    logger.log_hyperparams({"lr": 1})
    logger.finalize("success")
    assert scalars(logger.log_dir) == {}
    assert not events(logger.log_dir).summary_metadata
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "lr: 1\n"


def test_later_hyperparameters_reach_the_file_but_not_that_of_an_earlier_run(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version=0)
    logger.log_hyperparams({"lr": 1})
    logger.save()
    logger.log_hyperparams({"depth": 2})
    logger.finalize("success")
    later = TensorBoardLogger(tmp_path, version=0)
    later.log_hyperparams({"lr": 7})
    later.finalize("success")
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 1, "depth": 2}


def test_a_run_with_the_same_version_continues_the_series(tmp_path: Path) -> None:
    for steps in ([0, 1, 2, 3], [2, 3]):  # the second run starts at step 2 again
        logger = TensorBoardLogger(tmp_path, version="run", purge_step=steps[0] or None)
        for step in steps:
            logger.log_metrics({"a": step + 10 * len(steps)}, step)
        logger.finalize("success")
    assert scalars(logger.log_dir) == {"a": [(0, 40.0), (1, 41.0), (2, 22.0), (3, 23.0)]}


def test_logging_goes_on_after_finalize(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    logger.finalize("success")
    logger.log_metrics({"a": 2}, 1)
    logger.log_hyperparams({"lr": 1}, {"b": 3})
    logger.finalize("success")
    assert scalars(logger.log_dir) == {"a": [(0, 1.0), (1, 2.0)], "b": [(0, 3.0)]}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.net(x))


@pytest.mark.parametrize("example", [torch.rand(2, 4), (torch.rand(2, 4),)])
def test_the_graph_is_drawn_without_a_trace_in_training(example: Any, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    model = Net()
    model.example_input_array = example
    model.trainer = SimpleNamespace()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    logger.log_graph(model)
    logger.finalize("success")
    assert events(logger.log_dir).Tags()["graph"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in (model, model.net, model.net[1], model.frozen)] == [True, True, True, False]


@pytest.mark.parametrize(("example", "reason"), [(None, "is not set"), ({"x": 1}, "is a dict, which cannot be traced")])
def test_a_graph_that_cannot_be_drawn_is_told(example: Any, reason: str, tmp_path: Path) -> None:
    model = Net()
    model.example_input_array = example
    TensorBoardLogger(tmp_path).log_graph(model)  # not asked for: silent
    with pytest.warns(UserWarning, match=f"logs no graph: the `example_input_array` of the module {reason}"):
        TensorBoardLogger(tmp_path, log_graph=True).log_graph(model)


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    logger.log_metrics({"a": 1}, 0)
    logger.log_hyperparams({"a": 1})
    logger.log_graph(Net())
    logger.experiment.add_text("a", "b")
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_a_logger_in_use_can_be_sent_to_a_process(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics({"a": 1}, 0)
    twin = pickle.loads(pickle.dumps(logger))
    assert twin.log_dir == logger.log_dir
    twin.log_metrics({"a": 2}, 1)
    twin.finalize("success")
    logger.finalize("success")
    assert scalars(logger.log_dir) == {"a": [(0, 1.0), (1, 2.0)]}


def test_the_default_logger_imports_and_creates_nothing_before_its_use(tmp_path: Path) -> None:
    program = (
        "import sys, inazuma.loggers as loggers\n"
        f"logger = loggers.default_logger({str(tmp_path / 'logs')!r})\n"
        "assert logger.log_dir and isinstance(logger, loggers.TensorBoardLogger)\n"
        "assert 'tensorboard' not in sys.modules and 'yaml' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = ("tensorboard", "tensorboardX")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else find(name))


@pytest.mark.usefixtures("no_tensorboard")
def test_without_tensorboard_the_default_is_csv_and_the_logger_says_what_to_install(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"logs to CSV files.*pip install inazuma\[tensorboard\]"):
        logger = default_logger(tmp_path, version=3)
    assert isinstance(logger, CSVLogger)
    assert logger.log_dir == str(tmp_path / "lightning_logs" / "version_3")
    with pytest.raises(ModuleNotFoundError, match=r"pip install inazuma\[tensorboard\]"):
        TensorBoardLogger(tmp_path)
