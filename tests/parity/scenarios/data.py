"""Where batches come from: several loaders, datamodules, reloading, structures, transfer hooks."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario, stream

ITERATOR = "`training_step(self, dataloader_iter)`"
EARLIER = "refused before the first hook it would have run in"


def _several(lab: Lab) -> Any:
    """A net that is fed by several loaders: dicts and lists of batches in training, an index in evaluation."""

    class Several(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batches = batch.values() if isinstance(batch, dict) else batch
            loss = sum(self.loss(each) for each in batches if each is not None)
            self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=2)
            return loss

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val_loss", self.loss(batch), on_step=True, on_epoch=True)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log(f"test_loss_{dataloader_idx}", self.loss(batch), add_dataloader_idx=False)
            self.log("test_last", float(batch_idx), reduce_fx="max")

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch[0]) + dataloader_idx

    return Several()


@scenario()
def several_val_loaders(lab: Lab) -> None:
    lab.fit(_several(lab), [loader(6), loader(8)], [loader(6), loader(3), loader(4)])


@scenario()
def several_val_loaders_with_limits(lab: Lab) -> None:
    lab.fit(_several(lab), [loader(6)], [loader(6), stream(3), loader(4)], limit_val_batches=2, num_sanity_val_steps=1)


@scenario()
def a_dict_of_val_loaders(lab: Lab) -> None:
    lab.fit(_several(lab), [loader(6)], {"near": loader(6), "far": loader(4)})


@scenario()
def several_val_loaders_without_an_index(lab: Lab) -> None:
    lab.fit(val=[loader(6), loader(6)])


@scenario()
def a_dict_of_train_loaders(lab: Lab) -> None:
    lab.fit(_several(lab), {"a": loader(6), "b": loader(10)})


@scenario()
def a_nested_structure_of_train_loaders(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch["a"]) + self.loss(batch["b"][0]) + self.loss(batch["b"][1])

    lab.fit(Net(), {"a": loader(6), "b": [loader(4), loader(8)]})


def _combined(lab: Lab, mode: str) -> None:
    combined = lab.part("utilities").CombinedLoader([loader(6), loader(10)], mode=mode)
    lab.fit(_several(lab), combined, accumulate_grad_batches=2)


@scenario()
def combined_min_size(lab: Lab) -> None:
    _combined(lab, "min_size")


@scenario()
def combined_max_size(lab: Lab) -> None:
    _combined(lab, "max_size")


@scenario()
def combined_max_size_cycle(lab: Lab) -> None:
    _combined(lab, "max_size_cycle")


@scenario(deviates={"hooks": EARLIER})
def combined_sequential_in_training(lab: Lab) -> None:
    _combined(lab, "sequential")


@scenario()
def combined_in_validation(lab: Lab) -> None:
    class Net(lab.Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", sum(self.loss(each) for each in batch), batch_size=2)

    lab.fit(Net(), val=lab.part("utilities").CombinedLoader([loader(6), loader(10)], mode="min_size"))


@scenario()
def combined_of_loader_and_stream(lab: Lab) -> None:
    lab.fit(_several(lab), [loader(6), stream(10)])


@scenario(warns=["ambiguous collection"])
def batches_as_dicts(lab: Lab) -> None:
    class Net(lab.Net):
        def loss(self, batch: Any) -> Any:
            return super().loss((batch["x"], batch["more"][0]))

    def collate(samples: list[Any]) -> Any:
        return {
            "name": [f"{x.sum():.3f}" for x, _ in samples],
            "x": torch.stack([x for x, _ in samples]),
            "more": [torch.stack([y for _, y in samples]), 3],
        }

    lab.fit(Net(), loader(11, collate_fn=collate), loader(5, collate_fn=collate))


@scenario()
def an_uneven_last_batch(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

    lab.fit(Net(), loader(11, batch_size=3), loader(7, batch_size=4))


@scenario()
def loaders_of_the_module(lab: Lab) -> None:
    class Net(lab.Net):
        def train_dataloader(self) -> Any:
            return loader(8)

        def val_dataloader(self) -> Any:
            return loader(4)

    lab.fit(Net(), False, False)


@scenario(draws=True)
def a_sanity_check_in_an_epoch_without_validation(lab: Lab) -> None:
    class Net(lab.Net):
        def val_dataloader(self) -> Any:
            return loader(4)

    lab.fit(Net(), val=False, check_val_every_n_epoch=2, max_epochs=4)
    lab.fit(Net(), val=False, check_val_every_n_epoch=2, max_epochs=4, reload_dataloaders_every_n_epochs=3)


@scenario(draws=True)
def stages_in_which_loaders_are_asked_for(lab: Lab) -> Any:
    asked = []

    class Net(lab.Net):
        def train_dataloader(self) -> Any:
            asked.append(f"train in {self.trainer.state.stage.value}")
            return loader()

        def val_dataloader(self) -> Any:
            asked.append(f"val in {self.trainer.state.stage.value}")
            return loader(4)

    for steps in (0, 1):
        lab.fit(Net(), False, False, num_sanity_val_steps=steps)
    return asked


@scenario()
def loaders_reloaded_every_epoch(lab: Lab) -> None:
    class Net(lab.Net):
        def train_dataloader(self) -> Any:
            return loader(4 + 2 * self.current_epoch)

        def val_dataloader(self) -> Any:
            return loader(4 + 2 * self.current_epoch)

    lab.fit(Net(), False, False, reload_dataloaders_every_n_epochs=1, max_epochs=3)


@scenario()
def loaders_reloaded_every_second_epoch(lab: Lab) -> None:
    class Net(lab.Net):
        def train_dataloader(self) -> Any:
            return loader(4 + 2 * self.current_epoch)

        def val_dataloader(self) -> Any:
            return loader(4 + 2 * self.current_epoch)

    arguments = {"reload_dataloaders_every_n_epochs": 2, "max_epochs": 5, "check_val_every_n_epoch": 3}
    lab.fit(Net(), False, False, num_sanity_val_steps=0, **arguments)


@scenario()
def reloading_changes_the_validation_interval(lab: Lab) -> None:
    class Net(lab.Net):
        def train_dataloader(self) -> Any:
            return loader(4 + 4 * self.current_epoch)

        def val_dataloader(self) -> Any:
            return loader(4)

    lab.fit(Net(), False, False, reload_dataloaders_every_n_epochs=1, val_check_interval=0.5)


def _datamodule(lab: Lab) -> Any:
    class Data(lab.pl.LightningDataModule):
        def __init__(self, length: int = 8) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.seen = 0

        def setup(self, stage: str) -> None:
            self.stage = stage

        def train_dataloader(self) -> Any:
            return loader(self.hparams.length)

        def val_dataloader(self) -> Any:
            return loader(4)

        def test_dataloader(self) -> Any:
            return loader(6)

        def predict_dataloader(self) -> Any:
            return loader(4)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen += 1
            return [batch[0] + 0.1, batch[1]]

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.seen = state["seen"]

    return Data()


@scenario(warns=["overridden `on_after_batch_transfer` in both"])
def datamodule(lab: Lab) -> Any:
    data = lab.watch(_datamodule(lab))
    net = lab.Net()
    trainer = lab.fit(net, datamodule=data)
    return [
        data.seen,
        trainer.validate(net, datamodule=data),
        trainer.test(net, datamodule=data),
        trainer.predict(net, datamodule=data),
        trainer.test(ckpt_path="best", datamodule=data),
        data.seen,
    ]


@scenario(warns=["overridden `on_after_batch_transfer` in both"])
def datamodule_in_the_loaders_place(lab: Lab) -> None:
    lab.fit(train=lab.watch(_datamodule(lab)), val=False)


@scenario()
def datamodule_and_loaders(lab: Lab) -> None:
    lab.fit(train=lab.watch(_datamodule(lab)), val=loader())


@scenario(draws=True)
def datamodule_from_datasets(lab: Lab) -> Any:
    points = loader(6).dataset
    data = lab.pl.LightningDataModule.from_datasets(points, points, points, points, batch_size=2)
    net = lab.Net()
    trainer = lab.fit(net, datamodule=data)
    return [trainer.test(net, datamodule=data), trainer.predict(net, datamodule=data)]


@scenario(warns=["overridden `on_after_batch_transfer` in both"])
def datamodule_with_an_exception(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise ValueError("a bad batch")

    lab.fit(Net(), datamodule=_datamodule(lab))


@scenario()
def transfer_hooks_of_the_module(lab: Lab) -> None:
    class Net(lab.Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"x": batch[0], "y": batch[1]}

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            assert device == torch.device("cpu")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch["x"] * 2, batch["y"]

    lab.fit(Net())


@scenario(deviates=dict.fromkeys(("hooks", "raised", "csv", "files", "checkpoints", "weights"), ITERATOR))
def the_step_takes_the_iterator(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, dataloader_iter: Any) -> Any:
            batch, _, _ = next(dataloader_iter)
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=2)
            return loss

    lab.fit(Net())


@scenario()
def a_step_without_batch_idx(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any) -> Any:
            return self.loss(batch)

        def validation_step(self, batch: Any) -> None:
            self.log("val_loss", self.loss(batch))

    lab.fit(Net())


@scenario()
def any_iterable_is_a_loader(lab: Lab) -> None:
    class Batches:
        def __iter__(self) -> Any:
            return iter(loader(6))

    lab.fit(train=Batches(), val=Batches())


@scenario()
def a_sampler_is_told_the_epoch(lab: Lab) -> None:
    class Sampler(torch.utils.data.Sampler[int]):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Any:
            return iter(range(self.epoch % 3, 8))

        def __len__(self) -> int:
            return 6

    lab.fit(train=loader(8, sampler=Sampler()), val=loader(8, sampler=Sampler()), max_epochs=3)


@scenario(draws=True)
def worker_processes(lab: Lab) -> None:
    lab.fit(train=loader(8, num_workers=1, shuffle=True), val=loader(4, num_workers=1), max_epochs=2)


# --- evaluation


@scenario()
def validate_alone(lab: Lab) -> Any:
    return lab.trainer().validate(lab.watch(lab.Net()), loader(6))


@scenario()
def test_alone(lab: Lab) -> Any:
    return lab.trainer(limit_test_batches=2).test(lab.watch(lab.Net()), loader(6))


@scenario()
def test_several_loaders(lab: Lab) -> Any:
    return lab.trainer().test(lab.watch(_several(lab)), [loader(6), loader(4)])


@scenario()
def validate_several_loaders(lab: Lab) -> Any:
    trainer = lab.trainer(inference_mode=False)
    net = lab.watch(_several(lab))
    return [trainer.validate(net, [loader(6), loader(4)]), trainer.validate(net, {"a": loader(2), "b": loader(3)})]


@scenario()
def predict(lab: Lab) -> Any:
    return lab.trainer().predict(lab.watch(lab.Net()), loader(5, drop_last=True))


@scenario()
def predict_several_loaders(lab: Lab) -> Any:
    return lab.trainer(limit_predict_batches=2).predict(lab.watch(_several(lab)), [loader(6), loader(2)])


@scenario()
def predict_without_returning(lab: Lab) -> Any:
    return lab.trainer().predict(lab.watch(lab.Net()), loader(4), return_predictions=False)


@scenario()
def predict_by_forward(lab: Lab) -> Any:
    class Net(lab.pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, batch: Any) -> Any:
            return {"points": self.layer(batch[0]), "batch": batch}

    return lab.trainer().predict(lab.watch(Net()), loader(4))


@scenario(needs="BasePredictionWriter")
def predictions_written_by_a_callback(lab: Lab) -> Any:
    class Writer(lab.callbacks.BasePredictionWriter):
        written: list[Any]

        def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, indices: Any, *rest: Any) -> None:
            self.written.append([prediction, indices, *rest[1:]])

        def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, indices: Any) -> None:
            self.written.append([predictions, indices])

    writer = Writer(write_interval="batch_and_epoch")
    writer.written = []
    returned = lab.trainer([writer]).predict(lab.watch(lab.Net()), loader(5), return_predictions=False)
    return [returned, writer.written]


@scenario()
def evaluation_without_a_step(lab: Lab) -> None:
    class Net(lab.pl.LightningModule):
        pass

    lab.trainer().test(lab.watch(Net()), loader())


@scenario(warns=["called without a model"])
def fit_then_everything(lab: Lab) -> Any:
    net = lab.Net()
    trainer = lab.fit(net)
    trainer.validate(dataloaders=loader(4))
    return [
        trainer.validate(net, loader(4)),
        trainer.test(net, loader(4)),
        trainer.predict(net, loader(4)),
        trainer.test(dataloaders=loader(6)),
        {name: float(value) for name, value in trainer.callback_metrics.items()},
    ]


@scenario(warns=["called without a model"])
def evaluation_with_the_best_when_nothing_was_saved(lab: Lab) -> Any:
    net = lab.Net()
    trainer = lab.fit(net, enable_checkpointing=False)
    return trainer.validate(dataloaders=loader(4))
