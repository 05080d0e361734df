"""The loaders of a stage: their lengths and limits, when they are asked for, and how they are adapted."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from inazuma import LightningModule, Trainer
from inazuma.errors import MisconfigurationException, PossibleUserWarning


class Net(LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen, self.asked = nn.Parameter(torch.ones(())), dict[str, list[Any]](), list[int]()

    def note(self, stage: str, batch: Any) -> None:
        self.seen.setdefault(stage, []).append(batch.tolist() if isinstance(batch, Tensor) else batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.note("train", batch)
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.note("test", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.note("predict", batch)
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(**arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"num_sanity_val_steps": 0, "max_epochs": 1, "enable_model_summary": False}
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", **(quiet | off | arguments))


def data(length: int, batch_size: int = 1, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(torch.arange(length), batch_size, **arguments)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 12),
    limit=st.integers(0, 15) | st.floats(0.0, 1.0),
    stage=st.sampled_from(["train", "val", "test", "predict"]),
)
def test_a_limit_takes_the_first_batches(length: int, limit: int | float, stage: str) -> None:
    net, trainer = Net(), trainer_of(**{f"limit_{stage}_batches": limit})
    count = min(limit, length) if isinstance(limit, int) else int(limit * length)
    calls: dict[str, Any] = {
        "train": lambda: trainer.fit(net, data(length)),
        "val": lambda: trainer.validate(net, data(length), verbose=False),
        "test": lambda: trainer.test(net, data(length), verbose=False),
        "predict": lambda: trainer.predict(net, data(length)),
    }
    if stage == "train":
        net.validation_step = LightningModule.validation_step.__get__(net)  # type: ignore[method-assign]
    if count == 0 and limit > 0:
        with pytest.raises(MisconfigurationException, match=f"limit_{stage}_batches={limit!r}.* less than one batch"):
            calls[stage]()
    else:
        calls[stage]()
        assert net.seen.get(stage, []) == [[i] for i in range(count)]


@pytest.mark.parametrize(("every", "epochs"), [(0, [0]), (1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_loaders_are_asked_for_again_every_n_epochs(every: int, epochs: list[int]) -> None:
    class Asked(Net):
        def train_dataloader(self) -> Any:
            self.asked.append(self.current_epoch)
            return data(2 + self.current_epoch)

        def val_dataloader(self) -> Any:
            return data(1)

    net, trainer = Asked(), trainer_of(max_epochs=4, reload_dataloaders_every_n_epochs=every)
    trainer.fit(net)
    assert net.asked == epochs
    assert trainer.global_step == sum(2 + max(e for e in epochs if e <= epoch) for epoch in range(4))


def test_overfitting_turns_shuffling_off_and_says_so() -> None:
    net = Net()
    with pytest.warns(UserWarning, match="turning off the (train|val) dataloader shuffling") as said:
        trainer_of(overfit_batches=2, max_epochs=2).fit(net, data(6, 2, shuffle=True), data(6, 2, shuffle=True))
    assert len(said) == 2
    assert net.seen == {"train": [[0, 1], [2, 3]] * 2, "val": [[0, 1], [2, 3]] * 2}


def test_a_shuffled_validation_loader_is_probably_a_mistake() -> None:
    with pytest.warns(PossibleUserWarning, match="Your `val_dataloader`'s sampler has shuffling enabled"):
        trainer_of().validate(Net(), data(3, shuffle=True), verbose=False)


def test_predictions_are_made_for_the_last_samples_too() -> None:
    net, loader = Net(), data(5, 2, drop_last=True)
    predictions = trainer_of().predict(net, loader)
    assert predictions is not None
    assert [batch.tolist() for batch in predictions] == [[0, 1], [2, 3], [4]]
    assert len(loader) == 2  # the user's stays as it was


@pytest.mark.parametrize(
    "make", [lambda: [1, 2, 3], lambda: (1, 2, 3), lambda: {1: "a", 2: "b"}.keys(), lambda: range(1, 4)]
)
def test_any_iterable_gives_batches(make: Any) -> None:
    net = Net()
    trainer_of().validate(net, make(), verbose=False)
    assert net.seen["val"] == list(make())


def test_something_that_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(TypeError, match=r"invalid dataloader was given by `Trainer.fit\(train_dataloaders=...\)`"):
        trainer_of().fit(Net(), object(), data(1))


def test_an_empty_loader_is_reported_and_nothing_is_run() -> None:
    net = Net()
    with pytest.warns(UserWarning, match="has no batches"):
        assert trainer_of().validate(net, DataLoader([]), verbose=False) == []  # type: ignore[arg-type]
    assert net.seen == {}


class Started(Dataset[int]):
    """Says whether its worker was started with the rank, as the seeding function of this test notes it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return int(os.environ.get("SEEDED_FOR_RANK", -1))


@pytest.mark.parametrize("exact", [True, False])
def test_workers_are_seeded_where_the_environment_asks_for_it(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def seed(worker_id: int, rank: int) -> None:
        os.environ["SEEDED_FOR_RANK"] = str(rank)

    monkeypatch.setattr("inazuma.data.loaders.pl_worker_init_function", seed)
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    for arguments, rank in (({"num_workers": 1}, 0), ({}, -1), ({"num_workers": 1, "worker_init_fn": print}, -1)):
        net, loader = Net(), DataLoader(Started(), multiprocessing_context="fork" if arguments else None, **arguments)
        trainer_of(exact_resume=exact).test(net, loader, verbose=False)
        assert net.seen["test"] == [[rank], [rank]]
        assert loader.worker_init_fn is arguments.get("worker_init_fn")  # the loader is the user's again


def test_loaders_come_from_the_argument_before_the_module() -> None:
    class Own(Net):
        def val_dataloader(self) -> Any:
            return data(1)

    net, trainer = Own(), trainer_of()
    trainer.validate(net, verbose=False)
    trainer.validate(net, data(3), verbose=False)
    assert net.seen["val"] == [[0], [0], [1], [2]]


def test_an_int_of_one_is_a_batch_and_a_float_of_one_is_all() -> None:
    one, all_ = Net(), Net()
    trainer_of(limit_val_batches=1).validate(one, data(3), verbose=False)
    trainer_of(limit_val_batches=1.0).validate(all_, data(3), verbose=False)
    assert (len(one.seen["val"]), len(all_.seen["val"])) == (1, 3)
