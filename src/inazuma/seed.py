"""Random generators: seed them, store them, put them back.

"All generators" are Python's `random`, numpy's global one, torch's on the CPU and torch's on every CUDA device.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inazuma.ranks import rank_prefixed_message, rank_zero_info, rank_zero_only, rank_zero_warn

MAX_SEED = 2**32 - 1  # numpy's limit


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed all generators, in this process and in the processes that it starts.

    Args:
        seed: 0 to 2**32 - 1. None takes the environment variable `PL_GLOBAL_SEED`, or 0 with a warning.
        workers: give each worker of the dataloaders its own seed (`pl_worker_init_function`).
        verbose: log the seed, and warn where none is found.

    Returns:
        The seed.

    Raises:
        ValueError: the seed is not an integer or out of range.

    Two environment variables carry the choice to child processes: `PL_GLOBAL_SEED` and `PL_SEED_WORKERS` ("0" or "1").
    """
    if seed is None:
        seed = _seed_from_environment(verbose)
    else:
        seed = _checked(seed, source="seed_everything(seed=...)")
    if verbose:
        rank_zero_info(rank_prefixed_message(f"Seed set to {seed}", rank_zero_only.rank))
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    _seed_generators(seed)
    return seed


def reset_seed() -> None:
    """Seed all generators again as the last `seed_everything` did; nothing if it was never called."""
    if "PL_GLOBAL_SEED" in os.environ:
        workers = os.environ.get("PL_SEED_WORKERS", "0") == "1"
        seed_everything(workers=workers, verbose=False)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """`worker_init_fn` of a DataLoader: seed all generators, differently in each worker, rank and epoch.

    Args:
        worker_id: index of the worker within its loader.
        rank: of this process; None asks `rank_zero_only.rank`.

    The seeds are Lightning's, so that augmentation in workers draws the same numbers.
    """
    rank = rank_zero_only.rank if rank is None else rank
    base = torch.initial_seed() - worker_id  # the loader seeded torch with base + worker_id; base is new each epoch
    seeds = _seeds(base << 32 | worker_id << 16 | rank)
    torch.manual_seed(next(seeds))
    random.seed(next(seeds) << 32 | next(seeds))
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(numpy.random.SeedSequence([base, worker_id, rank]).generate_state(4))


def _seeds(start: int) -> Iterator[int]:
    """Endless 64-bit numbers from a `start` of any size.

    Sources: the bits are mixed by the finalizer of MurmurHash3 (A. Appleby); the sequence is Knuth's MMIX linear
    congruential generator, here with an increment of 1.
    """
    word = start ^ start >> 33
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        word = word * factor % 2**64
        word ^= word >> 33
    while True:
        word = (word * 6364136223846793005 + 1) % 2**64
        yield word


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Within this block random numbers may be drawn without effect on those drawn after it.

    Args:
        include_cuda: isolate the CUDA generators too; this initialises CUDA.
    """
    if include_cuda and torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]
    state = capture_rng()
    if not include_cuda:
        state.pop("cuda", None)
    try:
        yield
    finally:
        restore_rng(state)


def capture_rng() -> dict[str, Any]:
    """The state of all generators.

    Returns:
        `torch` (uint8 tensor), `python` (nested tuple of numbers), `numpy` (dictionary of numbers, strings and tensors;
        only if numpy was imported) and `cuda` (a uint8 CPU tensor for each device; only if CUDA was initialised; this
        waits for the GPUs). A checkpoint that holds it opens with `torch.load(weights_only=True)`.
    """
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        captured = numpy.random.get_state(legacy=False)
        inner = {key: _as_plain(value) for key, value in captured["state"].items()}
        state["numpy"] = {**captured, "state": inner}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `capture_rng` returned. A generator that `state` lacks, or this machine, is left alone."""
    if "torch" in state:
        torch.set_rng_state(state["torch"].cpu())  # a checkpoint may have been loaded onto another device
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        inner = {key: _as_array(value) for key, value in state["numpy"]["state"].items()}
        numpy.random.set_state({**state["numpy"], "state": inner})
    if "cuda" in state and torch.cuda.is_available():
        for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state.cpu(), device)


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)  # and every CUDA device
    try:
        import numpy
    except ImportError:
        return
    numpy.random.seed(seed)


def _seed_from_environment(verbose: bool) -> int:
    value = os.environ.get("PL_GLOBAL_SEED")
    if value is None:
        if verbose:
            rank_zero_warn("No seed found, seed set to 0. Pass one to choose it: seed_everything(42)")
        return 0
    return _checked(value, source="the environment variable PL_GLOBAL_SEED")


def _checked(seed: int | str, source: str) -> int:
    try:
        number = int(seed)
    except (TypeError, ValueError):
        raise ValueError(
            f"Invalid seed: {source} is {seed!r}, which is not an integer. Use one from 0 to {MAX_SEED}."
        ) from None
    if not 0 <= number <= MAX_SEED:
        raise ValueError(f"Invalid seed: {source} is {number}, which is not in the range from 0 to {MAX_SEED}.")
    return number


def _as_plain(value: Any) -> Any:
    """A numpy array of uint32 as a tensor that `torch.load(weights_only=True)` accepts; other values as they are."""
    return torch.from_numpy(value.view("int32")) if hasattr(value, "view") else value


def _as_array(value: Any) -> Any:
    return value.cpu().numpy().view("uint32") if isinstance(value, torch.Tensor) else value
