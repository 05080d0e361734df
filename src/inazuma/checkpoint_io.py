"""Reading and writing of checkpoint files, as an object that users may replace."""

from __future__ import annotations

from typing import Any

import torch

from inazuma import files


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

    def teardown(self) -> None:
        """Finish what is still being written."""


class TorchCheckpointIO(CheckpointIO):
    """Checkpoints as files of `torch.save`, on local disks or, through fsspec, elsewhere.

    Each carries its checksum, and a note with epoch, global step, torch's version and what the caller adds.
    """

    keeps_notes = True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        note: dict[str, Any] = checkpoint.get("inazuma", {}).get("note", {})
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
