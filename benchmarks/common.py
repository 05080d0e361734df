"""What the benchmarks share: the small classifier, the bare Trainer, subprocesses, results and tables."""

from __future__ import annotations

import importlib
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
from torch.utils.data import DataLoader, TensorDataset

RESULTS = Path(__file__).parent / "results"
FRAMEWORKS = {"inazuma": "inazuma", "lightning": "lightning.pytorch"}  # name in the tables -> module
BARE: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def network() -> nn.Module:
    """32 -> 64 -> 64 -> 10 numbers: so small that what stands around the step shows."""
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def loader(batches: int) -> DataLoader[Any]:
    """`batches` batches of 8 samples: images `[8, 32]` and labels `[8]`."""
    n = 8 * batches
    return DataLoader(TensorDataset(torch.randn(n, 32), torch.randint(10, (n,))), batch_size=8)


def framework(name: str) -> ModuleType:
    """The framework's module, with its warnings and log lines silenced: they are the same few for each run."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return importlib.import_module(FRAMEWORKS[name])


def classifier(pl: ModuleType, log: Callable[[Any, Tensor], None] | None = None, step: Any = None) -> Any:
    """The same module for each framework. `log(module, loss)` is called in each step; `step()` when a step begins."""

    class Classifier(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if step is not None:
                step()
            images, labels = batch
            loss = F.cross_entropy(self.network(images), labels)
            if log is not None:
                log(self, loss)
            return loss

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


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `figures` and what they were measured on to benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    path.write_text(json.dumps({"measured_on": machine | {"cores": os.cpu_count()}, **figures}, indent=2) + "\n")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns; the first is left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [head, *rows])
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
