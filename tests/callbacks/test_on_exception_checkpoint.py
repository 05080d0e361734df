"""OnExceptionCheckpoint: a crash leaves a file, a run that ends well leaves none."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import OnExceptionCheckpoint


def make_model(pl: Any, crash_at: int | None) -> Any:
    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == crash_at:
                raise ValueError("crash")
            return self.layer(batch).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if crash_at == -1:
                raise ValueError("crash")

        def configure_optimizers(self) -> Any:
            if crash_at == -2:
                raise ValueError("crash")
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Model()


def call(pl: Any, directory: Path, crash_at: int | None = None, what: str = "fit", **arguments: Any) -> Any:
    """Run; a crash is expected and swallowed. Returns the trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=2,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            callbacks=[pl.callbacks.OnExceptionCheckpoint(directory, **arguments)],
            num_sanity_val_steps=0,
            limit_val_batches=1 if what == "validate" else 0,
        )
        data = DataLoader(torch.ones(4, 2), batch_size=1)
        model = make_model(pl, crash_at)
        with contextlib.suppress(ValueError):
            trainer.fit(model, data) if what == "fit" else trainer.validate(model, data)
    return trainer


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*"))


@pytest.mark.parametrize("arguments", [{}, {"filename": "crashed"}])
@pytest.mark.parametrize("crash_at", [None, 1, 5])
def test_files_are_those_of_lightning(crash_at: int | None, arguments: dict[str, str], tmp_path: Path) -> None:
    for pl in (lightning.pytorch, inazuma):
        call(pl, tmp_path / pl.__name__, crash_at, **arguments)
    assert names(tmp_path / "inazuma") == names(tmp_path / "lightning.pytorch")


def test_the_next_fit_continues_from_the_file_and_removes_it(tmp_path: Path) -> None:
    call(inazuma, tmp_path, crash_at=5)
    assert torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["global_step"] == 5
    assert call(inazuma, tmp_path, crash_at=3).global_step == 8  # never at step 3 again
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "crash_at"), [("validate", None), ("validate", -1), ("fit", -2)], ids=["clean", "crash", "before training"]
)
def test_what_happens_outside_training_leaves_the_file_alone(what: str, crash_at: int | None, tmp_path: Path) -> None:
    """In Lightning a clean `validate` removes the file, and a crash writes over it."""
    call(inazuma, tmp_path, crash_at=5)
    before = (tmp_path / "on_exception.ckpt").read_bytes()
    call(inazuma, tmp_path, crash_at, what)
    assert (tmp_path / "on_exception.ckpt").read_bytes() == before


def test_the_path_is_known_beforehand(tmp_path: Path) -> None:
    assert OnExceptionCheckpoint(tmp_path).ckpt_path == str(tmp_path / "on_exception.ckpt")
    assert OnExceptionCheckpoint("s3://bucket/run", "x").ckpt_path == "s3://bucket/run/x.ckpt"


def test_an_empty_filename_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"OnExceptionCheckpoint\(filename=''\): the filename cannot be empty"):
        OnExceptionCheckpoint(tmp_path, filename="")
