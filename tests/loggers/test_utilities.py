from __future__ import annotations

import dataclasses
import enum
import functools
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inazuma.loggers.utilities import flatten, next_version, plain, save_hparams_to_yaml


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    depth: int = 2
    sizes: tuple[int, ...] = (1, 2)


class Address:
    """Its text is different in every run."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e-5, 1e-5),
        (True, True),
        (None, None),
        (Color.RED, "RED"),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1}, [1, 3]),
        (Config(), {"depth": 2, "sizes": [1, 2]}),
        (Namespace(a=Namespace(b=1)), {"a": {"b": 1}}),
        ({1: 2, (1, 2): 3}, {1: 2, "(1, 2)": 3}),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.longdouble(2), 2.0),
        (np.bool_(True), True),
        (np.array([3]), 3),
        (np.array([1, 2]), "[1 2]"),
        (torch.tensor([2]), 2),
        (torch.zeros(100, 3), "torch.Tensor"),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (Path("x/y"), str(Path("x/y"))),
        (torch.nn.ReLU, "torch.nn.modules.activation.ReLU"),
        (math.sqrt, "math.sqrt"),
        (torch.nn.Sequential(torch.nn.ReLU()), "torch.nn.modules.container.Sequential"),
        (functools.partial(torch.optim.SGD, lr=1), "functools.partial(<class 'torch.optim.sgd.SGD'>, lr=1)"),
        (Address(), f"{__name__}.Address"),
    ],
)
def test_hyperparameters_become_plain_data_or_a_word(value: Any, expected: Any) -> None:
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)
    assert yaml.safe_load(yaml.safe_dump(result)) == expected


def test_omegaconf_containers_are_resolved() -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.create({"lr": 0.1, "twice": "${lr}", "layers": [1, 2], "open": "???"})
    assert plain({"config": config}) == {"config": {"lr": 0.1, "twice": 0.1, "layers": [1, 2], "open": "???"}}


def test_nested_hyperparameters_are_flattened_with_slashes() -> None:
    nested = {"a": {"b": {"c": 1}}, 5: {"d": 2}, "list": [{"e": 3}, {"e": 4}], "numbers": [1, 2], "empty": []}
    assert flatten(nested) == {"a/b/c": 1, "5/d": 2, "list/0/e": 3, "list/1/e": 4, "numbers": [1, 2], "empty": []}


HPARAMS = {
    "lr": 1e-05,
    "big": 1e22,
    "name": 'x: "é"\n#1 😀',
    "yes": "yes",
    "none": None,
    "flag": True,
    "n": {"l": [1, -2.5]},
}


def test_hparams_yaml_can_be_read_back_safely(tmp_path: Path) -> None:
    save_hparams_to_yaml(tmp_path / "hparams.yaml", {**HPARAMS, "act": torch.nn.ReLU})
    text = (tmp_path / "hparams.yaml").read_text("utf-8")
    assert yaml.safe_load(text) == {**HPARAMS, "act": "torch.nn.modules.activation.ReLU"}
    assert list(yaml.safe_load(text)) == [*HPARAMS, "act"]


@pytest.mark.parametrize("hparams", [HPARAMS, {}, Namespace(lr=1)])
def test_hparams_yaml_needs_no_yaml_package(hparams: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yaml", None)  # makes `import yaml` fail
        save_hparams_to_yaml(tmp_path / "hparams.yaml", hparams)
    text = (tmp_path / "hparams.yaml").read_text("utf-8")
    assert yaml.safe_load(text) == (vars(hparams) if isinstance(hparams, Namespace) else hparams)


@given(st.floats())
def test_every_number_survives_without_the_yaml_package(number: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yaml", None)
        save_hparams_to_yaml("hparams.yaml", {"number": number})
    read = yaml.safe_load(Path("hparams.yaml").read_text())["number"]
    assert isinstance(read, float)
    assert read == number or (math.isnan(read) and math.isnan(number))


def test_what_cannot_be_written_as_hparams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Missing folder"):
        save_hparams_to_yaml(tmp_path / "nowhere" / "hparams.yaml", {})
    with pytest.raises(TypeError, match="must be a dictionary or a Namespace, but is a list"):
        save_hparams_to_yaml(tmp_path / "hparams.yaml", [1])  # type: ignore[arg-type]


def test_the_next_version_is_one_above_the_highest(tmp_path: Path) -> None:
    assert next_version(str(tmp_path / "nowhere")) == 0
    for name in ("version_2", "version_10", "version_x", "other_99", "version_11_old"):
        (tmp_path / name).mkdir()
    (tmp_path / "version_77").write_text("a file, not a directory")
    assert next_version(str(tmp_path)) == 11
