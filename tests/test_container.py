import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.demos.boring_classes import BoringModel as TheirBoringModel

from inazuma import container, files
from inazuma.errors import CheckpointError
from inazuma.testing import BoringModel

NOTE = {"step": 7, "kind": "last", "scores": [0.5, None]}


@pytest.fixture(scope="module")
def sealed() -> bytes:
    buffer = io.BytesIO()
    writer = container.SealedWriter(buffer, container.encode(NOTE))
    torch.save({"weight": torch.randn(3000), "name": "x"}, writer)
    writer.seal()
    return buffer.getvalue()


@pytest.fixture(scope="module")
def foreign() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.randn(3000), "name": "x"}, buffer)
    return buffer.getvalue()


def check(content: bytes) -> None:
    container.check(io.BytesIO(content), "a.ckpt")


def test_a_file_is_what_torch_writes_with_a_comment(tmp_path: Path) -> None:
    content = {"weight": torch.arange(1000.0), "epoch": 3}
    digest = files.atomic_save(content, tmp_path / "ours.ckpt", NOTE)
    with zipfile.ZipFile(tmp_path / "ours.ckpt") as archive:
        name, form, checksum, note = archive.comment.decode().split(" ", 3)
    assert (name, form, checksum) == ("inazuma-checkpoint", "1", digest)
    assert json.loads(note) == NOTE
    buffer = io.BytesIO()
    torch.save(content, buffer)
    assert (tmp_path / "ours.ckpt").read_bytes()[: len(buffer.getvalue()) - 2] == buffer.getvalue()[:-2]
    assert [path.name for path in tmp_path.iterdir()] == ["ours.ckpt"]


@pytest.mark.parametrize("how", [{}, {"weights_only": True}, {"weights_only": False}, {"mmap": True}])
def test_torch_loads_it(how: dict[str, Any], tmp_path: Path) -> None:
    tied = torch.randn(50, 50)
    files.atomic_save({"a": tied, "b": tied[0]}, tmp_path / "a.ckpt", NOTE)
    loaded = torch.load(tmp_path / "a.ckpt", **how)
    assert torch.equal(loaded["a"], tied)
    assert loaded["b"].data_ptr() == loaded["a"].data_ptr()


def test_lightning_loads_it(tmp_path: Path) -> None:
    module = BoringModel()
    content = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    files.atomic_save(content, tmp_path / "a.ckpt", NOTE)
    theirs = TheirBoringModel.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(theirs.layer.weight, module.layer.weight)


def test_a_note_is_read_back(tmp_path: Path) -> None:
    files.atomic_save({"epoch": 1}, tmp_path / "a.ckpt", NOTE)
    assert files.read_note(tmp_path / "a.ckpt") == NOTE
    files.atomic_save({"epoch": 1}, tmp_path / "a.ckpt")
    assert files.read_note(tmp_path / "a.ckpt") == {}


def test_a_file_without_a_note_has_none(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "theirs.ckpt")
    (tmp_path / "text").write_text("no checkpoint")
    assert files.read_note(tmp_path / "theirs.ckpt") is None
    assert files.read_note(tmp_path / "text") is None
    with pytest.raises(FileNotFoundError):
        files.read_note(tmp_path / "gone.ckpt")


class Tail(io.BytesIO):
    """Counts what is read."""

    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def test_a_note_is_read_from_the_end_of_the_file_only() -> None:
    buffer = Tail()
    writer = container.SealedWriter(buffer, container.encode(NOTE))
    torch.save({"weight": torch.zeros(1_000_000)}, writer)
    writer.seal()
    assert container.read_note(buffer) == NOTE
    assert buffer.bytes_read < 70_000


def test_of_a_note_that_is_too_long_the_oldest_entries_of_the_longest_list_are_left_out() -> None:
    note = {"step": 5, "short": [1, 2, 3], "history": [{"step": step, "score": 1 / 3} for step in range(5000)]}
    kept = json.loads(container.encode(note))
    count = len(kept["history"])
    assert 1000 < count < 5000
    assert kept["history"] == note["history"][-count:]  # type: ignore[index]
    assert kept["dropped"] == {"history": 5000 - count}
    assert (kept["step"], kept["short"]) == (5, [1, 2, 3])


def test_a_long_note_without_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="has room for 65449 bytes of JSON, and this one is 70011"):
        container.encode({"text": "x" * 70_000})


def test_a_note_that_is_not_plain_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.atomic_save({}, tmp_path / "a.ckpt", {"score": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


# Verifying


def test_whole_files_pass(sealed: bytes, foreign: bytes) -> None:
    check(sealed)
    check(foreign)


@given(data=st.data(), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found(data: st.DataObject, bit: int, sealed: bytes) -> None:
    at = data.draw(st.integers(0, len(sealed) - 1) | st.integers(len(sealed) - 250, len(sealed) - 1))
    damaged = bytearray(sealed)
    damaged[at] ^= 1 << bit
    with pytest.raises(CheckpointError, match=r"^a\.ckpt is damaged: .* Use an earlier checkpoint"):
        check(bytes(damaged))


@given(data=st.data())
def test_a_file_cut_short_or_with_more_behind_it_is_found(data: st.DataObject, sealed: bytes) -> None:
    length = data.draw(st.integers(4, len(sealed) - 1))
    with pytest.raises(CheckpointError, match="is damaged: its end is missing"):
        check(sealed[:length])
    with pytest.raises(CheckpointError, match="is damaged"):
        check(sealed + data.draw(st.binary(min_size=1)))


def test_bytes_that_are_missing_or_doubled_in_the_middle_are_found(sealed: bytes) -> None:
    for damaged in (sealed[:2000] + sealed[2100:], sealed[:2000] + sealed[1900:]):
        with pytest.raises(CheckpointError, match="its checksum is"):
            check(damaged)


def test_a_flipped_byte_in_the_data_of_another_torch_file_is_found_with_its_record(foreign: bytes) -> None:
    at = foreign.index(b"FB") + 2000
    damaged = bytearray(foreign)
    damaged[at] ^= 1
    with pytest.raises(CheckpointError, match=r"the checksum of its record archive/data/0 is wrong"):
        check(bytes(damaged))


@given(data=st.data())
def test_wrong_bytes_in_another_file_are_found_or_do_no_harm(data: st.DataObject, foreign: bytes) -> None:
    damaged = bytearray(foreign)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(4, len(foreign) - 1) | st.integers(len(foreign) - 700, len(foreign) - 1))] = 255
    with contextlib.suppress(CheckpointError):
        check(bytes(damaged))


def test_a_hostile_note_is_no_note() -> None:
    for text in (b"[" * 60_000, b"\xff", b"3", b"{"):
        buffer = io.BytesIO()
        writer = container.SealedWriter(buffer, text)
        torch.save({}, writer)
        writer.seal()
        assert container.read_note(buffer) is None


def test_another_torch_file_cut_short_is_found(foreign: bytes) -> None:
    with pytest.raises(CheckpointError, match="its end is missing"):
        check(foreign[:-1])


def test_what_is_verified_is_named(tmp_path: Path) -> None:
    files.atomic_save({"epoch": 1}, tmp_path / "a.ckpt", NOTE)
    files.verify(tmp_path / "a.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"empty\.ckpt cannot be read: .*it is empty"):
        files.verify(tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match="is a directory"):
        files.verify(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        files.verify(tmp_path / "gone.ckpt")


def test_a_file_in_the_format_without_checksums_passes_if_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"weight": torch.randn(1000)}, path, _use_new_zipfile_serialization=False)
    files.verify(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"old\.ckpt cannot be read"):
        files.verify(path)
    torch.save({"path": tmp_path}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.ckpt cannot be verified: .* no checksums, and holds objects"):
        files.verify(path)


def test_files_in_stores_are_verified_too() -> None:
    files.atomic_save({"epoch": 1}, "memory://test_container/a.ckpt", NOTE)
    files.verify("memory://test_container/a.ckpt")
    assert files.read_note("memory://test_container/a.ckpt") == NOTE
    files.remove("memory://test_container")
