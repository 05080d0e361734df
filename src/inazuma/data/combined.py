"""Several loaders as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
_END = object()


class CombinedLoader(Iterable[tuple[Any, int, int]]):
    """Iterate over several loaders, side by side or one after the other.

    Gives `(batch, batch_idx, dataloader_idx)`. Side by side, `batch` has the structure of `iterables` with a batch in
    the place of each loader, and `dataloader_idx` is 0. One after the other, `batch` comes from loader
    `dataloader_idx`, and `batch_idx` starts at 0 with each of them.

    Args:
        iterables: any nesting of lists, tuples and dictionaries of loaders. A list or dictionary of plain numbers or
            strings is a loader itself.
        mode: when to stop.
            "min_size": side by side, until the shortest loader ends.
            "max_size_cycle": side by side, until the longest ends; the others start again. A loader without any batch
            cannot start again and ends the iteration.
            "max_size": side by side, until the longest ends; the others give None.
            "sequential": one after the other.

    Raises:
        ValueError: another `mode`.
    """

    def __init__(self, iterables: Any, mode: str = "min_size") -> None:
        if mode not in MODES:
            raise ValueError(f"Unsupported mode {mode!r} in CombinedLoader(mode=...). Use one of {list(MODES)}.")
        self._mode = mode
        self._flattened, self._structure = tree_flatten(iterables, is_leaf=_is_loader)
        self._limits: list[int | float] | None = None
        self._started = False
        self.open_part: Callable[[Any, int], Iterator[Any]] = _open
        self.restarted: set[int] = set()

    @property
    def mode(self) -> str:
        """As given to the constructor."""
        return self._mode

    @property
    def flattened(self) -> list[Any]:
        """The loaders in a flat list. Another list of the same length takes their places in the structure.

        Raises:
            ValueError: another length.
        """
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: Sequence[Any]) -> None:
        if len(loaders) != len(self._flattened):
            raise ValueError(
                f"Mismatch in flattened length: {len(loaders)} given, {len(self._flattened)} there. Give one loader "
                "for each of the present ones."
            )
        self._flattened = list(loaders)

    @property
    def iterables(self) -> Any:
        """The loaders in their structure."""
        return tree_unflatten(self._flattened, self._structure)

    @property
    def sampler(self) -> Any:
        """The samplers of the loaders, in their structure; None for one that has none."""
        return self._each(lambda loader: getattr(loader, "sampler", None))

    @property
    def batch_sampler(self) -> Any:
        """The batch samplers of the loaders, in their structure; None for one that has none."""
        return self._each(lambda loader: getattr(loader, "batch_sampler", None))

    def _each(self, fn: Callable[[Any], Any]) -> Any:
        return tree_unflatten([fn(loader) for loader in self._flattened], self._structure)

    @property
    def limits(self) -> list[int | float] | None:
        """How many batches to take from each loader at most, in mode "sequential"; one number stands for all.

        Raises:
            ValueError: not as many numbers as loaders.
        """
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | Sequence[int | float] | None) -> None:
        if isinstance(limits, (int, float)):
            limits = [limits] * len(self._flattened)
        elif limits is not None and len(limits) != len(self._flattened):
            raise ValueError(
                f"Mismatch in number of limits: {len(limits)} given for {len(self._flattened)} loaders. Give one for "
                "each, or a single number for all."
            )
        self._limits = None if limits is None else list(limits)

    def size(self) -> int | float:
        """How many batches one pass gives, by the lengths that the loaders claim and without `limits`.

        A loader without a length counts as infinite; the result is `inf` when it decides.
        """
        sizes = [_size(loader) for loader in self._flattened]
        if self._mode == "sequential":
            return sum(sizes)
        return min(sizes, default=0) if self._mode == "min_size" else max(sizes, default=0)

    def __len__(self) -> int:
        """`size()`, once an iteration has begun.

        Raises:
            RuntimeError: none has.
            TypeError: infinite.
        """
        if not self._started:
            raise RuntimeError("The length is known once the loaders run. Please call `iter(combined_loader)` first.")
        size = self.size()
        if size == math.inf:
            raise TypeError(
                f"The `CombinedLoader` in mode {self._mode!r} has no length, because a loader in it has none."
            )
        return int(size)

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Begin a pass.

        The loaders start now and not with the first batch, so that their workers are at work meanwhile; in mode
        "sequential" the first one does.

        A caller that goes on with a broken-off pass sets two attributes before. `open_part(loader, index)` is called in
        the place of `iter(loader)`, at each start and restart. `restarted` are the indices of the loaders that came to
        their end before ("max_size_cycle"); the pass to begin takes it over and leaves it empty.
        """
        self._started = True
        ended, self.restarted = self.restarted, set()
        if self._mode == "sequential":
            return self._one_after_the_other([self.open_part(loader, 0) for loader in self._flattened[:1]])
        iterators = [self.open_part(loader, index) for index, loader in enumerate(self._flattened)]
        if self._mode == "max_size_cycle":
            return self._side_by_side(self._cycle(iterators, ended))
        if self._mode == "max_size":
            return self._side_by_side(zip_longest(*iterators))
        return self._side_by_side(zip(*iterators, strict=False))  # the first end ends all

    def reset(self) -> None:
        """Let go of workers that loaders keep between passes; the next pass starts new ones."""
        for loader in self._flattened:
            if isinstance(loader, DataLoader):
                loader._iterator = None  # where torch keeps persistent workers: they end with it
        self._started = False

    def let_go(self) -> None:
        """Forget how a pass was to be opened, and with it whoever said so."""
        self.open_part, self.restarted = _open, set()

    def _side_by_side(self, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, int, int]]:
        structure = self._structure
        for batch_idx, row in enumerate(rows):
            yield tree_unflatten(row, structure), batch_idx, 0

    def _cycle(self, iterators: list[Iterator[Any]], ended: set[int]) -> Iterator[list[Any]]:
        while iterators:
            row = []
            for index, iterator in enumerate(iterators):
                batch = next(iterator, _END)
                if batch is _END:
                    ended.add(index)
                    if len(ended) == len(iterators):
                        return
                    iterators[index] = self.open_part(self._flattened[index], index)
                    batch = next(iterators[index], _END)
                    if batch is _END:
                        return
                row.append(batch)
            yield row

    def _one_after_the_other(self, first: list[Iterator[Any]]) -> Iterator[tuple[Any, int, int]]:
        for index, loader in enumerate(self._flattened):
            limit = math.inf if self._limits is None else self._limits[index]
            if limit <= 0:
                continue
            iterator = first.pop() if index == 0 else self.open_part(loader, index)
            for batch_idx, batch in enumerate(iterator):
                yield batch, batch_idx, index
                if batch_idx + 1 >= limit:
                    break


def _open(loader: Any, index: int) -> Iterator[Any]:
    return iter(loader)


def _size(loader: Any) -> int | float:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return math.inf


def _is_loader(tree: Any) -> bool:
    """Whether a container holds plain values and not loaders; anything else is for the pytree to say."""
    if not isinstance(tree, (list, tuple, Mapping)):
        return False
    values = tree.values() if isinstance(tree, Mapping) else tree
    return all(isinstance(value, (str, int, float)) for value in values)
