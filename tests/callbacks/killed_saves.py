"""Start a run again and again and kill it while it saves: `python killed_saves.py DIRECTORY KILLS SEED`.

Each run is a process of its own, forked from one that has imported torch already, and ends by SIGKILL at a random
moment. Prints one JSON line: the step each run began at, how many kills left a half-written file behind, and the
exit code of a last run that is left alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import IO, Any

import torch
import torch._dynamo  # which the first optimizer would import, in each process anew
from torch.utils.data import DataLoader

import inazuma
from inazuma import files
from inazuma.callbacks import Callback, ModelCheckpoint
from inazuma.errors import CheckpointError


class Model(inazuma.LightningModule):
    """Two megabytes, so that most of the time goes into saving."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(500, 1000)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Tell(Callback):
    """Tells the parent at which step training begins and each step before it is saved; ends it after `steps`."""

    def __init__(self, pipe: int, steps: int) -> None:
        self.pipe, self.steps = pipe, steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        os.write(self.pipe, f"{trainer.global_step}\n".encode())
        self.end = trainer.global_step + self.steps

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        os.write(self.pipe, b"step\n")
        trainer.should_stop = trainer.global_step >= self.end


def run(directory: Path, pipe: int, steps: int) -> None:
    keep = ModelCheckpoint(
        directory, monitor="step", mode="max", save_top_k=2, save_last=True, every_n_train_steps=1, filename="{step}"
    )
    warnings.simplefilter("ignore")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = inazuma.Trainer(
        max_epochs=-1, min_epochs=0, accelerator="cpu", callbacks=[Tell(pipe, steps), keep], **quiet
    )
    trainer.fit(Model(), DataLoader(torch.ones(10_000, 500), batch_size=1), ckpt_path="auto")


def start(directory: Path, steps: int) -> tuple[int, IO[str], int]:
    """Fork a run. Returns, once training has begun, its process id, what it tells, and the step it began at."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        try:
            run(directory, writer, steps)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    os.close(writer)
    told = os.fdopen(reader)
    return pid, told, int(told.readline() or -1)


def is_whole(path: Path) -> bool:
    try:
        files.verify(path)
        torch.load(path, weights_only=True)
    except CheckpointError:
        return False
    return True


def main(directory: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    began, halves, whole = [], 0, []
    for _ in range(kills):
        pid, told, step = start(directory, 1000)
        began.append(step)
        for _ in range(draw.randint(2, 4)):
            since = time.monotonic()
            told.readline()
        time.sleep(draw.uniform(0, time.monotonic() - since))  # the length of a step, nearly all of it saving
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told.close()
        halves += any(path.suffix == ".tmp" for path in directory.iterdir())
        whole.append(all(is_whole(path) for path in directory.glob("*.ckpt")))
    pid, told, step = start(directory, 3)
    told.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"began": [*began, step], "halves": halves, "whole": whole, "code": code}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
