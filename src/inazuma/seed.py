"""Random generators: seed them, store them, put them back.

"All generators" are Python's `random`, numpy's global one, torch's on the CPU and torch's on every CUDA device.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
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


def derived_seed(*parts: int) -> int:
    """A seed of 64 bits for each combination of numbers, unrelated to those of its neighbours."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def seed_cpu_generators(seed: int) -> None:
    """Seed the generators that a data set may draw from: those of the CPU."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed & MAX_SEED)


class _Copied:
    """A generator whose state is copied out, and back in: torch's and Python's."""

    def __init__(self, get: Callable[[], Any], set_: Callable[[Any], None], seed: Callable[[int], Any]) -> None:
        self.get, self._set, self._seed = get, set_, seed
        self._outside: Any = None
        self._inside: Any = None

    def enter(self, seed: int | None) -> None:
        self._outside = self.get()
        if seed is not None:
            self._seed(seed)
        elif self._inside is not None:
            self._set(self._inside)

    def leave(self, keeps: bool) -> None:
        if keeps:
            self._inside = self.get()
        self._set(self._outside)

    def forget(self) -> None:
        self._inside = None


class _Swapped:
    """numpy's: reading and writing its state takes 50 µs each, so that another bit generator is put in its place.

    One number is lost by that: the second of a pair that `numpy.random.randn` keeps for its next call.
    """

    def __init__(self, random: Any) -> None:
        self._random, self._own, self._is_new = random, random.MT19937(0), True
        self._outside: Any = None

    def get(self) -> Any:
        state = self._random.get_state()
        return (state[1].tobytes(), *state[2:])

    def enter(self, seed: int | None) -> None:
        self._outside = self._random.get_bit_generator()
        if seed is None and self._is_new:
            self._own.state = self._outside.state
            self._is_new = False
        self._random.set_bit_generator(self._own)
        if seed is not None:
            self._random.seed(seed & MAX_SEED)

    def leave(self, keeps: bool) -> None:
        self._random.set_bit_generator(self._outside)

    def forget(self) -> None:
        self._is_new = True


class Apart:
    """A stretch of code that draws random numbers of its own: those drawn around it are the same as without it.

    Between `enter` and `leave` the generators of the CPU are others. It stands in the path of every batch, so that it
    is a pair of calls, and leaves alone what is not used: with `learns`, a generator that was not drawn from in the
    first eight times is not looked after any more.

    Args:
        learns: see above.
        is_idle: it is known that nothing is drawn.
    """

    def __init__(self, learns: bool, is_idle: bool = False) -> None:
        self._all: dict[str, _Copied | _Swapped] = {
            "torch": _Copied(torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
            "python": _Copied(random.getstate, random.setstate, random.seed),
        }
        numpy = sys.modules.get("numpy")
        if numpy is not None and hasattr(numpy.random, "set_bit_generator"):  # numpy 1.24
            self._all["numpy"] = _Swapped(numpy.random)
        self.trials = 8 if learns else None  # still to come
        self._used: set[str] = set()
        self._looked_after = list(self._all.values())
        if is_idle:
            self.trials = 0
            self._choose()
        self._entered: list[_Copied | _Swapped] = []
        self._keeps = False

    def enter(self, seed: int | None = None) -> None:
        """Begin.

        Args:
            seed: what to draw from; None goes on where the last stretch ended, the first one where the code around is.
        """
        self._entered, self._keeps = self._looked_after, seed is None
        for generator in self._entered:
            generator.enter(seed)
        if self.trials:
            self._before = {name: _comparable(generator.get()) for name, generator in self._all.items()}

    def leave(self) -> None:
        """End, if it has begun."""
        if not self._entered:
            return
        if self.trials:
            self._learn()
        for generator in self._entered:
            generator.leave(self._keeps)
        self._entered = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is looked after."""
        return not self._looked_after

    def forget(self) -> None:
        """The next stretch begins where the code around it is."""
        for generator in self._all.values():
            generator.forget()

    def _learn(self) -> None:
        assert self.trials
        self._used |= {name for name, g in self._all.items() if _comparable(g.get()) != self._before[name]}
        self.trials -= 1
        self._choose()

    def _choose(self) -> None:
        if self.trials == 0:
            self._looked_after = [generator for name, generator in self._all.items() if name in self._used]

    def state_dict(self) -> dict[str, Any]:
        """What it has learned."""
        return {"trials": self.trials, "used": sorted(self._used)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trials, self._used = state["trials"], set(state["used"])
        self._choose()


def _comparable(state: Any) -> Any:
    return ctypes.string_at(state.data_ptr(), state.numel()) if isinstance(state, torch.Tensor) else state


OwnGenerator = Any  # torch.Generator, random.Random, numpy.random.Generator or numpy.random.RandomState


def generators_in(*owners: object) -> list[OwnGenerator]:
    """The generators that these objects have as attributes, each once."""
    kinds: tuple[type, ...] = (torch.Generator, random.Random)
    if (numpy := sys.modules.get("numpy")) is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    values = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    return list({id(value): value for value in values if isinstance(value, kinds)}.values())


def get_states(generators: Sequence[OwnGenerator]) -> list[Any]:
    """Their states, as plain data."""
    return [_state_of(generator) for generator in generators]


def put_states(generators: Sequence[OwnGenerator], states: Sequence[Any]) -> None:
    """Put back what `get_states` returned."""
    for generator, state in zip(generators, states, strict=False):
        if isinstance(generator, torch.Generator):
            generator.set_state(state.cpu())
        elif isinstance(generator, random.Random):
            generator.setstate((state[0], tuple(state[1]), state[2]))
        elif hasattr(generator, "set_state"):
            generator.set_state(_as_array(state))
        else:
            generator.bit_generator.state = _as_array(state)


def _state_of(generator: OwnGenerator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "set_state"):
        return _as_plain(generator.get_state(legacy=False))
    return _as_plain(generator.bit_generator.state)


def capture_rng(cuda: bool = True) -> dict[str, Any]:
    """The state of all generators.

    Args:
        cuda: those of CUDA devices too, if CUDA was initialised.

    Returns:
        `torch` (uint8 tensor), `python` (nested tuple of numbers), `numpy` (dictionary of numbers, strings and tensors;
        only if numpy was imported) and `cuda` (a uint8 CPU tensor for each device; only if CUDA was initialised; this
        waits for the GPUs). A checkpoint that holds it opens with `torch.load(weights_only=True)`.
    """
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        state["numpy"] = _as_plain(numpy.random.get_state(legacy=False))
    if cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
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
        numpy.random.set_state(_as_array(state["numpy"]))
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
    """A state of numpy's; its arrays of unsigned numbers as tensors, which `torch.load(weights_only=True)` accepts."""
    if isinstance(value, dict):
        return {key: _as_plain(inner) for key, inner in value.items()}
    return torch.from_numpy(value.view(f"int{8 * value.itemsize}")) if hasattr(value, "view") else value


def _as_array(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_array(inner) for key, inner in value.items()}
    return value.cpu().numpy().view(f"uint{8 * value.element_size()}") if isinstance(value, torch.Tensor) else value
