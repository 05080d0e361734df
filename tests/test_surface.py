"""What users build on is written down here: a new public name, Trainer argument or checkpoint key changes this file.

The second half holds the same things against Lightning 2.6.6: whoever knows its names and defaults knows ours.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch as reference
import pytest
import torch
from torch import nn

import inazuma
from inazuma.testing import BoringModel

PUBLIC_NAMES = {
    "BadSteps",
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "__version__",
    "seed_everything",
}

TRAINER_ARGUMENTS: dict[str, Any] = {
    "accelerator": "auto",
    "strategy": "auto",
    "devices": "auto",
    "num_nodes": 1,
    "precision": None,
    "logger": None,
    "callbacks": None,
    "fast_dev_run": False,
    "max_epochs": None,
    "min_epochs": None,
    "max_steps": -1,
    "min_steps": None,
    "max_time": None,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "limit_predict_batches": None,
    "overfit_batches": 0.0,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": None,
    "log_every_n_steps": None,
    "enable_checkpointing": None,
    "enable_progress_bar": None,
    "enable_model_summary": None,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
    "deterministic": None,
    "benchmark": None,
    "inference_mode": True,
    "use_distributed_sampler": True,
    "profiler": None,
    "detect_anomaly": False,
    "barebones": False,
    "plugins": None,
    "sync_batchnorm": False,
    "reload_dataloaders_every_n_epochs": 0,
    "default_root_dir": None,
    "enable_autolog_hparams": True,
    "model_registry": None,
}
# Arguments that Lightning's Trainer does not have; they stand behind its own.
OWN_TRAINER_ARGUMENTS: dict[str, Any] = {
    "exact_resume": True,
    "async_checkpointing": False,
    "bad_steps": None,
    "stop_signals": None,
    "compile": False,
}

# Lightning's keys stay where Lightning puts them; what an exact resume needs besides goes under one key of our own.
CHECKPOINT_KEYS = {
    "callbacks",
    "epoch",
    "global_step",
    "hparams_name",
    "hyper_parameters",
    "loops",
    "lr_schedulers",
    "optimizer_states",
    "pytorch-lightning_version",
    "state_dict",
}
OWN_CHECKPOINT_KEY = "inazuma"

CLASSES: dict[str, tuple[type, type, type]] = {  # ours, Lightning's, and a base of both that is neither's
    "Trainer": (inazuma.Trainer, reference.Trainer, object),
    "LightningModule": (inazuma.LightningModule, reference.LightningModule, nn.Module),
    "LightningDataModule": (inazuma.LightningDataModule, reference.LightningDataModule, object),
    "Callback": (inazuma.Callback, reference.Callback, object),
}

# Public names of ours that Lightning's objects do not have.
OWN_NAMES: dict[str, set[str]] = {
    "Trainer": {
        "backward",
        "bad_steps",
        "benchmark",
        "checkpoint_note",
        "compile",
        "detect_anomaly",
        "exact_resume",
        "timing",
        "inference_mode",
        "lightning_optimizers",
        "limits",
        "progress",
        "run_id",
        "sync_batchnorm",
        "use_distributed_sampler",
        "validation_follows",
    },
    "LightningModule": {"CHECKPOINT_HYPER_PARAMS_NOTES", "attach_logbook"},
    "LightningDataModule": {"CHECKPOINT_HYPER_PARAMS_NOTES"},
    "Callback": {"runs_after_module"},
}

# Names of Lightning's that are not here, each with the reason.
LEFT_OUT: dict[str, dict[str, str]] = {
    "Trainer": {
        "predict_loop": "an object of Lightning's engine; here the loop is functions",
        "test_loop": "an object of Lightning's engine; here the loop is functions",
        "validate_loop": "an object of Lightning's engine; here the loop is functions",
    },
    "LightningModule": {
        "configure_sharded_model": "deprecated since 2.0; configure_model is the name",
        "device_mesh": "comes with the model-parallel strategy",
        "fabric": "comes with Fabric",
        "remove_ignored_hparams": "a step of save_hyperparameters that nobody calls",
        "to_tensorrt": "needs torch-tensorrt; torch_tensorrt.compile takes the module as it is",
    },
    "LightningDataModule": {"remove_ignored_hparams": "a step of save_hyperparameters that nobody calls"},
    "Callback": {},
}


class Remembering(BoringModel):
    """A module with a hyperparameter."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()


def public_names(of: type, base: type) -> set[str]:
    """What users see on an object of a class, beyond what its base outside the framework has."""
    made = of(accelerator="cpu", logger=False) if of.__name__ == "Trainer" else of()
    return {name for name in set(dir(made)) - set(dir(base())) if not name.startswith("_")}


def trainer_arguments(of: type) -> dict[str, Any]:
    parameters = inspect.signature(of.__init__).parameters.values()  # type: ignore[misc]
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}


def arguments(of: type, name: str) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of a method's parameters, `self` and `cls` left out."""
    parameters = inspect.signature(getattr(of, name)).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name not in ("self", "cls")]


def shared_methods() -> list[tuple[str, str]]:
    return [
        (title, name)
        for title, (ours, theirs, base) in CLASSES.items()
        for name in sorted(set(dir(ours)) & set(dir(theirs)) - set(dir(base)))
        if not name.startswith("_") and is_method(theirs, name)
    ]


def is_method(of: type, name: str) -> bool:
    return callable(getattr(of, name)) and not isinstance(getattr(of, name), type)


def test_the_public_names_are_these() -> None:
    assert set(inazuma.__all__) == PUBLIC_NAMES
    assert all(hasattr(inazuma, name) for name in PUBLIC_NAMES)


def test_the_arguments_of_the_trainer_and_their_defaults_are_these() -> None:
    assert trainer_arguments(inazuma.Trainer) == TRAINER_ARGUMENTS | OWN_TRAINER_ARGUMENTS


def test_the_keys_of_a_checkpoint_are_these(tmp_path: Path) -> None:
    trainer = inazuma.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Remembering())
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    stored = torch.load(tmp_path / "all.ckpt", weights_only=True)
    assert set(stored) == CHECKPOINT_KEYS | {OWN_CHECKPOINT_KEY}


@pytest.mark.parametrize("title", CLASSES)
def test_no_public_name_stands_beside_those_written_down(title: str) -> None:
    ours, theirs, base = CLASSES[title]
    assert public_names(ours, base) - public_names(theirs, base) == OWN_NAMES[title]


def test_the_arguments_of_the_trainer_are_lightnings_in_its_order() -> None:
    assert list(TRAINER_ARGUMENTS.items()) == list(trainer_arguments(reference.Trainer).items())


@pytest.mark.parametrize("title", CLASSES)
def test_every_public_name_of_lightnings_classes_is_there_or_left_out_for_a_reason(title: str) -> None:
    ours, theirs, base = CLASSES[title]
    assert public_names(theirs, base) - public_names(ours, base) == set(LEFT_OUT[title])


@pytest.mark.parametrize(("title", "name"), shared_methods())
def test_a_method_takes_what_lightnings_takes(title: str, name: str) -> None:
    ours, theirs, _ = CLASSES[title]
    assert arguments(ours, name) == arguments(theirs, name)


def test_a_checkpoint_has_the_keys_of_lightnings(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel as TheirBoringModel

    class Theirs(TheirBoringModel):
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = reference.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    with pytest.warns():  # its advice on workers, and on a step that never logs
        trainer.fit(Theirs())
    trainer.save_checkpoint(tmp_path / "all.ckpt")
    assert set(torch.load(tmp_path / "all.ckpt", weights_only=True)) == CHECKPOINT_KEYS
