"""Save the run when an exception ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inazuma import files
from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.ranks import rank_zero_warn

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Save a checkpoint when `fit` ends by an exception, and remove it when a later `fit` ends well.

    A file that cannot be written (a full disk, an error of a store) is warned of: the exception is what counts.

    While this callback is there, `trainer.fit(model)` without `ckpt_path` continues from the newest of this file and
    the `last` files.

    Args:
        dirpath: where to save, a local path or an address for fsspec.
        filename: name without extension.

    Raises:
        ValueError: `filename` is empty.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: files.PathLike, filename: str = "on_exception") -> None:
        super().__init__()
        if not filename:
            raise ValueError(f"OnExceptionCheckpoint(filename={filename!r}): the filename cannot be empty.")
        self.dirpath = dirpath
        self.filename = filename
        self._is_training = False

    @property
    def ckpt_path(self) -> str:
        """The file to write."""
        return files.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            files.remove_leftovers(self.dirpath)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_training = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # What fails before training, as a resume may, has nothing new to save, and must not write over what is there.
        if self._is_training:
            self._is_training = False
            trainer.checkpoint_note = {"kind": "exception"}
            try:
                trainer.save_checkpoint(self.ckpt_path)
            except OSError as error:
                rank_zero_warn(f"OnExceptionCheckpoint(dirpath={str(self.dirpath)!r}): {error}")
            finally:
                trainer.checkpoint_note = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._is_training = False
            trainer.strategy.remove_checkpoint(self.ckpt_path)
