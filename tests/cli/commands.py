"""The user's program of these tests."""

from __future__ import annotations

from pathlib import Path

# Trains 2 epochs of 6 batches in windows of 2, validates twice in each, and says with its arguments what is wrong.
SCRIPT = """
import sys

import torch
from torch.utils.data import DataLoader, Dataset

import inazuma as pl
from inazuma.callbacks import ModelCheckpoint, RunDigest
from inazuma.testing import BoringModel


class Points(Dataset):
    def __init__(self):
        self.hidden = [torch.Generator().manual_seed(3)]  # as an attribute, it would be stored and resumed

    def __len__(self):
        return 24

    def __getitem__(self, index):
        noise = torch.rand(4, generator=self.hidden[0]) if "hidden-generator" in sys.argv else torch.rand(4)
        return {"x": torch.full((4,), index / 24) + 0.1 * noise, "y": torch.ones(2), "name": f"point {index}"}


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3))
        self.head = torch.nn.Linear(6, 2)

    def training_step(self, batch, batch_idx):
        if "fails" in sys.argv and self.global_step == 4:
            raise ValueError("the step fails here")
        if "late-entropy" in sys.argv and self.global_step == 5:
            torch.seed()
        loss = torch.nn.functional.mse_loss(self.head(self.body(batch["x"])), batch["y"])
        self.log("loss", loss, on_epoch=True, batch_size=4)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.mse_loss(self.head(self.body(batch["x"])), batch["y"])
        self.log("val_loss", loss, batch_size=12)

    def on_load_checkpoint(self, checkpoint):
        if "resume-fails" in sys.argv:
            raise LookupError("nothing was saved")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


if "unseeded" not in sys.argv:
    pl.seed_everything(5, verbose=False)
if "entropy" in sys.argv:
    torch.seed()
callbacks = [ModelCheckpoint("run", "{step}", every_n_train_steps=2, save_top_k=-1, auto_insert_metric_name=False)]
if "digest" in sys.argv:
    callbacks.append(RunDigest("run"))
data = Points()
for _ in range(2 if "two-fits" in sys.argv else 1):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        val_check_interval=0.5,
        logger=False,
        callbacks=callbacks if "digest" in sys.argv else [],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    if "validates-first" in sys.argv:
        trainer.validate(BoringModel(), verbose=False)
    ckpt_path = "auto" if "auto" in sys.argv else None
    loaders = DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=12)
    trainer.fit(Net(), *loaders, ckpt_path=ckpt_path)
print("the program ends")
"""


def script(folder: Path) -> Path:
    """Write the program into a folder."""
    path = folder / "train.py"
    path.write_text(SCRIPT)
    return path
