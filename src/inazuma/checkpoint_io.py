"""Reading and writing of checkpoint files, as an object that users may replace."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from inazuma import files
from inazuma.ranks import rank_zero_warn
from inazuma.snapshot import Snapshots


class CheckpointIO:
    """How checkpoints are stored. Subclass it and pass it as `Trainer(plugins=...)` to store them elsewhere.

    Attributes:
        keeps_notes: `save_checkpoint` takes `storage_options={"note": {...}}`, plain data that goes into the file for
            `files.read_note`.
    """

    keeps_notes = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`: whole, or not at all."""
        raise NotImplementedError(f"{type(self).__name__} must implement `save_checkpoint`.")

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint at `path`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `load_checkpoint`.")

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the checkpoint at `path`."""
        raise NotImplementedError(f"{type(self).__name__} must implement `remove_checkpoint`.")

    def after_saving(self, action: Callable[[], object]) -> None:
        """Call `action` once what was saved so far is safe; do not call it if that failed.

        For what must not come before the bytes: to remove an older file, to point a link to a newer one.
        """
        action()

    def teardown(self) -> None:
        """Finish what is still being written."""


class TorchCheckpointIO(CheckpointIO):
    """Checkpoints as files of `torch.save`, on local disks or, through fsspec, elsewhere.

    Each carries its checksum, and a note with epoch, global step, torch's version and what the caller adds.
    """

    keeps_notes = True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        note: dict[str, Any] = {}
        if isinstance(storage_options, dict) and set(storage_options) == {"note"}:
            note = storage_options["note"]
        elif storage_options is not None:
            raise TypeError(
                f"`Trainer.save_checkpoint(..., storage_options={storage_options!r})` needs a CheckpointIO that knows "
                f"them; `{type(self).__name__}` does not. Pass one as `Trainer(plugins=...)`."
            )
        about: dict[str, Any] = {key: checkpoint[key] for key in ("epoch", "global_step") if key in checkpoint}
        files.atomic_save(checkpoint, path, {**about, "torch": str(torch.__version__), **note})

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return files.load(path, map_location=map_location, weights_only=weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        if files.exists(path):
            files.remove(path)


class AsyncCheckpointIO(CheckpointIO):
    """Lets training go on while a checkpoint is written: `Trainer(async_checkpointing=True)`.

    A save copies the state to CPU memory, which is all that training waits for, and hands the copy to a thread that
    lives as long as the run. One save is in the works at a time; the next one waits for it. What comes after a save,
    the removal of an older file too, happens once the saves before it are safe, and not at all if one of them failed:
    a process that is killed at any moment leaves what was there before.

    A failure shows at the next save or load, or at the end of the run: as a warning if the disk or the store did not
    take a file (`CheckpointNotSaved`, any `OSError`), else as the exception.

    Args:
        checkpoint_io: does the work; `TorchCheckpointIO()` by default.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io = checkpoint_io or TorchCheckpointIO()
        self._snapshots = Snapshots()
        self._thread = _Thread()
        weakref.finalize(self, self._thread.finish)  # when the program ends, too

    @property
    def keeps_notes(self) -> bool:  # type: ignore[override]
        return self.checkpoint_io.keeps_notes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self._thread.wait()  # it holds the memory of the copy
        state = self._snapshots.take(checkpoint)
        self._thread.save(lambda: self.checkpoint_io.save_checkpoint(state, path, storage_options))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self._thread.wait()
        return self.checkpoint_io.load_checkpoint(path, map_location=map_location, weights_only=weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        self.after_saving(lambda: self.checkpoint_io.remove_checkpoint(path))

    def after_saving(self, action: Callable[[], object]) -> None:
        self._thread.after_saving(lambda: self.checkpoint_io.after_saving(action))

    def teardown(self) -> None:
        try:
            self._thread.finish()
        finally:
            self._snapshots.forget()
            self.checkpoint_io.teardown()


class _Thread:
    """Saves, and what comes after them, done one by one in the background."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._todo: list[Future[object]] = []  # all that was not waited for
        self._saves: list[Future[object]] = []  # made together: those that the next removals depend on
        self._saves_are_complete = False

    def save(self, work: Callable[[], object]) -> None:
        if self._saves_are_complete:
            self._saves, self._saves_are_complete = [], False
        self._saves.append(self._do(work))

    def after_saving(self, action: Callable[[], object]) -> None:
        saves = self._saves
        self._saves_are_complete = True
        self._do(lambda: None if any(save.exception() for save in saves) else action())

    def wait(self) -> None:
        """Wait until all is done, and tell what failed."""
        todo, self._todo = self._todo, []
        failures = [failure for work in todo if (failure := work.exception()) is not None]
        for failure in failures:
            if isinstance(failure, OSError):
                rank_zero_warn(str(failure))
        for failure in failures:
            if not isinstance(failure, OSError):
                raise failure

    def finish(self) -> None:
        """Wait, and end the thread; the next save starts another."""
        if self._pool is None or self._process != os.getpid():  # a fork has the object, and not the thread
            return
        pool, self._pool = self._pool, None
        pool.shutdown()
        self._saves = []
        self.wait()

    def _do(self, work: Callable[[], object]) -> Future[object]:
        if self._pool is None:
            self._pool, self._process = ThreadPoolExecutor(1, "inazuma-checkpoints"), os.getpid()
        self._todo.append(future := self._pool.submit(work))
        return future
