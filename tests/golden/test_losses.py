# Regenerate: .venv/bin/python tests/golden/test_losses.py   (trains with Lightning, writes tests/golden/*.json)
"""The losses of three small models, step by step, stay what they are, and are Lightning's.

With Lightning in the same process the numbers have to be equal to the last bit. The stored ones may differ in the last
digits from machine to machine, as another processor adds in another order; in double precision that stays small.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

Losses = dict[str, list[float]]


def data(samples: int, outputs: int) -> TensorDataset:
    """Inputs `[samples, 8]` and targets `[samples, outputs]` that depend on them."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.tanh(inputs @ torch.randn(8, outputs, generator=generator, dtype=torch.float64)))


def regression(pl: ModuleType) -> Losses:
    """Adam with a schedule per epoch, accumulation whose last window is short, clipping, shuffled batches."""
    losses: Losses = {"train": [], "val": []}

    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = F.mse_loss(self.layers(batch[0]), batch[1])
            losses["train"].append(loss.item())
            return loss

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            losses["val"].append(F.mse_loss(self.layers(batch[0]), batch[1]).item())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)]

    pl.seed_everything(3)
    module = Regression().double()
    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        accumulate_grad_batches=3,
        gradient_clip_val=0.5,
        num_sanity_val_steps=0,
        **QUIET,
    )
    whole = data(80, 3)
    trainer.fit(module, DataLoader(whole, batch_size=8, shuffle=True), DataLoader(whole, batch_size=40))
    return losses | weights(module)


def classifier(pl: ModuleType) -> Losses:
    """Dropout and batch norm, a schedule per step, validation twice an epoch after a sanity check."""
    losses: Losses = {"train": [], "val": []}

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 4)
            )

        def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
            loss = F.cross_entropy(self.layers(batch[0]), batch[1].argmax(dim=1))
            losses["train"].append(loss.item())
            return {"loss": loss}

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            losses["val"].append(F.cross_entropy(self.layers(batch[0]), batch[1].argmax(dim=1)).item())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.03, total_steps=36)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    pl.seed_everything(4)
    module = Classifier().double()
    whole = data(96, 4)
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", val_check_interval=0.5, **QUIET)
    trainer.fit(module, DataLoader(whole, batch_size=8, shuffle=True), DataLoader(whole, batch_size=32))
    return losses | weights(module)


def gan(pl: ModuleType) -> Losses:
    """Two networks and two optimizers under manual optimization, with noise in every step."""
    losses: Losses = {"generator": [], "discriminator": []}

    class GAN(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
            self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            real = batch[0]
            of_generator, of_discriminator = self.optimizers()
            ones, zeros = real.new_ones(len(real), 1), real.new_zeros(len(real), 1)

            self.toggle_optimizer(of_generator)
            made = self.generator(torch.randn(len(real), 4).to(real))
            loss = F.binary_cross_entropy_with_logits(self.discriminator(made), ones)
            losses["generator"].append(loss.item())
            of_generator.zero_grad()
            self.manual_backward(loss)
            of_generator.step()
            self.untoggle_optimizer(of_generator)

            self.toggle_optimizer(of_discriminator)
            loss = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
            loss = loss + F.binary_cross_entropy_with_logits(self.discriminator(made.detach()), zeros)
            losses["discriminator"].append(loss.item())
            of_discriminator.zero_grad()
            self.manual_backward(loss)
            of_discriminator.step()
            self.untoggle_optimizer(of_discriminator)

        def configure_optimizers(self) -> Any:
            adam = {"lr": 0.01, "betas": (0.5, 0.9)}
            return [
                torch.optim.Adam(self.generator.parameters(), **adam),
                torch.optim.Adam(self.discriminator.parameters(), **adam),
            ]

    pl.seed_everything(5)
    module = GAN().double()
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **QUIET)
    trainer.fit(module, DataLoader(data(80, 1), batch_size=8, shuffle=True))
    return losses | weights(module)


def weights(module: nn.Module) -> Losses:
    """The norm of each parameter after training."""
    return {"weights": [parameter.norm().item() for parameter in module.parameters()]}


MODELS: list[Callable[[ModuleType], Losses]] = [regression, classifier, gan]


def with_lightning(model: Callable[[ModuleType], Losses]) -> Losses:
    import lightning.pytorch as reference

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own advice: workers, logging interval
        return model(reference)


@pytest.fixture(autouse=True)
def random_numbers_are_drawn_as_lightning_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_EXACT_RESUME", "False")


def with_inazuma(model: Callable[[ModuleType], Losses]) -> Losses:
    import inazuma

    return model(inazuma)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_losses_are_lightnings_to_the_last_bit(model: Callable[[ModuleType], Losses]) -> None:
    assert with_inazuma(model) == with_lightning(model)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_losses_are_the_stored_ones(model: Callable[[ModuleType], Losses]) -> None:
    stored = json.loads((HERE / f"{model.__name__}.json").read_text())
    assert with_inazuma(model) == {name: pytest.approx(values, rel=1e-8) for name, values in stored.items()}


if __name__ == "__main__":
    for model in MODELS:
        losses = with_lightning(model)
        rows = [f'  "{name}": {json.dumps(values)}' for name, values in losses.items()]
        (HERE / f"{model.__name__}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
