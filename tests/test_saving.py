"""Saves that meet full disks, limits, kills and stores that fail. The plain ones stand in test_files.py."""

import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from inazuma import files, saving
from inazuma.checkpoint_io import AsyncCheckpointIO
from inazuma.errors import CheckpointError, CheckpointNotSaved


def run(code: str, *args: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Disks


LIMITED = """
import resource, signal, sys, torch
from inazuma import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    files.atomic_save({"big": torch.zeros(1_000_000)}, sys.argv[1])
except files.CheckpointError as error:
    print(type(error).__name__, error)
"""


def test_a_limit_on_file_sizes_is_reported_and_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    files.atomic_save({"epoch": 1}, path)
    printed = run(LIMITED, path).communicate()[0]
    says = (
        rf"CheckpointNotSaved {re.escape(str(path))} was not saved: \[Errno 27\] File too large. It needs about 4.0 "
        r"MB, and [\d,.]+ MB are free there. What was there before is unchanged.\n"
    )
    assert re.fullmatch(says, printed), printed
    assert files.load(path) == {"epoch": 1}
    assert names(tmp_path) == ["a.ckpt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_the_old_file_and_no_other(small_disk: Path) -> None:
    path = small_disk / "a.ckpt"
    files.atomic_save({"epoch": 1, "weight": torch.zeros(1_500_000)}, path)  # 6 MB
    with pytest.raises(CheckpointNotSaved, match="No space left on device. It needs about 12.0 MB, and 1[01].* MB are"):
        files.atomic_save({"epoch": 2, "weight": torch.zeros(3_000_000)}, path)
    assert names(small_disk) == ["a.ckpt"]
    files.verify(path)
    assert files.load(path)["epoch"] == 1
    files.atomic_save({"epoch": 3, "weight": torch.zeros(1_500_000)}, path)  # room was given back
    assert files.load(path)["epoch"] == 3


def test_a_place_that_cannot_be_a_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotSaved, match=r"a\.ckpt was not saved: .*(File exists|Not a directory)"):
        files.atomic_save({}, tmp_path / "file" / "a.ckpt")


def test_a_save_that_failed_is_an_error_of_the_system_and_of_checkpoints() -> None:
    assert issubclass(CheckpointNotSaved, OSError)
    assert issubclass(CheckpointNotSaved, CheckpointError)


# Kills


KILLED = """
import os, random, signal, sys, time, torch
from inazuma import files
folder, kills = sys.argv[1], int(sys.argv[2])
def save(epoch):
    files.atomic_save({"epoch": epoch, "big": torch.full((100_000,), epoch)}, f"{folder}/{epoch % 2}.ckpt")
save(0)
save(1)
for kill in range(kills):
    child = os.fork()
    if child == 0:
        files.remove_leftovers(folder)
        for epoch in range(1_000_000):
            save(epoch)
    time.sleep(random.Random(kill).uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path in files.listdir(folder):
        if not os.path.basename(path).startswith("."):
            files.verify(path)
            state = files.load(path)
            assert (state["big"] == state["epoch"]).all()
print(sum(os.path.basename(path).startswith(".") for path in files.listdir(folder)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_saves_that_are_killed_leave_whole_files_and_nothing_else_after_the_next_start(tmp_path: Path) -> None:
    assert run(KILLED, tmp_path, 50).communicate()[0] in ("0\n", "1\n")  # one of the last killed process, or none
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["0.ckpt", "1.ckpt"]


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    with run("") as process:
        pass
    own = saving._temporary_name("a.ckpt")
    started_at = own.split(f".{os.getpid()}-")[1].split(".")[0]
    before = {
        own: True,
        own.replace(f".{os.getpid()}-", f".{process.pid}-"): False,
        own.replace(f"-{started_at}.", f"-{int(started_at) - 1}."): False,  # our process id, in an earlier container
        own.replace(f".{socket.gethostname()[:60]}.", ".elsewhere."): True,
        ".hidden.tmp": True,
        "a.ckpt": True,
    }
    for name in before:
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(name for name, stays in before.items() if stays)
    files.remove_leftovers(tmp_path / "gone")


# Memory


MEASURED = """
import sys, torch
from inazuma import files
def memory(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1]) / 1000
state = {str(i): torch.full((7_500_000,), float(i)) for i in range(10)}  # 300 MB
files.atomic_save({"small": torch.zeros(10)}, sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted anew
before = memory("VmRSS")
assert before > 300
files.atomic_save(state, sys.argv[1])
files.verify(sys.argv[1])
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process's memory")
def test_saving_and_verifying_300_mb_needs_less_than_60_mb_of_memory(tmp_path: Path) -> None:
    printed = run(MEASURED, tmp_path / "a.ckpt").communicate()[0]
    assert float(printed) < 60, printed


# Stores


class Flaky(MemoryFileSystem):
    """A store in memory, in which requests fail now and then: before, in the middle of, or after their work."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - shared on purpose
    pseudo_dirs = [""]  # noqa: RUF012
    generator = random.Random(0)
    share = 0.0
    in_a_row = 3  # at most
    failed = 0
    failures = 0
    error: Exception = ConnectionError("the store hung up")

    @classmethod
    def maybe_fail(cls, share: float) -> None:
        if cls.generator.random() < share and cls.failed < cls.in_a_row:
            cls.failed += 1
            cls.failures += 1
            raise cls.error
        cls.failed = 0

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        time.sleep(0.001)
        if mode == "wb":
            file = super()._open(path, mode, **kwargs)
            write, where = file.write, Flaky.generator.random()

            def failing(data: bytes) -> Any:
                if file.tell() > 5000 * where:
                    file.write = write
                    Flaky.maybe_fail(Flaky.share)
                return write(data)

            file.write = failing
            return file
        return super()._open(path, mode, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Flaky.maybe_fail(Flaky.share)
        super().makedirs(path, exist_ok=exist_ok)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        Flaky.maybe_fail(Flaky.share / 2)
        super().mv(path1, path2, **kwargs)
        Flaky.maybe_fail(Flaky.share / 2)

    def size(self, path: str) -> Any:
        Flaky.maybe_fail(Flaky.share)
        return super().size(path)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(saving, "FIRST_WAIT_S", 0.0001)
    monkeypatch.setattr(Flaky, "share", 0.0)
    Flaky.store.clear()
    Flaky.failed = Flaky.failures = 0
    return Flaky


def test_a_store_that_fails_three_times_in_ten_loses_nothing(flaky: type[Flaky]) -> None:
    flaky.generator, flaky.share = random.Random(3), 0.3
    for step in range(50):
        files.atomic_save({"step": step, "weight": torch.full((2000,), step)}, f"flaky://run/{step}.ckpt", {"s": step})
    assert flaky.failures > 50
    flaky.share = 0.0
    assert len(files.listdir("flaky://run")) == 50
    for step in range(50):
        path = f"flaky://run/{step}.ckpt"
        files.verify(path)
        assert files.read_note(path) == {"s": step}
        assert (files.load(path)["weight"] == step).all()


def test_saves_in_the_background_to_such_a_store_hold_the_step_that_they_name(flaky: type[Flaky]) -> None:
    flaky.generator, flaky.share = random.Random(4), 0.3
    writes, weight = AsyncCheckpointIO(), torch.zeros(2000)
    for step in range(20):
        weight.fill_(step)
        writes.save_checkpoint({"global_step": step, "weight": weight}, f"flaky://run/{step}.ckpt")
        if step >= 3:
            writes.remove_checkpoint(f"flaky://run/{step - 3}.ckpt")
        weight += 0.5
    writes.teardown()
    assert flaky.failures > 20
    flaky.share = 0.0
    assert len(files.listdir("flaky://run")) == 3
    for step in range(17, 20):
        path = f"flaky://run/{step}.ckpt"
        files.verify(path)
        assert (files.read_note(path) or {})["global_step"] == step
        assert (files.load(path)["weight"] == step).all()


def test_a_store_that_goes_on_failing_is_reported_and_the_old_file_stays(
    flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    files.atomic_save({"step": 1}, "flaky://run/a.ckpt")
    monkeypatch.setattr(flaky, "in_a_row", 1000)
    flaky.share = 2.0
    with pytest.raises(CheckpointNotSaved, match="run/a.ckpt was not saved: the store hung up. It needs about 0.4 MB"):
        files.atomic_save({"step": 2, "weight": torch.zeros(100_000)}, "flaky://run/a.ckpt")
    assert flaky.failures == 1 + saving.RETRIES
    flaky.share = 0.0
    assert files.listdir("flaky://run") == ["flaky://run/a.ckpt"]
    assert files.load("flaky://run/a.ckpt") == {"step": 1}


@pytest.mark.parametrize("error", [PermissionError("no access"), KeyError("a class of the store's own")])
def test_what_will_not_pass_is_not_tried_again(
    error: Exception, flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flaky, "error", error)
    flaky.share = 2.0
    with pytest.raises(CheckpointNotSaved, match=f"was not saved: {error}"):
        files.atomic_save({}, "flaky://run/a.ckpt")
    assert flaky.failures == 1


def test_an_upload_that_arrives_in_part_is_found(flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flaky, "size", lambda self, path: 17)
    with pytest.raises(CheckpointNotSaved, match="17 of [0-9]+ bytes arrived"):
        files.atomic_save({}, "flaky://run/a.ckpt")
    assert files.listdir("flaky://run") == []


def test_retries_leave_the_random_numbers_of_the_run_alone(flaky: type[Flaky]) -> None:
    flaky.generator, flaky.share = random.Random(3), 0.5
    before = random.getstate()
    files.atomic_save({}, "flaky://run/a.ckpt")
    assert flaky.failures > 0
    assert random.getstate() == before
