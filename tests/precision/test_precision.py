"""Full, half and double precision, and what they have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD

from inazuma.optim import GradClipAlgorithmType
from inazuma.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

BATCH = {
    "x": torch.ones(2),
    "n": torch.ones(2, dtype=torch.long),
    "list": [torch.ones(1, dtype=torch.double), 1.5, "a"],
}


def dtypes(batch: dict[str, Any]) -> list[torch.dtype]:
    return [batch["x"].dtype, batch["n"].dtype, batch["list"][0].dtype]


def test_full_precision_leaves_everything_alone() -> None:
    precision, layer, loss = Precision(), nn.Linear(1, 1), torch.ones(())
    assert precision.precision == "32-true"
    assert precision.is_plain
    assert precision.convert_module(layer) is layer
    assert precision.convert_input(BATCH) is BATCH
    assert precision.convert_output(BATCH) is BATCH
    assert precision.scale_loss(loss) is loss
    with precision.init_context(), precision.forward_context():
        assert torch.ones(1).dtype is torch.float32
    assert precision.state_dict() == {}
    precision.load_state_dict({})
    precision.teardown()


def test_only_a_precision_that_touches_no_tensor_is_plain() -> None:
    class Prints(Precision):
        def convert_input(self, data: Any) -> Any:
            return data

    for precision in (Prints(), HalfPrecision(), DoublePrecision(), MixedPrecision("bf16-mixed", "cpu")):
        assert not precision.is_plain


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (HalfPrecision("16-true"), torch.float16),
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (DoublePrecision(), torch.float64),
    ],
)
def test_true_precisions_convert_floats_and_nothing_else(precision: Precision, dtype: torch.dtype) -> None:
    module = nn.BatchNorm1d(1)
    module.register_parameter("wave", nn.Parameter(torch.ones(1, dtype=torch.complex64)))
    converted = precision.convert_module(module)
    assert converted is module
    assert module.weight.dtype is dtype
    assert module.num_batches_tracked.dtype is torch.long
    assert module.wave.dtype is torch.complex64
    assert dtypes(precision.convert_input(BATCH)) == [dtype, torch.long, dtype]
    assert precision.convert_input(BATCH)["list"][1:] == [1.5, "a"]
    assert dtypes(precision.convert_output(precision.convert_input(BATCH))) == [
        torch.float32,
        torch.long,
        torch.float32,
    ]
    for context in (precision.forward_context, precision.init_context):
        with pytest.raises(ZeroDivisionError), context():
            assert torch.ones(1).dtype is dtype
            1 / 0  # noqa: B018
        assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("flag", ["16", "bf16", "32-true", 16])
def test_half_precision_refuses_other_flags(flag: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"HalfPrecision\(precision={flag!r}\)` is not half the width. Use '16-true' or"
    ):
        HalfPrecision(flag)


@pytest.mark.parametrize(
    "precision", [Precision(), HalfPrecision(), DoublePrecision(), MixedPrecision("bf16-mixed", "cpu")]
)
def test_a_step_is_ready_after_the_closure_and_before_the_weights_change(precision: Precision) -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer = SGD([param], lr=1.0)
    seen: list[Any] = []

    def closure() -> torch.Tensor:
        (param * 3).sum().backward()
        seen.append("closure")
        return torch.tensor(7.0)

    loss = precision.step(optimizer, closure, lambda: seen.append((param.grad.item(), param.item())))
    assert loss == 7.0
    assert seen == ["closure", (3.0, 1.0)]
    assert param.item() == -2.0


def test_an_optimizer_that_runs_the_closure_again_is_made_ready_again() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer = LBFGS([param], max_iter=2)
    seen: list[str] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (param**4).sum()
        loss.backward()
        seen.append("closure")
        return loss

    Precision().step(optimizer, closure, lambda: seen.append("ready"))
    assert seen == ["closure", "ready"] * 2


def test_keyword_arguments_go_to_the_optimizer() -> None:
    class Returns(SGD):
        def step(self, closure: Any = None, *, value: int = 0) -> Any:
            closure()
            return value

    assert Precision().step(Returns([nn.Parameter(torch.ones(1))], lr=1.0), lambda: None, lambda: None, value=5) == 5


def gradients(*values: float) -> SGD:
    params = [nn.Parameter(torch.zeros(1)) for _ in values]
    for param, value in zip(params, values, strict=True):
        param.grad = torch.tensor([value])
    return SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0)


def values_of(optimizer: SGD) -> list[float]:
    return [param.grad.item() for group in optimizer.param_groups for param in group["params"]]


def test_clipping_by_norm_is_joint_over_groups_and_returns_the_norm() -> None:
    optimizer = gradients(3.0, 4.0)
    assert Precision().clip_gradients(optimizer, 1.0) == pytest.approx(5.0)
    assert values_of(optimizer) == pytest.approx([0.6, 0.8], rel=1e-4)


def test_clipping_by_value_limits_each_entry() -> None:
    optimizer = gradients(3.0, -4.0)
    assert Precision().clip_gradients(optimizer, 1.0, GradClipAlgorithmType.VALUE) is None
    assert values_of(optimizer) == [1.0, -1.0]


@pytest.mark.parametrize("value", [None, 0, 0.0, -1])
def test_without_a_positive_bound_nothing_is_clipped(value: float | None) -> None:
    optimizer = gradients(3.0, 4.0)
    assert Precision().clip_gradients(optimizer, value) is None
    assert values_of(optimizer) == [3.0, 4.0]
