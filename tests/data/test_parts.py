"""Loaders as a run walks them: where they begin, what they load, and what random numbers they leave alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.test_batches import Ids, SavesAfter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from inazuma import LightningModule, Trainer
from inazuma.errors import CheckpointError


class Draws(Dataset[Tensor]):
    """Random numbers from two generators."""

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(2) + random.random()


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), list[Any]()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append((batch.tolist(), torch.rand(()).item(), random.random()))
        return self.weight * batch.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Validated(Net):
    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch.sum() * torch.rand(())


def fit(*loaders: Any, ckpt_path: Path | None = None, callbacks: Any = (), **arguments: Any) -> list[Any]:
    torch.manual_seed(1)
    random.seed(1)
    net = Validated() if len(loaders) == 2 else Net()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **arguments},
    )
    trainer.fit(net, *loaders, ckpt_path=ckpt_path)
    return net.seen


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_noise_of_a_batch_is_the_same_in_any_worker_or_none(shuffle: bool) -> None:
    runs = [fit(DataLoader(Draws(), 2, shuffle=shuffle, num_workers=n)) for n in (0, 1, 2)]
    assert runs[0] == runs[1] == runs[2]


def test_the_noise_of_a_data_set_is_another_in_each_epoch_and_batch() -> None:
    batches = [str(batch) for batch, *_ in fit(DataLoader(Draws(), 2))]
    assert len(set(batches)) == len(batches) == 12


def test_what_a_data_set_draws_leaves_the_random_numbers_of_training_alone() -> None:
    noisy = fit(DataLoader(Draws(), 2))
    quiet = fit(DataLoader(torch.zeros(12, 2), 2))  # type: ignore[arg-type]
    assert [noise for _, *noise in noisy] == [noise for _, *noise in quiet]


@pytest.mark.parametrize("interval", [1.0, 2])
def test_validation_leaves_training_alone(interval: float | int) -> None:
    train = DataLoader(Draws(), 2, shuffle=True)
    alone = fit(train)
    validated = fit(train, DataLoader(Draws(4), 2), val_check_interval=interval, num_sanity_val_steps=0)
    assert validated == alone


def test_without_exact_resume_numbers_are_drawn_as_torch_draws_them() -> None:
    seen = fit(DataLoader(Draws(), 2, shuffle=True), exact_resume=False)
    torch.manual_seed(1)
    random.seed(1)
    by_hand = [
        (batch.tolist(), torch.rand(()).item(), random.random())
        for _ in range(2)
        for batch in DataLoader(Draws(), 2, shuffle=True)
    ]
    assert seen == by_hand


def test_without_exact_resume_the_data_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    loader = DataLoader(torch.arange(12.0), 2)  # type: ignore[arg-type]
    fit(loader, callbacks=[SavesAfter(4, path)], exact_resume=False)
    resumed = fit(loader, ckpt_path=path, exact_resume=False, max_epochs=1)
    assert [batch for batch, *_ in resumed] == [[0.0, 1.0], [2.0, 3.0]]


def test_a_file_of_a_run_without_exact_resume_is_gone_on_from_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    loader = DataLoader(torch.arange(12.0), 2)  # type: ignore[arg-type]
    fit(loader, callbacks=[SavesAfter(4, path)], exact_resume=False)
    with pytest.warns(UserWarning, match=r"written with Trainer\(exact_resume=False\), inside an epoch"):
        resumed = fit(loader, ckpt_path=path)
    assert [batch for batch, *_ in resumed] == [[0.0, 1.0], [2.0, 3.0]] + [[i, i + 1.0] for i in range(0, 12, 2)]
    fit(loader, callbacks=[SavesAfter(6, path)], exact_resume=False)  # the end of an epoch: nothing is lost
    assert len(fit(loader, ckpt_path=path)) == 6


def test_other_batches_inside_an_epoch_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    numbers: Any = torch.arange(12.0)
    fit(DataLoader(numbers, 2), callbacks=[SavesAfter(2, path)])
    with pytest.warns(UserWarning, match=r"gives 4 batches of 3 samples\. .* with 6 of 2: the first 2"):
        resumed = fit(DataLoader(numbers, 3), ckpt_path=path, max_epochs=1)
    assert [batch for batch, *_ in resumed] == [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]
    with pytest.warns(UserWarning, match="gives 5 batches of 2 samples"):
        fit(DataLoader(numbers[:10], 2), ckpt_path=path)
    fit(DataLoader(numbers, 2), callbacks=[SavesAfter(6, path)])
    assert len(fit(DataLoader(numbers, 3), ckpt_path=path)) == 4  # of the next epoch, where nothing is wrong


@pytest.mark.parametrize("num_workers", [0, 2])
def test_going_on_at_the_millionth_batch_loads_no_sample_before_it(num_workers: int, tmp_path: Path) -> None:
    path, length, done = tmp_path / "a.ckpt", 2_000_010, 1_000_000
    fit(DataLoader(Ids(length), 2), callbacks=[SavesAfter(1, path)], max_steps=1)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["inazuma"]["progress"].update(batch=done, total_batches=done)
    torch.save(checkpoint, path)
    ids = Ids(length)
    resumed = fit(DataLoader(ids, 2, num_workers=num_workers), ckpt_path=path, max_epochs=1)
    assert [batch for batch, *_ in resumed] == [[2 * i, 2 * i + 1] for i in range(done, done + 5)]
    assert ids.loaded == ([] if num_workers else list(range(2 * done, length)))


def test_another_number_of_loaders_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    fit(DataLoader(torch.arange(12.0), 2), callbacks=[SavesAfter(4, path)])  # type: ignore[arg-type]
    two = [DataLoader(torch.arange(12.0), 2) for _ in range(2)]  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="the checkpoint has 1, this run has 2"):
        fit(two, ckpt_path=path)
    with pytest.raises(AttributeError, match="tolist"):  # of `training_step`, which is given two batches
        fit(two, ckpt_path=path, exact_resume=False)  # as the message says


@pytest.mark.parametrize("stop_after", [5, 6, 8, 12])
def test_loaders_are_asked_for_again_in_the_same_epochs_after_a_resume(stop_after: int, tmp_path: Path) -> None:
    def run(path: Path | None, callbacks: Any = ()) -> list[int]:
        asked: list[int] = []

        class Asked(Net):
            def train_dataloader(self) -> Any:
                asked.append(self.current_epoch)
                return DataLoader(torch.zeros(6, 2), 2)  # type: ignore[arg-type]

        trainer = Trainer(
            accelerator="cpu",
            max_epochs=7,
            reload_dataloaders_every_n_epochs=2,
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Asked(), ckpt_path=path)
        return asked

    path = tmp_path / "a.ckpt"
    straight = run(None, [SavesAfter(stop_after, path)])
    resumed = run(path)
    assert straight == [0, 2, 4, 6]
    assert resumed[1:] == [epoch for epoch in straight if epoch > resumed[0]]
