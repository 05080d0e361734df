"""Training runs in processes of their own, for tests that end them by signals.

python -m tests.runs_to_end      reads one job a line, as JSON; forks a process group for it, which is quick once
                                 torch is loaded; tells its pid, what it says, and at last its exit status
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from inazuma import Callback, LightningModule, Trainer, seed_everything
from inazuma.callbacks import ModelCheckpoint
from inazuma.plugins.environments import SLURMEnvironment


class Numbers(Dataset[Tensor]):
    """Samples that take their time; one that hangs, on demand."""

    def __init__(self, length: int, hangs_at: int | None = None) -> None:
        self.length, self.hangs_at = length, hangs_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if index == self.hangs_at:
            say("hangs")
            time.sleep(100)
        time.sleep(0.003)
        return torch.randn(4, generator=torch.Generator().manual_seed(index))


class Net(LightningModule):
    """Dropout draws numbers in each forward pass; batch norm has buffers; the step takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.layers(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(0.005)
        self.log("val_loss", self.layers(batch).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


class Watch(Callback):
    """Says what happens, and sleeps in a hook on demand."""

    def __init__(self, sleeps_at: int | None) -> None:
        self.sleeps_at, self.is_ready = sleeps_at, False

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.is_ready:
            self.is_ready = True
            say("ready")
        if trainer.global_step == self.sleeps_at:
            say("sleeps")
            time.sleep(100)

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        say(f"saves in {os.getpid()}")

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        say(f"heard {type(exception).__name__} {trainer.received_sigterm} {trainer.interrupted}")


def say(words: str) -> None:
    os.write(1, f"{words}\n".encode())


def run(job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    os.environ.update(job.get("env", {}))
    if job.get("prompt"):
        sys.ps1 = ">>> "
    if job.get("ignores"):
        signal.signal(job["ignores"], signal.SIG_IGN)
    else:  # a shell that started the tests in the background has it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    seed_everything(1)
    train = DataLoader(
        Numbers(48, job.get("hangs_at")),
        batch_size=4,
        shuffle=True,
        num_workers=2,
        persistent_workers=job.get("persistent", False),
        multiprocessing_context=job.get("context"),
    )
    checkpoint = ModelCheckpoint(dirpath=folder / "kept", save_top_k=job.get("top_k", 1))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=4,
        accumulate_grad_batches=2,
        val_check_interval=5,
        logger=False,
        callbacks=[Watch(job.get("sleeps_at")), *([] if job.get("keeps") is False else [checkpoint])],
        enable_checkpointing=job.get("keeps") is not False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        plugins=[SLURMEnvironment(**job["slurm"])] if "slurm" in job else None,
        **job.get("trainer", {}),
    )
    net, val = Net(), DataLoader(Numbers(16), batch_size=4)
    for _ in range(job.get("fits", 1)):
        trainer.fit(net, train, val, ckpt_path=job.get("ckpt_path"))
        say(f"{trainer.state.status} at {trainer.global_step}")
    weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    say(f"weights {hashlib.sha256(weights).hexdigest()}")


def serve() -> dict[str, Any]:
    """Fork one process per job. Returns the job, in the process that is to do it."""
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            os.setsid()
            job: dict[str, Any] = json.loads(line)
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 2)
            return job
        say(f"pid {pid}")
        _, status = os.waitpid(pid, 0)
        say(f"status {os.waitstatus_to_exitcode(status)}")
    sys.exit()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    Net().configure_optimizers()  # torch loads half of itself for the first optimizer
    gc.freeze()  # the processes forked from here neither look at all that was loaded nor copy it
    run(serve())
