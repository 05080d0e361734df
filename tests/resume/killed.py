"""A run that is killed (SIGKILL) after one of its batches and goes on in a new process, beside one that is not killed.

Run as a script, this file reads cases as lines of JSON and answers each with one line: the first difference, or null.
Every run is a process of its own; they are forked from this one, which has torch in memory, so that a run takes a tenth
of a second and not three.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    WeightedRandomSampler,
)

import inazuma as pl

BATCHES_PER_EPOCH, EPOCHS, BATCH_SIZE = 8, 4, 2
SAMPLES = BATCHES_PER_EPOCH * BATCH_SIZE


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    kill_after: int = 5  # batches, over all epochs
    workers: int = 0
    workers_then: int | None = None  # of the resumed run; None: as many
    persistent: bool = False
    order: str = "shuffle"
    data: str = "map"  # or "stream", "two loaders", "shared generator"
    accumulate: int = 1
    two_optimizers: bool = False
    given_by: str = "argument"  # or "module", "datamodule"
    val_check_interval: float | int = 1.0
    reload_every: int = 0  # epochs


class Noisy(Dataset[dict[str, Tensor]]):
    """Samples that are augmented at random from all three generators."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.rand(4) + random.random() + float(numpy.random.rand())
        return {"id": torch.tensor(index), "x": torch.arange(4.0) * index / SAMPLES + 0.1 * noise}


class NoisyStream(IterableDataset[dict[str, Tensor]]):
    """The same as a stream, in a random order; each worker gives its share."""

    def __iter__(self) -> Any:
        data, order = Noisy(), list(range(SAMPLES))
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            order = order[worker.id :: worker.num_workers]
        random.shuffle(order)
        for index in order:
            yield data[index]


class DrawsAsItGoes(Sampler[int]):
    """Draws each index when it is asked for, from two generators: the global one and one of its own."""

    def __init__(self, generator: str) -> None:
        self.rng: Any = random if generator == "global" else random.Random(7)

    def __iter__(self) -> Any:
        for _ in range(SAMPLES):
            yield int(self.rng.random() * SAMPLES)

    def __len__(self) -> int:
        return SAMPLES


class EagerBatches(Sampler[list[int]]):
    """A batch sampler that draws its order when a pass begins, before its first batch is asked for."""

    def __iter__(self) -> Any:
        return iter(torch.randperm(SAMPLES).view(-1, BATCH_SIZE).tolist())

    def __len__(self) -> int:
        return BATCHES_PER_EPOCH


def loader(case: Case, workers: int) -> Any:
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": case.persistent and workers > 0}
    if case.data == "stream":
        return DataLoader(NoisyStream(), BATCH_SIZE, **settings)
    if case.data == "two loaders":
        longer, shorter = (DataLoader(Noisy(n), BATCH_SIZE, shuffle=True, **settings) for n in (SAMPLES, 10))
        return {"a": longer, "b": shorter}
    if case.data == "shared generator":
        settings.update(shuffle=True, generator=torch.Generator().manual_seed(3))
        return [DataLoader(Noisy(n), BATCH_SIZE, **settings) for n in (SAMPLES, 10)]
    by_order: dict[str, dict[str, Any]] = {
        "in order": {},
        "shuffle": {"shuffle": True},
        "generator": {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
        "weighted": {"sampler": WeightedRandomSampler([1.0 + i for i in range(SAMPLES)], SAMPLES)},
        "draws as it goes": {"sampler": DrawsAsItGoes("global")},
        "own generator": {"sampler": DrawsAsItGoes("own")},
        "batch sampler": {"batch_sampler": BatchSampler(DrawsAsItGoes("global"), BATCH_SIZE, drop_last=False)},
        "eager batches": {"batch_sampler": EagerBatches()},
        "by epoch": {"sampler": DistributedSampler(Noisy(), num_replicas=1, rank=0)},
    }
    order = by_order[case.order]
    return DataLoader(Noisy(), **({} if "batch_sampler" in order else {"batch_size": BATCH_SIZE}), **order, **settings)


def parts_of(batch: Any) -> list[Any]:
    return batch if isinstance(batch, list) else [batch] if "x" in batch else list(batch.values())


class Net(pl.LightningModule):
    """Writes down every batch it sees."""

    def __init__(self, case: Case, trace: Path, workers: int) -> None:
        super().__init__()
        self.case, self.trace, self.workers = case, trace, workers
        self.automatic_optimization = not case.two_optimizers
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(8, 1)

    def note(self, *what: Any) -> None:
        with self.trace.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def loss(self, batch: Any) -> Tensor:
        parts = parts_of(batch)
        return torch.stack([self.head(self.body(part["x"])).square().mean() for part in parts]).sum()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch) * (1 + 0.1 * random.random() + 0.1 * float(numpy.random.rand()))
        parts = parts_of(batch)
        ids = [(part["id"].tolist(), part["x"].double().sum().item().hex()) for part in parts]
        self.note("train", self.current_epoch, batch_idx, ids, loss.item().hex())
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=BATCH_SIZE)
        if self.case.two_optimizers:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        self.note("validation", self.current_epoch, self.global_step, batch_idx, loss.item().hex())
        self.log("val_loss", loss)

    def on_train_epoch_end(self) -> None:
        self.note("epoch", self.current_epoch, {k: v.item().hex() for k, v in self.trainer.callback_metrics.items()})

    def configure_optimizers(self) -> Any:
        if self.case.two_optimizers:
            return [torch.optim.Adam(part.parameters(), 0.01) for part in (self.body, self.head)]
        optimizer = torch.optim.AdamW(self.parameters(), 0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Data(pl.LightningDataModule):
    def __init__(self, case: Case, workers: int) -> None:
        super().__init__()
        self.case, self.workers = case, workers

    def train_dataloader(self) -> Any:
        return loader(self.case, self.workers)

    def val_dataloader(self) -> Any:
        return DataLoader(Noisy(6), 2, shuffle=False)


class Kill(pl.Callback):
    """Saves after a batch, and ends the process as if somebody had pulled the plug."""

    def __init__(self, after: int, to: Path) -> None:
        self.left, self.to = after, to

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            trainer.save_checkpoint(self.to)
            os.kill(os.getpid(), signal.SIGKILL)


def train(case: Case, folder: Path, trace: Path, kill: bool, resume: bool) -> None:
    logging.getLogger("inazuma").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    pl.seed_everything(2 if resume else 1, verbose=False)
    workers = case.workers_then if resume and case.workers_then is not None else case.workers
    net, data, to = Net(case, trace, workers), Data(case, workers), folder / "killed.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=case.accumulate,
        val_check_interval=case.val_check_interval,
        reload_dataloaders_every_n_epochs=case.reload_every,
        logger=False,
        callbacks=[Kill(case.kill_after, to)] if kill else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    given: dict[str, Any] = {"datamodule": data}
    if case.given_by == "argument":
        given = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    elif case.given_by == "module":
        given = {}
        net.train_dataloader, net.val_dataloader = data.train_dataloader, data.val_dataloader  # type: ignore[method-assign]
    trainer.fit(net, **given, ckpt_path=to if resume else None)
    weights = torch.cat([w.double().flatten() for w in net.state_dict().values()])
    moments = [s[k] for o in trainer.optimizers for s in o.state.values() for k in ("exp_avg", "exp_avg_sq")]
    net.note("end", trainer.global_step, weights.numpy().tobytes().hex(), [m.sum().item().hex() for m in moments])
    net.note("generators", random.random(), torch.rand(()).item(), float(numpy.random.rand()))


def in_a_process(*arguments: Any) -> int:
    """Run `train` in a child. Returns its exit status; -9: killed."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        train(*arguments)
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def first_difference(case: Case, straight: list[str], folder: Path) -> str | None:
    """Kill a run of this case and resume it. Returns the first line in which it is not the straight run."""
    before, after = folder / "before", folder / "after"
    if (code := in_a_process(case, folder, before, True, False)) != -signal.SIGKILL:
        return f"the run to be killed ended with {code}"
    if code := in_a_process(case, folder, after, False, True):
        return f"the resumed run ended with {code}"
    # What was validated after the checkpoint is validated again; nothing else may overlap.
    lines = before.read_text().splitlines() + after.read_text().splitlines()
    for number, (expected, got) in enumerate(zip(straight, [*lines, "nothing"], strict=False)):
        if expected != got:
            return f"line {number}: expected {expected[:300]}, got {got[:300]}"
    return None if len(lines) == len(straight) else f"{len(lines)} lines, expected {len(straight)}"


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        train(Case(0), Path(name), Path(name) / "warm", False, False)  # what is imported on the way is then shared
    straight: dict[Case, list[str]] = {}
    for line in sys.stdin:
        case = Case(**json.loads(line))
        plain = Case(**{**json.loads(line), "kill_after": 0, "workers_then": None})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if plain not in straight:
                assert in_a_process(plain, folder, folder / "straight", False, False) == 0
                straight[plain] = (folder / "straight").read_text().splitlines()
            print(json.dumps(first_difference(case, straight[plain], folder)), flush=True)


if __name__ == "__main__":
    main()
