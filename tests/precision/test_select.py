"""Trainer(precision=...): which flag gives what."""

from __future__ import annotations

import importlib.machinery
import sys
from typing import Any

import pytest
import torch

from inazuma.errors import MisconfigurationException
from inazuma.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from inazuma.precision.select import select

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("flag", "kind", "name"),
    [
        (None, Precision, "32-true"),
        (32, Precision, "32-true"),
        ("32", Precision, "32-true"),
        ("32-true", Precision, "32-true"),
        (64, DoublePrecision, "64-true"),
        ("64", DoublePrecision, "64-true"),
        ("64-true", DoublePrecision, "64-true"),
        ("16-true", HalfPrecision, "16-true"),
        ("bf16-true", HalfPrecision, "bf16-true"),
        ("bf16-mixed", MixedPrecision, "bf16-mixed"),
    ],
)
def test_a_flag_names_a_precision(flag: Any, kind: type, name: str) -> None:
    precision = select(flag, CPU)
    assert type(precision) is kind
    assert precision.precision == name


@pytest.mark.parametrize("flag", [16, "16"])
def test_sixteen_means_mixed_and_says_so(flag: Any) -> None:
    with (
        pytest.warns(UserWarning, match="fp16 is not supported on CPU"),
        pytest.warns(UserWarning, match=f"`precision={flag}` is supported for historical.*precision='16-mixed'"),
    ):
        assert select(flag, CPU).precision == "bf16-mixed"


def test_bf16_means_mixed_and_says_so() -> None:
    with pytest.warns(UserWarning, match="`precision=bf16` is supported for historical.*precision='bf16-mixed'"):
        assert select("bf16", CPU).precision == "bf16-mixed"


def test_float16_on_the_cpu_becomes_bfloat16_and_says_so() -> None:
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU, so `precision='bf16-mixed'`"):
        precision = select("16-mixed", CPU)
    assert precision.precision == "bf16-mixed"
    assert precision.scaler is None


def test_mixed_precision_computes_on_the_given_device() -> None:
    precision = select("bf16-mixed", CUDA)
    assert precision.device == "cuda"


@pytest.mark.parametrize("flag", ["foo", 8, True, "FP16", "16-MIXED", 64.0, "", [16]])
def test_an_unknown_flag_is_refused_with_the_known_ones(flag: Any) -> None:
    with pytest.raises(ValueError, match=r"Precision .* is invalid. Use one of .*'bf16-mixed'.*16, 32, 64"):
        select(flag, CPU)


@pytest.mark.parametrize("flag", ["transformer-engine", "transformer-engine-float16"])
def test_transformer_engine_says_what_to_install(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    with pytest.raises(ModuleNotFoundError, match=f"'{flag}' needs the package transformer_engine.*pip install"):
        select(flag, CUDA)


def test_transformer_engine_is_refused_even_when_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("transformer_engine")
    module.__spec__ = importlib.machinery.ModuleSpec("transformer_engine", None)
    monkeypatch.setitem(sys.modules, "transformer_engine", module)
    with pytest.raises(MisconfigurationException, match="not supported by inazuma yet. Use precision='bf16-true'"):
        select("transformer-engine", CUDA)
