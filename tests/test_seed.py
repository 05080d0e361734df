import logging
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from inazuma.seed import (
    capture_rng,
    isolate_rng,
    pl_worker_init_function,
    reset_seed,
    restore_rng,
    seed_everything,
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)
    state = capture_rng()
    yield
    restore_rng(state)


def draw() -> tuple[float, ...]:
    """A number of each generator; the normal ones keep half a pair in store."""
    return (random.random(), random.gauss(0, 1), numpy.random.rand(), numpy.random.randn(), torch.rand(1).item())


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert seed_everything(7) == 7
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert draw() != first


def test_a_seed_gives_the_numbers_that_lightning_gives() -> None:
    from lightning.pytorch import seed_everything as lightning_seed_everything

    seed_everything(123)
    ours = draw()
    lightning_seed_everything(123, verbose=False)
    assert draw() == ours


@pytest.mark.parametrize("workers", [True, False])
def test_the_environment_tells_child_processes(workers: bool) -> None:
    seed_everything(3, workers=workers)
    assert os.environ["PL_GLOBAL_SEED"] == "3"
    assert os.environ["PL_SEED_WORKERS"] == str(int(workers))


def test_no_seed_is_the_seed_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "2020")
    assert seed_everything() == 2020


@pytest.mark.parametrize(("seed", "worker", "rank"), [(0, 0, 0), (1, 3, 2), (2**32 - 1, 7, 1), (2**63, 65, 1000)])
def test_a_worker_gets_the_numbers_that_lightning_gives(seed: int, worker: int, rank: int) -> None:
    from lightning.fabric.utilities.seed import pl_worker_init_function as lightnings

    drawn = []
    for init in (lightnings, pl_worker_init_function):
        torch.manual_seed(seed + worker)
        init(worker, rank)
        drawn.append(draw())
    assert drawn[0] == drawn[1]


def test_no_seed_at_all_is_zero_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="No seed found, seed set to 0"):
        assert seed_everything() == 0
    del os.environ["PL_GLOBAL_SEED"]
    assert seed_everything(verbose=False) == 0  # a warning would be an error


@pytest.mark.parametrize("value", ["abc", "-1", str(2**32)])
def test_a_bad_seed_of_the_environment_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", value)
    with pytest.raises(ValueError, match=f"Invalid seed: the environment variable PL_GLOBAL_SEED is .?{value}"):
        seed_everything()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"{seed}, which is not in the range from 0 to 4294967295"):
        seed_everything(seed)


def test_verbose_decides_about_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="inazuma"):
        seed_everything(1, verbose=False)
        assert caplog.messages == []
        seed_everything(1)
        assert "Seed set to 1" in caplog.text


def test_reset_seed_repeats_the_last_seeding() -> None:
    reset_seed()  # nothing to repeat
    assert "PL_GLOBAL_SEED" not in os.environ
    seed_everything(5, workers=True)
    first = draw()
    reset_seed()
    assert draw() == first
    assert os.environ["PL_SEED_WORKERS"] == "1"


def test_nothing_drawn_in_isolation_shows_outside() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with isolate_rng():
        draw()
    assert draw() == expected
    seed_everything(1)
    with pytest.raises(KeyError), isolate_rng(include_cuda=False):
        draw()
        raise KeyError
    assert draw() == expected


def test_captured_generators_go_on_where_they_were(tmp_path: Path) -> None:
    draw()
    torch.save(capture_rng(), tmp_path / "rng")
    expected = [draw(), draw()]
    restore_rng(torch.load(tmp_path / "rng", weights_only=True))
    assert [draw(), draw()] == expected


def test_a_captured_state_does_not_change_with_the_generators() -> None:
    state = capture_rng()
    first = draw()
    restore_rng(state)
    draw()
    restore_rng(state)
    assert draw() == first


def test_a_generator_without_stored_state_is_left_alone() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    restore_rng({})
    assert draw() == expected


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([random.random(), numpy.random.rand(), torch.rand(1).item()], dtype=torch.float64)


def numbers_of_an_epoch(rank: int) -> torch.Tensor:
    seed_everything(1, workers=True, verbose=False)
    init = partial(pl_worker_init_function, rank=rank)
    return torch.cat(list(DataLoader(Numbers(), num_workers=2, worker_init_fn=init)))


def test_each_worker_of_each_rank_draws_its_own_numbers_and_the_same_next_time() -> None:
    first = numbers_of_an_epoch(rank=0)
    assert len(first.unique()) == 24
    assert torch.equal(numbers_of_an_epoch(rank=0), first)
    assert len(torch.cat([first, numbers_of_an_epoch(rank=1)]).unique()) == 48
