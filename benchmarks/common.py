"""What the benchmarks share: models and data, frameworks and their module, subprocesses, results and tables."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

RESULTS = Path(__file__).parent / "results"
FRAMEWORKS = {"inazuma": "inazuma", "lightning": "lightning.pytorch"}  # name in the tables -> module
BATCH_SIZE = 8
PACKAGES = "torch", "lightning", "accelerate", "pytorch-ignite", "transformers", "keras"
BARE: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Attention(nn.Module):
    """Sequences of tokens `[batch, 16]` through one layer of a transformer to 10 logits `[batch, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.layer = nn.TransformerEncoderLayer(32, nhead=2, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))  # type: ignore[no-any-return]


def perceptron() -> nn.Module:
    """1,386 parameters: so small that what stands around the step shows."""
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def convolutions() -> nn.Module:
    """Images `[batch, 1, 16, 16]` through two convolutions to 10 logits."""
    first = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, second, nn.Linear(16, 10))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {  # the network, and n inputs of it
    "perceptron": (perceptron, lambda n: torch.randn(n, 32)),
    "convolutions": (convolutions, lambda n: torch.randn(n, 1, 16, 16)),
    "transformer": (Attention, lambda n: torch.randint(64, (n, 16))),
}


class Own(Dataset[tuple[Tensor, Tensor]]):
    """A data set with a `__getitem__` of its own, which nobody can look into."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


class Noisy(Own):
    """The same with noise, drawn for each sample."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index] + 0.1 * torch.randn(self.inputs[index].shape), self.labels[index]


DATA: dict[str, Callable[[Tensor, Tensor], Dataset[Any]]] = {"memory": TensorDataset, "own": Own, "noisy": Noisy}


def loader(batches: int, model: str = "perceptron", data: str = "memory", **options: Any) -> DataLoader[Any]:
    """So many batches of 8 inputs of the model and labels `[8]`, in random order. `options` are DataLoader's."""
    n = BATCH_SIZE * batches
    dataset = DATA[data](MODELS[model][1](n), torch.randint(10, (n,)))
    return DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, **options)


def framework(name: str) -> ModuleType:
    """The framework's module, with its warnings and log lines silenced: they are the same few for each run."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return importlib.import_module(FRAMEWORKS[name])


def classifier(
    pl: ModuleType,
    model: str = "perceptron",
    log: Callable[[Any, Tensor], None] | None = None,
    step: Callable[[], None] | None = None,
) -> Any:
    """The same module for each framework. `log(module, loss)` is called in each step; `step()` when a step begins."""

    class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = MODELS[model][0]()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if step is not None:
                step()
            inputs, labels = batch
            loss = F.cross_entropy(self.network(inputs), labels)
            if log is not None:
                log(self, loss)
            return loss

        validation_step = test_step = training_step

        def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            if step is not None:
                step()
            return self.network(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Classifier()


def in_subprocess(script: str, *arguments: str) -> Any:
    """Run `python script arguments` with one thread and return the JSON on the last line that it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `figures` and what they were measured on to benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, which reads well on a terminal too; the first column is left-aligned, the others right."""
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), line(rule), *map(line, rows)])
