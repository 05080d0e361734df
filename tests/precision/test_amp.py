"""Mixed precision: autocast, the scaler, and gradients that are true whenever somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, SGD, Adam, Optimizer

from inazuma.errors import MisconfigurationException
from inazuma.optim import GradClipAlgorithmType
from inazuma.precision import MixedPrecision


def scaled(**kwargs: Any) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", **{"init_scale": 1024.0, **kwargs}))


def scale_of(precision: MixedPrecision) -> float:
    assert precision.scaler is not None
    return precision.scaler.get_scale()


def norm_of(*params: nn.Parameter) -> float:
    return torch.stack([param.grad.norm() for param in params]).norm().item()


@pytest.mark.parametrize("flag", ["16", "bf16", 16, "32-true"])
def test_other_flags_are_refused(flag: Any) -> None:
    message = rf"`MixedPrecision\(precision={flag!r}\)` mixes nothing. Use '16-mixed' or 'bf16-mixed'"
    with pytest.raises(ValueError, match=message):
        MixedPrecision(flag, "cpu")


def test_bfloat16_refuses_a_scaler() -> None:
    with pytest.raises(MisconfigurationException, match="'bf16-mixed', scaler=.*does not use a scaler"):
        MixedPrecision("bf16-mixed", "cpu", GradScaler("cpu"))


def test_a_scaler_comes_with_float16_only() -> None:
    scaler = GradScaler("cpu")
    assert MixedPrecision("16-mixed", "cpu", scaler).scaler is scaler
    assert isinstance(MixedPrecision("16-mixed", "cpu").scaler, GradScaler)
    assert MixedPrecision("bf16-mixed", torch.device("cuda", 1)).scaler is None


@pytest.mark.parametrize(("flag", "dtype"), [("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)])
def test_the_forward_context_computes_in_16_bits(flag: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with MixedPrecision(flag, "cpu").forward_context():
        assert layer(torch.ones(1, 2)).dtype is dtype
    assert layer(torch.ones(1, 2)).dtype is torch.float32


def test_a_weight_used_first_without_gradient_gets_one_afterwards() -> None:
    layer = nn.Linear(2, 2)
    with MixedPrecision("bf16-mixed", "cpu").forward_context():
        with torch.no_grad():
            layer(torch.ones(1, 2))
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None


def test_bfloat16_scales_nothing_and_keeps_no_state() -> None:
    precision, loss = MixedPrecision("bf16-mixed", "cpu"), torch.ones(())
    assert precision.scale_loss(loss) is loss
    assert precision.state_dict() == {}
    precision.load_state_dict({"scale": 2.0})


OPTIMIZERS: list[Callable[[Any], Optimizer]] = [
    lambda params: SGD(params, lr=0.1),
    lambda params: SGD(params, lr=0.1, fused=True),
    lambda params: Adam(params, lr=0.1, foreach=True),
    lambda params: Adam(params, lr=0.1, fused=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=["sgd", "sgd fused", "adam", "adam fused"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaled_training_equals_unscaled_training_and_hooks_see_true_gradients(
    make: Callable[[Any], Optimizer], clip: float | None
) -> None:
    def train(precision: MixedPrecision) -> tuple[list[float], list[float]]:
        torch.manual_seed(1)
        layer = nn.Linear(4, 1)
        optimizer = make(layer.parameters())
        norms = []
        for _ in range(5):

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = layer(torch.ones(2, 4)).pow(2).mean()
                precision.scale_loss(loss).backward()
                return loss

            def ready() -> None:
                norms.append(norm_of(layer.weight, layer.bias))
                precision.clip_gradients(optimizer, clip)
                norms.append(norm_of(layer.weight, layer.bias))

            assert precision.step(optimizer, closure, ready) is not None
        return norms, [*layer.weight.flatten().tolist(), layer.bias.item()]

    norms, weights = train(scaled(growth_interval=2))
    true_norms, true_weights = train(MixedPrecision("bf16-mixed", "cpu"))
    assert norms == pytest.approx(true_norms, rel=1e-3)
    assert weights == pytest.approx(true_weights, rel=1e-3)


def test_infinite_gradients_leave_the_weights_and_lower_the_scale() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer, precision = SGD([param], lr=1.0), scaled()
    seen: list[float] = []

    def step(factor: float) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (param * factor).sum()
            precision.scale_loss(loss).backward()
            return loss

        precision.step(optimizer, closure, lambda: seen.append(param.grad.item()))

    step(float("inf"))
    assert param.item() == 1.0
    step(3.0)
    assert param.item() == -2.0
    assert seen == [float("inf"), 3.0]
    assert scale_of(precision) == 512.0


def test_a_step_without_gradients_is_made_ready_and_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer, precision = SGD([param], lr=1.0), scaled()
    seen: list[str] = []
    assert precision.step(optimizer, lambda: None, lambda: seen.append("ready")) is None
    assert seen == ["ready"]
    assert param.item() == 1.0


def test_gradients_of_earlier_batches_are_stepped_when_the_last_one_had_no_loss() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer, precision = SGD([param], lr=1.0), scaled()
    precision.scale_loss((param * 3).sum()).backward()
    precision.step(optimizer, lambda: None, lambda: None)
    assert param.item() == -2.0


def test_lbfgs_cannot_be_scaled() -> None:
    optimizer = LBFGS([nn.Parameter(torch.ones(1))])
    with pytest.raises(MisconfigurationException, match="A loss scaler and LBFGS are not compatible.*'bf16-mixed'"):
        scaled().step(optimizer, lambda: None, lambda: None)


# --- manual optimization: several optimizers, in any order ----------------------------------------------------------


def two_optimizers() -> tuple[nn.Parameter, nn.Parameter, Optimizer, Optimizer]:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    return a, b, SGD([a], lr=1.0), SGD([b], lr=1.0)


def plain_step(precision: MixedPrecision, optimizer: Optimizer) -> None:
    precision.step(optimizer, lambda: None, lambda: None)
    optimizer.zero_grad()


def test_two_backward_passes_before_two_steps_use_the_same_scale() -> None:
    a, b, of_a, of_b = two_optimizers()
    precision = scaled(growth_interval=1)  # the scale doubles whenever it may
    for _ in range(3):
        precision.scale_loss((a * 0.5).sum()).backward()
        precision.scale_loss((b * 0.25).sum()).backward()
        plain_step(precision, of_a)
        plain_step(precision, of_b)
    assert a.item() == 1.0 - 3 * 0.5
    assert b.item() == 1.0 - 3 * 0.25
    assert scale_of(precision) == 1024.0 * 2**2  # once per round, at the first backward pass of the next


def test_optimizers_in_turn_each_step_on_true_gradients() -> None:
    a, b, of_a, of_b = two_optimizers()
    precision = scaled(growth_interval=1)
    for _ in range(3):
        for param, optimizer in ((a, of_a), (b, of_b)):
            precision.scale_loss((param * 0.5).sum()).backward()
            plain_step(precision, optimizer)
    assert a.item() == b.item() == 1.0 - 3 * 0.5


@pytest.mark.parametrize("algorithm", list(GradClipAlgorithmType))
def test_clipping_before_the_step_clips_true_gradients_and_unscales_once(algorithm: GradClipAlgorithmType) -> None:
    a, b, of_a, of_b = two_optimizers()
    precision = scaled()
    for _ in range(2):
        precision.scale_loss((a * 4 + b * 4).sum()).backward()
        precision.clip_gradients(of_a, 0.5, algorithm)
        assert a.grad.item() == pytest.approx(0.5, rel=1e-4)
        precision.clip_gradients(of_a, 0.25, algorithm)
        assert a.grad.item() == pytest.approx(0.25, rel=1e-4)
        plain_step(precision, of_a)
        plain_step(precision, of_b)
    assert a.item() == pytest.approx(1.0 - 2 * 0.25, rel=1e-4)
    assert b.item() == 1.0 - 2 * 4


def test_a_backward_pass_between_clipping_and_step_keeps_the_scale() -> None:
    a, b, of_a, of_b = two_optimizers()
    precision = scaled(growth_interval=1)
    for _ in range(2):
        precision.scale_loss((b * 0.5).sum()).backward()
        plain_step(precision, of_b)
        precision.scale_loss((a * 4).sum()).backward()
        assert precision.clip_gradients(of_a, 0.5) == pytest.approx(4.0)
        precision.scale_loss((b * 0.5).sum()).backward()
        plain_step(precision, of_a)
        plain_step(precision, of_b)
    assert a.item() == pytest.approx(1.0 - 2 * 0.5, abs=1e-4)
    assert b.item() == 1.0 - 4 * 0.5


def test_clipping_with_no_bound_leaves_the_gradients_scaled_for_the_step() -> None:
    a, _, of_a, _ = two_optimizers()
    precision = scaled()
    precision.scale_loss((a * 4).sum()).backward()
    assert precision.clip_gradients(of_a, None) is None
    plain_step(precision, of_a)
    assert a.item() == 1.0 - 4


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_the_saved_scale_is_the_one_of_the_next_backward_pass() -> None:
    def run(precision: MixedPrecision, param: nn.Parameter, rounds: int) -> None:
        optimizer = SGD([param], lr=0.01)
        for _ in range(rounds):
            precision.scale_loss((param * 2).sum()).backward()
            plain_step(precision, optimizer)

    straight, param = scaled(growth_interval=2), nn.Parameter(torch.ones(1))
    run(straight, param, 2)
    state = straight.state_dict()
    assert state["scale"] == 2048.0
    resumed, again = scaled(growth_interval=2, init_scale=1.0), nn.Parameter(param.detach().clone())
    resumed.load_state_dict(state)
    run(straight, param, 3)
    run(resumed, again, 3)
    assert straight.state_dict() == resumed.state_dict()
    assert torch.equal(param, again)


def test_saving_between_clipping_and_step_changes_nothing() -> None:
    a, b, of_a, of_b = two_optimizers()
    precision = scaled(growth_interval=1)
    precision.scale_loss((a + b).sum()).backward()
    plain_step(precision, of_b)
    precision.clip_gradients(of_a, 0.5)
    precision.state_dict()
    plain_step(precision, of_a)
    assert a.item() == pytest.approx(0.5)
