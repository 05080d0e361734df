from collections import Counter
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from inazuma.snapshot import Snapshots
from inazuma.testing import BoringModel


def state_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()], "epoch": 1}


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
        assert (a.dtype, a.stride(), a.requires_grad) == (b.dtype, b.stride(), b.requires_grad)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_a_copy_does_not_change_when_training_goes_on() -> None:
    module = BoringModel()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 32)).sum().backward()
    optimizer.step()
    state = state_of(module, optimizer)
    snapshots, expected = Snapshots(), Snapshots().take(state)
    copied = snapshots.take(state)
    assert_equal(copied, state)
    for _ in range(3):
        optimizer.step()
    state["epoch"] = 2
    assert_equal(copied, expected)


TENSORS: dict[str, Tensor] = {
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 3),
    "half": torch.randn(3, 4).bfloat16(),
    "flags": torch.tensor([True, False]),
    "complex": torch.randn(3, dtype=torch.complex64),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    "transposed": torch.randn(3, 4).T,
    "slice": torch.arange(10)[3:5],
    "expanded": torch.randn(1).expand(7),
    "parameter": nn.Parameter(torch.randn(2)),
    "with gradient": torch.randn(2, requires_grad=True),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_each_kind_of_tensor_is_copied_as_it_is(kind: str) -> None:
    copied = Snapshots().take({"x": TENSORS[kind]})["x"]
    assert_equal(copied, TENSORS[kind])
    assert copied.numel() == 0 or copied.data_ptr() != TENSORS[kind].data_ptr()


def test_sparse_and_meta_tensors_are_copied() -> None:
    state = {"sparse": torch.eye(3).to_sparse(), "meta": torch.empty(3, device="meta")}
    copied = Snapshots().take(state)
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    assert copied["meta"].is_meta


def test_what_shares_memory_shares_it_in_the_copy() -> None:
    tied = torch.randn(4, 4)
    inner = [tied]
    copied = Snapshots().take({"a": tied, "row": tied[1], "list": inner, "same list": inner})
    assert copied["row"].data_ptr() == copied["a"][1].data_ptr()
    assert copied["list"] is copied["same list"]
    assert copied["list"][0] is copied["a"]


def test_what_is_no_tensor_is_copied_too() -> None:
    state = {"array": numpy.arange(3), "counts": Counter("aab"), "set": {1, 2}, "bytes": bytearray(b"x")}
    copied = Snapshots().take(state)
    state["array"][0] = 9
    state["counts"]["a"] = 9
    state["set"].add(9)
    state["bytes"][0] = 9
    assert copied["array"].tolist() == [0, 1, 2]
    assert (copied["counts"], copied["set"], copied["bytes"]) == (Counter("aab"), {1, 2}, bytearray(b"x"))


def test_the_next_copy_is_made_in_the_memory_of_the_last_one() -> None:
    snapshots = Snapshots()
    first = snapshots.take({"a": torch.zeros(5), "b": torch.zeros(5), "c": torch.zeros(7)})
    second = snapshots.take({"a": torch.ones(5), "b": torch.ones(5), "c": torch.ones(8)})
    assert {first["a"].data_ptr(), first["b"].data_ptr()} == {second["a"].data_ptr(), second["b"].data_ptr()}
    assert second["c"].tolist() == [1] * 8
    snapshots.forget()
    third = snapshots.take({"a": torch.zeros(5)})
    assert second["a"].tolist() == [1] * 5
    assert third["a"].tolist() == [0] * 5


def test_a_copy_made_in_inference_mode_can_be_made_anew_outside() -> None:
    snapshots = Snapshots()
    with torch.inference_mode():
        snapshots.take({"a": torch.ones(3), "b": nn.Parameter(torch.ones(2))})
    assert snapshots.take({"a": torch.zeros(3), "b": torch.zeros(2)})["a"].tolist() == [0, 0, 0]
