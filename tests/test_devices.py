"""Trainer(accelerator=..., devices=...): which devices that is."""

from __future__ import annotations

import importlib.machinery
import sys
from typing import Any

import pytest
import torch

from inazuma.devices import describe, select
from inazuma.errors import MisconfigurationException

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine with so many GPUs: `machine(cuda=3)`."""

    def pretend(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    pretend()
    return pretend


def cuda(*indices: int) -> list[torch.device]:
    return [torch.device("cuda", index) for index in indices]


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize(("devices", "count"), [("auto", 1), (1, 1), ("1", 1), (3, 3), (" 2 ", 2)])
def test_on_the_cpu_devices_are_processes(machine: Any, accelerator: str, devices: Any, count: int) -> None:
    assert select(accelerator, devices) == [CPU] * count


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize("devices", [[1], [0, 1], (1,), -1, "-1", -2, None, "1,", "0,1", 1.0, "one", "AUTO"])
def test_on_the_cpu_devices_must_be_a_count(machine: Any, accelerator: str, devices: Any) -> None:
    with pytest.raises(TypeError, match="`devices` selected with the cpu accelerator should be an int > 0") as error:
        select(accelerator, devices)
    assert repr(devices) in str(error.value)


@pytest.mark.parametrize("accelerator", ["cpu", "auto", "gpu", "cuda"])
@pytest.mark.parametrize("devices", [0, "0", [], ()])
def test_no_device_at_all_is_refused(machine: Any, accelerator: str, devices: Any) -> None:
    machine(cuda=2)
    with pytest.raises(
        MisconfigurationException, match="asks for no device of the accelerator .*, but a run needs one"
    ) as e:
        select(accelerator, devices)
    assert f"devices={devices!r}" in str(e.value)


@pytest.mark.parametrize("accelerator", ["foo", "CPU", "hpu", "", None, 3])
def test_an_unknown_accelerator_is_refused_with_the_known_ones(accelerator: Any) -> None:
    message = rf"Trainer\(accelerator={accelerator!r}\). Use one of auto, cpu, gpu, cuda, mps, tpu"
    with pytest.raises(ValueError, match=f"You selected an invalid accelerator name: {message}"):
        select(accelerator)


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
def test_an_accelerator_that_is_not_there_is_refused(machine: Any, accelerator: str) -> None:
    with pytest.raises(
        MisconfigurationException, match=rf"accelerator='{accelerator}'.* can not run .* here: \['cpu'\]"
    ):
        select(accelerator, 1)


def test_gpu_needs_one_of_its_kinds(machine: Any) -> None:
    with pytest.raises(MisconfigurationException, match="No supported gpu backend found! torch .* accelerator='auto'"):
        select("gpu", 1)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("auto", [0, 1, 2]),
        (-1, [0, 1, 2]),
        ("-1", [0, 1, 2]),
        (1, [0]),
        (2, [0, 1]),
        ("3", [0, 1, 2]),
        ([0], [0]),
        ([2, 0], [2, 0]),
        ((0, 1), [0, 1]),
        ("0,2", [0, 2]),
        ("0, 1", [0, 1]),
        ("2,", [2]),
        ("0,", [0]),
    ],
)
def test_gpus_are_counted_or_listed(machine: Any, accelerator: str, devices: Any, expected: list[int]) -> None:
    machine(cuda=3)
    assert select(accelerator, devices) == cuda(*expected)


@pytest.mark.parametrize("devices", [4, "5", [3], [-1], "0,7", -2, "-2"])
def test_gpus_that_are_not_there_are_refused(machine: Any, devices: Any) -> None:
    machine(cuda=3)
    with pytest.raises(MisconfigurationException, match=r"asks for devices .* of 'cuda'.* has \[0, 1, 2\]") as error:
        select("cuda", devices)
    assert f"devices={devices!r}" in str(error.value)


@pytest.mark.parametrize("devices", [[0, 0], "1,1"])
def test_a_gpu_is_named_once(machine: Any, devices: Any) -> None:
    machine(cuda=3)
    with pytest.raises(MisconfigurationException, match="names a device twice"):
        select("cuda", devices)


@pytest.mark.parametrize("devices", [None, 1.5, True, [1.0], ["0"], [True], {0: 1}])
def test_gpus_of_a_meaningless_type_are_refused(machine: Any, devices: Any) -> None:
    machine(cuda=3)
    with pytest.raises(TypeError, match="is no selection of devices .cuda.. Use a number"):
        select("cuda", devices)


@pytest.mark.parametrize("devices", ["a", "0,b", "1.5"])
def test_gpus_that_cannot_be_read_are_refused(machine: Any, devices: str) -> None:
    machine(cuda=3)
    with pytest.raises(ValueError, match=f"devices='{devices}'.* cannot be read. Use 'auto', a number"):
        select("cuda", devices)


def test_auto_takes_one_gpu_at_an_interactive_prompt(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=3)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert select("auto") == cuda(0)
    assert select("cuda", 2) == cuda(0, 1)


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
def test_mps_comes_before_cuda(machine: Any, accelerator: str) -> None:
    machine(cuda=2, mps=True)
    assert select(accelerator) == [torch.device("mps", 0)]
    with pytest.raises(MisconfigurationException, match=r"asks for devices \[0, 1\] of 'mps'"):
        select(accelerator, 2)


def test_the_cpu_can_be_chosen_where_there_are_gpus(machine: Any) -> None:
    machine(cuda=2)
    assert select("cpu") == [CPU]


def test_tpu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(ModuleNotFoundError, match=r"accelerator='tpu'.* needs the package torch_xla.*pip install"):
        select("tpu", 1)


def test_tpu_is_refused_even_when_torch_xla_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("torch_xla")
    module.__spec__ = importlib.machinery.ModuleSpec("torch_xla", None)
    monkeypatch.setitem(sys.modules, "torch_xla", module)
    with pytest.raises(MisconfigurationException, match="accelerator='tpu'.* not supported by inazuma yet"):
        select("tpu", 1)


def test_the_description_says_what_is_there_and_what_is_used(machine: Any) -> None:
    assert describe([CPU]) == "GPU available: False, used: False"
    machine(cuda=2)
    assert describe([CPU]) == "GPU available: True (cuda), used: False"
    assert describe(cuda(0, 1)) == "GPU available: True (cuda), used: True"
    machine(mps=True)
    assert describe([torch.device("mps", 0)]) == "GPU available: True (mps), used: True"
