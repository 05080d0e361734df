"""CombinedLoader, next to the one of Lightning."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from inazuma.data.combined import CombinedLoader

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
Pair = namedtuple("Pair", "left right")


class Unsized:
    """`count` numbers, and no length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


class Stream(IterableDataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


def lightnings(iterables: Any, mode: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.pytorch.utilities import CombinedLoader as Reference

        return Reference(iterables, mode)


def outcome(loader: Any) -> tuple[Any, Any]:
    """All it gives in two passes, and its length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = [list(loader), list(loader)]
        try:
            return passes, len(loader)
        except TypeError:
            return passes, TypeError


PARTS = [0, 1, 2, 3, "unsized 0", "unsized 2", "unsized 3"]


def part(kind: int | str) -> Iterable[int]:
    return range(kind) if isinstance(kind, int) else Unsized(int(kind[-1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_mode_gives_what_lightnings_gives(mode: str, count: int) -> None:
    grid = itertools.product(PARTS, repeat=count) if count < 3 else itertools.product(PARTS[::2], repeat=3)
    for kinds in grid:
        ours, theirs = (make([part(kind) for kind in kinds], mode) for make in (CombinedLoader, lightnings))
        assert outcome(ours) == outcome(theirs), kinds


STRUCTURES = {
    "bare": lambda: range(3),
    "dict": lambda: {"a": range(2), "b": range(3)},
    "nested": lambda: [[range(1), range(2)], {"x": range(3), "y": (range(2),)}],
    "named tuple": lambda: Pair(range(2), range(1)),
    "ordered dict": lambda: OrderedDict(b=range(2), a=range(1)),
    "numbers": lambda: [1, 2, 3],
    "lists of numbers": lambda: [[1, 2, 3], [4]],
    "dict of numbers": lambda: {"a": 1, "b": 2},
    "strings": lambda: ["ab", "cd"],
    "string": lambda: "abc",
    "empty": list,
    "empty lists": lambda: ([], []),
    "empty dict": dict,
    "dataloader": lambda: [DataLoader(range(5), batch_size=2), DataLoader(range(2))],
    "iterable dataset": lambda: [DataLoader(Stream(5), batch_size=2), DataLoader(range(2))],
}


def plain(value: Any) -> Any:
    return repr(value)  # tensors do not compare, and a named tuple has to stay one


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_gives_what_lightnings_gives(mode: str, structure: str) -> None:
    ours, theirs = CombinedLoader(STRUCTURES[structure](), mode), lightnings(STRUCTURES[structure](), mode)
    assert len(ours.flattened) == len(theirs.flattened)
    assert plain(outcome(ours)) == plain(outcome(theirs))


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Unsupported mode 'foo' in .* Use one of \['min_size', 'max_size_cycle'"):
        CombinedLoader([range(2)], "foo")


def test_the_length_is_known_once_an_iteration_began() -> None:
    loader = CombinedLoader([range(2), range(3)])
    assert loader.size() == 2
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"Please call `iter\(combined_loader\)` first"):
            len(loader)
        iter(loader)
        assert len(loader) == 2
        list(loader)
        assert len(loader) == 2
        loader.reset()


@pytest.mark.parametrize(
    ("mode", "size"), [("min_size", 2), ("max_size", None), ("max_size_cycle", None), ("sequential", None)]
)
def test_a_loader_without_a_length_counts_as_infinite(mode: str, size: int | None) -> None:
    loader = CombinedLoader([range(2), Unsized(1), DataLoader(Stream(4))], mode)
    iter(loader)
    if size is None:
        assert loader.size() == float("inf")
        with pytest.raises(TypeError, match=f"mode '{mode}' has no length, because a loader in it has none"):
            len(loader)
    else:
        assert loader.size() == len(loader) == size


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (None, [("a", 0, 0), ("b", 1, 0), ("c", 2, 0), ("d", 0, 1), ("e", 1, 1)]),
        (1, [("a", 0, 0), ("d", 0, 1)]),
        (2.0, [("a", 0, 0), ("b", 1, 0), ("d", 0, 1), ("e", 1, 1)]),
        ([1, 0], [("a", 0, 0)]),
        ([0, float("inf")], [("d", 0, 1), ("e", 1, 1)]),
        ([0, 0], []),
    ],
)
def test_limits_hold_for_each_loader_in_sequence(limits: Any, expected: list[Any]) -> None:
    loader = CombinedLoader([iter_of("abc"), iter_of("de")], "sequential")
    batches = iter(loader)
    loader.limits = limits
    assert list(batches) == expected
    assert list(loader) == expected


def iter_of(letters: str) -> list[str]:
    return Letters(letters)


class Letters(list[Any]):
    """Not a plain list, so not taken for a container."""


def test_no_batch_beyond_a_limit_is_taken_from_a_loader() -> None:
    taken: list[int] = []

    class Counts:
        def __iter__(self) -> Iterator[int]:
            for number in range(9):
                taken.append(number)
                yield number

    loader = CombinedLoader([Counts(), Counts()], "sequential")
    loader.limits = [2, 1]
    assert len(list(loader)) == 3
    assert taken == [0, 1, 0]


@pytest.mark.parametrize("mode", MODES[:3])
def test_limits_do_nothing_side_by_side(mode: str) -> None:
    loader = CombinedLoader([range(2), range(2)], mode)
    loader.limits = 1
    assert loader.limits == [1, 1]
    assert len(list(loader)) == 2


def test_there_is_a_limit_for_each_loader() -> None:
    loader = CombinedLoader([range(2), range(2)], "sequential")
    with pytest.raises(ValueError, match=r"number of limits: 1 given for 2 loaders"):
        loader.limits = [1]


def test_other_loaders_take_the_places_in_the_structure() -> None:
    loader = CombinedLoader({"a": range(2), "b": [range(2), range(3)]})
    with pytest.raises(ValueError, match=r"Mismatch in flattened length: 1 given, 3 there"):
        loader.flattened = [range(1)]
    assert loader.flattened == [range(2), range(2), range(3)]
    loader.flattened = [range(4), range(5), range(6)]
    assert loader.iterables == {"a": range(4), "b": [range(5), range(6)]}
    assert len(list(loader)) == 4


def test_samplers_come_in_the_structure() -> None:
    loader = CombinedLoader({"a": DataLoader(range(4), batch_size=2), "b": range(3)})
    assert isinstance(loader.sampler["a"], SequentialSampler)
    assert isinstance(loader.batch_sampler["a"], BatchSampler)
    assert loader.sampler["b"] is None
    assert loader.batch_sampler["b"] is None


@pytest.mark.parametrize("mode", MODES)
def test_loaders_start_with_the_iteration_and_not_with_the_first_batch(mode: str) -> None:
    started: list[str] = []

    class Starts:
        def __init__(self, name: str) -> None:
            self.name = name

        def __iter__(self) -> Iterator[int]:
            started.append(self.name)
            return iter(range(1))

    iter(CombinedLoader([Starts("first"), Starts("second")], mode))
    assert started == (["first"] if mode == "sequential" else ["first", "second"])


@pytest.mark.parametrize("mode", MODES)
def test_two_passes_at_a_time_do_not_disturb_each_other(mode: str) -> None:
    loader = CombinedLoader([range(2), range(3)], mode)
    alone = list(loader)
    first, second = iter(loader), iter(loader)
    assert [pair for both in zip(first, second, strict=True) for pair in both] == [x for x in alone for _ in range(2)]


@pytest.mark.parametrize("mode", MODES[:3])
@pytest.mark.parametrize("length", [2, 5])
def test_a_pass_goes_on_from_anywhere(mode: str, length: int) -> None:
    """Break off after n batches, note per part where it stood, and open the parts there: the rest is the same."""
    sizes = [length, 3, 1]
    straight = [batch for batch, _, _ in CombinedLoader([range(size) for size in sizes], mode)]
    for done in range(len(straight) + 1):
        loader = CombinedLoader([Unsized(size) for size in sizes], mode)
        opened: list[int] = []

        def open_part(part: Unsized, index: int, opened: list[int] = opened, done: int = done) -> Iterator[int]:
            first = index not in opened
            opened.append(index)
            position = done % part.count if mode == "max_size_cycle" and done > part.count else done
            return itertools.islice(iter(part), position if first else 0, None)

        loader.open_part = open_part
        loader.restarted = {index for index, size in enumerate(sizes) if done > size}
        assert [batch for batch, _, _ in loader] == straight[done:], done
        assert loader.restarted == set()


def test_persistent_workers_end_with_reset() -> None:
    part = DataLoader(range(4), batch_size=2, num_workers=1, persistent_workers=True)
    loader = CombinedLoader([part])
    assert len(list(loader)) == 2
    workers = weakref.ref(part._iterator)
    loader.reset()
    assert workers() is None
    assert len(list(loader)) == 2
    loader.reset()


def test_batches_stay_the_objects_that_the_loaders_gave() -> None:
    batch = torch.ones(2)
    ((given, _, _),) = CombinedLoader({"a": Letters([batch]), "b": range(1)})
    assert given["a"] is batch
