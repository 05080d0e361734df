"""What `Trainer(compile=...)` brings for a step so small that torch's own calls cost more than its arithmetic.

    python benchmarks/compiling.py           about two minutes

A perceptron of 1,386 parameters, batches of 8, data in memory, one thread of the CPU. CPU time per step from batch 100
to batch 600, behind all compiling; the loop by hand is not compiled. The contenders take turns, and the minimum over
all rounds counts.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import BARE, loader, save, table
from torch import Tensor, nn
from torch.nn import functional as F

import inazuma as pl

FIRST, LAST = 100, 600
GOAL = 0.6  # times the loop by hand


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


class Classifier(pl.LightningModule):
    """Logs the loss under so many names."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.network, self.values = network(), values

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.network(images), labels)
        for number in range(self.values):
            self.log(f"loss {number}", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Watch(pl.Callback):
    """CPU time at the first and the last batch that count."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == FIRST:
            self.start_s = time.process_time()
        elif batch_idx == LAST:
            self.seconds = time.process_time() - self.start_s


def by_hand() -> float:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    start_s = 0.0
    for number, (images, labels) in enumerate(loader(LAST + 1)):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if number == FIRST:
            start_s = time.process_time()
    return time.process_time() - start_s


def with_trainer(compile: Any, values: int) -> Callable[[], float]:
    def train() -> float:
        watch = Watch()
        with tempfile.TemporaryDirectory() as directory:
            options = {**BARE, "default_root_dir": directory, "callbacks": watch, "compile": compile}
            pl.Trainer(max_epochs=1, accelerator="cpu", **options).fit(Classifier(values), loader(LAST + 1))
        return watch.seconds

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description="What a compiled step costs beside a loop by hand.")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    contenders: dict[str, Callable[[], float]] = {"by hand": by_hand}
    for values in (0, 5):
        for compile in (False, True, "step"):
            contenders[f"inazuma, compile={compile!r}, {values} values logged"] = with_trainer(compile, values)
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(args.rounds):
        for name, run in contenders.items():
            gc.collect()
            best[name] = min(best[name], run() / (LAST - FIRST) * 1e6)
    rows = [[name, f"{us:.0f}", f"{us / best['by hand']:.2f}"] for name, us in best.items()]
    print(table([f"a step (CPU time; goal of the whole step {GOAL})", "µs", "× by hand"], rows))
    print(f"\n{save('compiling', {'goal': GOAL, 'rounds': args.rounds, 'us_per_step': best})}")


if __name__ == "__main__":
    main()
