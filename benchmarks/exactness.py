"""What exact resume and the digest of a run cost per step, on a perceptron of 1,386 parameters, beside a step of 1 ms.

    python benchmarks/exactness.py           about a minute
    python benchmarks/exactness.py --short   some seconds

Two data sets: one in memory, which draws nothing, and one written in Python that adds noise to each sample, so that its
generator has to be seeded for each batch. Measured like the steps of step.py: as a slope of CPU time, the contenders in
turns, the least of all rounds.
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
from torch.utils.data import DataLoader, Dataset, TensorDataset

STEP_S = 1e-3  # the step to compare with
GOAL = 1.02  # times that step, exactness and digest together


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from torch's generator."""

    def __init__(self, samples: int) -> None:
        self.images, self.labels = torch.randn(samples, 32), torch.randint(10, (samples,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index] + 0.1 * torch.randn(32), self.labels[index]


def in_memory(samples: int) -> Dataset[Any]:
    return TensorDataset(torch.randn(samples, 32), torch.randint(10, (samples,)))


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


def trains(
    pl: Any, make_data: Callable[[int], Dataset[Any]], exact: bool, make_callbacks: Callable[[], list[Any]] = list
) -> Callable[[int], None]:
    """A function that trains for so many steps of 8 samples, in a directory of its own."""

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            options = BARE | {"accelerator": "cpu", "default_root_dir": directory, "exact_resume": exact}
            trainer = pl.Trainer(max_epochs=1, callbacks=make_callbacks(), **options)
            trainer.fit(perceptron(pl), DataLoader(make_data(8 * steps), batch_size=8, shuffle=True))

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer turns")
    turns = 20 if parser.parse_args().short else 80
    pl = framework("inazuma")
    from inazuma.callbacks import RunDigest

    runs = {
        "in memory, exact_resume=False": trains(pl, in_memory, False),
        "in memory": trains(pl, in_memory, True),
        "in memory, RunDigest": trains(pl, in_memory, True, lambda: [RunDigest()]),
        "noisy, exact_resume=False": trains(pl, Noisy, False),
        "noisy": trains(pl, Noisy, True),
    }
    short, long = 20, 220  # short enough to be undisturbed now and then on a busy machine
    best = measure(runs, short, long, turns)
    seconds = {name: slope(best[name], "seconds", short, long) or 0.0 for name in runs}
    costs = {
        "exact resume, data in memory": seconds["in memory"] - seconds["in memory, exact_resume=False"],
        "exact resume, data that draws": seconds["noisy"] - seconds["noisy, exact_resume=False"],
        "exact resume and digest": seconds["in memory, RunDigest"] - seconds["in memory, exact_resume=False"],
    }
    print(table(["", "µs per step"], [[name, f"{1e6 * value:.1f}"] for name, value in seconds.items()]))
    rows = [[name, f"{1e6 * cost:.1f}", f"{(STEP_S + cost) / STEP_S:.3f}"] for name, cost in costs.items()]
    print(table(["cost of", "µs per step", f"beside a step of 1 ms (goal {GOAL})"], rows))
    save("exactness", {"seconds per step": seconds, "costs": costs})


if __name__ == "__main__":
    main()
