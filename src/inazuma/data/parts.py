"""One loader as a run walks it: from any batch on, and with noise that depends on the batch and not on who loads it.

A DataLoader is walked through a view of it, a copy over an index stream of ours; no constructor is called, and the
user's loader and sampler stay as they are. The stream draws from the same generators in the same order as torch would,
so that the order of the samples is the one of a loop written by hand. What is new:

    the order can begin in the middle     the sampler starts from the random state it started from, and is moved on;
                                          no sample is loaded for that
    noise is keyed by the batch           the generators that a data set draws from are seeded for each batch, by the
                                          epoch's seed, the epoch and the batch: the same in any worker or none
    a sampler that draws as it goes       draws apart from the training between its draws

Any other iterable is replayed up to the batch to go on with.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from inazuma.data.fetch import fetcher, is_in_memory
from inazuma.ranks import rank_zero_info, rank_zero_warn
from inazuma.seed import (
    Apart,
    OwnGenerator,
    capture_rng,
    derived_seed,
    generators_in,
    get_states,
    put_states,
    restore_rng,
    seed_cpu_generators,
)

# Samplers that draw from global generators with their first index only, if at all.
_DRAW_ONCE = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)
_END = object()


def is_map_style(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def is_stateful(loader: Any) -> bool:
    """Whether a loader keeps its own position (torchdata's protocol)."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def with_indices(loader: DataLoader[Any], **streams: Any) -> DataLoader[Any]:
    """A loader like this one, over other indices: `sampler=` or `batch_sampler=`. No constructor is called."""
    view = copy.copy(loader)
    view.__dict__.update(streams, _iterator=None)  # torch forbids setattr; persistent workers belong to the original
    return view


def can_seek(loader: Any) -> bool:
    """Whether a loader draws its indices as DataLoader does, so that another index stream can take their place."""
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, (IterDataPipe, MapDataPipe))  # they are shuffled by a seed that they share
        and not is_stateful(loader)
    )


def _fetch_of(loader: Any) -> Callable[[Any], Any] | None:
    """How batches are fetched right here, not through torch's iterator; None where workers or something else forbid."""
    is_here = can_seek(loader) and is_map_style(loader) and not loader.num_workers
    return fetcher(loader) if is_here else None


def is_exact(state: dict[str, Any]) -> bool:
    """Whether the state of a part is one of `Part`, and not of `PlainPart`."""
    return "seed" in state


def _draws_once(sampler: Any) -> bool:
    if isinstance(sampler, BatchSampler):
        return type(sampler) is BatchSampler and _draws_once(sampler.sampler)
    return type(sampler) in _DRAW_ONCE or type(sampler).__name__ == "_InfiniteConstantSampler"


def _with_inner(data: Any, depth: int) -> Iterator[Any]:
    """A data set, and the data sets and transforms that it is made of."""
    yield data
    for name in ("dataset", "datasets", "transform", "transforms", "target_transform"):
        inner = getattr(data, name, None) if depth else None
        for each in inner if isinstance(inner, (list, tuple)) else (inner,):
            if each is not None:
                yield from _with_inner(each, depth - 1)


class Part:
    """One of the loaders of a stage.

    Args:
        loader: any iterable of batches.
        name: where it comes from, for messages.
    """

    def __init__(self, loader: Any, name: str) -> None:
        self.loader, self.name = loader, name
        self.indices: Any = None  # what the sampler gave for the batch that was handed out last; None: not known
        self.seed: int | None = None  # that the noise of the batches derives from
        self.start: dict[str, Any] | None = None  # where, and from which random states, the present pass began
        self._resumed: dict[str, Any] | None = None  # how this part was in the run that is resumed, until it begins
        self._is_map_style, self._can_seek = is_map_style(loader), can_seek(loader)
        self._num_workers = loader.num_workers if isinstance(loader, DataLoader) else 0
        self._has_workers = self._num_workers > 0
        self._keeps_workers = self._can_seek and self._has_workers and loader.persistent_workers
        self._knows_indices = self._can_seek and self._is_map_style and getattr(loader, "in_order", True)
        # without workers a map-style set is asked for its samples right here, not through torch's loader
        self._fetch = _fetch_of(loader)
        self._view: DataLoader[Any] | None = None
        self._source: Iterator[Any] = iter(())  # the sampler's indices, from the beginning of the present pass
        self._plan: tuple[int, int, int | None] = (0, 0, None)  # batches done in the epoch, to leave out, to take
        self.indices_of_pass: Iterator[Any] = iter(())  # torch asks for them when it starts the loader
        self._stream: Iterator[Any] | None = None  # the batches of the present pass, once it was launched
        self._drawn: deque[Any] = deque()  # indices of the batches that are being loaded
        # A replay has to draw what was drawn; a map-style set is not replayed, and left alone where it draws nothing.
        self._noise = Apart(learns=self._is_map_style, is_idle=self._fetch is not None and is_in_memory(loader))
        self._order = Apart(learns=False)

    # Two ways to begin

    def begin(self, epoch: int, at: int = 0, most: int | None = None, is_training: bool = True) -> Iterator[Any]:
        """Start the loader.

        Args:
            epoch: of training.
            at: batches done in this epoch; more than 0 where a shorter loader starts again beside a longer one.
            most: how many batches will be taken, where that is known: no more are loaded.
            is_training: whether workers that live on are seeded once, as torch does it, and not in every pass.
        """
        if self._resumed is not None:
            put_states(self._order_generators(), self._resumed["own"])
            self._end_resuming()
        self.start = {
            "at": at,
            "epoch": epoch,
            "draws_seed": self.seed is None or not (self._keeps_workers and is_training),
            "rng": capture_rng(cuda=False),
            "own": get_states(self._order_generators()),
        }
        self._prepare(0, most)
        return self._walk(at)

    def go_on(self, taken: int, most: int | None = None) -> Iterator[Any]:
        """Take up the pass in which another run was.

        Args:
            taken: batches done in the epoch.
            most: how many batches will be taken, where that is known.
        """
        assert self._resumed is not None
        start, position = dict(self._resumed["start"]), self._resumed["position"]
        self.start = start
        self._warn_of_other_batches(self._resumed, taken)
        now = capture_rng(cuda=False)
        if position is not None and is_stateful(self.loader):
            self.loader.load_state_dict(position)
            self._stream = iter(self.loader)
        else:
            restore_rng(start["rng"])
            put_states(self._order_generators(), start["own"])
            self._prepare(taken - start["at"], most)
            if "rng_of_first" in start:
                self.launch()
            self._replay(taken - start["at"])
            self._noise.load_state_dict(self._resumed["noise"])  # a replay teaches nothing new
            restore_rng(now)
        self._end_resuming()
        return self._walk(taken)

    def launch(self) -> None:
        """Draw the first index and start the workers, if the first batch did not ask for that yet.

        Apart from the beginning, so that loaders that are walked side by side draw in the same order with workers as
        without.
        """
        if self._stream is not None:
            return
        assert self.start is not None
        at, skip, most = self._plan
        if "rng_of_first" in self.start:
            restore_rng(self.start["rng_of_first"])  # others may have drawn since the start
            put_states(self._order_generators(), self.start["own_of_first"])
        else:
            self.start["rng_of_first"] = capture_rng(cuda=False)
            self.start["own_of_first"] = get_states(self._order_generators())
        first = list(islice(self._source, 1))
        source = self._source if _draws_once(self.sampler) else self._drawn_apart(self._source)
        source = islice(chain(first, source), skip, None)
        source = chain(list(islice(source, 1)), source)  # while the random state is the one of then
        source = source if most is None else islice(source, most)
        if self._fetch is not None:
            self._stream = source
            return
        self.indices_of_pass = self._with_seeds(source, at)
        if self._view is None or not self._keeps_workers:
            what = "sampler" if self.loader.batch_sampler is None else "batch_sampler"
            self._view = with_indices(self.loader, **{what: _Stream(self)}, generator=torch.Generator())
        self._view.generator.manual_seed(self.seed or 0)  # for the seeds of workers
        self._stream = iter(self._view)

    # What both come to

    def _prepare(self, done: int, most: int | None) -> None:
        """Be ready for the batches behind the first `done`."""
        assert self.start is not None
        if not self._can_seek:
            self.seed = derived_seed(*self.start["rng"]["torch"].tolist())
            self._stream = iter(self.loader)
            return
        skip = done if self._is_map_style else 0
        source = iter(self.sampler)  # some samplers draw their order here, others with their first index
        if self.start["draws_seed"]:  # between the two, as torch does
            self.seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator).item())
        self._drawn.clear()
        # of a stream, workers come to their end at different indices, so that more are drawn than batches taken
        self._source, self._plan = source, (self.start["at"] + skip, skip, most if self._is_map_style else None)
        self._stream = None

    def _replay(self, done: int) -> None:
        """Leave out the first `done` batches where the order could not begin behind them."""
        assert self.start is not None
        if not done or (self._can_seek and self._is_map_style):
            return
        if self._resumed is not None and self._resumed["num_workers"] != self._num_workers:
            rank_zero_warn(
                f"`{self.name}` gives a stream, and the checkpoint was written with "
                f"num_workers={self._resumed['num_workers']}, this run has num_workers={self._num_workers}: a stream "
                "is dealt out to its workers, so that the order of the samples may be another. Use as many as before."
            )
        if not isinstance(self.loader, (list, tuple)):
            rank_zero_info(
                f"Resuming inside an epoch: the first {done} batches of `{self.name}` are fetched again and left out."
            )
        for _ in islice(self._walk(self.start["at"]), done):
            pass

    def _warn_of_other_batches(self, saved: dict[str, Any], done: int) -> None:
        now = self._size()
        then = {name: saved.get(name) for name in now}
        if done and None not in then.values() and None not in now.values() and then != now:
            rank_zero_warn(
                f"`{self.name}` gives {now['length']} batches of {now['batch_size']} samples. The checkpoint was "
                f"written inside an epoch, with {then['length']} of {then['batch_size']}: the first {done} batches of "
                "the epoch are left out, and since they are not those of then, it may leave out samples, or have some "
                "twice. Use a checkpoint of the end of an epoch, or the same data and batch size as before."
            )

    def _size(self) -> dict[str, Any]:
        """How many batches there are, of how many samples; None where that is not known."""
        if not self._is_map_style:
            return {"batch_size": None, "length": None}
        return {"batch_size": self.loader.batch_size, "length": len(self.loader)}

    @property
    def sampler(self) -> Any:
        """What the loader draws its indices from."""
        return self.loader.sampler if self.loader.batch_sampler is None else self.loader.batch_sampler

    def _drawn_apart(self, source: Iterator[Any]) -> Iterator[Any]:
        """The indices of a sampler that draws as it goes: from the random state of now, whatever is drawn between."""
        order = self._order
        order.forget()
        order.enter()
        order.leave()

        def rest() -> Iterator[Any]:
            while True:
                order.enter()
                try:
                    indices = next(source, _END)
                finally:
                    order.leave()
                if indices is _END:
                    return
                yield indices

        return rest()

    def _with_seeds(self, source: Iterator[Any], at: int) -> Iterator[Any]:
        """The indices of each batch; before a batch is loaded, generators are seeded for its noise."""
        assert self.start is not None
        assert self.seed is not None
        seed, epoch, noise, drawn = self.seed, self.start["epoch"], self._noise, self._drawn
        for position, indices in enumerate(source, at):
            if self._knows_indices:
                drawn.append(indices)
            if self._has_workers:
                yield _Shipment(derived_seed(seed, epoch, position), indices)
            else:
                if not noise.is_idle:
                    noise.enter(derived_seed(seed, epoch, position))
                yield indices

    def _walk(self, at: int) -> Iterator[Any]:
        """The batches, each with its indices where they are known."""
        self.launch()
        assert self._stream is not None
        if isinstance(self.loader, (list, tuple)):
            yield from self._stream
        elif self._fetch is not None:
            yield from self._fetch_here(self._stream, self._fetch, at)
        elif self._can_seek and self._has_workers:
            yield from self._walk_workers(self._stream)
        else:
            yield from self._walk_here(self._stream, at)

    def _fetch_here(self, stream: Iterator[Any], fetch: Callable[[Any], Any], at: int) -> Iterator[Any]:
        """Batches of a map-style set that is asked in this process."""
        assert self.start is not None
        noise, seed, epoch = self._noise, self.seed, self.start["epoch"]
        assert seed is not None
        for position, indices in enumerate(stream, at):
            if noise.is_idle:
                batch = fetch(indices)
            else:
                noise.enter(derived_seed(seed, epoch, position))
                try:
                    batch = fetch(indices)
                finally:
                    noise.leave()
            self.indices = indices
            yield batch

    def _walk_workers(self, stream: Iterator[Any]) -> Iterator[Any]:
        knows, drawn = self._knows_indices, self._drawn
        for batch in stream:
            if knows:
                self.indices = drawn.popleft()
            yield batch

    def _walk_here(self, stream: Iterator[Any], at: int) -> Iterator[Any]:
        """Batches that are loaded in this process, where the noise has to be kept apart from that of training."""
        assert self.start is not None
        knows, drawn, noise, seed, epoch = self._knows_indices, self._drawn, self._noise, self.seed, self.start["epoch"]
        for position in count(at):
            if not self._can_seek:  # else once the indices are drawn
                noise.enter(derived_seed(seed or 0, epoch, position))
            try:
                batch = next(stream, _END)
            finally:
                noise.leave()
            if batch is _END:
                return
            if knows:
                self.indices = drawn.popleft()
            yield batch

    def _end_resuming(self) -> None:
        if self._resumed is not None:
            put_states(self._data_generators(), self._resumed["data"])
            self._resumed = None

    def _order_generators(self) -> list[OwnGenerator]:
        """The generators of its own that the order is drawn from."""
        loader = self.loader
        batch_sampler = getattr(loader, "batch_sampler", None)
        return generators_in(
            loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)
        )

    def _data_generators(self) -> list[OwnGenerator]:
        """The generators of its own that a data set draws from in this process."""
        if self._has_workers or not self._is_map_style:
            return []
        return generators_in(*_with_inner(self.loader.dataset, depth=4))

    # State

    def position(self) -> Any:
        """Where a loader that keeps its own position is."""
        return self.loader.state_dict() if is_stateful(self.loader) else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_workers": self._num_workers,
            **self._size(),
            "seed": self.seed,
            "start": None if self.start is None else dict(self.start),
            "position": self.position(),
            "noise": self._noise.state_dict(),
            "own": get_states(self._order_generators()),
            "data": get_states(self._data_generators()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not is_exact(state):  # all that it may know is the position of a loader that keeps its own
            if state["start"] is not None and state["position"] is not None and is_stateful(self.loader):
                self.loader.load_state_dict(state["position"])
            return
        self.seed = state["seed"]
        self._noise.load_state_dict(state["noise"])
        self._resumed = state

    def close(self) -> None:
        """End worker processes that live on between passes."""
        self._view = self._stream = None
        self.indices_of_pass = self._source = iter(())


class PlainPart:
    """One of the loaders of a stage with `Trainer(exact_resume=False)`: it draws random numbers where torch does.

    A run that is resumed inside an epoch begins with the data anew, except for a loader that keeps its own position.
    """

    indices = None

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.start: dict[str, Any] | None = None
        self._position: Any = None
        self._fetch = _fetch_of(loader)

    def begin(self, epoch: int, at: int = 0, most: int | None = None, is_training: bool = True) -> Iterator[Any]:
        self.start = {"at": at}
        loader = self.loader
        if self._fetch is None:
            stream: Iterator[Any] = iter(loader)
            return stream
        indices = iter(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # torch's, for workers if there were any
        return map(self._fetch, indices)

    def go_on(self, taken: int, most: int | None = None) -> Iterator[Any]:
        if self._position is not None and is_stateful(self.loader):
            self.loader.load_state_dict(self._position)
        return self.begin(0, taken)

    def launch(self) -> None:
        """Nothing is drawn before the first batch."""

    def position(self) -> Any:
        return self.loader.state_dict() if is_stateful(self.loader) else None

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "position": self.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"]

    def close(self) -> None:
        if isinstance(self.loader, DataLoader):
            self.loader._iterator = None  # where torch keeps persistent workers: they end with it


class _Stream:
    """The index stream of a view: each pass is the part's."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __iter__(self) -> Iterator[Any]:
        return self._part.indices_of_pass

    def __len__(self) -> int:
        return len(self._part.sampler)


class _Shipment:
    """Indices on their way to a worker process: arriving there, they seed its generators."""

    def __init__(self, seed: int, indices: Any) -> None:
        self.seed, self.indices = seed, indices

    def __reduce__(self) -> Any:
        return _arrive, (self.seed, self.indices)


def _arrive(seed: int, indices: Any) -> Any:
    seed_cpu_generators(seed)
    return indices
