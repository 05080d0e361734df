"""What the digest of a run costs per step, on a perceptron of 1,386 parameters, beside a step of one millisecond.

    python benchmarks/digest.py           about a minute
    python benchmarks/digest.py --short   some seconds

Measured like the steps of step.py: as a slope of CPU time, the contenders in turns, the least of all rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from common import BARE, framework, save, table
from step import measure, slope
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STEP_S = 1e-3  # the step to compare with
GOAL_S = 20e-6


def perceptron(pl: Any) -> Any:
    class Perceptron(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Perceptron()


def trains(pl: Any, make_callbacks: Callable[[], list[Any]]) -> Callable[[int], None]:
    """A function that trains for so many steps of 8 samples, in a directory of its own."""

    def train(steps: int) -> None:
        data = TensorDataset(torch.randn(8 * steps, 32), torch.randint(10, (8 * steps,)))
        with tempfile.TemporaryDirectory() as directory:
            options = BARE | {"accelerator": "cpu", "default_root_dir": directory}
            trainer = pl.Trainer(max_epochs=1, callbacks=make_callbacks(), **options)
            trainer.fit(perceptron(pl), DataLoader(data, batch_size=8))

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer turns")
    turns = 20 if parser.parse_args().short else 80
    pl = framework("inazuma")
    from inazuma.callbacks import RunDigest

    runs = {"without": trains(pl, list), "with RunDigest": trains(pl, lambda: [RunDigest()])}
    short, long = 20, 220  # short enough to be undisturbed now and then on a busy machine
    best = measure(runs, short, long, turns)
    seconds = {name: slope(best[name], "seconds", short, long) or 0.0 for name in runs}
    cost = seconds["with RunDigest"] - seconds["without"]
    rows = [[name, f"{1e6 * value:.1f}"] for name, value in seconds.items()]
    print(table(["", "µs per step"], rows))
    print(f"\nThe digest costs {1e6 * cost:.1f} µs per step (aim: {1e6 * GOAL_S:.0f} or less).")
    print(f"Times the bare step: {seconds['with RunDigest'] / seconds['without']:.3f}.")
    print(f"Beside a step of 1 ms: ratio {(STEP_S + cost) / STEP_S:.3f}.")
    save("digest", {"seconds per step": seconds, "cost": cost, "ratio beside 1 ms": (STEP_S + cost) / STEP_S})


if __name__ == "__main__":
    main()
