"""The batches of training epochs, from any position: a resumed run sees what the straight run would have seen.

A map-style loader is not replayed: its index stream is set up again with the random state that it started from, and
moved on; no sample is loaded for that. A loader with `state_dict` and `load_state_dict` is asked; any other iterable is
replayed, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from inazuma.data.loaders import Loaders, with_indices
from inazuma.ranks import rank_zero_info
from inazuma.seed import capture_rng, restore_rng


class _Indices:
    """The index stream of a loader, which can begin in the middle.

    Args:
        stream: the loader's sampler or batch sampler.
        skip: how many indices to leave out.
        on_first: called before the first index is drawn.
    """

    def __init__(self, stream: Iterable[Any], skip: int = 0, on_first: Callable[[], None] | None = None) -> None:
        self.stream, self.skip, self.on_first = stream, skip, on_first
        self.current: _IndexIterator | None = None  # the pass that began last

    def __iter__(self) -> Iterator[Any]:
        self.current = _IndexIterator(iter(self.stream), self.skip, self.on_first)
        return self.current

    def __len__(self) -> int:
        return len(self.stream)  # type: ignore[arg-type]


class _IndexIterator(Iterator[Any]):
    """One pass over an index stream."""

    def __init__(self, source: Iterator[Any], skip: int, on_first: Callable[[], None] | None) -> None:
        self._source, self._skip, self._on_first = source, skip, on_first
        self._ahead: list[Any] = []
        self.is_primed = False

    def __next__(self) -> Any:
        self.prime()
        return self._ahead.pop() if self._ahead else next(self._source)

    def prime(self) -> None:
        """Draw up to the first index to give, now; a sampler draws its random order with its first index."""
        if not self.is_primed:
            self.is_primed = True
            if self._on_first is not None:
                self._on_first()
            self._ahead = list(islice(self._source, self._skip, self._skip + 1))


def is_stateful(loader: Any) -> bool:
    """Whether a loader keeps its own position (torchdata's protocol)."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def knows_its_end(loader: Any) -> bool:
    """Whether the length of a loader can be relied on; the end of others is seen by looking one batch ahead."""
    return hasattr(loader, "__len__") and (_is_map_style(loader) or not isinstance(loader, DataLoader))


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators of its own that a loader draws its order from."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))


def _states(loader: Any) -> list[Any]:
    return [generator.get_state() for generator in _generators(loader)]


class Batches:
    """The batches of a training epoch, and what is needed to enter the epoch in its middle."""

    indices: Any = None  # what the sampler gave for the batch in work; None where that is not known

    def __init__(self, loaders: Loaders) -> None:
        self.loaders = loaders
        # for each part: the batch at which it was (re)started in this epoch, and the random states it started from
        self.starts: dict[int, dict[str, Any]] = {}
        self.stateful: list[Any] = []  # positions that stateful loaders gave in the run that is resumed
        self.own: dict[int, list[Any]] = {}  # where the generators of the parts were in the run that is resumed
        self._views: dict[int, tuple[Any, Any]] = {}  # of parts whose first index is noted
        self._stateful_now: list[Any] | None = None  # positions before the batch that was looked ahead

    def begin_epoch(self) -> None:
        """An epoch begins at its first batch: nothing is taken up from another run."""
        self.starts, self.stateful, self._stateful_now = {}, [], None

    def epoch(self, done: int) -> Iterator[tuple[Any, bool]]:
        """The batches of this epoch behind the first `done`, each with whether it is the last one."""
        total = self.loaders.num_batches
        stream = self._stream(done)
        if not math.isinf(total) and all(knows_its_end(part) for part in self.loaders.parts):
            for index, batch in enumerate(stream, done + 1):
                yield batch, index == total
                if index == total:
                    return
        else:
            yield from _looking_ahead(stream, total - done, self._note_positions)

    def _stream(self, done: int) -> Iterator[Any]:
        starts = dict(self.starts)  # empty, except in the epoch that a run is resumed in
        combined = self.loaders.combined
        assert combined is not None
        if self.loaders.loaders is self.loaders.parts[0]:  # one plain loader: nothing to combine
            yield from self._open(0, done, starts.get(0))
            return
        taken = done

        def open_part(_: Any, index: int) -> Iterator[Any]:
            return self._open(index, taken, starts.pop(index, None))

        combined.open_part = open_part
        combined.restarted = {index for index, start in starts.items() if start["at"] > 0}
        for batch, _, _ in combined:
            taken += 1
            yield batch

    def _open(self, index: int, taken: int, start: dict[str, Any] | None) -> Iterator[Any]:
        """Start one part, or take it up where the run that is resumed was."""
        loader = self.loaders.parts[index]
        if start is None:
            for generator, state in zip(_generators(loader), self.own.pop(index, []), strict=False):
                generator.set_state(state)
            own = _states(loader)
            self.starts[index] = {"at": taken, "rng": capture_rng(), "own": own}
            stream: Iterator[Any] = iter(loader if len(self.loaders.parts) == 1 else self._noted(loader, index))
            return stream
        if is_stateful(loader) and len(self.stateful) > index and self.stateful[index] is not None:
            loader.load_state_dict(self.stateful[index])
            return iter(loader)
        self.own.pop(index, None)  # follows from the start
        now = capture_rng()
        restore_rng(start["rng"])
        for generator, state in zip(_generators(loader), start["own"], strict=False):
            generator.set_state(state)
        stream = _skipped(loader, taken - start["at"], start.get("rng_of_first"), self.loaders.name)
        restore_rng(now)
        return stream

    def _noted(self, loader: Any, index: int) -> Any:
        """A part of several, whose sampler draws its order when others may have drawn in between: note that moment."""
        if not _is_map_style(loader):
            return loader
        original, view = self._views.get(index, (None, None))
        if original is not loader:

            def note() -> None:
                self.starts[index]["rng_of_first"] = capture_rng()

            what = _index_stream(loader)
            view = with_indices(loader, **{what: _Indices(getattr(loader, what), on_first=note)})
            self._views[index] = loader, view
        return view

    def _positions(self) -> list[Any]:
        return [part.state_dict() if is_stateful(part) else None for part in self.loaders.parts]

    def _note_positions(self) -> None:
        """A batch more than was given is about to be fetched: what a checkpoint holds is the position before it."""
        if any(is_stateful(part) for part in self.loaders.parts):
            self._stateful_now = self._positions()

    def state_dict(self) -> dict[str, Any]:
        parts = self.loaders.parts
        stateful = self._positions() if self._stateful_now is None else self._stateful_now
        return {
            "starts": {index: dict(start) for index, start in self.starts.items()},
            "stateful": stateful,
            "own": {index: _states(part) for index, part in enumerate(parts)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.starts, self.stateful, self.own = dict(state["starts"]), list(state["stateful"]), dict(state["own"])


def _looking_ahead(
    stream: Iterator[Any], most: int | float, before_fetch: Callable[[], None]
) -> Iterator[tuple[Any, bool]]:
    """Each item with whether it is the last: the next one, or the end, is seen before."""
    missing = object()
    stream = stream if math.isinf(most) else islice(stream, int(most))
    item = next(stream, missing)
    while item is not missing:
        before_fetch()
        following = next(stream, missing)
        yield item, following is missing
        item = following


def _is_map_style(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def _index_stream(loader: DataLoader[Any]) -> str:
    """The attribute that a loader draws its indices from."""
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


def _skipped(loader: Any, count: int, rng_of_first: dict[str, Any] | None, name: str) -> Iterator[Any]:
    """The loader's batches behind the first `count`."""
    if _is_map_style(loader):
        what = _index_stream(loader)
        indices = _Indices(getattr(loader, what), skip=count)
        stream = iter(with_indices(loader, **{what: indices}))
        assert indices.current is not None
        if rng_of_first is not None and not indices.current.is_primed:  # workers draw at once, else others were first
            restore_rng(rng_of_first)
        indices.current.prime()
        return stream
    if count:
        rank_zero_info(
            f"Resuming inside an epoch: the first {count} batches of `{name}` are fetched again and left out."
        )
    rest: Iterator[Any] = iter(loader)
    for _ in islice(rest, count):
        pass
    return rest
