"""Callbacks: their order, what they log, when they stop the run, what they do to weights and rates."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario


def _scripted(lab: Lab, values: list[float]) -> Any:
    """A net whose `val_loss` of each epoch is given."""

    class Net(lab.Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", values[min(self.current_epoch, len(values) - 1)])

        def on_train_epoch_end(self) -> None:
            self.log("epoch_value", values[min(self.current_epoch, len(values) - 1)])

    return Net()


def _state(callback: Any) -> dict[str, Any]:
    return {name: float(value) for name, value in callback.state_dict().items() if not isinstance(value, (str, dict))}


@scenario()
def order_of_callbacks(lab: Lab) -> Any:
    class First(lab.pl.Callback):
        pass

    class Second(lab.pl.Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.order = [type(callback).__name__ for callback in trainer.callbacks]

    second = Second()
    checkpoint = lab.callbacks.ModelCheckpoint(monitor="val_loss")
    lab.fit(callbacks=[checkpoint, First(), lab.callbacks.EarlyStopping("val_loss"), second])
    return second.order


@scenario()
def callbacks_of_the_module(lab: Lab) -> Any:
    class Net(lab.Net):
        def configure_callbacks(self) -> Any:
            stop = lab.watch(lab.callbacks.EarlyStopping("val_loss", patience=1))
            return [stop, lab.watch(lab.callbacks.ModelCheckpoint(filename="own"))]

    trainer = lab.fit(Net(), callbacks=[lab.callbacks.EarlyStopping("other")])
    return [type(callback).__name__ for callback in trainer.callbacks]


@scenario()
def early_stopping(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", patience=2)
    lab.fit(_scripted(lab, [3.0, 2.0, 2.5, 2.4, 1.0, 0.5]), callbacks=[stop], max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_with_min_delta_and_max(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", patience=2, min_delta=0.5, mode="max")
    lab.fit(_scripted(lab, [1.0, 1.4, 1.6, 1.7, 1.9, 3.0]), callbacks=[stop], max_epochs=6)
    return _state(stop)


@scenario(warns=["no `val_dataloader`"])
def early_stopping_on_a_train_metric(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("epoch_value", patience=1, check_on_train_epoch_end=True)
    lab.fit(_scripted(lab, [1.0, 1.4, 1.6]), callbacks=[stop], val=False, max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_by_threshold(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", stopping_threshold=1.5)
    lab.fit(_scripted(lab, [3.0, 1.5, 1.4, 1.3]), callbacks=[stop], max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_by_divergence(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", divergence_threshold=5.0)
    lab.fit(_scripted(lab, [3.0, 5.0, 6.0, 1.3]), callbacks=[stop], max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_by_nan(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss")
    lab.fit(_scripted(lab, [3.0, float("nan"), 1.0]), callbacks=[stop], max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_inside_an_epoch(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", patience=3)
    lab.fit(_scripted(lab, [1.0]), callbacks=[stop], val_check_interval=2, max_epochs=6)
    return _state(stop)


@scenario()
def early_stopping_before_min_epochs(lab: Lab) -> Any:
    stop = lab.callbacks.EarlyStopping("val_loss", patience=1)
    lab.fit(_scripted(lab, [1.0, 2.0, 3.0, 4.0, 5.0]), callbacks=[stop], min_epochs=3, max_epochs=5)
    return _state(stop)


@scenario()
def early_stopping_without_its_metric(lab: Lab) -> None:
    lab.fit(callbacks=[lab.callbacks.EarlyStopping("nothing")])


@scenario()
def swa(lab: Lab) -> None:
    swa = lab.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=2)
    lab.fit(callbacks=[swa], max_epochs=5)


@scenario()
def swa_with_schedule_and_share(lab: Lab) -> None:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    swa = lab.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=0.5, annealing_strategy="linear")
    lab.fit(Net(), callbacks=[swa], max_epochs=4)


@scenario(deviates={"checkpoints": "its state holds the average's buffers as they are"})
def swa_with_batch_norm(lab: Lab) -> None:
    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers.insert(1, torch.nn.BatchNorm1d(3))

    swa = lab.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    lab.fit(Net(), callbacks=[swa], max_epochs=4)


@scenario()
def weight_averaging(lab: Lab) -> None:
    lab.fit(callbacks=[lab.callbacks.WeightAveraging()])


@scenario()
def ema(lab: Lab) -> None:
    lab.fit(callbacks=[lab.callbacks.EMAWeightAveraging(decay=0.8, update_every_n_steps=2)], max_epochs=3)


@scenario()
def accumulation_schedule(lab: Lab) -> None:
    schedule = lab.callbacks.GradientAccumulationScheduler({0: 1, 1: 2, 3: 4})
    lab.fit(callbacks=[schedule], max_epochs=4)


@scenario()
def learning_rate_monitor(lab: Lab) -> Any:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            groups = [{"params": layer.parameters(), "name": name} for name, layer in self._named()]
            optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
            schedule = {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}
            return [optimizer], [schedule]

        def _named(self) -> Any:
            return [("in", self.layers[0]), ("out", self.layers[2])]

    monitor = lab.callbacks.LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    lab.fit(Net(), callbacks=[monitor], log_every_n_steps=2)
    return monitor.lrs


@scenario()
def learning_rate_monitor_by_epoch(lab: Lab) -> Any:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            schedule = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "name": "rate"}
            return [optimizer], [schedule]

    monitor = lab.callbacks.LearningRateMonitor(logging_interval="epoch")
    lab.fit(Net(), callbacks=[monitor], max_epochs=3)
    return monitor.lrs


@scenario()
def learning_rate_monitor_without_logger(lab: Lab) -> None:
    lab.fit(callbacks=[lab.callbacks.LearningRateMonitor()], logger=False)


@scenario()
def a_timer_that_never_rings(lab: Lab) -> None:
    lab.fit(max_time="01:00:00:00")


@scenario()
def a_timer_that_rings_at_once(lab: Lab) -> None:
    lab.fit(max_time={"seconds": 0}, max_epochs=None)


@scenario()
def lambda_callback(lab: Lab) -> Any:
    heard: list[str] = []
    callback = lab.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, module: heard.append(f"epoch {trainer.current_epoch}"),
        on_before_zero_grad=lambda trainer, module, optimizer: heard.append("zero_grad"),
    )
    lab.fit(callbacks=[callback])
    return heard


@scenario(needs="BackboneFinetuning")
def backbone_finetuning(lab: Lab) -> None:
    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))

        def forward(self, x: Any) -> Any:
            return super().forward(self.backbone(x))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    finetuning = lab.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, initial_denom_lr=2.0)
    lab.fit(Net(), callbacks=[finetuning], max_epochs=3)


@scenario(needs="ModelPruning")
def pruning(lab: Lab) -> None:
    lab.fit(callbacks=[lab.callbacks.ModelPruning("l1_unstructured", amount=0.3)])


@scenario(deviates={"metrics": "logged values are there again after a resume"}, warns=["saved by a ModelCheckpoint in"])
def callbacks_with_a_state(lab: Lab) -> Any:
    class Counter(lab.pl.Callback):
        count = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.count += 1

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["note"] = self.count

    counter = Counter()
    trainer = lab.fit(callbacks=[counter])
    again = Counter()
    lab.fit(callbacks=[again], ckpt_path=trainer.checkpoint_callback.best_model_path, max_epochs=3)
    return [counter.count, again.count]


@scenario()
def two_callbacks_with_one_state_key(lab: Lab) -> None:
    class Counter(lab.pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 1}

    lab.fit(callbacks=[Counter(), Counter()])


@scenario()
def a_callback_that_changes_the_trainer(lab: Lab) -> None:
    class Changer(lab.pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            trainer.accumulate_grad_batches = 1 + trainer.current_epoch
            if trainer.current_epoch == 2:
                trainer.fit_loop.max_epochs = 4

    lab.fit(callbacks=[Changer()], train=loader(8), max_epochs=3)
