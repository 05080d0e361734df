"""What a checkpoint holds, who can open it, and what is refused when it is taken up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from inazuma import Callback, LightningDataModule, Trainer
from inazuma.errors import CheckpointError, MisconfigurationException
from inazuma.testing import BoringModel, RandomDataset

KEYS = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops"}
TRAINING_KEYS = {"callbacks", "optimizer_states", "lr_schedulers", "inazuma"}


class Counts(Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batches = state_dict["batches"]


class Net(BoringModel):
    def __init__(self, width: int = 3, optimizers: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer_count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        return None

    def configure_optimizers(self) -> Any:
        make = [torch.optim.Adam(self.parameters(), lr=0.1) for _ in range(self.optimizer_count)]
        return make if len(make) > 1 else make[0]


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 4))

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.taken = state_dict["taken"]


def trainer_of(*callbacks: Callback, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"max_epochs": 1, "enable_model_summary": False, "limit_val_batches": 0}
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | off | arguments))


def saved(path: Path, net: Net | None = None, weights_only: bool = False, **arguments: Any) -> Path:
    """The checkpoint of a finished run of one epoch."""
    trainer, data = trainer_of(Counts(), **arguments), Data()
    data.taken = 7
    trainer.fit(net or Net(), datamodule=data)
    trainer.save_checkpoint(path / "a.ckpt", weights_only=weights_only)
    return path / "a.ckpt"


def test_a_checkpoint_holds_all_that_a_run_is(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path), weights_only=True)
    hparams = {"hparams_name", "hyper_parameters"}
    assert set(content) - {"datamodule_hparams_name", "datamodule_hyper_parameters"} == (
        KEYS | TRAINING_KEYS | hparams | {"Data"}
    )
    assert (content["epoch"], content["global_step"]) == (1, 4)
    assert set(content["state_dict"]) == {"layer.weight", "layer.bias"}
    assert content["callbacks"] == {"Counts": {"batches": 4}}
    assert content["Data"] == {"taken": 7}
    assert content["hyper_parameters"] == {"width": 3, "optimizers": 1}
    assert [len(state["state"]) for state in content["optimizer_states"]] == [2]
    own = content["inazuma"]
    assert set(own) == {"format", "progress", "rng", "batches", "logbook", "gradients", "loggers", "note"}
    assert own["progress"]["step"] == 4


def test_weights_alone_are_a_smaller_file(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path, weights_only=True), weights_only=True)
    assert set(content) >= KEYS
    assert TRAINING_KEYS & set(content) == {"inazuma"}
    assert set(content["inazuma"]) == {"note"}


def test_a_checkpoint_opens_safely_where_there_is_no_inazuma(tmp_path: Path) -> None:
    path = saved(tmp_path)
    program = (
        "import sys, torch\n"
        "sys.modules['inazuma'] = sys.modules['lightning'] = None\n"  # an import of them fails
        f"content = torch.load({str(path)!r}, weights_only=True)\n"
        "print(content['global_step'], sorted(content['state_dict']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "4 ['layer.bias', 'layer.weight']\n"


def test_callbacks_and_datamodule_are_given_back_what_they_saved(tmp_path: Path) -> None:
    path = saved(tmp_path)
    counts, data = Counts(), Data()
    trainer_of(counts, max_epochs=2).fit(Net(), datamodule=data, ckpt_path=path)
    assert (counts.batches, data.taken) == (8, 7)


def test_a_callback_that_is_missing_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.warns(UserWarning, match=r"Please add the following callbacks: \['Counts'\]"):
        trainer_of(max_epochs=2).fit(Net(), datamodule=Data(), ckpt_path=path)


def test_hooks_of_the_module_see_and_change_the_whole_checkpoint(tmp_path: Path) -> None:
    class Adds(Net):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = set(checkpoint) >= KEYS | TRAINING_KEYS

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"]["layer.bias"].fill_(5.0)
            self.extra = checkpoint["extra"]

    path = saved(tmp_path, Adds())
    net = Adds()
    trainer_of(Counts()).test(net, ckpt_path=path, verbose=False)
    assert net.extra is True
    assert net.layer.bias.tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("net", "arguments", "error", "text"),
    [
        (lambda: Net(optimizers=2), {}, CheckpointError, r"optimizers: checkpoint .*a.ckpt has 1, this run has 2"),
        (
            Net,
            {"max_epochs": 0},
            MisconfigurationException,
            r"current_epoch=1, which is beyond Trainer\(max_epochs=0\)",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    net: Any, arguments: dict[str, Any], error: type[Exception], text: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    with pytest.raises(error, match=text):
        trainer_of(Counts(), **({"max_epochs": 2} | arguments)).fit(net(), datamodule=Data(), ckpt_path=path)


def test_a_checkpoint_of_weights_cannot_be_continued_but_evaluated(tmp_path: Path) -> None:
    path, net = saved(tmp_path, weights_only=True), Net()
    with pytest.raises(KeyError, match="contains only the model"):
        trainer_of(Counts(), max_epochs=2).fit(net, datamodule=Data(), ckpt_path=path)
    trainer_of(Counts()).test(net, ckpt_path=path, verbose=False)
    assert torch.equal(net.layer.bias, torch.load(path, weights_only=True)["state_dict"]["layer.bias"])


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    content["inazuma"]["format"] = 99
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"written by a newer inazuma \(format 99"):
        trainer_of(Counts(), max_epochs=2).fit(Net(), datamodule=Data(), ckpt_path=path)


def test_saving_changes_nothing_in_the_run(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "b.ckpt")

    results = []
    for callbacks in ([], [Saves()]):
        torch.manual_seed(3)
        net = Net()
        trainer_of(*callbacks, max_epochs=2, accumulate_grad_batches=3).fit(net, datamodule=Data())
        results.append((net.layer.weight.detach().clone(), torch.rand(2)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
