"""The resume harness: one program, saved in every hook, continued from every file, compared with the straight run.

A `Recipe` says what is trained. `straight` trains it once and saves a checkpoint at each call of each hook. `resume`
continues from one of these files with everything new (module, Trainer, loaders) and other seeds.
"""

from __future__ import annotations

import csv
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from inazuma import Callback, LightningModule, Trainer
from inazuma.callbacks import Checkpoint, ModelCheckpoint
from inazuma.loggers import CSVLogger

INSIDE_A_BATCH = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
INSIDE_VALIDATION = (
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
)
BETWEEN = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)
HOOKS = (*INSIDE_A_BATCH, *INSIDE_VALIDATION, *BETWEEN)


@dataclass(frozen=True)
class Recipe:
    """What is trained: the small program of this file, with these changes."""

    name: str
    trainer: dict[str, Any] = field(default_factory=dict)
    schedule: str = "epoch"  # or "plateau", "batch"
    manual: bool = False  # manual optimization, with two optimizers
    loaders: Callable[[], Any] | None = None  # train loaders; default: shuffled `Numbers`, 6 batches
    callbacks: Callable[[], list[Callback]] = list

    def __str__(self) -> str:
        return self.name


class Numbers(Dataset[dict[str, Tensor]]):
    """Points with their index and noise from two of the global random generators."""

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.tensor([index, -index, 1.0, index % 3]) / self.length
        noise = 0.1 * random.random() + 0.1 * torch.rand(4)
        return {"id": torch.tensor(index), "x": x + noise, "y": x[:2].flip(0)}


class Stream(IterableDataset[dict[str, Tensor]]):
    """Points without length, index or noise: of a stream, batches are fetched again, and noise would be drawn anew."""

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for index in range(self.length):
            x = torch.tensor([index, -index, 1.0, index % 3]) / self.length
            yield {"id": torch.tensor(index), "x": x, "y": x[:2].flip(0)}


def loader(length: int = 12, batch_size: int = 2, shuffle: bool = True, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(length), batch_size=batch_size, shuffle=shuffle, **arguments)


class Net(LightningModule):
    """Dropout for the random generator, batch norm for buffers, metrics by step and by epoch."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.automatic_optimization = not recipe.manual
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3))
        self.head = torch.nn.Linear(6, 2)
        self.ids: list[Any] = []  # of the batches trained on

    def loss(self, batch: Any) -> Tensor:
        return torch.nn.functional.mse_loss(self.head(self.body(batch["x"])), batch["y"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batches = [batch] if "x" in batch else list(batch.values())
        self.ids.append([each["id"].tolist() for each in batches])
        loss = torch.stack([self.loss(each) for each in batches]).sum()
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=2)
        if self.recipe.manual:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        if self.recipe.manual:
            return [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.body, self.head)]
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedules = torch.optim.lr_scheduler
        if self.recipe.schedule == "plateau":
            plateau = schedules.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
        if self.recipe.schedule == "batch":
            by_batch = {"scheduler": schedules.ExponentialLR(optimizer, 0.9), "interval": "step", "frequency": 2}
            return [optimizer], [by_batch]
        return [optimizer], [schedules.StepLR(optimizer, 1, 0.5)]


class Trace(Callback):
    """Notes every event, with the ids of batches and the bits of losses."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        batches = [batch] if "x" in batch else list(batch.values())
        ids = [(each["id"].tolist(), each["x"].tolist()) for each in batches]
        self.events.append(("on_train_batch_start", batch_idx, ids, *_clock(trainer)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events.append(("on_train_batch_end", batch_idx, outputs["loss"].item(), *_clock(trainer)))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.events.append(("on_validation_batch_end", batch_idx, outputs.item(), *_clock(trainer)))


def _clock(trainer: Trainer) -> tuple[int, int, bool]:
    return trainer.current_epoch, trainer.global_step, trainer.is_last_batch


def _noting(hook: str) -> Callable[..., None]:
    def note(self: Trace, trainer: Trainer, *_: Any) -> None:
        self.events.append((hook, *_clock(trainer)))

    return note


for _hook in (*HOOKS, "on_sanity_check_start", "on_sanity_check_end", "on_fit_start", "on_fit_end"):
    if _hook not in vars(Trace):
        setattr(Trace, _hook, _noting(_hook))


@dataclass(frozen=True)
class Saved:
    """A checkpoint of the straight run, and how many events had happened."""

    path: Path
    hook: str
    position: int
    kept: Path  # the files of the run's own ModelCheckpoint at that time


class Saver(Checkpoint):
    """Saves a checkpoint in each call of each hook. A `Checkpoint`, so that it comes last."""

    def __init__(self, trace: Trace, to: Path, kept: Path) -> None:
        self.trace, self.to, self.kept = trace, to, kept
        self.saved: list[Saved] = []

    def save(self, trainer: Trainer, hook: str) -> None:
        if trainer.sanity_checking:
            return
        name = f"{len(self.saved):03d}-{hook}"
        saved = Saved(self.to / f"{name}.ckpt", hook, len(self.trace.events), self.to / name)
        trainer.save_checkpoint(saved.path)
        shutil.copytree(self.kept, saved.kept) if self.kept.exists() else saved.kept.mkdir(parents=True)
        self.saved.append(saved)


def _saving(hook: str) -> Callable[..., None]:
    def save(self: Saver, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, hook)

    return save


for _hook in HOOKS:
    setattr(Saver, _hook, _saving(_hook))


@dataclass
class Run:
    """How a run went and how it ended."""

    events: list[tuple[Any, ...]]  # the hook, what is known of it, and epoch, step and whether the batch is the last
    ids: list[Any]  # of the batches it trained on
    end: dict[str, Any]  # everything that must be equal, bit by bit
    rows: list[dict[str, str]]  # of metrics.csv
    saved: list[Saved] = field(default_factory=list)


def straight(recipe: Recipe, root: Path) -> Run:
    """Train from the beginning to the end and save in every hook."""
    _seed(1)
    trace = Trace()
    saver = Saver(trace, root / "saved", root / "kept")
    return _run(recipe, root, trace, [saver], None)


def resume(recipe: Recipe, root: Path, saved: Saved, save: bool = False) -> Run:
    """Continue from `saved` with everything new. With `save`, save in every hook again."""
    _seed(2)
    shutil.rmtree(root / "kept", ignore_errors=True)
    shutil.copytree(saved.kept, root / "kept")
    trace = Trace()
    savers = [Saver(trace, root / "saved again", root / "kept")] if save else []
    return _run(recipe, root, trace, savers, saved.path)


def resumes_at(recipe: Recipe, run: Run, saved: Saved) -> int:
    """The event with which a run resumed from this checkpoint begins.

    Inside a validation that is its start. Inside a batch it is the batch that opened the accumulation window, or the
    one behind the last validation in this window.
    """
    before = run.events[: saved.position]
    window = recipe.trainer.get("accumulate_grad_batches", 1)
    starts = [saved.position]
    if saved.hook in INSIDE_A_BATCH:
        begins = [i for i, (hook, *_) in enumerate(before) if hook == "on_train_batch_start"]
        starts = [i for i in begins if before[i][1] % window == 0 or before[i - 1][0] == "on_validation_end"]
    elif saved.hook in INSIDE_VALIDATION:
        starts = [i for i, (hook, *_) in enumerate(before) if hook == "on_validation_start"]
    return starts[-1]


def _run(recipe: Recipe, root: Path, trace: Trace, savers: list[Saver], ckpt_path: Path | None) -> Run:
    net = Net(recipe)
    keep = ModelCheckpoint(root / "kept", monitor="val_loss", save_top_k=2, filename="{epoch}-{step}-{val_loss:.4f}")
    logger = CSVLogger(root, name="logs")
    arguments = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 1, **recipe.trainer}
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=[trace, *recipe.callbacks(), keep, *savers],
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    train = loader() if recipe.loaders is None else recipe.loaders()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*exists and is not empty")  # the files of the run that goes on
        trainer.fit(net, train, loader(6, shuffle=False), ckpt_path=ckpt_path)
    rows = _rows(Path(logger.log_dir) / "metrics.csv")
    saved = [each for saver in savers for each in saver.saved]
    return Run(trace.events, net.ids, _end(trainer, net, root), rows, saved)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():  # nothing was left to log
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _end(trainer: Trainer, net: Net, root: Path) -> dict[str, Any]:
    return {
        "epoch and step": (trainer.current_epoch, trainer.global_step),
        "weights": net.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "metrics": dict(trainer.callback_metrics),
        "torch's random generator": torch.get_rng_state(),
        "Python's random generator": random.getstate(),
        "files": {path.name: _content(path) for path in sorted((root / "kept").iterdir())},
    }


def _content(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    return {key: content[key] for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")}


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def first_difference(expected: Any, got: Any, path: str = "") -> str | None:
    """The first place at which two nested values are not equal bit by bit. None: they are equal."""
    if isinstance(expected, Tensor):
        if isinstance(got, Tensor) and expected.dtype == got.dtype and torch.equal(expected, got):
            return None
        return f"{path}: expected {expected}, got {got}"
    if isinstance(expected, dict):
        if not isinstance(got, dict) or list(expected) != list(got):
            return f"{path}: expected {list(expected)}, got {list(got)}"
        found = (first_difference(expected[key], got[key], f"{path}[{key!r}]") for key in expected)
        return next((where for where in found if where), None)
    if isinstance(expected, (list, tuple)):
        for i, (one, other) in enumerate(zip(expected, got, strict=False)):
            if where := first_difference(one, other, f"{path}[{i}]"):
                return where
        return None if len(expected) == len(got) else f"{path}: expected {len(expected)} items, got {len(got)}"
    return None if expected == got else f"{path}: expected {expected!r}, got {got!r}"
