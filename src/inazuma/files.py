"""Checkpoint files: whole or absent when written, safe and plainly refused when read; local, or remote by fsspec."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch

from inazuma import container, saving
from inazuma.errors import CheckpointError

PathLike: TypeAlias = str | os.PathLike[str]
MapLocation: TypeAlias = str | torch.device | dict[str, str] | Callable[[Any, str], Any] | None

_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # a zip file; the format of torch before 1.6
# Classes without code of their own that hyper-parameters in Lightning's files are made of.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    (dict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")  # at least two letters: "C:\" is a drive


# ---------------------------------------------------------------------------------------------------- paths


def is_local(path: PathLike) -> bool:
    """Whether `path` is on a disk of this machine, and not an address such as "s3://bucket/folder"."""
    text = os.fspath(path)
    return text.startswith("file://") or _URL.match(text) is None


def resolve(path: PathLike) -> str:
    """One spelling for each place: a local path becomes absolute, with `~` and links followed; an address is kept."""
    if not is_local(path):
        return os.fspath(path)
    return os.path.realpath(_local(path))


def join(path: PathLike, *parts: str) -> str:
    """Put names behind a path or an address."""
    if is_local(path):
        return os.path.join(_local(path), *parts)
    return "/".join([os.fspath(path).rstrip("/"), *parts])


def exists(path: PathLike) -> bool:
    """Whether there is a file or a directory at `path`."""
    if is_local(path):
        return os.path.exists(_local(path))
    fs, remote = _filesystem(path)
    return bool(fs.exists(remote))


def isdir(path: PathLike) -> bool:
    """Whether there is a directory at `path`."""
    if is_local(path):
        return os.path.isdir(_local(path))
    fs, remote = _filesystem(path)
    return bool(fs.isdir(remote))


def modified_at(path: PathLike) -> float:
    """When a file was written last, in seconds of the clock of its store."""
    if is_local(path):
        return os.path.getmtime(_local(path))
    fs, remote = _filesystem(path)
    return float(fs.modified(remote).timestamp())


def makedirs(path: PathLike) -> None:
    """Create a directory and its parents where they are missing."""
    if is_local(path):
        os.makedirs(_local(path), exist_ok=True)
        return
    fs, remote = _filesystem(path)
    fs.makedirs(remote, exist_ok=True)


def listdir(path: PathLike) -> list[str]:
    """The full paths of what a directory holds, sorted; empty if there is no such directory."""
    if not isdir(path):
        return []
    if is_local(path):
        names = os.listdir(_local(path))
    else:
        fs, remote = _filesystem(path)
        names = [os.path.basename(name.rstrip("/")) for name in fs.ls(remote, detail=False)]
    return sorted(join(path, name) for name in names)


def remove(path: PathLike) -> None:
    """Delete a file, or a directory with all it holds. One that is gone already is fine: ranks may race."""
    if not is_local(path):
        fs, remote = _filesystem(path)
        saving.retried(lambda: fs.rm(remote, recursive=True) if fs.exists(remote) else None)
    elif isdir(path) and not os.path.islink(_local(path)):
        shutil.rmtree(_local(path), ignore_errors=False)
    else:
        Path(_local(path)).unlink(missing_ok=True)


def _local(path: PathLike) -> str:
    return os.path.expanduser(os.fspath(path).removeprefix("file://"))


def _filesystem(path: PathLike) -> tuple[Any, str]:
    """The fsspec file system of an address, and the address as this file system spells it."""
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"The path {os.fspath(path)!r} is not on a local disk. Paths like this need the package fsspec: "
            "pip install inazuma[remote]"
        ) from error
    fs, remote = fsspec.core.url_to_fs(os.fspath(path))
    return fs, remote


# ---------------------------------------------------------------------------------------------------- write


def atomic_save(obj: Any, path: PathLike, note: Mapping[str, Any] | None = None) -> str:
    """`torch.save(obj, path)` such that, whatever happens, `path` holds the whole old content or the whole new one.

    The bytes go to a hidden file beside the target, are flushed to the disk, and the file is then renamed. Directories
    that are missing are created. Writing streams: it needs no memory for a second copy. The file carries its checksum
    and a note (`container`); in a store, its size is checked before it gets its name, and what fails for a moment is
    tried again.

    Args:
        obj: what `torch.save` takes.
        path: a local path, or an address for fsspec.
        note: plain data about the file, for `read_note`; see `container.encode` for how much.

    Returns:
        The checksum.

    Raises:
        CheckpointNotSaved: the disk or the store did not take it. The hidden file is removed and `path` is as it was.
        TypeError, ValueError: `note` is no JSON, or too long.
        ImportError: an address, and fsspec is not installed.
    """
    text = container.encode(note)
    if not is_local(path):
        fs, remote = _filesystem(path)
        return saving.save_remote(obj, fs, remote, text)
    target = Path(_local(path))
    with contextlib.suppress(OSError):  # what cannot be looked at may still be written to
        remove_leftovers(target.parent)
    return saving.save_local(obj, target, text)


def remove_leftovers(directory: PathLike) -> None:
    """Delete what killed processes of this machine left behind in a directory while they saved."""
    for path in listdir(directory):
        if saving.is_leftover(os.path.basename(path)):
            remove(path)


# ---------------------------------------------------------------------------------------------------- read


def load(
    path: PathLike | IO[bytes], map_location: MapLocation = None, weights_only: bool | None = None
) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: a local path, an address (http and https directly, others through fsspec) or an open binary file.
        map_location: as for `torch.load`. None is where the tensors were saved, or the CPU if that is missing here.
        weights_only: refuse files that hold more than tensors and plain data, as `torch.load` does. False runs code
            that the file names. None is True.

    Raises:
        FileNotFoundError: there is no file.
        TypeError: `path` is none of these.
        CheckpointError: the file is damaged, or not a checkpoint.
        pickle.UnpicklingError: `weights_only` refused the file; the message says what it found and how to go on.
    """
    if not isinstance(path, (str, os.PathLike)):
        if not hasattr(path, "seek"):
            raise TypeError(f"A checkpoint is a path, an address or an open binary file, not {path!r}.")
        return _read(path, "the open file", map_location, weights_only is not False)
    name = os.fspath(path)
    if name.startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory() as folder:
            downloaded = os.path.join(folder, "checkpoint")
            torch.hub.download_url_to_file(name, downloaded, progress=False)
            with open(downloaded, "rb") as file:
                return _read(file, name, map_location, weights_only is not False)
    if not exists(path):
        raise FileNotFoundError(f"Checkpoint file not found: {name}")
    if isdir(path):
        raise CheckpointError(f"{name} is a directory, not a checkpoint file. Name a file in it.")
    with open_for_reading(path) as file:
        return _read(file, name, map_location, weights_only is not False)


def read_note(path: PathLike) -> dict[str, Any] | None:
    """The note that `atomic_save` wrote into a file, read from its last bytes; None for a file without one.

    Raises:
        FileNotFoundError: there is no file.
    """
    with open_for_reading(path) as file:
        return container.read_note(file)


def verify(path: PathLike) -> None:
    """Read all of a checkpoint file and compare it with its checksum. Nothing in it is run, or kept in memory.

    A file of inazuma has one checksum over all its bytes. In other files of torch each record has one. The format of
    torch before 1.6 has none: such a file passes if it can be loaded with `weights_only=True`.

    Raises:
        FileNotFoundError: there is no file.
        CheckpointError: the file is damaged, cut short, or not a checkpoint; the message says which and how.
    """
    name = os.fspath(path)
    if not exists(path):
        raise FileNotFoundError(f"Checkpoint file not found: {name}")
    if isdir(path):
        raise CheckpointError(f"{name} is a directory, not a checkpoint file. Name a file in it.")
    with open_for_reading(path) as file:
        if file.read(4) == _MAGIC[0]:
            container.check(file, name)
            return
        file.seek(0)
        try:
            _read(file, name, "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{name} cannot be verified: it is in the format of torch before 1.6, which has no checksums, and "
                "holds objects. Save it again with a newer torch."
            ) from error


def weights_of(checkpoint: Mapping[str, Any], name: object) -> dict[str, Any]:
    """The weights in the checkpoint of a module, read from a file of this name.

    Raises:
        CheckpointError: there are none.
    """
    state = checkpoint.get("state_dict")
    if isinstance(state, Mapping) and all(isinstance(key, str) for key in state):
        return state  # type: ignore[return-value]  # an OrderedDict in files of Lightning
    hint = ""
    if checkpoint and all(isinstance(value, torch.Tensor) for value in checkpoint.values()):
        hint = " It seems to be a bare state_dict: `module.load_state_dict(torch.load(path))` loads it."
    raise CheckpointError(
        f"{name} is not a checkpoint of a module: it has no weights under 'state_dict', but "
        f"{list(checkpoint)[:8]}.{hint}"
    )


def open_for_reading(path: PathLike) -> IO[bytes]:
    """Open a local file or an address for reading bytes."""
    if is_local(path):
        return open(_local(path), "rb")
    fs, remote = _filesystem(path)
    file: IO[bytes] = fs.open(remote, "rb")
    return file


def _read(file: IO[bytes], name: str, map_location: MapLocation, weights_only: bool) -> dict[str, Any]:
    """`torch.load`, with errors that name the file, what is wrong and what to do."""
    start = file.tell()
    magic = file.read(4)
    file.seek(start)
    if not magic.startswith(_MAGIC):
        raise _damaged(name, "it is empty" if not magic else f"it starts with the bytes {magic!r}")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(file, map_location=map_location or _where_possible, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if (refused := re.search(r"GLOBAL (\S+)|function <.*? (\S+)>", str(error))) is None:
            raise _damaged(name, error) from error
        raise pickle.UnpicklingError(
            f"{name} holds {refused[1] or refused[2]}, which is neither a tensor nor plain data, so that it was not "
            "loaded: restoring such objects can run any code that the file's author chose. "
            "If, and only if, you trust the author, load it with weights_only=False."
        ) from error
    except RuntimeError as error:
        if (
            re.search(
                r"PytorchStreamReader|enforce fail|corrupt|EOF|magic number|legacy .tar|TorchScript|hasRecord",
                str(error),
            )
            is None
        ):
            raise  # as "CUDA is not available"
        raise _damaged(name, error) from error
    except (AttributeError, EOFError, LookupError, OSError, ValueError, struct.error, pickle.PickleError) as error:
        raise _damaged(name, error) from error  # what unpickling raises over bytes that are wrong
    if not isinstance(content, dict):
        raise CheckpointError(f"{name} is not a checkpoint: it holds a {type(content).__name__}, not a dictionary.")
    return content


def _where_possible(storage: Any, location: str) -> Any:
    """As `map_location`: the device that a storage was saved from, or the CPU where there is no such device."""
    kind, _, index = location.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        return storage.cpu()
    if kind == "mps" and not torch.backends.mps.is_available():
        return storage.cpu()
    return None  # torch decides


def _damaged(name: str, cause: str | Exception) -> CheckpointError:
    reason = (str(cause) or type(cause).__name__).splitlines()[0]
    return CheckpointError(
        f"{name} cannot be read: it is damaged, cut short, or not a checkpoint ({reason}). "
        "Use an earlier checkpoint, or copy the file again from where it came."
    )
