"""Checkpoints travel both ways between inazuma and Lightning 2.6, and training goes on at the right place."""

from __future__ import annotations

import csv
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.recorder import first_difference, loader

PACKAGES = ["lightning.pytorch", "inazuma"]
BOTH_WAYS = pytest.mark.parametrize(
    ("writer", "reader"), [PACKAGES, PACKAGES[::-1]], ids=["to inazuma", "to Lightning"]
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning: tips, device lines, and warnings about the number of workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        yield
        logging.disable(logging.NOTSET)


def _net(package: str, manual: bool = False) -> Any:
    pl = importlib.import_module(package)

    class Net(pl.LightningModule):
        def __init__(self, width: int = 3, names: tuple[str, ...] = ("a", "b")) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.automatic_optimization = not manual
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))
            self.batches: list[tuple[int, int, int]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.batches.append((self.current_epoch, batch_idx, self.global_step))
            loss = torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.log("train_loss", loss)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Net


def _fit(
    package: str, net: Any, root: Path, save: tuple[str, int] = ("", 0), ckpt_path: Any = None, **given: Any
) -> Any:
    """Fit, and save `root/saved.ckpt` in the hook `save[0]` once `save[1]` optimizer steps are done."""
    pl = importlib.import_module(package)
    callbacks = importlib.import_module(f"{package}.callbacks")
    hook, at = save

    def write(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step == at and not trainer.sanity_checking:
            trainer.save_checkpoint(root / "saved.ckpt")

    saver = type("Saver", (pl.Callback,), {hook: write} if hook else {})()
    keep = callbacks.ModelCheckpoint(root / "kept", monitor="val_loss", save_top_k=2)
    # Lightning resumes inside an epoch without the metrics logged before, so that they may be missing
    stop = callbacks.EarlyStopping("val_loss", patience=100, strict=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=importlib.import_module(f"{package}.loggers").CSVLogger(root),
        log_every_n_steps=1,
        default_root_dir=root,
        callbacks=[saver, stop, keep],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 3, **given},
    )
    with _quiet():
        trainer.fit(net, loader(), loader(6), ckpt_path=ckpt_path)
    return trainer, stop, keep


def _axes(trainer: Any) -> list[tuple[str, str]]:
    """Where the values logged for single batches stand: epoch and step."""
    with (Path(trainer.log_dir) / "metrics.csv").open(newline="") as file:
        return [(row["epoch"], row["step"]) for row in csv.DictReader(file) if row["train_loss"]]


MOMENTS = {
    "the end of an epoch": ("on_train_epoch_end", 6, {}),
    "the end of an epoch, with accumulation": ("on_train_epoch_end", 3, {"accumulate_grad_batches": 2}),
    "the middle of an epoch": ("on_train_batch_end", 8, {}),
    "the middle of an epoch, with accumulation": ("on_train_batch_end", 4, {"accumulate_grad_batches": 2}),
    "the last batch of an epoch": ("on_train_batch_end", 12, {}),
    "a validation inside an epoch": ("on_validation_end", 9, {"val_check_interval": 0.5}),
    "the validation at the end of an epoch": ("on_validation_end", 6, {}),
    "the end of training": ("on_train_end", 18, {}),
}


@BOTH_WAYS
@pytest.mark.parametrize("moment", MOMENTS)
def test_training_goes_on_where_the_other_package_stopped(
    moment: str, writer: str, reader: str, tmp_path: Path
) -> None:
    hook, at, given = MOMENTS[moment]
    torch.manual_seed(1)
    _fit(writer, _net(writer)(), tmp_path, (hook, at), **given)
    expected, got = _net(writer)(), _net(reader)()
    by_itself, _, _ = _fit(writer, expected, tmp_path, ckpt_path=tmp_path / "saved.ckpt", **{**given, "max_epochs": 4})
    by_other, _, _ = _fit(reader, got, tmp_path, ckpt_path=tmp_path / "saved.ckpt", **{**given, "max_epochs": 4})
    assert by_other.current_epoch == by_itself.current_epoch == 4
    assert by_other.global_step == by_itself.global_step
    assert got.batches == expected.batches
    # One more in a file of inazuma: the values of the batch in whose on_train_batch_end it was saved.
    own_axes, other_axes = _axes(by_itself), _axes(by_other)
    assert len(own_axes) - len(other_axes) in (0, 1)
    assert other_axes == own_axes[-len(other_axes) :]
    if "epoch" in moment and "middle" not in moment and "inside" not in moment:
        # Inside an epoch Lightning takes the wrong batches, and inazuma does not know which ones Lightning took.
        assert (where := first_difference(expected.state_dict(), got.state_dict())) is None, where


END_OF_EPOCH = ["on_validation_end@1", "on_train_epoch_end@1"]
NEXT_EPOCH = ["on_train_epoch_start@2", *["on_train_batch_end@2"] * 6, *(f"{hook[:-1]}2" for hook in END_OF_EPOCH)]


@pytest.mark.parametrize(
    ("hook", "at", "given", "first"),
    [
        ("on_train_batch_start", 11, {}, ["on_train_batch_end@1", *END_OF_EPOCH]),
        ("on_train_batch_end", 12, {}, END_OF_EPOCH),
        ("on_validation_end", 12, {}, END_OF_EPOCH),
        ("on_validation_end", 12, {"val_check_interval": 0.5}, END_OF_EPOCH[1:]),
        ("on_validation_end", 12, {"check_val_every_n_epoch": 2}, END_OF_EPOCH[1:]),
        ("on_train_epoch_end", 12, {}, []),
        ("on_train_epoch_start", 12, {}, []),
    ],
)
def test_nothing_of_an_epoch_is_lost_at_its_end_in_a_file_of_lightning(
    hook: str, at: int, given: dict[str, Any], first: list[str], tmp_path: Path
) -> None:
    """Lightning loses the last validation, or a whole epoch, in some of these."""
    _fit("lightning.pytorch", _net("lightning.pytorch")(), tmp_path, (hook, at), **given)
    heard: list[str] = []

    class Net(_net("inazuma")):  # type: ignore[misc]
        def _note(self, name: str) -> None:
            if not self.trainer.sanity_checking:
                heard.append(f"{name}@{self.current_epoch}")

        def on_train_epoch_start(self) -> None:
            self._note("on_train_epoch_start")

        def on_train_batch_end(self, *_: Any) -> None:
            self._note("on_train_batch_end")

        def on_validation_end(self) -> None:
            self._note("on_validation_end")

        def on_train_epoch_end(self) -> None:
            self._note("on_train_epoch_end")

    trainer, _, _ = _fit("inazuma", Net(), tmp_path, ckpt_path=tmp_path / "saved.ckpt", **given)
    following = heard[len(first) :]
    assert heard[: len(first)] == first
    assert following[:1] == ["on_train_epoch_start@2"]
    assert following == NEXT_EPOCH or given
    assert trainer.global_step == 18


def test_a_plateau_schedule_steps_at_the_end_of_the_epoch_in_which_lightning_saved(tmp_path: Path) -> None:
    class Scheduled:
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)  # type: ignore[attr-defined]
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    theirs, ours = (type("Net", (Scheduled, _net(package)), {})() for package in PACKAGES)
    _fit("lightning.pytorch", theirs, tmp_path, ("on_validation_end", 12), val_check_interval=0.5)
    trainer, _, _ = _fit("inazuma", ours, tmp_path, ckpt_path=tmp_path / "saved.ckpt", val_check_interval=0.5)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3


@BOTH_WAYS
def test_manual_optimization_goes_on_where_the_other_package_stopped(writer: str, reader: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    _fit(writer, _net(writer, manual=True)(), tmp_path, ("on_train_epoch_end", 12))
    expected, got = _net(writer, manual=True)(), _net(reader, manual=True)()
    for package, net in ((writer, expected), (reader, got)):
        trainer, _, _ = _fit(package, net, tmp_path, ckpt_path=tmp_path / "saved.ckpt", max_epochs=4)
        assert trainer.global_step == 24
    assert got.batches == expected.batches
    assert first_difference(expected.state_dict(), got.state_dict()) is None


@BOTH_WAYS
def test_callbacks_find_their_state_in_the_file_of_the_other_package(writer: str, reader: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    _, stop, keep = _fit(writer, _net(writer)(), tmp_path, ("on_train_end", 18))
    _, other_stop, other_keep = _fit(reader, _net(reader)(), tmp_path, ckpt_path=tmp_path / "saved.ckpt")
    assert float(other_stop.best_score) == float(stop.best_score)
    assert other_stop.wait_count == stop.wait_count
    assert other_keep.best_model_path == keep.best_model_path
    assert {path: float(score) for path, score in other_keep.best_k_models.items()} == {
        path: float(score) for path, score in keep.best_k_models.items()
    }


@BOTH_WAYS
@pytest.mark.parametrize("weights_only", [False, True])
def test_a_module_is_loaded_from_the_file_of_the_other_package(
    weights_only: bool, writer: str, reader: str, tmp_path: Path
) -> None:
    net = _net(writer)(width=5)
    trainer, _, _ = _fit(writer, net, tmp_path, max_epochs=1)
    with _quiet():
        trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=weights_only)
        loaded = _net(reader).load_from_checkpoint(tmp_path / "saved.ckpt")
    assert dict(loaded.hparams) == {"width": 5, "names": ("a", "b")}
    assert first_difference(net.state_dict(), loaded.state_dict()) is None


@BOTH_WAYS
def test_the_file_of_the_other_package_is_evaluated(writer: str, reader: str, tmp_path: Path) -> None:
    net = _net(writer)()
    trainer, _, _ = _fit(writer, net, tmp_path, ("on_train_end", 18))
    other = importlib.import_module(reader).Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with _quiet():
        expected = trainer.validate(net, loader(6), verbose=False)
        got = other.validate(_net(reader)(), loader(6), ckpt_path=tmp_path / "saved.ckpt", verbose=False)
    assert got == [pytest.approx(each, rel=1e-6) for each in expected]


def test_a_file_of_inazuma_holds_only_what_torch_reads_safely(tmp_path: Path) -> None:
    _fit("inazuma", _net("inazuma")(), tmp_path, ("on_after_backward", 7))
    content = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert content["global_step"] == 7
