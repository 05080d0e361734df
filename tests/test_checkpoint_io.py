import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inazuma import Trainer, files
from inazuma.callbacks import ModelCheckpoint
from inazuma.checkpoint_io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from inazuma.errors import CheckpointNotSaved
from inazuma.testing import BoringModel


class Gate(TorchCheckpointIO):
    """Writes once it is let: `open` is set. Raises what it is told to, for paths that are told."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fails: dict[str, Exception] = {}
        self.done: list[str] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        assert self.open.wait(30)
        if path in self.fails:
            raise self.fails[path]
        super().save_checkpoint(checkpoint, path, storage_options)
        self.done.append(f"saved {path}")

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(path)
        self.done.append(f"removed {path}")


def trainer(**arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": 2, "limit_val_batches": 0}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**defaults | quiet | arguments)


def names() -> list[str]:
    return sorted(os.listdir())


# TorchCheckpointIO


def test_a_file_notes_epoch_and_step_and_what_the_caller_adds() -> None:
    writes = TorchCheckpointIO()
    assert writes.keeps_notes
    writes.save_checkpoint({"epoch": 2, "global_step": 7, "state_dict": {}}, "a.ckpt", {"note": {"kind": "last"}})
    note = {"epoch": 2, "global_step": 7, "torch": str(torch.__version__), "kind": "last"}
    assert files.read_note("a.ckpt") == note


@pytest.mark.parametrize("options", [{"endpoint": 1}, {"note": {}, "endpoint": 1}, "text"])
def test_other_storage_options_are_refused(options: Any) -> None:
    with pytest.raises(TypeError, match=r"needs a CheckpointIO that knows them; `TorchCheckpointIO` does not"):
        TorchCheckpointIO().save_checkpoint({}, "a.ckpt", options)
    assert names() == []


def test_what_comes_after_saving_comes_at_once_where_saving_is_not_in_the_background() -> None:
    done: list[int] = []
    TorchCheckpointIO().after_saving(lambda: done.append(1))
    assert done == [1]
    assert not CheckpointIO().keeps_notes


# AsyncCheckpointIO


def test_the_names_are_lightnings() -> None:
    import lightning.pytorch.plugins.io as theirs

    import inazuma.plugins.io as ours

    assert set(ours.__all__) <= set(theirs.__all__)


def test_a_save_returns_before_the_file_is_there_and_holds_the_state_of_its_call() -> None:
    gate = Gate()
    writes = AsyncCheckpointIO(gate)
    weight = torch.zeros(3)
    writes.save_checkpoint({"epoch": 1, "weight": weight}, "a.ckpt", {"note": {"kind": "last"}})
    weight += 1
    assert names() == []
    gate.open.set()
    writes.teardown()
    assert files.load("a.ckpt")["weight"].tolist() == [0, 0, 0]
    assert writes.keeps_notes
    assert (files.read_note("a.ckpt") or {})["kind"] == "last"


def test_the_next_save_waits_for_the_one_before() -> None:
    gate = Gate()
    writes = AsyncCheckpointIO(gate)
    weight = torch.zeros(3)
    writes.save_checkpoint({"weight": weight}, "a.ckpt")
    timer = threading.Timer(0.2, gate.open.set)
    timer.start()
    writes.save_checkpoint({"weight": weight + 1}, "b.ckpt")
    assert gate.done[:1] == ["saved a.ckpt"]
    writes.teardown()
    timer.join()
    assert [files.load(name)["weight"][0].item() for name in ("a.ckpt", "b.ckpt")] == [0, 1]


def test_an_older_file_goes_once_the_newer_one_is_there() -> None:
    Path("old.ckpt").touch()
    gate = Gate()
    writes = AsyncCheckpointIO(gate)
    writes.save_checkpoint({}, "new.ckpt")
    writes.remove_checkpoint("old.ckpt")
    writes.after_saving(lambda: gate.done.append("linked"))
    assert names() == ["old.ckpt"]
    gate.open.set()
    writes.teardown()
    assert gate.done == ["saved new.ckpt", "removed old.ckpt", "linked"]
    assert names() == ["new.ckpt"]


def test_an_older_file_stays_if_one_of_the_newer_ones_was_not_saved() -> None:
    Path("old.ckpt").touch()
    gate = Gate()
    gate.open.set()
    gate.fails = {"best.ckpt": CheckpointNotSaved("best.ckpt was not saved: the disk is full.")}
    writes = AsyncCheckpointIO(gate)
    writes.save_checkpoint({}, "best.ckpt")
    with pytest.warns(UserWarning, match=r"best\.ckpt was not saved: the disk is full"):
        writes.save_checkpoint({}, "last.ckpt")
    writes.remove_checkpoint("old.ckpt")
    writes.remove_checkpoint("old.ckpt")
    writes.teardown()
    assert names() == ["last.ckpt", "old.ckpt"]
    writes.save_checkpoint({}, "next.ckpt")
    writes.remove_checkpoint("old.ckpt")
    writes.teardown()
    assert names() == ["last.ckpt", "next.ckpt"]


@pytest.mark.parametrize("call", ["save", "load", "teardown"])
@pytest.mark.parametrize("error", [CheckpointNotSaved("the disk is full"), RuntimeError("a bug")])
def test_a_failure_shows_once_at_the_next_call(error: Exception, call: str) -> None:
    files.atomic_save({"epoch": 1}, "good.ckpt")
    gate = Gate()
    gate.open.set()
    gate.fails["bad.ckpt"] = error
    writes = AsyncCheckpointIO(gate)
    calls: dict[str, Callable[[], Any]] = {
        "save": lambda: writes.save_checkpoint({}, "next.ckpt"),
        "load": lambda: writes.load_checkpoint("good.ckpt"),
        "teardown": writes.teardown,
    }
    writes.save_checkpoint({}, "bad.ckpt")
    if isinstance(error, CheckpointNotSaved):
        with pytest.warns(UserWarning, match="the disk is full"):
            calls[call]()
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            calls[call]()
    calls[call]()
    writes.teardown()


def test_what_is_loaded_was_written_before() -> None:
    gate = Gate()
    writes = AsyncCheckpointIO(gate)
    writes.save_checkpoint({"epoch": 4}, "a.ckpt")
    timer = threading.Timer(0.1, gate.open.set)
    timer.start()
    assert writes.load_checkpoint("a.ckpt") == {"epoch": 4}
    timer.join()
    writes.teardown()


def test_the_end_of_a_run_ends_the_thread() -> None:
    before = threading.active_count()
    writes = AsyncCheckpointIO()
    writes.save_checkpoint({}, "a.ckpt")
    assert threading.active_count() == before + 1
    writes.teardown()
    assert threading.active_count() == before


# In a run


def test_one_flag_saves_in_the_background_and_writes_the_same_files(tmp_path: Path) -> None:
    for is_async in (False, True):
        torch.manual_seed(1)
        keeps = ModelCheckpoint(tmp_path / str(is_async), monitor="step", mode="max", save_top_k=2, save_last=True)
        fits = trainer(async_checkpointing=is_async, callbacks=keeps)
        fits.fit(BoringModel())
        fits.save_checkpoint(tmp_path / str(is_async) / "after.ckpt")
        assert isinstance(fits.strategy.checkpoint_io, AsyncCheckpointIO) is is_async
        fits.strategy.checkpoint_io.teardown()
    sync, background = (sorted((tmp_path / folder).iterdir()) for folder in ("False", "True"))
    assert [path.name for path in sync] == [path.name for path in background]
    assert len(sync) == 4
    for one, other in zip(sync, background, strict=True):
        files.verify(other)
        weights, others = (files.load(path)["state_dict"] for path in (one, other))
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_run_with_a_disk_that_is_full_ends_well_and_says_so() -> None:
    gate = Gate()
    gate.open.set()
    path = str(Path.cwd() / "a.ckpt")
    gate.fails[path] = CheckpointNotSaved("a.ckpt was not saved: the disk is full.")
    fits = trainer(async_checkpointing=True, plugins=gate, callbacks=ModelCheckpoint(".", "a"), max_epochs=1)
    with pytest.warns(UserWarning, match=r"a\.ckpt was not saved: the disk is full"):
        fits.fit(BoringModel())
    assert fits.state.finished


def test_a_checkpoint_io_of_ones_own_is_wrapped_once() -> None:
    own = AsyncCheckpointIO()
    assert trainer(async_checkpointing=True, plugins=own).strategy.checkpoint_io is own


def test_the_flag_is_a_switch() -> None:
    with pytest.raises(TypeError, match=r"Trainer\(async_checkpointing='no'\) should be True or False"):
        Trainer(async_checkpointing="no")  # type: ignore[arg-type]


SCRIPT = """
import os, signal, sys, threading, torch
from inazuma import files
from inazuma.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO
from inazuma.errors import CheckpointNotSaved

class Killed(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if checkpoint["epoch"] == 2 and sys.argv[1] == "kill":
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
            checkpoint["slow"] = [Slow()]
        if checkpoint["epoch"] == 2 and sys.argv[1] == "full":
            raise CheckpointNotSaved("b.ckpt was not saved: the disk is full.")
        super().save_checkpoint(checkpoint, path, storage_options)

class Slow:
    def __reduce__(self):
        threading.Event().wait(30)

writes = AsyncCheckpointIO(Killed())
writes.save_checkpoint({"epoch": 1}, "a.ckpt")
writes.save_checkpoint({"epoch": 2, "weight": torch.zeros(100_000)}, "b.ckpt")
writes.remove_checkpoint("a.ckpt")
if sys.argv[1] == "kill":
    threading.Event().wait(30)
"""


def run(how: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, how]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)


def test_a_kill_in_flight_leaves_the_file_before() -> None:
    assert run("kill").returncode == -signal.SIGKILL
    files.remove_leftovers(".")
    assert names() == ["a.ckpt"]
    files.verify("a.ckpt")


def test_a_program_that_ends_without_a_word_ends_its_saves_and_shows_what_failed() -> None:
    ended = run("full")
    assert ended.returncode == 0
    assert "b.ckpt was not saved: the disk is full." in ended.stderr
    assert names() == ["a.ckpt"]
