"""Who hears which event, in which order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inazuma import Callback, LightningDataModule, LightningModule, Trainer
from inazuma.hooks import EVENTS, Hooks

HOOKS_OF_MODULE = sorted(event for event, order in EVENTS.items() if "module" in order)
HEARD: list[str] = []


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch).mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> int:
        return batch_idx

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(2, 2), batch_size=1)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class First(Callback):
    pass


class Saves(Callback):
    """Watches or saves, so that it wants the module to be done first."""

    runs_after_module = True


class Last(Callback):
    pass


def _hearing(who: str, event: str) -> Any:
    return lambda *_: HEARD.append(f"{event}: {who}")


class LoudNet(Net):
    pass


class LoudData(Data):
    pass


for _who, _class in (("first", First), ("saves", Saves), ("last", Last), ("module", LoudNet), ("datamodule", LoudData)):
    for _event in EVENTS:
        if hasattr(_class, _event):
            setattr(_class, _event, _hearing(_who, _event))

THREE = ["first", "saves", "last"]
ORDER = {
    "setup": ["datamodule", *THREE, "module"],
    "teardown": ["datamodule", *THREE, "module"],
    "on_sanity_check_start": THREE,
    "on_sanity_check_end": THREE,
    "on_exception": [*THREE, "datamodule"],
    "on_train_epoch_end": ["first", "last", "module", "saves"],
}


def trainer_of(callbacks: list[Callback], **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


@pytest.fixture(scope="module")
def heard() -> list[str]:
    """What is heard in a run of each kind, and in one that fails."""

    class Fails(LoudNet):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise ValueError("the step fails")

    HEARD.clear()
    trainer, net, data = trainer_of([First(), Saves(), Last()]), LoudNet(), LoudData()
    for call in (trainer.fit, trainer.validate, trainer.test, trainer.predict):
        call(net, datamodule=data)
    with pytest.raises(ValueError, match="the step fails"):
        trainer_of([First(), Saves(), Last()]).fit(Fails(), datamodule=data)
    return list(HEARD)


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_is_heard_in_the_order_of_the_table(event: str, heard: list[str]) -> None:
    calls = [call.split(": ")[1] for call in heard if call.startswith(f"{event}: ")]
    order = ORDER.get(event, [*THREE, "module"])
    assert calls
    assert calls == order * (len(calls) // len(order))


def table_of(module: LightningModule, callbacks: list[Callback], datamodule: Any = None) -> dict[str, Any]:
    trainer: Any = None
    return Hooks(trainer, module, LightningModule, callbacks, datamodule).table


def test_an_event_that_nobody_overrides_has_nobody_in_the_table() -> None:
    assert set(table_of(Net(), []).values()) == {()}
    assert [event for event, calls in table_of(Net(), [Callback()]).items() if calls] == ["on_train_batch_start"]


@pytest.mark.parametrize("event", HOOKS_OF_MODULE)
def test_a_module_is_in_the_table_where_it_overrides_and_nowhere_else(event: str) -> None:
    own = type("Own", (Net,), {event: lambda self, *_: None})
    assert [name for name, calls in table_of(own(), []).items() if calls] == [event]


def test_hooks_of_a_base_between_count_as_overridden() -> None:
    class Base(Net):
        def on_train_start(self) -> None:
            pass

    class Child(Base):
        pass

    assert len(table_of(Child(), [])["on_train_start"]) == 1


def test_a_hook_set_on_the_instance_is_heard() -> None:
    calls: list[str] = []
    net, callback = Net(), Callback()
    net.on_train_start = lambda: calls.append("module")  # type: ignore[method-assign]
    callback.on_train_start = lambda trainer, module: calls.append("callback")  # type: ignore[method-assign]
    trainer_of([callback]).fit(net, datamodule=Data())
    assert calls == ["callback", "module"]


def test_callbacks_that_are_exchanged_in_a_run_are_heard_from_then_on() -> None:
    calls: list[int] = []

    class Late(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            calls.append(batch_idx)

    class Adds(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                trainer.callbacks = [*trainer.callbacks, Late()]

    trainer_of([Adds()]).fit(Net(), datamodule=Data())
    assert calls == [1]


def test_the_error_of_a_hook_says_where_it_happened() -> None:
    class Fails(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise ValueError("a hook fails")

    with pytest.raises(ValueError, match="a hook fails") as caught:
        trainer_of([Fails()]).fit(Net(), datamodule=Data())
    if hasattr(caught.value, "__notes__"):  # Python 3.11
        assert "`on_train_batch_end`" in caught.value.__notes__[-1]
        assert "epoch 0" in caught.value.__notes__[-1]
        assert "global step 2" in caught.value.__notes__[-1]
