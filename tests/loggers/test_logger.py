from __future__ import annotations

import copy
import pickle
from argparse import Namespace
from typing import Any

import pytest

from inazuma.loggers import DummyLogger, Logger, merge_dicts, rank_zero_experiment
from inazuma.ranks import rank_zero_only


class ListLogger(Logger):
    """What somebody would write: keeps everything in a list."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @property
    def name(self) -> str:
        return "list"

    @property
    def version(self) -> int:
        return 7

    @property
    @rank_zero_experiment
    def experiment(self) -> list[Any]:
        return self.said

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.said.append((step, metrics))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self.said.append(params)

    def save(self) -> None:
        self.said.append("saved")


def test_name_version_and_two_methods_make_a_logger() -> None:
    logger = ListLogger()
    assert (logger.root_dir, logger.log_dir, logger.save_dir, logger.group_separator) == (None, None, None, "/")
    logger.finalize("success")
    assert logger.said == ["saved"]
    with pytest.raises(TypeError, match="abstract"):
        Logger()


def test_other_ranks_get_an_experiment_that_takes_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = ListLogger()
    assert logger.experiment is logger.said
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_metrics({"loss": 1.0})
    experiment: Any = logger.experiment
    assert experiment.add_image("a", 1) is None
    assert experiment[0].add_image("a", 1) is None
    experiment["key"] = 1
    assert list(experiment) == []
    assert logger.said == []


def test_the_dummy_logger_does_nothing_and_can_be_copied() -> None:
    logger = pickle.loads(pickle.dumps(copy.deepcopy(DummyLogger())))
    assert (logger.name, logger.version, logger.log_dir, logger.save_dir) == ("", "", None, None)
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.log_hyperparams({"lr": 1.0})
    logger.watch(None)
    logger.experiment.add_figure(None)
    logger[0].experiment["a"] = 1
    assert list(logger) == []
    logger.finalize("success")


def test_merged_dicts_hold_the_mean_of_what_shares_a_key() -> None:
    merged = merge_dicts([{"b": 2, "a": 1, "v": {"x": 1}}, {"a": 3, "v": {"x": 2, "y": 5}, "b": None}])
    assert merged == {"b": 2.0, "a": 2.0, "v": {"x": 1.5, "y": 5.0}}
    assert list(merged) == ["b", "a", "v"]
    assert merge_dicts([]) == {}


def test_merged_dicts_use_the_functions_given() -> None:
    dicts = [{"a": 1, "v": {"x": 1, "y": 2}, "b": 5}, {"a": 3, "v": {"x": 4}, "b": 4}]
    assert merge_dicts(dicts, {"a": sum, "v": {"x": max}}, default_func=min) == {"a": 4, "v": {"x": 4, "y": 2}, "b": 4}
