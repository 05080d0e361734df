"""How the bytes of a checkpoint come to a disk or a store: aside first, then, whole, to their name. See `files`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import torch

from inazuma.container import SealedWriter
from inazuma.errors import CheckpointNotSaved
from inazuma.tree import size_bytes

T = TypeVar("T")

RETRIES = 3  # of each request to a store
FIRST_WAIT_S = 0.5  # before the first of them; each later one waits twice as long
_TRANSIENT = (OSError, asyncio.TimeoutError)  # the second is an OSError only since Python 3.11
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# What pickling an object raises. Stores raise OSErrors, and classes of their own.
_OF_THE_OBJECT = (pickle.PicklingError, AttributeError, ImportError, MemoryError, RuntimeError, TypeError, ValueError)
_jitter = random.Random()  # the global generator belongs to the run


def save_local(obj: Any, target: Path, note: bytes) -> str:
    """`files.atomic_save` to a disk of this machine; `note` as `container.encode` gives it."""
    temporary = target.with_name(_temporary_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            digest, _ = _write(obj, file, note)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _flush_names(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            folder = next(path for path in (target.parent, *target.absolute().parents) if path.is_dir())
            free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
            raise _not_saved(target, obj, free, error) from error
        raise
    return digest


def save_remote(obj: Any, fs: Any, target: str, note: bytes) -> str:
    """`files.atomic_save` to a store.

    Args:
        fs: a file system of fsspec, and
        target: a path on it.
    """
    parent, _, name = target.rpartition("/")
    temporary = f"{parent}/{_temporary_name(name)}" if parent else _temporary_name(name)

    def upload() -> str:
        with fs.open(temporary, "wb") as file:
            digest, size = _write(obj, file, note)
        if (arrived := retried(lambda: fs.size(temporary))) not in (size, None):  # None: a store that does not say
            raise OSError(f"{arrived} of {size} bytes arrived")
        return digest

    def move() -> None:
        try:
            fs.mv(temporary, target)
        except Exception:
            if fs.exists(temporary) or not fs.exists(target):  # an answer may be lost after the work was done
                raise

    try:
        if parent:
            retried(lambda: fs.makedirs(parent, exist_ok=True))
        digest = retried(upload)
        retried(move)
    except BaseException as error:
        with contextlib.suppress(Exception):
            retried(lambda: fs.rm(temporary) if fs.exists(temporary) else None)
        if isinstance(error, Exception) and not isinstance(error, _OF_THE_OBJECT):
            raise _not_saved(target, obj, "the store does not say what is free", error) from error
        raise
    return digest


def retried(request: Callable[[], T]) -> T:
    """Do something in a store; again, up to `RETRIES` times, if it fails in a way that may pass."""
    for retry in range(RETRIES):
        try:
            return request()
        except _TRANSIENT as error:
            if isinstance(error, _LASTING):
                raise
            time.sleep(FIRST_WAIT_S * 2**retry * _jitter.uniform(0.5, 1.0))
    return request()


def is_leftover(name: str) -> bool:
    """Whether a file of this name was being written by a process of this machine that is dead."""
    host = re.escape(socket.gethostname()[:60])
    found = re.fullmatch(rf"\..*\.{host}\.(\d+)-(\d+)\.[0-9a-f]{{8}}\.tmp", name, re.DOTALL)
    return found is not None and not _is_alive(int(found[1]), int(found[2]))


def _write(obj: Any, file: IO[bytes], note: bytes) -> tuple[str, int]:
    """Checksum and size of what was written."""
    writer = SealedWriter(file, note)
    try:
        torch.save(obj, writer)  # type: ignore[arg-type]  # `write` and `flush` are all it calls
        return writer.seal(), writer.size_bytes
    except Exception as error:
        if writer.failure is not None and writer.failure is not error:
            raise writer.failure from error  # torch raises a RuntimeError that says less
        raise


def _not_saved(path: Path | str, obj: Any, free: str, cause: Exception) -> CheckpointNotSaved:
    return CheckpointNotSaved(
        f"{path} was not saved: {str(cause) or type(cause).__name__}. "
        f"It needs about {size_bytes(obj) / 1e6:,.1f} MB, and {free}. What was there before is unchanged."
    )


def _flush_names(folder: Path) -> None:
    """Make a rename survive a power cut."""
    if os.name != "posix":
        return
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _temporary_name(name: str) -> str:
    """A hidden name, unique to this call, that tells who writes; short enough for a file system's 255 bytes."""
    process = f"{os.getpid()}-{_started_at(os.getpid())}"
    return f".{name[:60]}.{socket.gethostname()[:60]}.{process}.{uuid.uuid4().hex[:8]}.tmp"


def _is_alive(pid: int, started_at: int) -> bool:
    if os.name != "posix":  # no harmless way to ask
        return True
    try:
        os.kill(pid, 0)  # asks, sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started_at(pid) == started_at


def _started_at(pid: int) -> int:
    """When a process began, in ticks since the machine started; 0 where nobody says.

    Containers give each of their runs the same few process ids.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[19])
