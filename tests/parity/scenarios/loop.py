"""When batches, validation and epochs happen, and when a run ends."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario, stream


@scenario()
def plain(lab: Lab) -> None:
    lab.fit()


@scenario(warns=["no `val_dataloader`"])
def no_validation_loader(lab: Lab) -> None:
    lab.fit(val=False)


@scenario()
def nothing_around_the_loop(lab: Lab) -> None:
    lab.fit(logger=False, enable_checkpointing=False, num_sanity_val_steps=0)


@scenario(draws=True)
def shuffle_and_dropout(lab: Lab) -> None:
    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers.insert(2, torch.nn.Dropout(0.5))

    lab.fit(Net(), loader(shuffle=True), max_epochs=3)


@scenario()
def accumulation(lab: Lab) -> None:
    lab.fit(train=loader(10), accumulate_grad_batches=2)


@scenario()
def accumulation_with_validation_inside_a_window(lab: Lab) -> None:
    lab.fit(accumulate_grad_batches=3, val_check_interval=2)


@scenario()
def validation_every_n_batches(lab: Lab) -> None:
    lab.fit(train=loader(14), val_check_interval=3)


@scenario()
def validation_every_batch(lab: Lab) -> None:
    lab.fit(train=loader(6), val_check_interval=1)


@scenario()
def validation_every_share_of_an_epoch(lab: Lab) -> None:
    lab.fit(train=loader(20), val_check_interval=0.3)


@scenario()
def validation_share_zero(lab: Lab) -> None:
    lab.fit(train=loader(6), val_check_interval=0.0)


@scenario()
def validation_across_epochs(lab: Lab) -> None:
    lab.fit(val_check_interval=4, check_val_every_n_epoch=None, max_epochs=3)


@scenario()
def validation_interval_longer_than_an_epoch(lab: Lab) -> None:
    lab.fit(val_check_interval=9, check_val_every_n_epoch=None, max_epochs=3)


@scenario()
def validation_interval_too_long(lab: Lab) -> None:
    lab.fit(val_check_interval=9)


@scenario()
def validation_by_time_at_once(lab: Lab) -> None:
    lab.fit(train=loader(6), val_check_interval={"seconds": 0})


@scenario()
def validation_by_time_never(lab: Lab) -> None:
    lab.fit(train=loader(6), val_check_interval="01:00:00:00", check_val_every_n_epoch=None)


@scenario()
def validation_every_second_epoch(lab: Lab) -> None:
    lab.fit(check_val_every_n_epoch=2, max_epochs=5)


@scenario()
def validation_every_second_epoch_by_batches(lab: Lab) -> None:
    lab.fit(check_val_every_n_epoch=2, val_check_interval=2, max_epochs=4)


@scenario()
def limits_in_batches(lab: Lab) -> None:
    lab.fit(limit_train_batches=3, limit_val_batches=1)


@scenario()
def limits_as_shares(lab: Lab) -> None:
    lab.fit(limit_train_batches=0.5, limit_val_batches=0.7)


@scenario()
def limit_as_share_too_small(lab: Lab) -> None:
    lab.fit(limit_train_batches=0.01)


@scenario()
def limit_train_zero(lab: Lab) -> None:
    lab.fit(limit_train_batches=0)


@scenario()
def limit_val_zero(lab: Lab) -> None:
    lab.fit(limit_val_batches=0)


@scenario()
def limit_test_and_predict_zero(lab: Lab) -> Any:
    trainer = lab.trainer(limit_test_batches=0, limit_predict_batches=0, limit_val_batches=0)
    net = lab.watch(lab.Net())
    return [trainer.test(net, loader()), trainer.predict(net, loader()), trainer.validate(net, loader())]


@scenario()
def sanity_check_whole(lab: Lab) -> None:
    lab.fit(num_sanity_val_steps=-1, max_epochs=1)


@scenario()
def sanity_check_off(lab: Lab) -> None:
    lab.fit(num_sanity_val_steps=0)


@scenario()
def max_steps(lab: Lab) -> None:
    lab.fit(max_steps=8, max_epochs=None)


@scenario()
def max_steps_at_the_end_of_an_epoch(lab: Lab) -> None:
    lab.fit(max_steps=6, max_epochs=-1)


@scenario()
def max_steps_with_accumulation(lab: Lab) -> None:
    lab.fit(max_steps=4, max_epochs=10, accumulate_grad_batches=2, val_check_interval=0.5)


@scenario()
def max_steps_zero(lab: Lab) -> None:
    lab.fit(max_steps=0)


@scenario()
def max_epochs_zero(lab: Lab) -> None:
    lab.fit(max_epochs=0)


def _stopper(lab: Lab, at: int) -> Any:
    class Stopper(lab.pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == at:
                trainer.should_stop = True

    return Stopper()


@scenario()
def should_stop(lab: Lab) -> None:
    lab.fit(callbacks=[_stopper(lab, at=3)])


@scenario()
def should_stop_in_the_second_epoch(lab: Lab) -> None:
    lab.fit(callbacks=[_stopper(lab, at=8)], max_epochs=4, val_check_interval=0.5)


@scenario()
def should_stop_before_min_epochs(lab: Lab) -> None:
    lab.fit(callbacks=[_stopper(lab, at=3)], min_epochs=2, max_epochs=4)


@scenario()
def should_stop_before_min_steps(lab: Lab) -> None:
    lab.fit(callbacks=[_stopper(lab, at=3)], min_steps=8, max_epochs=4)


@scenario()
def should_stop_in_validation(lab: Lab) -> None:
    class Net(lab.Net):
        def on_validation_epoch_end(self) -> None:
            self.trainer.should_stop = self.global_step > 1

    lab.fit(Net(), val_check_interval=2, max_epochs=4)


@scenario()
def should_stop_in_on_train_epoch_start(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_epoch_start(self) -> None:
            self.trainer.should_stop = self.current_epoch == 1

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "train_loss"}

    lab.fit(Net(), max_epochs=4, log_every_n_steps=3)


@scenario()
def should_stop_in_on_train_epoch_start_before_min_epochs(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_epoch_start(self) -> None:
            self.trainer.should_stop = True

    lab.fit(Net(), min_epochs=2, max_epochs=4, accumulate_grad_batches=2)


@scenario(warns=["turning off the train dataloader shuffling"])
def overfit_batches(lab: Lab) -> None:
    lab.fit(train=loader(shuffle=True), overfit_batches=2)


@scenario()
def overfit_share(lab: Lab) -> None:
    lab.fit(val=loader(), overfit_batches=0.5)


@scenario()
def fast_dev_run(lab: Lab) -> None:
    lab.fit(fast_dev_run=True, callbacks=[lab.callbacks.EarlyStopping("val_loss")])


@scenario()
def fast_dev_run_and_overfit_batches(lab: Lab) -> Any:
    trainer = lab.fit(fast_dev_run=2, overfit_batches=3)
    return [trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches, trainer.max_steps]


@scenario()
def fast_dev_run_three_batches(lab: Lab) -> None:
    lab.fit(fast_dev_run=3)


@scenario(warns=["`Trainer.barebones=True.` is configured"])
def barebones(lab: Lab) -> None:
    lab.fit(barebones=True)


@scenario()
def detect_anomaly(lab: Lab) -> None:
    lab.fit(detect_anomaly=True, max_epochs=1)


@scenario(warns=["Error detected in MulBackward0"])
def detect_anomaly_finds_nan(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) + (self(batch[0]) * 0).sqrt().mean()

    lab.fit(Net(), detect_anomaly=True)


@scenario(warns=["returned None instead of a loss"])
def training_step_returns_none(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else self.loss(batch)

    lab.fit(Net())


@scenario(warns=["returned None instead of a loss"])
def training_step_returns_none_inside_a_window(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in (1, 2) else self.loss(batch)

    lab.fit(Net(), accumulate_grad_batches=2)


@scenario(warns=["yielded None"])
def batches_that_are_none(lab: Lab) -> None:
    def collate(samples: list[Any]) -> Any:
        x = torch.stack([x for x, _ in samples])
        y = torch.stack([y for _, y in samples])
        return None if x[0, 0] < 0 else (x, y)

    lab.fit(train=loader(collate_fn=collate))


@scenario(warns=["yielded None"])
def the_last_batch_is_none(lab: Lab) -> None:
    class Batches:
        def __init__(self) -> None:
            self.batches = [*loader(), None]

        def __iter__(self) -> Any:
            return iter(self.batches)

        def __len__(self) -> int:
            return len(self.batches)

    lab.fit(train=Batches())


@scenario()
def minus_one_from_on_train_batch_start(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 3 else None

    lab.fit(Net(), val_check_interval=2)


@scenario()
def minus_one_from_the_first_batch(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1

    lab.fit(Net())


@scenario()
def minus_one_with_a_schedule_of_every_second_step(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 3 - self.current_epoch else None

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 2}]

    lab.fit(Net(), accumulate_grad_batches=3)


@scenario()
def minus_one_after_logging(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            self.log("begun", float(batch_idx), on_step=True, on_epoch=True, prog_bar=True)
            return -1 if batch_idx == 3 else None

    lab.fit(Net(), log_every_n_steps=2)


@scenario()
def minus_one_from_a_callback(lab: Lab) -> None:
    class Skipper(lab.pl.Callback):
        def on_train_batch_start(self, *_: Any) -> Any:
            return -1

    lab.fit(callbacks=[Skipper()])


@scenario()
def minus_one_with_accumulation_and_schedule(lab: Lab) -> None:
    class Net(lab.Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 3 else None

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    lab.fit(Net(), accumulate_grad_batches=2)


@scenario()
def fit_twice(lab: Lab) -> None:
    net = lab.Net()
    trainer = lab.fit(net)
    trainer.fit(net, loader(), loader(6))


@scenario()
def fit_twice_with_more_epochs(lab: Lab) -> None:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    net = Net()
    trainer = lab.fit(net)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(net, loader(8), loader(4))


@scenario()
def fit_twice_with_max_steps(lab: Lab) -> None:
    net = lab.Net()
    trainer = lab.fit(net, max_steps=4)
    trainer.fit(net, loader(), loader(6))


@scenario()
def fit_with_two_trainers(lab: Lab) -> None:
    net = lab.Net()
    lab.fit(net)
    lab.fit(net, max_epochs=1)


@scenario()
def validate_before_fit(lab: Lab) -> Any:
    net = lab.watch(lab.Net())
    trainer = lab.trainer()
    first = trainer.validate(net, loader(6))
    trainer.fit(net, loader(), loader(6))
    return [first, trainer.validate(net, loader(6))]


@scenario()
def modules_keep_their_own_mode(lab: Lab) -> None:
    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.BatchNorm1d(4).eval()

        def forward(self, x: Any) -> Any:
            return super().forward(self.frozen(x))

        def on_train_batch_end(self, *_: Any) -> None:
            self.log("frozen", float(self.frozen.training))
            self.log("layers", float(self.layers.training))

    lab.fit(Net(), val_check_interval=2)


@scenario()
def a_module_with_its_own_modes(lab: Lab) -> None:
    class Net(lab.Net):
        def on_validation_model_eval(self) -> None:
            self.layers.eval()

        def on_validation_model_train(self) -> None:
            self.layers.train()

    lab.fit(Net(), val_check_interval=3)


@scenario()
def a_stream_has_no_length(lab: Lab) -> None:
    lab.fit(train=stream(), val=stream(6))


@scenario()
def a_stream_with_limits(lab: Lab) -> None:
    lab.fit(train=stream(), val=stream(6), limit_train_batches=4, limit_val_batches=2)


@scenario()
def a_stream_with_validation_inside(lab: Lab) -> None:
    lab.fit(train=stream(), val_check_interval=2, accumulate_grad_batches=4)


@scenario()
def a_stream_with_a_share(lab: Lab) -> None:
    lab.fit(train=stream(), val_check_interval=0.5)


@scenario(warns=["has no batches"])
def an_empty_train_loader(lab: Lab) -> None:
    lab.fit(train=loader(0, batch_size=1))


@scenario(warns=["has no batches"])
def an_empty_val_loader(lab: Lab) -> None:
    lab.fit(val=loader(0, batch_size=1))
