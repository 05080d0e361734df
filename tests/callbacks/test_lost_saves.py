"""Processes that die while they save, and disks that are full: a run is not lost, and does not end for it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
from inazuma import files
from inazuma.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint

MB = 1_000_000


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_run_killed_while_it_saves_goes_on_from_its_newest_file_and_leaves_no_other(
    kills: int, tmp_path: Path
) -> None:
    environment = {**os.environ, "TMPDIR": "/dev/shm", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("killed_saves.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run"), str(kills), "7"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60 + 10 * kills,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"] == [True] * kills
    assert told["began"] == sorted(told["began"])  # nothing that was saved is lost again
    assert told["began"][0] == 0 < told["began"][-1]
    assert told["code"] == 0
    end = told["began"][-1] + 3
    source = f"step={told['began'][-1]}.ckpt"  # stays, where the run before was killed ahead of its `last.ckpt`
    left = set(os.listdir(tmp_path / "run"))
    assert left - {source} == {"last.ckpt", f"step={end - 1}.ckpt", f"step={end}.ckpt"}
    if kills > 20:
        assert told["halves"] > 0  # some kills did hit a save


class Model(inazuma.LightningModule):
    """Six megabytes."""

    def __init__(self, crash_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1500, 1000)
        self.crash_at = crash_at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.crash_at:
            raise ValueError("crash")
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(*callbacks: Callback, model: Model | None = None, **arguments: Any) -> tuple[Any, list[str]]:
    """Four steps. Returns the trainer and what was warned of saves."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = inazuma.Trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks), **quiet, **arguments)  # type: ignore[arg-type]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer.fit(model or Model(), DataLoader(torch.ones(4, 1500)))
        finally:
            said = [str(w.message) for w in caught if "was not saved" in str(w.message)]
            fit.said = said  # type: ignore[attr-defined]
    return trainer, said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class MakeRoom(Callback):
    """Removes a file before step 4."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            self.path.unlink()


def test_on_a_full_disk_the_run_goes_on_and_saves_again_when_there_is_room(small_disk: Path) -> None:
    checkpoint = ModelCheckpoint(small_disk, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    trainer, said = fit(checkpoint, MakeRoom(small_disk / "step=1.ckpt"))
    assert trainer.state.status == "finished"
    assert trainer.global_step == 4
    assert len(said) == 1
    assert said[0].startswith(f"{small_disk / 'step=3.ckpt'} was not saved: ")
    assert "No space left on device" in said[0]
    assert "needs about 6.0 MB" in said[0]
    assert " MB are free there" in said[0]
    assert said[0].endswith("Training goes on, and the next save is tried as usual.")
    assert sorted(os.listdir(small_disk)) == ["step=2.ckpt", "step=4.ckpt"]
    assert checkpoint.best_model_path == str(small_disk / "step=4.ckpt")
    for path in small_disk.iterdir():
        files.verify(path)


def test_a_file_that_is_lost_in_the_background_is_forgotten(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 7 * MB)
    checkpoint = ModelCheckpoint(
        small_disk, monitor="step", mode="max", save_top_k=1, every_n_train_steps=1, filename="{step}"
    )
    trainer, said = fit(checkpoint, async_checkpointing=True)
    assert trainer.state.status == "finished"
    assert [text.split()[0] for text in said] == [str(small_disk / f"step={n}.ckpt") for n in (2, 3, 4)]
    assert sorted(os.listdir(small_disk)) == ["other", "step=1.ckpt"]
    assert list(checkpoint.best_k_models) == [checkpoint.best_model_path] == [str(small_disk / "step=1.ckpt")]


def test_the_exception_that_ended_a_run_is_not_hidden_by_a_full_disk(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 12 * MB)
    checkpoint = ModelCheckpoint(small_disk / "a", save_on_exception=True)
    with pytest.raises(ValueError, match="crash"):
        fit(checkpoint, OnExceptionCheckpoint(small_disk / "b"), model=Model(crash_at=2))
    said = fit.said  # type: ignore[attr-defined]
    assert ["epoch=0-step=2.ckpt" in said[0], "on_exception.ckpt" in said[1]] == [True, True]
    assert len(said) == 2
    assert not any("Training goes on" in text for text in said)
    assert not list(small_disk.rglob("*.ckpt*"))


def test_what_the_user_saves_raises(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 12 * MB)
    trainer, _ = fit()
    with pytest.raises(OSError, match=r"mine.ckpt was not saved: .*No space left on device"):
        trainer.save_checkpoint(small_disk / "mine.ckpt")


class LimitFiles(Callback):
    """No file of this process may be larger than 1 MB while steps 2 and 3 are made."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        soft = MB if trainer.global_step in (1, 2) else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_on_the_size_of_files_does_not_end_a_run(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = ModelCheckpoint(
        tmp_path, monitor="step", mode="max", save_last=True, every_n_train_steps=1, filename="{step}"
    )
    try:
        trainer, said = fit(LimitFiles(), checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert trainer.state.status == "finished"
    assert [text.split()[0] for text in said] == [str(tmp_path / f"step={n}.ckpt") for n in (2, 3)]
    assert all("File too large" in text and "needs about 6.0 MB" in text for text in said)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "step=4.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
