"""Handwritten digits, from raw data to predictions: train, validate, test, predict, checkpoint, log.

python examples/digits/train.py              about a minute on two cores, test accuracy above 98 %
python examples/digits/train.py --epochs 1   a look, in seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

import inazuma as pl
from inazuma.callbacks import LearningRateMonitor, ModelCheckpoint
from inazuma.loggers import CSVLogger

SHADES = " .:-=+*%@"


class Digits(pl.LightningDataModule):
    """The 1,797 scanned digits of scikit-learn, 8 x 8 pixels: 1,257 to train, 270 to validate, 270 to test."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        raw = load_digits()
        images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16  # [1797, 1, 8, 8], 0 to 1
        labels = torch.tensor(raw.target)
        whole = TensorDataset(images, labels)
        # A generator of its own: the split is the same in every run, whatever the seed of the training.
        self.train, self.val, self.held_out = random_split(whole, [1257, 270, 270], torch.Generator().manual_seed(0))

    def loader(self, part: Subset[Any], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(part, batch_size=self.hparams.batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.held_out)


class Reader(pl.LightningModule):
    """Two convolutions and two linear layers: an image `[n, 1, 8, 8]` in, ten scores `[n, 10]` out."""

    def __init__(self, learning_rate: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [n, 32, 4, 4]
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        shift = torch.randint(-1, 2, (2,)).tolist()  # a pixel up or down, left or right: the same digit, a new image
        loss = F.cross_entropy(self(torch.roll(images, shift, dims=(2, 3))), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.score("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.score("test", batch)

    def score(self, stage: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        scores = self(images)
        self.log(f"{stage}_loss", F.cross_entropy(scores, labels))
        self.log(f"{stage}_accuracy", (scores.argmax(dim=1) == labels).float().mean(), prog_bar=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, _ = batch
        return self(images).argmax(dim=1)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def drawn(image: Tensor) -> list[str]:
    """An image `[8, 8]` of numbers from 0 to 1 as eight lines of text; each pixel is two characters wide."""
    return ["".join(SHADES[round(pixel * (len(SHADES) - 1))] * 2 for pixel in row) for row in image.tolist()]


def show(images: list[Tensor], labels: list[int], answers: list[int]) -> None:
    """Print the images side by side, with what was read in them below; a wrong answer names the right one."""
    for lines in zip(*map(drawn, images), strict=True):
        print("  ".join(lines))
    verdicts = [f"read as {a}" if a == b else f"read as {a} (is {b})" for a, b in zip(answers, labels, strict=True)]
    print("  ".join(verdict.center(16) for verdict in verdicts))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network to read handwritten digits.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where logs and checkpoints go (default: runs)")
    args = parser.parse_args()

    pl.seed_everything(args.seed)
    digits = Digits()
    best = ModelCheckpoint(monitor="val_loss", filename="{epoch}-{val_accuracy:.3f}")
    logger = CSVLogger(args.out, name="digits")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        log_every_n_steps=10,
        logger=logger,
        callbacks=[best, LearningRateMonitor(logging_interval="step")],
    )
    trainer.fit(Reader(), datamodule=digits)
    [measured] = trainer.test(datamodule=digits, ckpt_path="best")
    batches = trainer.predict(datamodule=digits, ckpt_path="best")

    answers = torch.cat(batches).tolist()
    images, labels = zip(*digits.held_out, strict=True)
    labels = [int(label) for label in labels]
    wrong = [i for i, (answer, label) in enumerate(zip(answers, labels, strict=True)) if answer != label]
    right = [i for i in range(len(labels)) if i not in wrong]
    chosen = [*wrong[:2], *right][:5]  # what it misreads, if anything, and a few that it reads
    print()
    show([images[i][0] for i in chosen], [labels[i] for i in chosen], [answers[i] for i in chosen])
    print(f"\ntest accuracy  {measured['test_accuracy']:.2%}  ({len(wrong)} of {len(labels)} misread)")
    print(f"checkpoint     {best.best_model_path}")
    print(f"logs           {logger.log_dir}")


if __name__ == "__main__":
    main()
