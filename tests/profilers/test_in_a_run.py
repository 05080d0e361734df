"""Profilers as the Trainer drives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inazuma import Callback, Trainer
from inazuma.errors import MisconfigurationException
from inazuma.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from inazuma.testing import BoringModel

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_val_batches": 2,
}


class Watcher(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        pass


@pytest.fixture
def fit(tmp_path: Path) -> Any:
    def run(profiler: Profiler | str | None, batches: int = 8) -> Trainer:
        trainer = Trainer(
            profiler=profiler, default_root_dir=tmp_path, limit_train_batches=batches, callbacks=[Watcher()], **QUIET
        )
        trainer.fit(BoringModel())
        return trainer

    return run


def test_hooks_and_steps_are_measured_under_their_names(fit: Any, tmp_path: Path) -> None:
    trainer = fit(SimpleProfiler(filename="times"))
    counts = {action: len(times) for action, times in trainer.profiler.recorded_durations.items()}
    assert counts["[Callback]Watcher.on_train_batch_end"] == 8
    for step, count in [("training_step", 8), ("backward", 8), ("optimizer_step", 8), ("validation_step", 4)]:
        found = [number for action, number in counts.items() if action.endswith(f".{step}")]
        assert count in found, (step, counts)
    (report,) = tmp_path.glob("fit-times*.txt")
    assert "[Callback]Watcher.on_train_batch_end" in report.read_text()


def test_the_advanced_profiler_sees_into_the_module(fit: Any, tmp_path: Path) -> None:
    fit(AdvancedProfiler(filename="times"))
    (report,) = tmp_path.glob("fit-times*.txt")
    section = report.read_text().partition(".training_step")[2].partition("Profile stats for")[0]
    assert "(linear)" in section or "linear.py" in section


@pytest.mark.parametrize("batches", [2, 8])
def test_the_pytorch_profiler_records_training_and_validation(batches: int, fit: Any, tmp_path: Path) -> None:
    fit(PyTorchProfiler(filename="ops", row_limit=-1), batches)
    (report,) = tmp_path.glob("fit-ops*.txt")
    text = report.read_text()
    assert "aten::addmm" in text
    assert "linear.Linear: layer" in text
    assert len(list(tmp_path.glob("*training_step*.pt.trace.json"))) == 1
    assert len(list(tmp_path.glob("*validation_step*.pt.trace.json"))) == 1


def test_without_a_profiler_nothing_is_measured(fit: Any) -> None:
    assert isinstance(fit(None).profiler, PassThroughProfiler)


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("advanced", AdvancedProfiler)])
def test_a_profiler_can_be_named(name: str, kind: type[Profiler], fit: Any) -> None:
    assert type(fit(name).profiler) is kind


@pytest.mark.parametrize("profiler", ["fast", 3])
def test_what_is_no_profiler_is_refused(profiler: Any) -> None:
    with pytest.raises(
        MisconfigurationException, match=f"profiler={profiler!r}.*'simple', 'advanced', 'pytorch', 'xla'"
    ):
        Trainer(profiler=profiler, **QUIET)
