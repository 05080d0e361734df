from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerAction

from inazuma.errors import MisconfigurationException
from inazuma.profilers import PyTorchProfiler
from inazuma.profilers.pytorch import RegisterRecordFunction

SCHEDULE = torch.profiler.schedule(wait=1, warmup=1, active=3)


class Loop:
    """The actions of a run, in the order in which the Trainer names them."""

    def __init__(self, profiler: PyTorchProfiler, stage: str = "fit") -> None:
        self.profiler = profiler
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
        profiler.setup(stage)

    def evaluate(self, kind: str, batches: int) -> None:
        for _ in range(batches):
            with (
                self.profiler.profile("[Callback]Bar.on_batch_start"),
                self.profiler.profile(f"[Strategy]S.{kind}_step"),
            ):
                self.net(torch.ones(2, 4))

    def train(self, batches: int, automatic: bool = True) -> None:
        for _ in range(batches):
            with self.profiler.profile("run_training_batch"):
                if automatic:
                    with self.profiler.profile("[LightningModule]Net.optimizer_step"):
                        self.optimizer.step(self.forward_backward)
                else:
                    self.forward_backward()

    def forward_backward(self) -> float:
        with self.profiler.profile("[Strategy]S.training_step"):
            loss = self.net(torch.ones(2, 4)).sum()
        with self.profiler.profile("[Strategy]S.backward"):
            loss.backward()
        return loss.item()


def calls(report: str) -> dict[str, dict[str, int]]:
    """How often each row of each table was called."""
    tables: dict[str, dict[str, int]] = {}
    for line in report.splitlines():
        if line.startswith("Profile stats for: "):
            table = tables.setdefault(line.removeprefix("Profile stats for: "), {})
        elif (words := line.split()) and words[-1].isdecimal():
            table[words[0].rpartition(".")[2]] = int(words[-1])
    return tables


def traces(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in folder.glob("*.pt.trace.json"))


@pytest.mark.parametrize("automatic", [True, False])
def test_three_whole_training_steps_are_recorded_and_then_three_of_validation(automatic: bool, tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, "prof", row_limit=-1)
    loop = Loop(profiler)
    loop.evaluate("validation", 10)  # the sanity check
    loop.train(9, automatic)
    loop.evaluate("validation", 5)
    loop.train(9, automatic)
    loop.evaluate("validation", 9)
    profiler.describe()
    report = (tmp_path / "fit-prof.txt").read_text()
    assert report.startswith("FIT Profiler Report\n")
    table = calls(report)
    assert set(table) == {"training_step", "validation_step"}
    assert (table["training_step"]["training_step"], table["training_step"]["backward"]) == (3, 3)
    assert table["training_step"].get("optimizer_step") == (3 if automatic else None)
    assert table["validation_step"]["validation_step"] == 3
    assert "optimizer_step" not in table["validation_step"]
    assert "on_batch_start" not in table["validation_step"]
    assert "run_training_batch" not in report
    assert traces(tmp_path) == ["fit-prof-training_step", "fit-prof-validation_step"]


def test_the_trace_is_one_that_browsers_read(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path)
    loop = Loop(profiler, "test")
    loop.evaluate("test", 6)
    profiler.teardown("test")
    (file,) = tmp_path.glob("*.json")
    names = [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]
    assert names.count("[pl][profile][Strategy]S.test_step") == 3
    assert "aten::addmm" in names


def test_short_epochs_pause_the_schedule_while_other_steps_run(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, schedule=SCHEDULE, row_limit=-1)
    loop = Loop(profiler)
    for _ in range(4):
        loop.train(2)
        loop.evaluate("validation", 1)
    # Steps 2, 3 and 4 of training are recorded, in the second and third epoch.
    assert traces(tmp_path) == ["fit-training_step", "fit-training_step"]
    table = calls(profiler.summary())
    assert table == {"training_step": table["training_step"]}
    assert table["training_step"]["training_step"] == 1
    profiler.teardown("fit")


@pytest.mark.parametrize(("stage", "batches"), [("fit", 1), ("fit", 4), ("validate", 2), ("predict", 3)])
def test_runs_of_fewer_than_five_batches_are_recorded_whole(stage: str, batches: int, tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, row_limit=-1)
    loop = Loop(profiler, stage)
    trainer = SimpleNamespace(
        num_training_batches=batches,
        num_val_batches=[batches],
        num_test_batches=[],
        num_predict_batches=[1, batches - 1],
    )
    module: Any = loop.net
    module.trainer = trainer
    profiler.lightning_module = module
    kind = {"fit": "training", "validate": "validation", "predict": "predict"}[stage]
    if stage == "fit":
        loop.train(batches)
    else:
        loop.evaluate(kind, batches)
    report = profiler.summary()
    profiler.teardown(stage)
    (table,) = calls(report).values()
    assert table[f"{kind}_step"] == batches
    assert table.get("backward") == (batches if stage == "fit" else None)
    assert "[pl][module]torch.nn.modules.linear.Linear: 0" in {event.name for event in profiler.function_events or []}
    assert not loop.net[0]._forward_hooks


def test_a_schedule_and_a_handler_of_ones_own_are_used(tmp_path: Path) -> None:
    seen: list[int] = []

    def schedule(step: int) -> ProfilerAction:
        return ProfilerAction.RECORD_AND_SAVE if step == 3 else ProfilerAction.NONE

    def handler(profile: Any) -> None:
        seen.append(sum(event.name.endswith("test_step") for event in profile.events()))

    profiler = PyTorchProfiler(tmp_path, schedule=schedule, on_trace_ready=handler)
    Loop(profiler, "test").evaluate("test", 9)
    profiler.teardown("test")
    assert seen == [1]
    assert list(tmp_path.iterdir()) == []


def test_nothing_recorded_is_no_report() -> None:
    profiler = PyTorchProfiler()
    loop = Loop(profiler)
    loop.train(2)
    assert profiler.summary() == ""
    assert profiler.function_events is None


def test_without_a_directory_the_missing_trace_is_told() -> None:
    loop = Loop(PyTorchProfiler(export_to_chrome=False), "test")
    loop.evaluate("test", 6)  # not asked for: silent
    loop.profiler.teardown("test")
    loop = Loop(PyTorchProfiler(), "test")
    with pytest.warns(UserWarning, match="no trace file, because it has no directory"):
        loop.evaluate("test", 6)


def test_a_second_run_begins_anew(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(tmp_path, "prof", row_limit=-1)
    for stage, kind in [("validate", "validation"), ("test", "test"), ("test", "test")]:
        Loop(profiler, stage).evaluate(kind, 6)
        profiler.describe()
    assert set(calls((tmp_path / "test-prof.txt").read_text())) == {"test_step"}
    assert traces(tmp_path) == ["test-prof-test_step", "test-prof-test_step", "validate-prof-validation_step"]


@pytest.mark.parametrize("key", sorted(PyTorchProfiler.AVAILABLE_SORT_KEYS))
def test_every_sort_key_is_a_column_of_the_table(key: str) -> None:
    profiler = PyTorchProfiler(export_to_chrome=False, sort_by_key=key, table_kwargs={"max_name_column_width": 20})
    Loop(profiler, "test").evaluate("test", 6)
    assert "aten::" in profiler.summary()
    profiler.teardown("test")


def rows_by_shape(**arguments: Any) -> int:
    profiler = PyTorchProfiler(export_to_chrome=False, row_limit=-1, **arguments)
    loop = Loop(profiler, "test")
    sizes: Iterable[int] = (1, 1, 1, 2, 3, 4)
    for size in sizes:
        with profiler.profile("[Strategy]S.test_step"):
            loop.net(torch.ones(size, 4))
    report = profiler.summary()
    profiler.teardown("test")
    return sum(line.split()[:1] == ["aten::addmm"] for line in report.splitlines())


def test_the_table_can_be_grouped_by_shapes() -> None:
    assert rows_by_shape() == 1
    assert rows_by_shape(group_by_input_shapes=True) == 3


def test_arguments_that_cannot_work_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="sort_by_key='speed'.*'cpu_time_total'"):
        PyTorchProfiler(sort_by_key="speed")
    with pytest.raises(MisconfigurationException, match="schedule=1"):
        PyTorchProfiler(schedule=1)
    with pytest.raises(MisconfigurationException, match="for step 0 the schedule returned 0"):
        PyTorchProfiler(schedule=lambda step: 0)
    with pytest.raises(MisconfigurationException, match="group_by_input_shapes=True, record_shapes=False"):
        PyTorchProfiler(group_by_input_shapes=True, record_shapes=False)
    with pytest.raises(KeyError, match="'width'.*use keys among"):
        PyTorchProfiler(table_kwargs={"width": 1})
    with pytest.raises(KeyError, match="'row_limit'"):
        PyTorchProfiler(table_kwargs={"row_limit": 1})
    with pytest.raises(TypeError, match=r"PyTorchProfiler\(colour=...\)"):
        PyTorchProfiler(colour="red")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can mark operators for Nsight")
def test_nvtx_marks_need_cuda() -> None:
    with pytest.raises(MisconfigurationException, match=r"emit_nvtx=True\) needs CUDA"):
        PyTorchProfiler(emit_nvtx=True)


def test_a_profiler_can_be_sent_to_a_process() -> None:
    twin = pickle.loads(pickle.dumps(PyTorchProfiler(export_to_chrome=False, row_limit=3)))
    Loop(twin, "test").evaluate("test", 6)
    assert "test_step" in twin.summary()
    twin.teardown("test")


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError


def test_names_of_submodules_are_recorded_also_when_one_raises() -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU()), Fails())
    with torch.profiler.profile() as profile, RegisterRecordFunction(net), pytest.raises(ArithmeticError):
        net(torch.ones(1))
    names = {event.name for event in profile.events() or []}
    assert {"[pl][module]torch.nn.modules.container.Sequential: 0", f"[pl][module]{__name__}.Fails: 1"} <= names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
