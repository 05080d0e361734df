"""Hashes see every changed bit of small tensors, in all formats and places, and each draw of a random generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inazuma.fingerprints import Generators, ModuleTensors, Pending, of_batch, of_memory, resolve, sum_on_device

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
HASHES: dict[str, Callable[[Tensor], int]] = {
    "on the CPU": of_memory,
    "on a device": lambda tensor: int(sum_on_device([tensor])),
}


def flipped(tensor: Tensor, bit: int) -> Tensor:
    """A copy with one bit turned, counted from the first byte."""
    memory = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    raw = bytearray(memory.view(torch.uint8).tolist())
    raw[bit // 8] ^= 1 << bit % 8
    return torch.frombuffer(raw, dtype=torch.uint8).view(tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize("where", HASHES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_flipped_bit_is_seen(where: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([dtype for dtype in DTYPES if dtype is not torch.bool]))
    tensor = torch.randint(0, 100, data.draw(st.sampled_from([(), (1,), (7,), (3, 5), (33, 65)]))).to(dtype)
    bit = data.draw(st.integers(0, 8 * tensor.nbytes - 1))
    assert HASHES[where](tensor) != HASHES[where](flipped(tensor, bit))


@pytest.mark.parametrize("where", HASHES)
@pytest.mark.parametrize("size", [4096, 4099, 300_001])
def test_every_flipped_bit_of_a_large_tensor_is_seen(where: str, size: int) -> None:
    tensor, rng = torch.randn(size), random.Random(3)
    expected = HASHES[where](tensor)
    assert expected == HASHES[where](tensor.clone())
    bits = [0, 8 * tensor.nbytes - 1, *(rng.randrange(8 * tensor.nbytes) for _ in range(10 if size < 9999 else 2))]
    for bit in bits:
        assert expected != HASHES[where](flipped(tensor, bit)), f"bit {bit}"


@pytest.mark.parametrize("where", HASHES)
@pytest.mark.parametrize("size", [(8, 4), (64, 3000)])
def test_samples_in_another_order_are_seen(where: str, size: tuple[int, int]) -> None:
    batch = torch.randn(size)
    assert HASHES[where](batch) != HASHES[where](batch.flip(0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_hashes_like_its_copy(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 2, (6, 8)).to(dtype)
    for view in (tensor.T, tensor[:, ::2], tensor[1:], tensor[0].expand(5, 8), tensor[:0]):
        assert of_memory(view) == of_memory(view.clone(memory_format=torch.contiguous_format))
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert of_memory(images) == of_memory(images.clone())


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_are_hashed_by_what_they_hold() -> None:
    one, other = (torch.tensor([[1.0, 0.0], [0.0, value]]) for value in (2.0, 3.0))
    for sparse in (lambda tensor: tensor.to_sparse(), lambda tensor: tensor.to_sparse_csr()):
        assert of_memory(sparse(one)) == of_memory(sparse(one)) != of_memory(sparse(other))


class Sample:
    """A batch of a user's own class."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


BATCHES: list[Callable[[Any], Any]] = [
    lambda x: torch.tensor([1.0, x]),
    lambda x: [torch.zeros(2), torch.tensor(x)],
    lambda x: {"a": torch.zeros(2), "b": {"c": torch.tensor(x)}},
    lambda x: (torch.zeros(2), x),
    lambda x: [torch.zeros(2), [f"text {x}"]],
    lambda x: numpy.array([1.0, x]),
    lambda x: [torch.zeros(2), Sample(torch.tensor(x))],
    lambda x: torch.full((5000,), float(x)),
]


@pytest.mark.parametrize("make", BATCHES)
def test_batches_of_all_kinds_are_told_apart(make: Callable[[Any], Any]) -> None:
    assert resolve([of_batch(make(1.0))]) == resolve([of_batch(make(1.0))]) != resolve([of_batch(make(2.0))])


def test_a_batch_that_holds_itself_ends() -> None:
    batch: list[Any] = [torch.zeros(2)]
    batch.append(batch)
    assert isinstance(of_batch(batch), int)


def test_hashes_on_devices_are_fetched_together() -> None:
    sums = [torch.tensor(value) for value in (1, 2, 3)]
    alone = [resolve([each])[0] for each in (Pending(5, sums[:2]), 7, Pending(5, sums[2:]))]
    assert resolve([Pending(5, sums[:2]), 7, Pending(5, sums[2:])]) == alone
    assert len(set(alone)) == 3
    assert alone[1] == 7


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(1),
        lambda: torch.normal(torch.zeros(1), 1),
        random.random,
        lambda: random.gauss(0, 1),
        numpy.random.rand,
    ],
    ids=["torch", "torch, a normal number", "random", "random, a normal number", "numpy"],
)
@pytest.mark.parametrize("reads_memory", [True, False])
def test_each_draw_from_a_global_generator_is_seen(draw: Callable[[], Any], reads_memory: bool) -> None:
    seen = []
    for _ in range(2):
        random.seed(1)
        torch.manual_seed(1)
        numpy.random.seed(1)
        generators = Generators()
        if not reads_memory:  # as on a Python whose generator lies elsewhere in memory
            assert generators._head is not None
            generators._head = None
        hashes = [generators.hash()]
        for _ in range(1500):  # through refills of the state
            draw()
            hashes.append(generators.hash())
        assert len(set(hashes)) > 1495  # 32 bits: two of 1500 are the same by chance once in 4000 tests
        seen.append(hashes)
    assert seen[0] == seen[1]


def test_another_kind_of_generator_in_numpy_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numpy.random.get_bit_generator()
    try:
        numpy.random.set_bit_generator(numpy.random.PCG64(3))
        generators = Generators()
        first = generators.hash()
        numpy.random.rand()
        assert generators.hash() != first
    finally:
        numpy.random.set_bit_generator(before)


def test_weights_and_gradients_are_followed_wherever_they_move() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5000))
    tensors, hashes = ModuleTensors(net), []

    def note() -> None:
        hashes.append((tensors.weights(), tensors.gradients()))

    note()
    assert tensors.gradients() == 0  # none is there
    net(torch.randn(8, 3)).sum().backward()  # changes the buffers of the batch norm, and makes gradients
    note()
    net[0].weight.grad = torch.ones(4, 3)
    note()
    net[0].weight = nn.Parameter(torch.ones(4, 3))
    note()
    net[2].bias.data = net[2].bias.data + 1
    note()
    with torch.no_grad():
        net[2].weight[4999, 3] += 1
    note()
    weights, gradients = zip(*hashes, strict=True)
    assert len(set(weights)) == 5  # not by a gradient
    assert len(set(gradients)) == 4  # none, some, another, one less
    net.zero_grad()
    assert tensors.gradients() == 0


def test_a_tensor_that_shrinks_where_it_lies_is_read_to_its_own_end() -> None:
    net = nn.Module()
    net.register_buffer("queue", torch.arange(8.0))
    tensors = ModuleTensors(net)
    whole = tensors.weights()
    net.queue = net.queue[:4]  # at the same address
    assert tensors.weights() == of_memory(torch.arange(4.0)) != whole


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_gradients_are_hashed() -> None:
    net = nn.Embedding(10, 4, sparse=True)
    tensors = ModuleTensors(net)
    seen = set()
    for index in (1, 2):
        net.zero_grad()
        net(torch.tensor([index])).sum().backward()
        seen.add(tensors.gradients())
    assert len(seen) == 2
