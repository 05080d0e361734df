"""The contenders: the same training, written by hand and with each framework.

Each is a function `(job, meter) -> None` that does what the job says, calls `meter.start()` right before the training
(or validation …) begins, and `meter.tick()` at the beginning of each step. Each imports its framework itself, so that
a process has only the one that it measures, and is as sparing as the framework allows.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from common import BARE, MODELS, classifier, framework, loader
from meter import Meter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Job:
    """What a contender is asked to do."""

    verb: str = "fit"  # or "validate", "test", "predict"
    model: str = "perceptron"  # one of common.MODELS
    data: str = "memory"  # one of common.DATA
    settings: str = "bare"  # one of SETTINGS, where there is a Trainer
    logs: int = 0  # values logged in each step, where there is a Trainer
    batches: int = 100
    epochs: int = 1
    workers: int = 0
    persistent: bool = False  # whether the loader keeps its workers from epoch to epoch

    def network(self) -> nn.Module:
        return MODELS[self.model][0]()

    def loader(self) -> DataLoader[Any]:
        options = {"num_workers": self.workers, "persistent_workers": self.persistent}
        return loader(self.batches, self.model, self.data, **options)


Contender = Callable[[Job, Meter], None]


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01)


def hand_written(job: Job, meter: Meter) -> None:
    """What one would write with torch alone."""
    network, batches = job.network(), job.loader()
    if job.verb != "fit":
        return evaluate(job.verb, network, batches, meter)
    optimizer = sgd(network)
    network.train()
    meter.start()
    for _ in range(job.epochs):
        for inputs, labels in batches:
            meter.tick()
            loss = F.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def evaluate(verb: str, network: nn.Module, batches: DataLoader[Any], meter: Meter) -> None:
    predictions: list[Tensor] = []
    network.eval()
    meter.start()
    with torch.inference_mode():
        for inputs, labels in batches:
            meter.tick()
            if verb == "predict":
                predictions.append(network(inputs))
            else:
                F.cross_entropy(network(inputs), labels)


SETTINGS: dict[str, Callable[[ModuleType, str], dict[str, Any]]] = {  # options of the Trainer, from module and folder
    "bare": lambda pl, folder: BARE,
    "default": lambda pl, folder: {},
    "csv": lambda pl, folder: {"logger": pl.loggers.CSVLogger(folder), "log_every_n_steps": 1},
    "compiled": lambda pl, folder: BARE | {"compile": "step"},
    "not exact": lambda pl, folder: BARE | {"exact_resume": False},
    "digest": lambda pl, folder: BARE | {"callbacks": [pl.callbacks.RunDigest()]},
}


def can_compile() -> bool:
    return "compile" in inspect.signature(framework("inazuma").Trainer).parameters


def with_trainer(name: str, job: Job, meter: Meter) -> None:
    """inazuma and Lightning: the same lines."""
    pl = framework(name)

    def log(module: Any, loss: Tensor) -> None:
        for i in range(job.logs):
            module.log(f"loss {i}", loss, on_step=True, on_epoch=True)

    class Ticks(pl.Callback):  # type: ignore[misc, name-defined]
        """Counts from outside of a step that is compiled; costs the contender a hook."""

        def on_train_batch_start(self, *_: Any) -> None:
            meter.tick()

    with tempfile.TemporaryDirectory() as folder:
        options = SETTINGS[job.settings](pl, folder)
        from_outside = job.settings == "compiled"
        if from_outside:
            options = options | {"callbacks": [Ticks()]}
        trainer = pl.Trainer(max_epochs=job.epochs, accelerator="cpu", default_root_dir=folder, **options)
        step = None if from_outside else meter.tick
        module, batches = classifier(pl, job.model, log if job.logs else None, step), job.loader()
        more = {"verbose": False} if job.verb in ("validate", "test") else {}
        meter.start()
        getattr(trainer, job.verb)(module, batches, **more)


def fabric(job: Job, meter: Meter) -> None:
    framework("lightning")
    from lightning.fabric import Fabric

    device = Fabric(accelerator="cpu", devices=1)
    network = job.network()
    network, optimizer = device.setup(network, sgd(network))
    batches = device.setup_dataloaders(job.loader())
    network.train()
    meter.start()
    for inputs, labels in batches:
        meter.tick()
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        device.backward(loss)
        optimizer.step()


def accelerate(job: Job, meter: Meter) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    network = job.network()
    network, optimizer, batches = accelerator.prepare(network, sgd(network), job.loader())
    network.train()
    meter.start()
    for inputs, labels in batches:
        meter.tick()
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()


def ignite(job: Job, meter: Meter) -> None:
    from ignite.engine import Engine

    network = job.network()
    optimizer = sgd(network)
    network.train()

    def step(engine: Engine, batch: tuple[Tensor, Tensor]) -> Tensor:
        meter.tick()
        inputs, labels = batch
        loss = F.cross_entropy(network(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    batches = job.loader()
    meter.start()
    Engine(step).run(batches, max_epochs=job.epochs)


def transformers(job: Job, meter: Meter) -> None:
    import transformers

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(job.loader())

        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
            meter.tick()
            images, labels = inputs
            return F.cross_entropy(model(images), labels)

    transformers.utils.logging.set_verbosity_error()
    network = job.network()
    off = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, use_cpu=True, num_train_epochs=job.epochs, max_grad_norm=0.0, **off
        )
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer := sgd(network), factor=1.0)
        trainer = Trainer(network, arguments, train_dataset=job.loader().dataset, optimizers=(optimizer, constant))
        meter.start()
        trainer.train()


def keras(job: Job, meter: Meter) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    def loss(labels: Tensor, logits: Tensor) -> Tensor:
        meter.tick()
        return F.cross_entropy(logits, labels.long())  # Keras gives all numbers as floats

    model = keras.Sequential([keras.layers.TorchModuleWrapper(job.network())])
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
    batches = job.loader()
    meter.start()
    model.fit(batches, epochs=job.epochs, verbose=0)


CONTENDERS: dict[str, Contender] = {
    "hand-written": hand_written,
    "inazuma": partial(with_trainer, "inazuma"),
    "lightning": partial(with_trainer, "lightning"),
    "fabric": fabric,
    "accelerate": accelerate,
    "ignite": ignite,
    "transformers": transformers,
    "keras": keras,
}
MODULES = {  # what a user of each imports
    "hand-written": "torch",
    "inazuma": "inazuma",
    "lightning": "lightning.pytorch",
    "fabric": "lightning.fabric",
    "accelerate": "accelerate",
    "ignite": "ignite.engine",
    "transformers": "transformers",
    "keras": "keras",
}
