"""What an optimizer sees of automatic optimization: torch's own, patched ones, and those of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, Optimizer

from inazuma import Trainer
from inazuma.testing import BoringModel


class Model(BoringModel):
    def __init__(self, make: Callable[[Model], Any]) -> None:
        super().__init__()
        self.make, self.trace = make, list[str]()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.trace.append("forward")
        return self.layer(batch).sum()  # type: ignore[no-any-return]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.trace.append("before step")

    def configure_optimizers(self) -> Any:
        return self.make(self)


class Own(SGD):
    """Wants the closure, after it has looked at the weights."""

    trace: list[str]

    def step(self, closure: Any = None) -> Any:
        self.trace.append("own step")
        assert closure is not None
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.trace.append("own zero_grad")
        super().zero_grad(set_to_none)


def fit(make: Callable[[Model], Any]) -> Model:
    torch.manual_seed(0)
    model = Model(make)
    Trainer(
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model)
    return model


def test_an_optimizer_of_the_user_gets_the_closure_and_its_zero_grad_is_called() -> None:
    def make(model: Model) -> Own:
        optimizer = Own(model.parameters(), lr=0.1)
        optimizer.trace = model.trace
        return optimizer

    assert fit(make).trace == ["own step", "forward", "own zero_grad", "before step"]


def test_a_hook_before_the_step_runs_before_the_closure_and_one_behind_it_after_it() -> None:
    def make(model: Model) -> SGD:
        optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: model.trace.append("pre"))
        optimizer.register_step_post_hook(lambda *_: model.trace.append("post"))
        return optimizer

    assert fit(make).trace == ["pre", "forward", "before step", "post"]


def test_a_step_that_was_patched_gets_the_closure() -> None:
    def make(model: Model) -> SGD:
        optimizer = SGD(model.parameters(), lr=0.1)
        plain = optimizer.step
        optimizer.step = lambda closure: (model.trace.append("patched"), plain(closure))[1]  # type: ignore[method-assign]
        return optimizer

    assert fit(make).trace == ["patched", "forward", "before step"]


def test_lbfgs_runs_the_closure_as_often_as_it_likes() -> None:
    trace = fit(lambda model: LBFGS(model.parameters(), lr=0.1, max_iter=3)).trace
    assert trace == ["forward", "before step"] * 3


@pytest.mark.parametrize("kind", [SGD, Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop])
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_weights_are_those_of_a_step_with_a_closure(kind: Any, scheduled: bool) -> None:
    def make(model: Model) -> Any:
        optimizer = kind(model.parameters(), lr=0.1)
        if scheduled:
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]
        return optimizer

    def make_hooked(model: Model) -> Any:
        made = make(model)
        (made[0][0] if scheduled else made).register_step_pre_hook(lambda *_: None)
        return made

    direct, hooked = fit(make), fit(make_hooked)
    for a, b in zip(direct.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_that_were_left_over_are_cleared() -> None:
    def make(model: Model) -> SGD:
        for param in model.parameters():
            param.grad = torch.full_like(param, 7.0)
        return SGD(model.parameters(), lr=0.1)

    model, plain = fit(make), fit(lambda model: SGD(model.parameters(), lr=0.1))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
