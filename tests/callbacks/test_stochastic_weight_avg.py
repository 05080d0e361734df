"""StochasticWeightAveraging: the same program runs on Lightning and on inazuma, and must end with the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import Callback, StochasticWeightAveraging
from inazuma.errors import MisconfigurationException

BATCHES = 4


def make_model(pl: Any, batch_norm: bool = False, schedule: str | None = None, manual: bool = False) -> Any:
    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.automatic_optimization = not manual
            self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3) if batch_norm else nn.Tanh())
            self.head = nn.Linear(4, 2)
            self.epochs: list[tuple[int, int, float, str]] = []
            self.began: list[Tensor] = []  # the weights at the beginning of each epoch
            self.validated: list[float] = []

        def forward(self, batch: Any) -> Any:
            return self.head(self.body(batch))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.validated.append(self(batch).square().mean().item())

        def on_train_epoch_start(self) -> None:
            schedulers = [type(config.scheduler).__name__ for config in self.trainer.lr_scheduler_configs]
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.epochs.append((self.current_epoch, self.global_step, lr, ", ".join(schedulers)))
            self.began.append(weights(self))

        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.2, momentum=0.9)
            if schedule is None:
                return optimizer
            return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.8), "interval": schedule}]

    return Model()


def weights(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def loader() -> Any:
    return DataLoader(torch.randn(BATCHES * 2, 3, generator=torch.Generator().manual_seed(2)), batch_size=2)


def fit(
    pl: Any,
    callbacks: Sequence[Any],
    model: Any = None,
    ckpt_path: Path | None = None,
    loud: bool = False,
    **arguments: Any,
) -> tuple[Any, Any]:
    model = make_model(pl) if model is None else model
    with warnings.catch_warnings():
        if not loud:
            warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{
                "max_epochs": 5,
                "logger": False,
                "callbacks": list(callbacks),
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 1,
                "num_sanity_val_steps": 0,
                "accelerator": "cpu",
                **arguments,
            }
        )
        trainer.fit(model, loader(), loader(), ckpt_path=ckpt_path)
    return trainer, model


def half(old: Tensor, new: Tensor, num_averaged: Any) -> Tensor:
    return (old + new) / 2


ARGUMENTS: dict[str, dict[str, Any]] = {
    "from the second epoch": {"swa_lrs": 0.05, "swa_epoch_start": 2},
    "from the first epoch, at once": {"swa_lrs": 0.05, "swa_epoch_start": 1, "annealing_epochs": 0},
    "by default": {"swa_lrs": 0.05},
    "from a share of the epochs": {"swa_lrs": 0.05, "swa_epoch_start": 0.5, "annealing_epochs": 2},
    "in the last epoch": {"swa_lrs": 0.05, "swa_epoch_start": 1.0},
    "linear": {"swa_lrs": [0.05], "swa_epoch_start": 0.0, "annealing_epochs": 3, "annealing_strategy": "linear"},
    "own function": {"swa_lrs": 0.05, "swa_epoch_start": 2, "avg_fn": half, "device": None},
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("schedule", [None, "epoch", "step"])
def test_weights_and_learning_rates_are_those_of_lightning(name: str, batch_norm: bool, schedule: str | None) -> None:
    ends = []
    for pl in (lightning.pytorch, inazuma):
        averaging = pl.callbacks.StochasticWeightAveraging(**ARGUMENTS[name])
        trainer, model = fit(pl, [averaging], make_model(pl, batch_norm, schedule))
        state = averaging.state_dict()
        ends.append((trainer, model, state))
    (expected_trainer, expected, expected_state), (trainer, got, state) = ends
    assert got.epochs == expected.epochs
    assert torch.equal(weights(got), weights(expected))
    for tensor, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[tensor], value), tensor
    assert got.validated == expected.validated
    assert trainer.current_epoch == expected_trainer.current_epoch
    assert trainer.max_epochs == expected_trainer.max_epochs
    assert state.keys() == expected_state.keys()
    assert [state[key] for key in ("n_averaged", "latest_update_epoch")] == [
        expected_state[key] for key in ("n_averaged", "latest_update_epoch")
    ]
    assert state["average_model_state"].keys() == expected_state["average_model_state"].keys()
    assert state["scheduler_state"].keys() == expected_state["scheduler_state"].keys()


def test_the_average_is_the_mean_of_the_weights_that_epochs_began_with() -> None:
    _, model = fit(inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=3)])
    assert torch.allclose(weights(model), torch.stack(model.began[2:]).mean(0), atol=1e-6)


def test_the_epoch_for_batch_norm_changes_statistics_only() -> None:
    trainer, model = fit(
        inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=3)], make_model(inazuma, batch_norm=True)
    )
    assert trainer.global_step == 5 * BATCHES + 1  # the epoch for batch norm ends with a step that has no gradients
    assert len(model.epochs) == 6
    assert torch.allclose(weights(model), torch.stack(model.began[2:5]).mean(0), atol=1e-6)
    norm = model.body[1]
    with torch.no_grad():
        inputs = [model.body[0](batch) for batch in loader()]
    assert torch.allclose(norm.running_mean, torch.stack([each.mean(0) for each in inputs]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([each.var(0) for each in inputs]).mean(0), atol=1e-6)
    assert norm.momentum == 0.3
    assert trainer.fit_loop.skip_backward is False
    assert trainer.max_epochs == 5


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    model = make_model(inazuma, batch_norm=True)
    model.body[1].eval()
    model.body[1].running_mean.fill_(2.0)
    fit(inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=3)], model)
    assert torch.equal(model.body[1].running_mean, torch.full((4,), 2.0))


class SaveIn(Callback):
    """Saves a checkpoint at each call of a hook."""

    def __init__(self, hook: str, folder: Path) -> None:
        self.paths: list[Path] = []

        def save(trainer: Any, pl_module: Any, *args: Any) -> None:
            self.paths.append(folder / f"{hook}-{len(self.paths)}.ckpt")
            trainer.save_checkpoint(self.paths[-1])

        setattr(self, hook, save)


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_validation_start",
        "on_validation_end",
        "on_train_epoch_end",
        "on_train_end",
    ],
)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("schedule", [None, "epoch"])
def test_a_resumed_run_ends_like_the_straight_run(
    hook: str, batch_norm: bool, schedule: str | None, tmp_path: Path
) -> None:
    def average() -> Any:
        return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2)

    arguments: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 3}
    save = SaveIn(hook, tmp_path)
    _, straight = fit(inazuma, [average(), save], make_model(inazuma, batch_norm, schedule), **arguments)
    assert save.paths
    for path in save.paths:
        again = make_model(inazuma, batch_norm, schedule)
        trainer, resumed = fit(inazuma, [average()], again, ckpt_path=path, **arguments)
        assert trainer.global_step == 3 * 2 + batch_norm  # the epoch for batch norm ends with an empty step
        assert trainer.max_epochs == 3
        for name, value in straight.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), f"{path.name}: {name}"
        expected = [epoch for epoch in straight.epochs if epoch[0] in [other[0] for other in resumed.epochs]]
        assert resumed.epochs == expected, path.name


@pytest.mark.parametrize("schedule", [None, "epoch"])
def test_a_run_of_lightning_can_be_continued(schedule: str | None, tmp_path: Path) -> None:
    ours, theirs = (
        pl.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2)
        for pl in (inazuma, lightning.pytorch)
    )
    _, straight = fit(inazuma, [ours], make_model(inazuma, schedule=schedule))
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    model = make_model(lightning.pytorch, schedule=schedule)
    fit(lightning.pytorch, [theirs, keep], model, enable_checkpointing=True)
    again = make_model(inazuma, schedule=schedule)
    _, resumed = fit(inazuma, [ours], again, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert [epoch for epoch, *_ in resumed.epochs] == [3, 4]
    assert torch.equal(weights(resumed), weights(straight))


def test_a_callback_begins_anew_in_each_fit() -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2)
    _, model = fit(inazuma, [averaging], make_model(inazuma, batch_norm=True), max_epochs=2)
    _, other = fit(inazuma, [averaging], make_model(inazuma, batch_norm=True), max_epochs=2)
    assert torch.equal(weights(other), weights(model))


def test_an_exception_in_the_epoch_for_batch_norm_leaves_trainer_and_module_as_they_were() -> None:
    class Model(type(make_model(inazuma, batch_norm=True))):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.current_epoch == 2:
                raise ValueError("crash")
            return super().training_step(batch, batch_idx)

    model, noted = Model(), {}

    class Note(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            noted.update(skips=trainer.fit_loop.skip_backward, max_epochs=trainer.max_epochs)

    with pytest.raises(ValueError, match="crash"):
        fit(inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1), Note()], model, max_epochs=2)
    assert noted == {"skips": False, "max_epochs": 2}
    assert model.body[1].momentum == 0.3


def test_a_run_that_stops_early_keeps_its_own_weights_and_says_so() -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    with pytest.warns(UserWarning, match="training stopped after 3 of 5 epochs, so the module keeps its own weights"):
        _, stopped = fit(inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=2), Stop()], loud=True)
    _, theirs = fit(
        lightning.pytorch, [lightning.pytorch.callbacks.StochasticWeightAveraging(0.1, 2)], max_epochs=5, max_steps=12
    )
    assert torch.equal(weights(stopped), weights(theirs))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_a_run_without_a_last_epoch_ends_with_the_average_as_in_lightning(batch_norm: bool, strategy: str) -> None:
    ends = []
    for pl in (lightning.pytorch, inazuma):
        averaging = pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_strategy=strategy)
        _, model = fit(pl, [averaging], make_model(pl, batch_norm), max_epochs=-1, max_steps=4 * BATCHES - 1)
        ends.append((model, averaging.state_dict()))
    (expected, expected_state), (got, state) = ends
    assert state["n_averaged"] == expected_state["n_averaged"] == 3
    assert got.epochs == expected.epochs
    for tensor, value in expected.state_dict().items():
        assert torch.equal(got.state_dict()[tensor], value), tensor


def test_a_run_without_a_last_epoch_that_stops_before_the_average_keeps_its_own_weights() -> None:
    """Lightning gives the module the weights it began with."""
    _, plain = fit(inazuma, [], max_epochs=-1, max_steps=5)
    with pytest.warns(UserWarning, match=r"before there was anything to average \(swa_epoch_start=9\)"):
        _, model = fit(inazuma, [StochasticWeightAveraging(0.1, 9)], loud=True, max_epochs=-1, max_steps=5)
    assert torch.equal(weights(model), weights(plain))


def test_a_fast_run_for_development_averages_nothing_that_it_does_not_reach() -> None:
    _, plain = fit(inazuma, [], fast_dev_run=2)
    _, model = fit(inazuma, [StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=4)], fast_dev_run=2)
    assert torch.equal(weights(model), weights(plain))


def test_a_scheduler_that_does_not_step_by_epochs_is_replaced_with_a_warning() -> None:
    averaging = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    with pytest.warns(UserWarning, match="SWA steps once per epoch. Its schedule replaces LRSchedulerConfig"):
        fit(inazuma, [averaging], make_model(inazuma, schedule="step"), loud=True, max_epochs=1)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1, "0.1", None, [], [0.1, 0.0], [0.1, 1], (0.1,)])
def test_bad_learning_rates_are_refused(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="Give a float above 0, or a list of them"):
        StochasticWeightAveraging(swa_lrs=value)


@pytest.mark.parametrize("value", [0, -1, -0.1, 1.5, "0.5", None])
def test_a_bad_start_is_refused(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="Give the number of an epoch, 1 or more, or a share of all"):
        StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"annealing_epochs": -1}, r"\(annealing_epochs=-1\): It is a number of epochs, 0 or more"),
        ({"annealing_epochs": 1.5}, r"\(annealing_epochs=1.5\)"),
        ({"annealing_strategy": "sin"}, r"\(annealing_strategy='sin'\): Use 'cos' or 'linear'"),
        ({"avg_fn": 3}, r"\(avg_fn=3\): The `avg_fn` should be callable"),
        ({"device": 3}, r"\(device=3\): Give a torch.device, its name, or None for the module's"),
    ],
)
def test_other_bad_arguments_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(MisconfigurationException, match=says):
        StochasticWeightAveraging(swa_lrs=0.1, **arguments)


def refused(model: Any = None, averaging: dict[str, Any] | None = None, **arguments: Any) -> str:
    with pytest.raises(MisconfigurationException) as raised:
        fit(inazuma, [StochasticWeightAveraging(**{"swa_lrs": 0.1, **(averaging or {})})], model, **arguments)
    return str(raised.value)


def configured(configure: Any, manual: bool = True) -> Any:
    model = make_model(inazuma, manual=manual)
    model.configure_optimizers = lambda: configure(model)
    return model


def test_several_optimizers_are_refused() -> None:
    model = configured(lambda m: [SGD(m.body.parameters(), lr=0.1), SGD(m.head.parameters(), lr=0.1)])
    assert "SWA currently works with 1 `optimizer`; `configure_optimizers` returned 2" in refused(model)


def test_several_schedulers_are_refused() -> None:
    def configure(model: Any) -> Any:
        optimizer = SGD(model.parameters(), lr=0.1)
        return [optimizer], [ExponentialLR(optimizer, 0.9), ExponentialLR(optimizer, 0.8)]

    assert "SWA takes the place of the `lr_scheduler`, and of only one" in refused(configured(configure))


def test_learning_rates_that_do_not_fit_the_parameter_groups_are_refused() -> None:
    assert "The optimizer has 1 parameter group(s): give as many" in refused(averaging={"swa_lrs": [0.1, 0.2]})


def test_a_share_of_endless_epochs_is_refused() -> None:
    message = refused(averaging={"swa_epoch_start": 0.5}, max_epochs=-1, max_steps=9)
    assert "SWA with `swa_epoch_start` as a float is not supported when `max_epochs=-1`" in message


def test_a_start_behind_the_last_epoch_is_refused() -> None:
    message = refused(averaging={"swa_epoch_start": 6}, max_epochs=5)
    assert "Trainer(max_epochs=5) ends before, so nothing would be averaged" in message


def test_batch_norm_is_refused_in_manual_optimization() -> None:
    message = refused(make_model(inazuma, batch_norm=True, manual=True))
    assert "`Model.training_step` makes the steps. Use automatic optimization" in message
