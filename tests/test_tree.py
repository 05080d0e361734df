from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from inazuma.tree import (
    apply_to_collection,
    batch_size_of,
    convert_tensors_to_scalars,
    move_data_to_device,
    recursive_detach,
)

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Sample:
    image: Tensor
    name: str = "a"
    late: Tensor = field(init=False)


@dataclass(frozen=True)
class Frozen:
    image: Tensor


class Returns:
    device = "cpu"

    def to(self, device: torch.device) -> Any:
        self.device = str(device)
        return self


class ReturnsNone(Returns):
    def to(self, device: torch.device) -> None:
        self.device = str(device)


class Encoding(UserDict[str, Any]):
    """Like the batches of tokenizers: a mapping that can move itself."""

    def to(self, device: torch.device) -> "Encoding":
        return Encoding({"moved": True})


def one() -> Tensor:
    return torch.ones(2)


@pytest.mark.parametrize(
    ("batch", "leaf"),
    [
        (one(), lambda batch: batch),
        ([one()], lambda batch: batch[0]),
        ((1, one()), lambda batch: batch[1]),
        (Point("a", one()), lambda batch: batch.y),
        ({"a": [one()]}, lambda batch: batch["a"][0]),
        (OrderedDict(a=one()), lambda batch: batch["a"]),
        (defaultdict(list, a=one()), lambda batch: batch["a"]),
        (UserDict(a=one()), lambda batch: batch["a"]),
        (MappingProxyType({"a": one()}), lambda batch: batch["a"]),
        (Sample(one()), lambda batch: batch.image),
        (Frozen(one()), lambda batch: batch.image),
        (pack_sequence([one()]), lambda batch: batch.data),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_moved_batch_keeps_its_types(batch: Any, leaf: Any) -> None:
    moved = move_data_to_device(batch, "meta")
    assert type(moved) is type(batch)
    assert leaf(moved).device.type == "meta"
    assert leaf(batch).device.type == "cpu"


def test_a_default_factory_survives() -> None:
    moved = move_data_to_device(defaultdict(list, a=one()), torch.device("meta"))
    assert moved["new"] == []


@pytest.mark.parametrize("kind", [Returns, ReturnsNone])
def test_objects_move_themselves(kind: type[Returns]) -> None:
    (thing,) = move_data_to_device([kind()], "meta")
    assert thing.device == "meta"


def test_a_mapping_that_can_move_moves_itself() -> None:
    assert move_data_to_device(Encoding(a=1), "meta") == {"moved": True}


def test_what_cannot_move_is_kept() -> None:
    thing = object()
    batch = ["text", b"bytes", 1, None, thing, {1, 2}, range(3), Returns]
    assert move_data_to_device(batch, "meta") == batch


def test_a_function_is_applied_to_the_leaves_of_a_type() -> None:
    data = {"a": [1, 2.0], "b": (3, "x")}
    assert apply_to_collection(data, int, lambda leaf, by: leaf * by, 10) == {"a": [10, 2.0], "b": (30, "x")}


def test_detached_tensors_have_no_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    tree = recursive_detach({"loss": (weight * 2).sum(), "n": 1}, to_cpu=True)
    assert not tree["loss"].requires_grad
    assert tree["n"] == 1


def test_tensors_become_numbers() -> None:
    tree = {"a": torch.tensor(1.5), "b": [torch.tensor([2]), torch.tensor(True)], "c": "x"}
    assert convert_tensors_to_scalars(tree) == {"a": 1.5, "b": [2, True], "c": "x"}


def test_a_tensor_of_several_elements_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"does not contain a single element.*shape is \[2\].*\.mean\(\)"):
        convert_tensors_to_scalars({"a": one()})


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(3, 2), (3, True)),
        (torch.tensor(1.0), (1, True)),
        ([torch.zeros(3), torch.zeros(3, 2)], (3, True)),
        ([torch.zeros(3), torch.zeros(2)], (3, False)),
        ({"a": {"b": (torch.zeros(4),)}}, (4, True)),
        ([torch.zeros(3), "text"], (3, False)),
        (["text", torch.zeros(3)], (3, True)),
        ([1, None, torch.zeros(3)], (3, True)),
        ([torch.zeros(3), 1], (3, False)),
        (Frozen(torch.zeros(5)), (5, True)),
        (Sample(torch.zeros(5)), (5, False)),
        ("text", (None, False)),
        ([], (None, False)),
        ([["a", "b"], {}], (None, False)),
        ({"x": torch.zeros(0, 2)}, (0, True)),
    ],
)
def test_the_first_tensor_tells_the_batch_size(batch: Any, expected: tuple[int | None, bool]) -> None:
    assert batch_size_of(batch) == expected


def test_the_batch_size_of_packed_sequences_is_a_guess() -> None:
    size, certain = batch_size_of(pack_sequence([torch.ones(3), torch.ones(2)]))
    assert isinstance(pack_sequence([one()]), PackedSequence)
    assert (size, certain) == (5, False)


def test_looking_for_the_batch_size_uses_up_no_iterator() -> None:
    stream = iter([torch.zeros(2)])
    assert batch_size_of([torch.zeros(3), stream]) == (3, False)
    assert len(list(stream)) == 1


@pytest.mark.parametrize("batch", [[torch.zeros(3), torch.zeros(3, 2)], {"a": torch.zeros(4)}, torch.tensor(2.0)])
def test_the_batch_size_is_the_one_that_lightning_finds(batch: Any) -> None:
    from lightning.pytorch.utilities.data import extract_batch_size

    assert batch_size_of(batch) == (extract_batch_size(batch), True)
