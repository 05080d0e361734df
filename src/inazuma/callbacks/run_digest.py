"""Keep a few bytes per training batch that tell where two runs part, and a record of how the run was started."""

from __future__ import annotations

import math
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inazuma import files
from inazuma.callbacks.callback import Callback
from inazuma.callbacks.digest_file import DIGEST_NAME, HEADER, RECORD_BYTES, Digest, pack_record, read_digest
from inazuma.callbacks.run_record import RECORD_NAME, new_session, now, read_sessions, write_sessions
from inazuma.errors import MisconfigurationException
from inazuma.fingerprints import Generators, Hash, ModuleTensors, of_batch, resolve
from inazuma.ranks import rank_zero_warn

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class RunDigest(Callback):
    """Note for each training batch the data, noise, loss, gradient and weights as hashes, in a file of 36 bytes each.

    `inazuma diff RUN_A RUN_B` names the first batch and component in which two runs part; `inazuma replay RUN` trains
    up to a step of the run again. Beside `digest.bin` lies `run.json`: versions, git commit, program and arguments,
    seeds, settings, start and end.

    A resumed run continues the file, from the position of its checkpoint on; where the folder has the digest of
    another run, its files get a number in their names and a new one begins. A digest says that bits are the same, so
    compare runs of one machine. In a `fast_dev_run`, and on ranks other than 0, nothing is written.

    On the CPU a batch costs some microseconds and one read of the gradients and weights. On other devices the hashes
    are computed there and fetched at a flush; nothing waits for the device before.

    Args:
        dirpath: a local folder. Default: `trainer.log_dir`, which is `default_root_dir` without a logger.
        flush_every_n_batches: write to the file that often, and besides when a checkpoint is saved and at the end. A
            process that is killed loses the batches since.

    Raises:
        MisconfigurationException: `dirpath` is an address and no folder, or a flush is less than every batch.
    """

    def __init__(self, dirpath: files.PathLike | None = None, flush_every_n_batches: int = 100) -> None:
        if flush_every_n_batches < 1:
            raise MisconfigurationException(
                f"RunDigest(flush_every_n_batches={flush_every_n_batches!r}) should be a number of batches, at least 1."
            )
        if dirpath is not None:
            _check_local(dirpath, f"RunDigest(dirpath={os.fspath(dirpath)!r})")
        self.dirpath = dirpath
        self.flush_every_n_batches = flush_every_n_batches
        self._path: Path | None = None  # of the file, while it is written
        self._sessions: list[dict[str, Any]] = []
        self._rows: list[_Row] = []  # not written yet
        self._count = self._crc = 0  # of what is written: how many records, and their CRC-32
        self._resumed: dict[str, int] | None = None

    # The run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._path = None
        if stage == "fit":
            self._resumed = self.state_dict() or None  # of an earlier fit, which this one may go on
            if self.dirpath is None and trainer.log_dir is not None:
                _check_local(trainer.log_dir, f"RunDigest() in the log directory {trainer.log_dir!r}")

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resumed = state_dict

    def state_dict(self) -> dict[str, int]:
        """How much of the file the checkpoint covers. Writes what waits, so that the file is never behind it."""
        self.flush(to_disk=True)
        return {"batches": self._count, "crc32": self._crc} if self._count else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder = Path(files.resolve(self.dirpath or trainer.log_dir or trainer.default_root_dir))
        at = self._progress = trainer.progress
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(folder, (at.epoch, at.batch))
            self._sessions.append(new_session(trainer))
            write_sessions(folder, self._sessions)
        except OSError as error:
            self._give_up(error)
        self.on_train_epoch_start(trainer, pl_module)  # a run that is resumed inside an epoch does not start it

    def _open(self, folder: Path, position: tuple[int, int]) -> None:
        """Cut the file back to the position and go on with it, if it is of this run; else begin a new one."""
        path = folder / DIGEST_NAME
        kept = _digest_of_this_run(path, self._resumed) if self._resumed and position > (0, 0) else None
        if kept is None:
            for name in (DIGEST_NAME, RECORD_NAME):
                _put_aside(folder / name)
            path.write_bytes(HEADER)
            self._count, self._crc, self._sessions = 0, 0, []
        else:
            self._count = kept.index_of(position)
            data = kept.data[: self._count * RECORD_BYTES]
            self._crc = zlib.crc32(data)
            os.truncate(path, len(HEADER) + len(data))
            self._sessions = read_sessions(folder) if (folder / RECORD_NAME).exists() else []
        self._path = path

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path is not None:
            self._tensors, self._generators = ModuleTensors(pl_module), Generators()
            self._begin_batch(0, 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        message = str(exception).split("\n", 1)[0]
        self._end(trainer, f"{type(exception).__name__}: {message}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._end(trainer, f"finished: {trainer.limits.training_done(trainer.progress)}")

    def _end(self, trainer: Trainer, reason: str) -> None:
        if self._path is None:
            return
        self.flush(to_disk=True)
        if self._path is not None:  # the flush went well
            self._sessions[-1].update(end=now(), exit=reason, seconds=trainer.timing.seconds)
            try:
                write_sessions(self._path.parent, self._sessions)
            except OSError as error:
                self._give_up(error)
        self._path = None

    # One batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._path is not None:
            self._begin_batch(of_batch(batch), self._generators.hash())

    def _begin_batch(self, data: Hash, noise: int) -> None:
        self._data, self._noise, self._step = data, noise, self._progress.step
        self._gradient: Hash | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._path is not None:
            self._gradient = self._tensors.gradients(self._gradient or 0)  # of all steps of the batch, in order

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._path is None:
            return
        tensors, gradient = self._tensors, self._gradient
        if gradient is None:  # no step: an accumulation window is open
            gradient = tensors.gradients()
        position = self._progress.epoch, batch_idx, self._step
        loss = _loss_of(outputs)
        self._rows.append((*position, self._data, self._noise, loss, gradient, tensors.weights()))
        if batch is None:  # such a batch is skipped, and does not start
            self._begin_batch(0, 0)
        if len(self._rows) >= self.flush_every_n_batches:
            self.flush()

    # The file

    def flush(self, to_disk: bool = False) -> None:
        """Write what waits; where hashes lie on a device, wait for it.

        Args:
            to_disk: and wait for the disk. Else the operating system has it: killing the process loses nothing.
        """
        if self._path is None:
            return
        data = _pack(self._rows)
        self._rows = []
        try:
            with open(self._path, "ab") as file:
                file.write(data)
                file.flush()
                if to_disk:
                    os.fsync(file.fileno())
        except OSError as error:
            self._give_up(error)
            return
        self._count += len(data) // RECORD_BYTES
        self._crc = zlib.crc32(data, self._crc)

    def _give_up(self, error: OSError) -> None:
        """A digest that cannot be written does not end the run."""
        rank_zero_warn(
            f"RunDigest cannot write ({error}), and keeps no digest of this run from here on. Training goes on. Free "
            "space, or give it another folder with RunDigest(dirpath=...)."
        )
        self._path, self._rows, self._count = None, [], 0


_Row = tuple[int, int, int, Hash, int, float | Tensor, Hash, Hash]  # a `Record` whose hashes may lie on a device


def _pack(rows: list[_Row]) -> bytes:
    """The rows as records."""
    if all(type(loss) is float and type(weights) is int for *_, loss, _, weights in rows):  # nothing lies on a device
        with suppress(struct.error):  # or is it the data?
            return b"".join([pack_record(*row) for row in rows])
    hashes = iter(resolve([each for *_, data, _, _, gradient, weights in rows for each in (data, gradient, weights)]))
    waiting = [loss for *_, loss, _, _ in rows if isinstance(loss, Tensor)]
    losses = iter(torch.stack(waiting).tolist() if waiting else [])
    packed = []
    for epoch, batch, step, _, noise, loss, _, _ in rows:
        number = next(losses) if isinstance(loss, Tensor) else loss
        data, gradient, weights = next(hashes), next(hashes), next(hashes)
        packed.append(pack_record(epoch, batch, step, data, noise, number, gradient, weights))
    return b"".join(packed)


def _loss_of(outputs: Any) -> float | Tensor:
    """The loss among the outputs of a step: a number, or float64 where it was computed; NaN where there is none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    if not isinstance(loss, Tensor):
        return float(loss) if isinstance(loss, (int, float)) else math.nan
    if loss.numel() != 1:
        loss = loss.sum()
    return loss.item() if loss.is_cpu else loss.to(torch.float64, copy=True)


def covered_by(digest: Digest, state: dict[str, int]) -> bool:
    """Whether a digest begins with what the `state` of a `RunDigest` in a checkpoint covers."""
    covered = digest.data[: state["batches"] * RECORD_BYTES]
    return len(covered) == state["batches"] * RECORD_BYTES and zlib.crc32(covered) == state["crc32"]


def _digest_of_this_run(path: Path, state: dict[str, int]) -> Digest | None:
    try:
        digest = read_digest(path)
    except (FileNotFoundError, ValueError):
        return None
    return digest if covered_by(digest, state) else None


def _put_aside(path: Path) -> None:
    """Give a file of another run a name with a number."""
    if path.exists():
        number = 0
        while (aside := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)


def _check_local(folder: files.PathLike, what: str) -> None:
    if not files.is_local(folder):
        raise MisconfigurationException(
            f"{what} is an address, and a digest grows in place, on a local disk. Use RunDigest(dirpath=<a folder>)."
        )
