"""Loaders without workers: the batches are those of a loop written by hand, whichever way they are fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

from inazuma import Trainer
from inazuma.testing import BoringModel

N = 11


class Sees(BoringModel):
    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of, self.seen = of, list[Any]()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return next(self.parameters()).sum()

    def train_dataloader(self) -> Any:
        return self.of

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Pairs(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index


class ManyAtOnce(Pairs):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(torch.full((2,), -float(index)), index) for index in indices]


class Scaled(TensorDataset):
    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(2 * tensor for tensor in super().__getitem__(index))


class Backwards(list[int]):
    """As a sampler: the samples from behind, by negative indices."""

    def __init__(self) -> None:
        super().__init__(range(-1, -N - 1, -1))


def columns() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(N, 3, 4, generator=generator)
    strided = torch.randn(4, N, generator=generator).T
    return images, torch.arange(N), strided, torch.rand(N, generator=generator) > 0.5, torch.full((N, 1), 2 + 1j)


def tensors() -> TensorDataset:
    return TensorDataset(*columns())


SETS: dict[str, Callable[[], Any]] = {
    "TensorDataset": tensors,
    "a TensorDataset of one": lambda: TensorDataset(columns()[0].requires_grad_()),
    "a subclass": lambda: Scaled(*columns()),
    "Subset": lambda: Subset(tensors(), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 10]),
    "Subset of a Subset": lambda: Subset(Subset(tensors(), range(N)[::-1]), torch.arange(N).tolist()),
    "random_split": lambda: random_split(tensors(), [7, 4], torch.Generator().manual_seed(3))[0],
    "a tensor": lambda: columns()[0],
    "a tensor of numbers": lambda: columns()[1],
    "an array": lambda: np.random.RandomState(0).randn(N, 3),
    "an array by columns": lambda: np.asfortranarray(np.random.RandomState(0).randn(N, 3).astype(np.float32)),
    "an array of numbers": lambda: np.arange(N),
    "a sparse tensor": lambda: torch.eye(N).to_sparse(),
    "own": Pairs,
    "own, many at once": ManyAtOnce,
}
LOADERS: dict[str, dict[str, Any]] = {
    "in order": {"batch_size": 4},
    "shuffled": {"batch_size": 4, "shuffle": True, "drop_last": True},
    "negative indices": {"batch_size": 3, "sampler": Backwards()},
    "given batches": {"batch_sampler": [[0, 2], [1], (4, 5)]},
    "no batches": {"batch_size": None},
    "collated": {"batch_size": 4, "collate_fn": lambda samples: torch.tensor(len(samples))},
}


def parts(batch: Any) -> list[Tensor]:
    return (
        [part for item in batch for part in parts(item)]
        if isinstance(batch, (list, tuple))
        else [torch.as_tensor(batch)]
    )


def outcome(run: Callable[[], list[Any]]) -> Any:
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error.args[0] if error.args else ''}"


def batches_by_hand(loader: DataLoader[Any]) -> list[Any]:
    torch.manual_seed(5)
    return list(loader)


def batches_of_fit(loader: DataLoader[Any], exact: bool = True) -> list[Any]:
    module = Sees(loader)
    torch.manual_seed(5)
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        exact_resume=exact,
    ).fit(module)
    return module.seen


@pytest.mark.parametrize("how", LOADERS)
@pytest.mark.parametrize("what", SETS)
@pytest.mark.parametrize("exact", [True, False])
def test_batches_are_those_of_a_loop_written_by_hand(exact: bool, what: str, how: str) -> None:
    by_hand = outcome(lambda: batches_by_hand(DataLoader(SETS[what](), **LOADERS[how])))
    by_fit = outcome(lambda: batches_of_fit(DataLoader(SETS[what](), **LOADERS[how]), exact))
    if isinstance(by_hand, str):
        assert by_fit == by_hand
        return
    assert len(by_fit) == len(by_hand) > 0
    for fitted, wanted in zip(by_fit, by_hand, strict=True):
        assert type(fitted) is type(wanted)
        for a, b in zip(parts(fitted), parts(wanted), strict=True):
            assert (a.dtype, a.shape, a.layout, a.requires_grad) == (b.dtype, b.shape, b.layout, b.requires_grad)
            assert a.layout is torch.sparse_coo or a.stride() == b.stride()
            assert torch.equal(a.to_dense(), b.to_dense())


def test_data_in_memory_is_not_asked_for_single_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TensorDataset, "__getitem__")
    seen = batches_of_fit(DataLoader(Subset(TensorDataset(torch.arange(9)), range(8)), batch_size=4))
    assert [batch.tolist() for (batch,) in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_tensors_exchanged_during_training_are_seen() -> None:
    data = TensorDataset(torch.zeros(4))
    module = Sees(DataLoader(data, batch_size=2))
    module.on_train_batch_start = lambda *_: setattr(data, "tensors", (torch.ones(4),))  # type: ignore[method-assign]
    Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0).fit(module)
    assert [batch.tolist() for (batch,) in module.seen] == [[0, 0], [1, 1]]


def test_a_bad_index_is_told_in_the_words_of_the_data_set() -> None:
    with pytest.raises(IndexError, match="index 99 is out of bounds for dimension 0 with size 4"):
        batches_of_fit(DataLoader(TensorDataset(torch.arange(4)), sampler=[0, 99]))
