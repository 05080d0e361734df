"""Optimizers, schedules, manual optimization, clipping and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR


def _net(lab: Lab, optimizers: Callable[[Any], Any]) -> Any:
    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            return optimizers(self)

    return Net()


def _sgd(net: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)


def _adam(net: Any, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=lr)


@scenario()
def adam(lab: Lab) -> None:
    lab.fit(_net(lab, _adam))


@scenario()
def schedule_by_epoch(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        return [optimizer], [StepLR(optimizer, 1, 0.5)]

    lab.fit(_net(lab, optimizers), max_epochs=3, val_check_interval=0.5)


@scenario()
def schedule_by_epoch_with_frequency(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.5), "frequency": 2}}

    lab.fit(_net(lab, optimizers), max_epochs=5)


@scenario()
def schedule_by_step_with_frequency(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        schedule = {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step", "frequency": 2}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    lab.fit(_net(lab, optimizers), loader(10))


@scenario()
def schedule_by_step_with_accumulation(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        schedule = {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step", "frequency": 3}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    lab.fit(_net(lab, optimizers), loader(14), accumulate_grad_batches=3, val_check_interval=2)


@scenario()
def several_schedules(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        by_step = {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}
        return [optimizer], [by_step, {"scheduler": StepLR(optimizer, 1, 0.5), "interval": "epoch"}]

    lab.fit(_net(lab, optimizers))


@scenario()
def one_cycle(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        schedule = OneCycleLR(optimizer, max_lr=0.3, total_steps=net.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    lab.fit(_net(lab, optimizers), max_epochs=3, accumulate_grad_batches=2)


@scenario(draws=True)
def estimated_stepping_batches_of_loaders_and_limits(lab: Lab) -> Any:
    found = []

    def optimizers(net: Any) -> Any:
        found.append(net.trainer.estimated_stepping_batches)
        return _sgd(net)

    lab.fit(_net(lab, optimizers), loader(14), accumulate_grad_batches=3)
    lab.fit(_net(lab, optimizers), loader(14), max_epochs=-1, max_steps=5)
    lab.fit(_net(lab, optimizers), loader(14), max_epochs=2, max_steps=5, limit_train_batches=4)
    return found


@scenario()
def plateau_by_epoch(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net, lr=0.5)
        schedule = ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}

    lab.fit(_net(lab, optimizers), max_epochs=4)


@scenario()
def plateau_by_epoch_on_a_train_metric(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net, lr=0.5)
        schedule = {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.5), "monitor": "train_loss"}
        return [optimizer], [{**schedule, "frequency": 2}]

    lab.fit(_net(lab, optimizers), max_epochs=5)


@scenario()
def plateau_by_step(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net, lr=0.5)
        schedule = {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.5), "monitor": "train_loss"}
        return [optimizer], [{**schedule, "interval": "step", "frequency": 2}]

    lab.fit(_net(lab, optimizers), val_check_interval=2)


@scenario()
def plateau_without_its_metric(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        return [optimizer], [{"scheduler": ReduceLROnPlateau(optimizer), "monitor": "nothing"}]

    lab.fit(_net(lab, optimizers))


@scenario(warns=["conditioned on metric nothing"])
def plateau_without_its_metric_not_strict(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        return [optimizer], [{"scheduler": ReduceLROnPlateau(optimizer), "monitor": "nothing", "strict": False}]

    lab.fit(_net(lab, optimizers))


@scenario()
def plateau_without_a_monitor(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = _sgd(net)
        return [optimizer], [ReduceLROnPlateau(optimizer)]

    lab.fit(_net(lab, optimizers))


@scenario()
def a_schedule_stepped_by_the_module(lab: Lab) -> None:
    class Schedule:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.count = optimizer, 0

        def advance(self) -> None:
            self.count += 1
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + self.count)

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    class Net(lab.Net):
        def configure_optimizers(self) -> Any:
            optimizer = _sgd(self)
            return [optimizer], [{"scheduler": Schedule(optimizer), "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.advance()

    lab.fit(Net())


@scenario(warns=["no optimizer"])
def no_optimizer(lab: Lab) -> None:
    lab.fit(_net(lab, lambda net: None))


@scenario()
def two_optimizers_in_automatic_optimization(lab: Lab) -> None:
    lab.fit(_net(lab, lambda net: [_sgd(net), _adam(net)]))


@scenario()
def a_wrong_answer_of_configure_optimizers(lab: Lab) -> None:
    lab.fit(_net(lab, lambda net: (_sgd(net), StepLR(_sgd(net), 1))))


@scenario()
def lbfgs(lab: Lab) -> None:
    lab.fit(_net(lab, lambda net: torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=3)))


@scenario()
def lbfgs_with_clipping_and_schedule(lab: Lab) -> None:
    def optimizers(net: Any) -> Any:
        optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=2)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda n: 1 / (n + 1)), "interval": "step"}]

    lab.fit(_net(lab, optimizers), gradient_clip_val=0.5, accumulate_grad_batches=2)


@scenario()
def the_module_steps_the_optimizer(lab: Lab) -> None:
    class Net(lab.Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + self.trainer.global_step)
            self.log("lr_now", optimizer.param_groups[0]["lr"])
            if batch_idx == 2:
                optimizer_closure()
            else:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

        def backward(self, loss: Any) -> None:
            (loss * 2).backward()

    lab.fit(Net())


@scenario()
def the_module_forgets_the_closure(lab: Lab) -> None:
    class Net(lab.Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step()

    lab.fit(Net())


@scenario()
def gradients_seen_in_hooks(lab: Lab) -> None:
    class Net(lab.Net):
        def note(self, name: str) -> None:
            weight = self.layers[0].weight
            self.log(name, 0.0 if weight.grad is None else weight.grad.sum())

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.note("in_step")
            return self.loss(batch)

        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.note("before_zero_grad")

        def on_before_backward(self, loss: Any) -> None:
            self.note("before_backward")
            self.log("loss_before_backward", loss)

        def on_after_backward(self) -> None:
            self.note("after_backward")

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.note("before_step")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.note("batch_end")
            self.log("output", outputs["loss"])

    lab.fit(Net(), accumulate_grad_batches=2, gradient_clip_val=0.1)


@scenario()
def a_step_returns_more_than_the_loss(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.loss(batch), "points": self(batch[0]), "note": "extra"}

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return {"anything": self(batch[0])}

    lab.fit(Net(), accumulate_grad_batches=2)


@scenario()
def a_step_returns_the_wrong_thing(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"no loss": self.loss(batch)}

    lab.fit(Net())


@scenario()
def clipping_by_norm(lab: Lab) -> None:
    lab.fit(gradient_clip_val=0.1)


@scenario()
def clipping_by_value(lab: Lab) -> None:
    lab.fit(gradient_clip_val=0.01, gradient_clip_algorithm="value", accumulate_grad_batches=2)


@scenario()
def clipping_by_the_module(lab: Lab) -> None:
    class Net(lab.Net):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            value = gradient_clip_val * (1 + self.current_epoch)
            self.log("clip", value)
            torch.nn.utils.clip_grad_norm_(self.parameters(), value)

    lab.fit(Net(), gradient_clip_val=0.1)


@scenario()
def clipping_that_contradicts_the_trainer(lab: Lab) -> None:
    class Net(lab.Net):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
        ) -> None:
            self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")

    lab.fit(Net(), gradient_clip_val=0.1)


# --- manual optimization


def _manual(lab: Lab) -> Any:
    class Manual(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
            self.log("train_loss", loss, on_step=True, on_epoch=True)

    return Manual


@scenario()
def manual_optimization(lab: Lab) -> None:
    lab.fit(_manual(lab)())


@scenario()
def manual_optimization_with_schedule_and_clipping(lab: Lab) -> None:
    class Net(_manual(lab)):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            loss = self.loss(batch)
            self.manual_backward(loss)
            if (batch_idx + 1) % 2 == 0:
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
                optimizer.step()
                optimizer.zero_grad()
                self.lr_schedulers().step()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = _sgd(self)
            return [optimizer], [ExponentialLR(optimizer, 0.9)]

    lab.fit(Net(), loader(10), val_check_interval=3)


@scenario()
def manual_optimization_with_a_closure(lab: Lab) -> None:
    class Net(_manual(lab)):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Any:
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

    lab.fit(Net(), max_steps=7)


@scenario()
def manual_optimization_with_trainer_clipping(lab: Lab) -> None:
    lab.fit(_manual(lab)(), gradient_clip_val=0.1)


@scenario()
def manual_optimization_with_accumulation(lab: Lab) -> None:
    lab.fit(_manual(lab)(), accumulate_grad_batches=2)


def _gan(lab: Lab) -> Any:
    class Gan(lab.pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = torch.nn.Linear(4, 2)
            self.judge = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, real = batch
            generator, judge = self.optimizers()
            self.toggle_optimizer(generator)
            generator_loss = -self.judge(self.generator(x)).mean()
            generator.zero_grad()
            self.manual_backward(generator_loss)
            generator.step()
            self.untoggle_optimizer(generator)
            with self.toggled_optimizer(judge):
                judge_loss = self.judge(self.generator(x)).tanh().mean() - self.judge(real).tanh().mean()
                judge.zero_grad()
                self.manual_backward(judge_loss)
                judge.step()
            self.log_dict({"generator": generator_loss, "judge": judge_loss}, prog_bar=True)
            return {"loss": judge_loss, "extra": 1}

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.generator.parameters(), 0.1),
                torch.optim.Adam(self.judge.parameters(), 0.01),
            ], []

    return Gan()


@scenario()
def gan(lab: Lab) -> None:
    lab.fit(_gan(lab), val=False)


@scenario()
def gan_with_max_steps(lab: Lab) -> None:
    lab.fit(_gan(lab), val=False, max_steps=10, log_every_n_steps=2)


@scenario()
def gan_saved_every_n_steps(lab: Lab) -> None:
    checkpoint = lab.callbacks.ModelCheckpoint(every_n_train_steps=4, save_top_k=-1)
    lab.fit(_gan(lab), val=False, callbacks=[checkpoint], max_epochs=1)


# --- precision


@scenario()
def precision_bf16_mixed(lab: Lab) -> None:
    lab.fit(precision="bf16-mixed", gradient_clip_val=0.5)


@scenario(warns=["not supported on CPU"])
def precision_16_mixed(lab: Lab) -> None:
    lab.fit(precision="16-mixed", accumulate_grad_batches=2)


@scenario()
def precision_64_true(lab: Lab) -> Any:
    class Net(lab.Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x + torch.ones(4))

    net = Net()
    trainer = lab.fit(net, precision="64-true")
    return [str(net.dtype), str(torch.get_default_dtype()), trainer.predict(net, loader(4))]


@scenario()
def precision_bf16_true(lab: Lab) -> Any:
    net = lab.Net()
    lab.fit(net, precision="bf16-true", max_epochs=1)
    return str(net.dtype)


@scenario()
def precision_16_true(lab: Lab) -> None:
    lab.fit(precision="16-true", max_epochs=1)


@scenario()
def precision_bf16_mixed_evaluation(lab: Lab) -> Any:
    trainer = lab.trainer(precision="bf16-mixed")
    net = lab.watch(lab.Net())
    return [trainer.validate(net, loader(4)), trainer.predict(net, loader(4))]
