"""LearningRateMonitor: the same program runs on Lightning and on inazuma, and must log the same names and values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch
import lightning.pytorch.loggers.logger
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import inazuma
import inazuma.loggers.logger
from inazuma.callbacks import LearningRateMonitor
from inazuma.errors import MisconfigurationException

BATCHES = 4
Configure = Callable[[nn.Module], Any]


def memory(pl: Any) -> Any:
    """A logger that remembers what it was given."""

    class Memory(pl.loggers.logger.Logger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int | None, dict[str, float]]] = []

        name = version = property(lambda self: "memory")

        @property
        def experiment(self) -> Any:
            return None

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if any(name.startswith(("lr-", "my")) for name in metrics):
                self.rows.append((step, dict(metrics)))

    return Memory()


def make_model(pl: Any, configure: Configure, automatic: bool) -> Any:
    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = automatic
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if automatic:
                return self.b(self.a(batch)).sum()
            for optimizer in self.optimizers():
                optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            return configure(self)

    return Model()


def fit(
    pl: Any, configure: Configure, monitor: dict[str, Any] | None = None, automatic: bool = True, **arguments: Any
) -> Any:
    callback = pl.callbacks.LearningRateMonitor(**(monitor or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{
                "max_epochs": 3,
                "log_every_n_steps": 1,
                "logger": memory(pl),
                "callbacks": [callback],
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "accelerator": "cpu",
                **arguments,
            }
        )
        trainer.fit(make_model(pl, configure, automatic), DataLoader(torch.ones(BATCHES, 2)))
    return trainer, callback


def seen(trainer: Any, callback: Any) -> dict[str, Any]:
    return {
        "rows": trainer.logger.rows,
        "lrs": callback.lrs,
        "momentum": callback.last_momentum_values,
        "weight decay": callback.last_weight_decay_values,
        "callback_metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
    }


def groups(model: Any, *names: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"params": model.a.parameters()}, {"params": model.b.parameters(), "lr": 0.3}]
    return [{**part, **({"name": name} if name else {})} for part, name in zip(parts, names, strict=True)]


def scheduled(optimizer: Any, **config: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.5), **config}}


def two(first: type[Any], second: type[Any]) -> Configure:
    return lambda m: [first(m.a.parameters(), lr=0.1), second(m.b.parameters(), lr=0.2)]


def two_scheduled(model: Any) -> Any:
    return [scheduled(Adam(model.a.parameters(), lr=0.1), interval="step"), scheduled(Adam(model.b.parameters()))]


def named_between_unnamed(model: Any) -> Any:
    parts = [model.a.weight], [model.a.bias], model.b.parameters()
    return [scheduled(SGD(p, lr=0.1), **named) for p, named in zip(parts, ({}, {}, {"name": "my"}), strict=True)]


def group_to_add(model: Any) -> Any:
    """An optimizer that gets its second group in the second epoch."""
    optimizer = SGD(model.a.parameters(), lr=0.1)

    def add() -> None:
        if model.current_epoch == 1:
            optimizer.add_param_group({"params": model.b.parameters(), "lr": 0.3})

    model.on_train_epoch_start = add
    return optimizer


PROGRAMS: dict[str, tuple[Configure, dict[str, Any], dict[str, Any]]] = {
    "no scheduler": (lambda m: SGD(m.parameters(), lr=0.1), {}, {}),
    "a step of every epoch": (lambda m: scheduled(SGD(m.parameters(), lr=0.1)), {}, {}),
    "a step of every batch": (lambda m: scheduled(SGD(m.parameters(), lr=0.1), interval="step"), {}, {}),
    "asked for steps": (lambda m: scheduled(SGD(m.parameters(), lr=0.1)), {"logging_interval": "step"}, {}),
    "asked for epochs": (
        lambda m: scheduled(SGD(m.parameters(), lr=0.1), interval="step"),
        {"logging_interval": "epoch"},
        {},
    ),
    "named scheduler": (lambda m: scheduled(SGD(m.parameters(), lr=0.1), name="my rate"), {}, {}),
    "two groups": (lambda m: SGD(groups(m, "", ""), lr=0.1), {}, {}),
    "two named groups": (lambda m: scheduled(Adam(groups(m, "body", "head"), lr=0.1)), {}, {}),
    "one of two groups named": (lambda m: Adam(groups(m, "body", ""), lr=0.1), {}, {}),
    "one named group": (lambda m: Adam([{"params": m.parameters(), "name": "all"}], lr=0.1), {}, {}),
    "named scheduler and groups": (lambda m: scheduled(Adam(groups(m, "body", "head")), name="my"), {}, {}),
    "momentum": (lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9), {"log_momentum": True}, {}),
    "first beta": (lambda m: Adam(m.parameters(), betas=(0.8, 0.9)), {"log_momentum": True}, {}),
    "no momentum": (lambda m: torch.optim.Adagrad(m.parameters()), {"log_momentum": True}, {}),
    "weight decay": (lambda m: Adam(groups(m, "", ""), weight_decay=0.1), {"log_weight_decay": True}, {}),
    "two optimizers of a kind": (two(Adam, Adam), {}, {"automatic": False}),
    "two optimizers of two kinds": (two(Adam, SGD), {}, {"automatic": False}),
    "two optimizers with schedulers": (two_scheduled, {}, {"automatic": False}),
    "one of two optimizers with a scheduler": (
        lambda m: [scheduled(Adam(m.a.parameters())), {"optimizer": Adam(m.b.parameters())}],
        {},
        {"automatic": False},
    ),
    "a name behind two optimizers of a kind": (named_between_unnamed, {}, {"automatic": False}),
    "a group that is added": (group_to_add, {}, {}),
    "every third batch": (lambda m: SGD(m.parameters(), lr=0.1), {}, {"log_every_n_steps": 3}),
    "never a batch": (lambda m: SGD(m.parameters(), lr=0.1), {}, {"log_every_n_steps": 0}),
    "accumulation": (lambda m: SGD(m.parameters(), lr=0.1), {}, {"accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_names_and_values_are_logged_as_lightning_logs_them(name: str) -> None:
    configure, monitor, arguments = PROGRAMS[name]
    expected = seen(*fit(lightning.pytorch, configure, monitor, **arguments))
    assert seen(*fit(inazuma, configure, monitor, **arguments)) == expected
    assert expected["rows"]


def test_several_loggers_get_the_same_rows() -> None:
    loggers = [memory(inazuma), memory(inazuma)]
    fit(inazuma, lambda m: SGD(m.parameters(), lr=0.1), logger=loggers)
    assert loggers[0].rows == loggers[1].rows != []


def test_a_rate_that_is_a_tensor_is_logged_as_a_number() -> None:
    _, monitor = fit(inazuma, lambda m: SGD(m.parameters(), lr=torch.tensor(0.5)), max_epochs=1)  # type: ignore[arg-type]
    assert monitor.lrs == {"lr-SGD": [0.5] * (BATCHES + 1)}


def test_two_schedulers_of_one_name_are_told_apart() -> None:
    def configure(model: Any) -> Any:
        return [scheduled(Adam(part.parameters(), lr=0.1), name="my") for part in (model.a, model.b)]

    _, monitor = fit(inazuma, configure, automatic=False, max_epochs=1)
    assert list(monitor.lrs) == ["my", "my-1"]


def test_a_fast_run_for_development_needs_no_logger() -> None:
    _, monitor = fit(inazuma, lambda m: SGD(m.parameters(), lr=0.1), logger=True, fast_dev_run=True)
    assert monitor.lrs == {"lr-SGD": [0.1, 0.1]}


def test_a_trainer_without_a_logger_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="Cannot use `LearningRateMonitor` without a logger"):
        fit(inazuma, lambda m: SGD(m.parameters(), lr=0.1), logger=False)


def test_two_groups_of_one_name_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="lr-SGD has duplicated parameter group names {'same'}"):
        fit(inazuma, lambda m: SGD(groups(m, "same", "same"), lr=0.1))


@pytest.mark.parametrize("interval", ["batch", "", 1])
def test_another_logging_interval_is_refused(interval: Any) -> None:
    with pytest.raises(MisconfigurationException, match="`logging_interval` can be 'step', 'epoch' or None"):
        LearningRateMonitor(logging_interval=interval)
