"""Small modules and datasets for tests and examples; a bad step run again.

`BoringModel` is the smallest complete module: one linear layer, every step, every loader, an optimizer with a schedule.
Subclass it and override the one method a test is about.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from inazuma import files
from inazuma.bad_steps import loss_of
from inazuma.datamodule import LightningDataModule
from inazuma.devices import available
from inazuma.errors import CheckpointError
from inazuma.logbook import Logbook, Results
from inazuma.module import LightningModule
from inazuma.run import takes_index
from inazuma.seed import isolate_rng, restore_rng
from inazuma.trainer import Trainer
from inazuma.tree import move_data_to_device


class RandomDataset(Dataset[Tensor]):
    """`length` samples of `size` normal numbers, drawn once from torch's global generator."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """Like `RandomDataset`, but a sample is a dict: "a" is the row, "b" the row plus 2."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.data[index]
        return {"a": row, "b": row + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """A stream of `count` fresh samples of `size` normal numbers; it has no length."""

    def __init__(self, size: int, count: int) -> None:
        self.size = size
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """A `RandomIterableDataset` that knows its length."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """One linear layer from 32 to 2 numbers, trained to answer 1 to random input: 64 batches of one sample a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean squared distance of `preds` from `labels`, which have its shape, or from 1 without them: a scalar."""
        return F.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> Tensor:
        """The loss of one batch (a tensor `[..., 32]`), the same in training, validation and test."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        optimizer = SGD(self.layer.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """A `BoringModel` that calls backward and its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One linear layer from 32 to `out_dim` numbers with a ReLU; the loss is their sum, the optimizer Adam."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.l1(x.flatten(start_dim=1)))

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        return self(batch).sum()

    def configure_optimizers(self) -> Optimizer:
        return Adam(self.parameters(), lr=self.learning_rate)


class BoringDataModule(LightningDataModule):
    """256 random samples of 32 numbers: a quarter each to train, validate, test and predict, in batches of one."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.random_train = self._quarter(0)
        if stage in ("fit", "validate"):
            self.random_val = self._quarter(1)
        if stage == "test":
            self.random_test = self._quarter(2)
        if stage == "predict":
            self.random_predict = self._quarter(3)

    def _quarter(self, index: int) -> Subset[Tensor]:
        return Subset(self.random_full, range(64 * index, 64 * (index + 1)))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.random_predict)


def replay_bad_step(
    path: str | os.PathLike[str],
    module: LightningModule,
    trainer: Trainer | None = None,
    batches: Sequence[Any] | None = None,
) -> list[Tensor]:
    """Run again, alone and without changing weights, the step that ended a run with `Trainer(bad_steps=...)`.

    Put a breakpoint into `training_step`, or look at the module afterwards: its parameters hold the gradients.

        module = MyModule(...)
        losses = replay_bad_step("bad_steps/bad-step-epoch=3-batch=17-step=120.ckpt", module)

    `training_step` begins with the weights, buffers, training modes, random generators and position that it had then,
    so that on the same kind of machine the losses have the same bits. What `self.log` takes goes nowhere.

    Args:
        path: the file that the `BadStepError` names.
        module: made as for the run; it takes the weights from the file.
        trainer: for its device and precision. Default: one of the kind that wrote the file, or on the CPU where there
            is no such device.
        batches: in the place of those in the file, which holds tensors and plain data only.

    Returns:
        The loss of each batch of the accumulation window (before the division by its length), detached.

    Raises:
        CheckpointError: the file holds no bad step.
    """
    dump = files.load(path)
    if (step := dump.get("bad_step")) is None:
        raise CheckpointError(
            f"{path} is a checkpoint, but not of a bad step, which `Trainer(bad_steps='raise')` writes. "
            "`fit(ckpt_path=...)` continues from it."
        )
    if trainer is None:
        trainer = Trainer(
            accelerator=step["accelerator"] if available(step["accelerator"]) else "cpu",
            devices=1,
            precision=step["precision"],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    precision, device = trainer.precision_plugin, trainer.strategy.root_device
    trainer.progress.load_state_dict(step["progress"])
    module.trainer = trainer
    book = Logbook(SimpleNamespace(where="training_step"), lambda value, *_: value, device, ())
    book.results = Results(is_training=True)
    module.attach_logbook(book)
    with precision.init_context():
        module.configure_model()
    module.on_load_checkpoint(dump)
    module.load_state_dict(dump["state_dict"], strict=module.strict_loading)
    precision.convert_module(module)
    trainer.strategy.module_to_device(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, value in step["again"].items():  # of an optimizer that changes weights between forward passes
            tensors[name].copy_(value)
    module.train()
    for name in step["evaluating"]:
        module.get_submodule(name).training = False
    module.zero_grad()
    losses: list[Tensor] = []
    given = [forward["batch"] for forward in step["batches"]] if batches is None else batches
    with isolate_rng():
        for forward, batch in zip(step["batches"], given, strict=True):
            arguments = (batch, forward["batch_idx"]) if takes_index(module.training_step) else (batch,)
            arguments = move_data_to_device(arguments, device)
            book.begin_batch(batch)
            restore_rng(forward["rng"])
            with precision.forward_context():
                loss = loss_of(module.training_step(*arguments))
            if loss is not None:
                losses.append(loss.detach())
                module.backward(loss / step["window"])
    module.attach_logbook(None)
    return losses
