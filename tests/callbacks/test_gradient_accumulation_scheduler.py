"""GradientAccumulationScheduler: the same program runs on Lightning and on inazuma, and must end with equal weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import GradientAccumulationScheduler
from inazuma.errors import MisconfigurationException

BATCHES = 5


def make_model(pl: Any, automatic: bool = True) -> Any:
    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.automatic_optimization = automatic
            self.layer = torch.nn.Linear(3, 2)
            self.steps: list[tuple[int, int]] = []  # epoch and batch of each optimizer step

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).square().mean()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.steps.append((self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_idx))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Model()


def fit(
    pl: Any,
    schedule: dict[int, int] | None,
    model: Any = None,
    ckpt_path: Path | None = None,
    callbacks: tuple[Any, ...] = (),
    **arguments: Any,
) -> tuple[Any, Any]:
    model = make_model(pl) if model is None else model
    own = [] if schedule is None else [pl.callbacks.GradientAccumulationScheduler(scheduling=schedule)]
    data = torch.randn(BATCHES, 3, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{
                "max_epochs": 4,
                "logger": False,
                "callbacks": [*own, *callbacks],
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "accelerator": "cpu",
                **arguments,
            }
        )
        trainer.fit(model, DataLoader(data), ckpt_path=ckpt_path)
    return trainer, model


def weights(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("schedule", [{0: 2}, {1: 2}, {0: 3, 2: 1}, {2: 4, 1: 2}, {9: 2}, {0: 100}, {0: 1}])
def test_a_schedule_gives_lightnings_steps_and_weights(schedule: dict[int, int]) -> None:
    expected_trainer, expected = fit(lightning.pytorch, dict(schedule))
    trainer, got = fit(inazuma, dict(schedule))
    assert got.steps == expected.steps
    assert trainer.global_step == expected_trainer.global_step
    assert trainer.accumulate_grad_batches == expected_trainer.accumulate_grad_batches
    assert torch.equal(weights(got), weights(expected))


def test_a_schedule_of_one_factor_is_the_argument_of_the_trainer() -> None:
    _, by_schedule = fit(inazuma, {0: 2})
    _, by_argument = fit(inazuma, None, accumulate_grad_batches=2)
    assert torch.equal(weights(by_schedule), weights(by_argument))


class SaveAt(inazuma.Callback):
    """Saves once, after a batch."""

    def __init__(self, epoch: int, batch_idx: int, path: Path) -> None:
        self.at, self.path = (epoch, batch_idx), path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("epoch", "batch_idx"), [(0, 4), (1, 0), (1, 2), (1, 3), (2, 0)])
def test_a_run_resumed_inside_an_epoch_goes_on_with_the_factor_of_that_epoch(
    epoch: int, batch_idx: int, tmp_path: Path
) -> None:
    schedule = {1: 3, 2: 2}
    _, straight = fit(inazuma, schedule, callbacks=(SaveAt(epoch, batch_idx, tmp_path / "a.ckpt"),))
    trainer, resumed = fit(inazuma, schedule, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.steps == [step for step in straight.steps if step > (epoch, batch_idx)]
    assert trainer.global_step == len(straight.steps)
    assert torch.equal(weights(resumed), weights(straight))


def test_one_trainer_and_scheduler_can_fit_twice() -> None:
    trainer, model = fit(inazuma, {1: 2}, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(model, DataLoader(torch.ones(BATCHES, 3)))
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("epoch", range(12))
def test_the_factor_of_an_epoch_is_that_of_the_largest_key_not_behind_it(epoch: int) -> None:
    schedule = {4: 2, 9: 5}
    ours = GradientAccumulationScheduler(dict(schedule))
    theirs = lightning.pytorch.callbacks.GradientAccumulationScheduler(dict(schedule))
    assert ours.get_accumulate_grad_batches(epoch) == theirs.get_accumulate_grad_batches(epoch)


def test_it_knows_whether_it_will_ever_accumulate() -> None:
    assert GradientAccumulationScheduler({3: 2}).going_to_accumulate_grad_batches()
    assert not GradientAccumulationScheduler({3: 1}).going_to_accumulate_grad_batches()


def test_an_empty_schedule_is_refused() -> None:
    with pytest.raises(TypeError, match="an empty dict schedules nothing"):
        GradientAccumulationScheduler({})


@pytest.mark.parametrize("schedule", [{-1: 2}, {1.5: 2}, {"1": 2}, {0: 1, -2: 3}])
def test_a_key_that_is_no_epoch_is_refused(schedule: Any) -> None:
    with pytest.raises(MisconfigurationException, match="epoch should be an int, 0 or more, but these are"):
        GradientAccumulationScheduler(schedule)


@pytest.mark.parametrize("schedule", [{0: 0}, {1: -2}, {1: 2.0}, {1: "2"}, {0: 2, 1: 0}])
def test_a_factor_that_is_no_number_of_batches_is_refused(schedule: Any) -> None:
    with pytest.raises(MisconfigurationException, match="factor should be an int, 1 or more, but these are"):
        GradientAccumulationScheduler(schedule)


def test_manual_optimization_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not supported for manual optimization, where `Model.training_step`"):
        fit(inazuma, {0: 2}, make_model(inazuma, automatic=False))


def test_a_factor_of_the_trainer_is_refused_beside_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"Trainer\(accumulate_grad_batches=3\) would be overwritten"):
        fit(inazuma, {0: 2}, accumulate_grad_batches=3)
