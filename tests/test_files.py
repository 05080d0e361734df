import argparse
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from inazuma import files
from inazuma.errors import CheckpointError


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


class Own:
    """A class that torch does not know."""


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_was_saved_is_loaded_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.ckpt"
    files.atomic_save({"weight": torch.arange(3), "epoch": 1}, path)
    files.atomic_save({"weight": torch.arange(4), "epoch": 2}, path)
    loaded = files.load(path)
    assert loaded["epoch"] == 2
    assert loaded["weight"].tolist() == [0, 1, 2, 3]
    assert names(path.parent) == ["a.ckpt"]


def test_a_saved_file_has_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.atomic_save({}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    files.atomic_save({"epoch": 1}, path)
    with pytest.raises(RuntimeError, match="not this one"):
        files.atomic_save({"big": torch.zeros(1000), "bad": Unpicklable()}, path)
    assert files.load(path) == {"epoch": 1}
    assert names(tmp_path) == ["a.ckpt"]


def test_a_name_as_long_as_the_file_system_allows_can_be_saved(tmp_path: Path) -> None:
    files.atomic_save({"epoch": 1}, tmp_path / ("x" * 255))
    assert files.load(tmp_path / ("x" * 255)) == {"epoch": 1}


# Reading


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Checkpoint file not found: .*gone\.ckpt"):
        files.load(tmp_path / "gone.ckpt")


def test_a_directory_is_no_checkpoint_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a directory, not a checkpoint file"):
        files.load(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.ckpt"
    torch.save({"weight": torch.randn(5000), "name": "x"}, path)
    return path.read_bytes()


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("share", [0, 0.0005, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_its_name(
    share: float, weights_only: bool, whole: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt cannot be read: .* Use an earlier checkpoint"):
        files.load(path, weights_only=weights_only)


@pytest.mark.parametrize("content", [b"hello, world", bytes(3000), b"\x80\x02 no pickle", b"PK\x03\x04 no zip"])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        files.load(path)


def test_a_truncated_file_in_the_old_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"weight": torch.randn(1000)}, path, _use_new_zipfile_serialization=False)
    assert files.load(path)["weight"].shape == (1000,)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"old\.ckpt cannot be read"):
        files.load(path)


def test_another_zip_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(CheckpointError, match=r"a\.zip cannot be read"):
        files.load(tmp_path / "a.zip")


def test_a_file_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="it holds a list, not a dictionary"):
        files.load(tmp_path / "list.ckpt")


def test_objects_are_refused_by_name_unless_the_file_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "own.ckpt"
    torch.save({"own": argparse.ArgumentParser}, path)
    with pytest.raises(pickle.UnpicklingError, match=r"own\.ckpt holds argparse.ArgumentParser, .* weights_only=False"):
        files.load(path)
    assert files.load(path, weights_only=False) == {"own": argparse.ArgumentParser}


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"evil": Evil(tmp_path / "mark")}, tmp_path / "a.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="holds posix.mkdir"):
        files.load(tmp_path / "a.ckpt")
    assert not (tmp_path / "mark").exists()


def test_hyper_parameters_of_lightning_open_safely_as_plain_data(tmp_path: Path) -> None:
    from lightning.fabric.utilities.data import AttributeDict as FabricDict
    from lightning.pytorch.utilities import AttributeDict

    content = {"a": AttributeDict(x=1), "b": FabricDict(y=AttributeDict(z=2)), "c": argparse.Namespace(q=3)}
    torch.save(content, tmp_path / "a.ckpt")
    loaded = files.load(tmp_path / "a.ckpt")
    assert loaded == {"a": {"x": 1}, "b": {"y": {"z": 2}}, "c": argparse.Namespace(q=3)}
    assert type(loaded["a"]) is dict


def test_an_open_file_is_read(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.ckpt")
    with open(tmp_path / "a.ckpt", "rb") as file:
        assert files.load(file) == {"epoch": 3}


def test_map_location_says_where_tensors_go(tmp_path: Path) -> None:
    files.atomic_save({"weight": torch.zeros(2)}, tmp_path / "a.ckpt")
    assert files.load(tmp_path / "a.ckpt", map_location="meta")["weight"].device.type == "meta"


# Remote


def test_addresses_work_like_paths() -> None:
    folder = "memory://test_files/deep"
    path = files.join(folder, "a.ckpt")
    files.atomic_save({"epoch": 1}, path)
    files.atomic_save({"epoch": 2}, path)
    assert files.load(path) == {"epoch": 2}
    assert files.listdir(folder) == [path]
    assert files.exists(path)
    assert not files.isdir(path)
    with pytest.raises(RuntimeError, match="not this one"):
        files.atomic_save({"bad": Unpicklable()}, path)
    assert files.listdir(folder) == [path]
    assert files.load(path) == {"epoch": 2}
    files.remove(folder)
    files.remove(folder)
    assert not files.exists(path)
    assert files.listdir(folder) == []
    with pytest.raises(FileNotFoundError, match=r"Checkpoint file not found: memory://test_files/deep/a\.ckpt"):
        files.load(path)


def test_an_address_without_fsspec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"'s3://bucket/a.ckpt' .* pip install inazuma\[remote\]"):
        files.atomic_save({}, "s3://bucket/a.ckpt")


# Paths


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("a/b", True),
        ("/a/b", True),
        ("~/a", True),
        (r"C:\a", True),
        ("file:///a", True),
        (Path("a"), True),
        ("s3://bucket", False),
        ("memory://x", False),
        ("simplecache::s3://bucket", False),
    ],
)
def test_addresses_are_told_from_paths(path: str, local: bool) -> None:
    assert files.is_local(path) is local


def test_one_place_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ["real", "link", "~/real", "./link/../real", f"file://{tmp_path}/real"]
    assert {files.resolve(path) for path in spellings} == {str(tmp_path / "real")}
    assert files.resolve("s3://bucket/a") == "s3://bucket/a"


def test_folders_are_made_listed_and_removed(tmp_path: Path) -> None:
    folder = files.join(tmp_path, "a", "b")
    assert files.listdir(folder) == []
    files.makedirs(folder)
    files.makedirs(folder)
    assert files.isdir(folder)
    files.atomic_save({}, files.join(folder, "y"))
    files.atomic_save({}, files.join(folder, "x"))
    assert files.listdir(folder) == [files.join(folder, "x"), files.join(folder, "y")]
    files.remove(files.join(folder, "x"))
    assert not files.exists(files.join(folder, "x"))
    files.remove(folder)
    files.remove(folder)
    assert not files.exists(folder)


def test_removing_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files.remove(tmp_path / "link")
    assert names(tmp_path) == ["real"]
