"""A run that is taken up inside an epoch sees exactly the samples that are left, and loads no other."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from inazuma import Callback, LightningModule, Trainer
from inazuma.utilities.combined_loader import CombinedLoader


class Ids(Dataset[Tensor]):
    """Samples that are their own index; notes which are loaded."""

    def __init__(self, length: int, first: int = 0) -> None:
        self.length, self.first, self.loaded = length, first, list[int]()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.append(self.first + index)
        return torch.tensor(self.first + index)


class Groups(Sampler[list[int]]):
    """A batch sampler of the user: batches of 1, 2, 3, 1, ... in a random order that it draws itself."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[list[int]]:
        order, size = torch.randperm(self.length).tolist(), 1
        while order:
            yield order[:size]
            order, size = order[size:], size % 3 + 1

    def __len__(self) -> int:
        return sum(1 for _ in self.sizes())

    def sizes(self) -> Iterator[int]:
        left, size = self.length, 1
        while left > 0:
            yield size
            left, size = left - size, size % 3 + 1


MAKERS: dict[str, Callable[[Ids, int], DataLoader[Tensor]]] = {
    "in order": lambda ids, size: DataLoader(ids, size),
    "drop_last": lambda ids, size: DataLoader(ids, min(size, len(ids)), shuffle=True, drop_last=True),
    "shuffled": lambda ids, size: DataLoader(ids, size, shuffle=True),
    "own generator": lambda ids, size: DataLoader(ids, size, shuffle=True, generator=torch.Generator()),
    "generator of the sampler": lambda ids, size: DataLoader(
        ids, size, sampler=RandomSampler(ids, generator=torch.Generator())
    ),
    "weighted": lambda ids, size: DataLoader(
        ids, size, sampler=WeightedRandomSampler([1.0 + i for i in range(len(ids))], len(ids))
    ),
    "subset": lambda ids, size: DataLoader(ids, size, sampler=SubsetRandomSampler(range(0, len(ids), 2))),
    "batch sampler": lambda ids, size: DataLoader(ids, batch_sampler=Groups(len(ids))),
    "no batches": lambda ids, size: DataLoader(ids, batch_size=None, shuffle=True),
}


def plain(batch: Any) -> Any:
    """A batch as lists of ids."""
    if isinstance(batch, Tensor):
        return batch.reshape(-1).tolist()
    return None if batch is None else [plain(part) for part in batch]


class Net(LightningModule):
    """Notes the ids of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), list[Any]()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, plain(batch)))
        return self.weight * torch.rand(())  # others draw from the generator too

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SavesAfter(Callback):
    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path, self.done = batches, path, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.done += 1
        if self.done == self.batches:
            trainer.save_checkpoint(self.path)


def fit(
    loader: Any, callbacks: list[Callback], seed: int, ckpt_path: Path | None = None, **arguments: Any
) -> list[Any]:
    """Two epochs. Returns what was seen."""
    torch.manual_seed(seed)
    net = Net()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(net, loader, ckpt_path=ckpt_path)
    return net.seen


def straight_and_resumed(
    make: Callable[[], Any], stop_after: int, **arguments: Any
) -> tuple[list[Any], list[Any], int, Any]:
    """What the straight run saw, what a run saw that was resumed after `stop_after` of its batches, how many those
    were, and the loader of the resumed run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ckpt"
        saver = SavesAfter(stop_after, path)
        straight = fit(make(), [saver], seed=1, **arguments)
        if not path.exists():  # the run was shorter
            return straight, [], len(straight), None
        loader = make()
        return straight, fit(loader, [], seed=2, ckpt_path=path, **arguments), stop_after, loader


@dataclass(frozen=True)
class Case:
    maker: str
    length: int
    batch_size: int
    stop_after: int
    limit: int | None


cases = st.builds(
    Case,
    st.sampled_from(sorted(MAKERS)),
    st.integers(1, 15),
    st.integers(1, 4),
    st.integers(1, 20),
    st.none() | st.integers(1, 8),
)


@settings(max_examples=120, deadline=None)
@given(case=cases)
def test_a_resumed_run_sees_what_is_left_and_loads_nothing_else(case: Case) -> None:
    def make() -> DataLoader[Tensor]:
        return MAKERS[case.maker](Ids(case.length), case.batch_size)

    straight, resumed, done, loader = straight_and_resumed(make, case.stop_after, limit_train_batches=case.limit)
    assert resumed == straight[done:]
    if loader is not None:
        assert loader.dataset.loaded == [i for _, _, ids in resumed for i in ids]


@pytest.mark.parametrize("stop_after", [2, 4, 6])
@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_are_given_only_what_is_left(stop_after: int, persistent: bool) -> None:
    def make() -> DataLoader[Tensor]:
        return DataLoader(Ids(8), 2, shuffle=True, num_workers=2, persistent_workers=persistent)

    straight, resumed, done, _ = straight_and_resumed(make, stop_after)
    assert sorted(i for epoch, _, ids in straight for i in ids if epoch == 0) == list(range(8))
    assert resumed == straight[done:]


def test_no_worker_process_outlives_the_run() -> None:
    loader = DataLoader(Ids(4), 2, num_workers=2, persistent_workers=True)
    before = set(multiprocessing.active_children())
    fit(loader, [], seed=0)
    assert set(multiprocessing.active_children()) == before


class Stream(IterableDataset[Tensor]):
    def __init__(self, length: int) -> None:
        self.length, self.given = length, 0

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(self.length):
            self.given += 1
            yield torch.tensor(i)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_stream_is_replayed_and_that_is_said(stop_after: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "inazuma"):
        straight, resumed, done, loader = straight_and_resumed(lambda: DataLoader(Stream(7), 2), stop_after)
    assert resumed == straight[done:]
    said = [record.message for record in caplog.records if "are fetched again and left out" in record.message]
    in_epoch = stop_after % 4  # after the last batch nothing is left to be fetched
    assert [text.split(" are ")[0] for text in said] == [
        f"Resuming inside an epoch: the first {in_epoch} batches of `Trainer.fit(train_dataloaders=...)`"
    ] * bool(in_epoch)
    assert loader.dataset.given == 7 * len({epoch for epoch, _, _ in resumed})


class Stateful:
    """A loader that keeps its own position, as torchdata's does."""

    def __init__(self) -> None:
        self.at, self.given = 0, list[int]()

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Tensor]:
        self.at %= 5
        while self.at < 5:
            self.at += 1
            self.given.append(self.at)
            yield torch.tensor(self.at)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_loader_with_a_state_is_asked_to_go_on(stop_after: int) -> None:
    straight, resumed, done, loader = straight_and_resumed(Stateful, stop_after)
    assert resumed == straight[done:]
    assert loader.given == [ids[0] for _, _, ids in resumed]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["min_size", "max_size", "max_size_cycle"]),
    makers=st.lists(st.sampled_from(sorted(MAKERS)), min_size=2, max_size=3),
    lengths=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    stop_after=st.integers(1, 14),
)
def test_loaders_side_by_side_go_on_each_where_it_was(
    mode: str, makers: list[str], lengths: list[int], stop_after: int
) -> None:
    def make() -> CombinedLoader:
        parts = [
            MAKERS[maker](Ids(length, first=100 * index), 2)
            for index, (maker, length) in enumerate(zip(makers, lengths, strict=False))
        ]
        return CombinedLoader(parts, mode)

    straight, resumed, done, loader = straight_and_resumed(make, stop_after)
    assert resumed == straight[done:]
    if loader is None or mode == "min_size":  # which may load of one part what another has no partner for
        return
    for index, part in enumerate(loader.iterables):
        assert part.dataset.loaded == [i for _, _, batch in resumed for i in batch[index] or []]


@pytest.mark.parametrize("length", [1, 5])
def test_the_last_batch_of_a_stream_is_known_when_it_comes(length: int) -> None:
    is_last: list[bool] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            is_last.append(trainer.is_last_batch)

    fit(DataLoader(Stream(length), 1), [Watch()], seed=0)
    assert is_last == ([False] * (length - 1) + [True]) * 2


def test_a_loader_that_gives_less_than_it_says_is_reported() -> None:
    class Short(Stateful):
        def __len__(self) -> int:
            return 6

    with pytest.warns(UserWarning, match="gave 5 batches in epoch [01], but its length says 6") as said:
        seen = fit(Short(), [], seed=0)
    assert "in epoch 0" in str(said[0].message)
    assert len(seen) == 10
