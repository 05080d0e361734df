"""`self.log`: from every hook, every kind of reduction, what reaches the dicts and the loggers."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.recorder import Lab, loader, scenario

BATCH_HOOKS = [
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
]
EVAL_BATCH_HOOKS = ["on_validation_batch_start", "on_validation_batch_end"]
EPOCH_HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
]
FORBIDDEN_HOOKS = ["setup", "on_fit_start", "on_train_end", "on_validation_end", "on_sanity_check_start", "teardown"]


def _logs_in(base: type, hooks: list[str], **arguments: Any) -> type:
    """A subclass that logs a growing number under the name of each of these hooks."""

    def logging_hook(hook: str) -> Any:
        def call(self: Any, *_: Any, **__: Any) -> None:
            self.count = getattr(self, "count", 0) + 1
            self.log(f"{base.__name__}/{hook}", float(self.count), **arguments)

        return call

    return type(base.__name__, (base,), {hook: logging_hook(hook) for hook in hooks})


@scenario()
def logging_in_every_hook(lab: Lab) -> None:
    net = _logs_in(lab.Net, [*BATCH_HOOKS, *EVAL_BATCH_HOOKS, *EPOCH_HOOKS])
    lab.fit(net(), val_check_interval=0.5)


@scenario()
def logging_in_every_hook_by_step_and_epoch(lab: Lab) -> None:
    net = _logs_in(lab.Net, [*BATCH_HOOKS, *EVAL_BATCH_HOOKS], on_step=True, on_epoch=True, prog_bar=True)
    lab.fit(net(), accumulate_grad_batches=2)


@scenario()
def logging_in_every_hook_of_a_callback(lab: Lab) -> None:
    class Logs(lab.pl.Callback):
        pass

    hooks = [*BATCH_HOOKS, *EVAL_BATCH_HOOKS, *EPOCH_HOOKS]
    lab.fit(callbacks=[_logs_in(Logs, hooks, prog_bar=True)()], val_check_interval=0.5)


@scenario()
def logging_in_every_hook_of_a_callback_by_step_and_epoch(lab: Lab) -> None:
    class Logs(lab.pl.Callback):
        pass

    lab.fit(callbacks=[_logs_in(Logs, [*BATCH_HOOKS, *EVAL_BATCH_HOOKS], on_step=True, on_epoch=True)()])


@scenario()
def logging_where_it_is_forbidden(lab: Lab) -> Any:
    refused = []
    for hook in FORBIDDEN_HOOKS:
        torch.manual_seed(1)  # an exception in the sanity check leaves Lightning's random generator anywhere
        try:
            lab.fit(_logs_in(lab.Net, [hook])(), max_epochs=1, enable_checkpointing=False)
        except Exception as error:
            refused.append([hook, type(error).__name__])
    return refused


@scenario()
def logging_by_step_where_it_is_forbidden(lab: Lab) -> Any:
    refused = []
    for hook in EPOCH_HOOKS:
        torch.manual_seed(1)
        try:
            lab.fit(_logs_in(lab.Net, [hook], on_step=True)(), max_epochs=1, enable_checkpointing=False)
        except Exception as error:
            refused.append([hook, type(error).__name__])
    return refused


@scenario()
def reductions(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            for reduce in ("mean", "min", "max", "sum", torch.max):
                name = reduce if isinstance(reduce, str) else "torch_max"
                self.log(f"both/{name}", loss, on_step=True, on_epoch=True, reduce_fx=reduce, prog_bar=name == "max")
                self.log(f"epoch/{name}", loss, on_step=False, on_epoch=True, reduce_fx=reduce)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            for reduce in ("mean", "min", "max", "sum"):
                self.log(f"val/{reduce}", self.loss(batch), reduce_fx=reduce)
                self.log(f"val_both/{reduce}", self.loss(batch), reduce_fx=reduce, on_step=True, on_epoch=True)

    lab.fit(Net(), loader(11, batch_size=4), loader(7, batch_size=3))


@scenario(warns=["needs to be floating"])
def kinds_of_values(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            values = {"int": batch_idx, "float": 0.5, "bool": batch_idx % 2 == 0, "one": loss.reshape(1)}
            tensors = {"long": torch.tensor(batch_idx), "double": loss.double(), "half": loss.bfloat16()}
            self.log_dict({**values, **tensors}, on_step=True, on_epoch=True)
            self.log("nan", float("nan"), on_epoch=True)
            self.log_dict({"beyond_float32": 1e300, "below_float32": -1e300})
            self.log("with_graph", loss, enable_graph=True, prog_bar=True)
            self.log("no_logger", loss, logger=False, on_epoch=True)
            self.log("weighted", float(batch_idx), on_epoch=True, batch_size=1 + batch_idx)
            return loss

    lab.fit(Net())


@scenario(warns=["no `val_dataloader`"])
def refused_values(lab: Lab) -> Any:
    refused = []
    bad: list[dict[str, Any]] = [
        {"value": "text"},
        {"value": [1.0]},
        {"value": None},
        {"value": {"a": {"b": 1}}},
        {"value": torch.zeros(2)},
        {"value": 1.0, "reduce_fx": "median"},
        {"value": 1.0, "on_step": False, "on_epoch": False},
        {"value": 1.0, "name": "a/dataloader_idx_0"},
    ]

    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for arguments in bad:
                try:
                    self.log(**{"name": "a", **arguments})
                except Exception as error:
                    refused.append([str(sorted(arguments)), type(error).__name__])
                else:
                    refused.append([str(sorted(arguments)), "accepted"])
            return self.loss(batch)

    lab.fit(Net(), max_steps=1, val=False)
    return refused


@scenario()
def one_key_with_two_kinds_of_arguments(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0)
            self.log("a", 1.0, on_epoch=True)

    lab.fit(Net())


@scenario()
def one_key_from_several_places(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", float(batch_idx), on_step=True, on_epoch=True)
            self.log("a", 10.0 + batch_idx, on_step=True, on_epoch=True)
            return self.loss(batch)

        def on_train_batch_end(self, *_: Any) -> None:
            self.log("a", 100.0, on_step=True)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("a", -1.0 * batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("a", 1000.0)

    lab.fit(Net())


@scenario()
def a_key_that_comes_and_goes(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            if batch_idx % 3 == 0:
                self.log("sometimes", loss, on_step=True, on_epoch=True)
            if self.current_epoch == 0:
                self.log("first_epoch", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch % 2:
                self.log("odd_val", self.loss(batch))

    lab.fit(Net(), max_epochs=3)


@scenario()
def logging_interval(lab: Lab) -> None:
    lab.fit(_logs_in(lab.Net, BATCH_HOOKS, on_step=True, on_epoch=True)(), log_every_n_steps=4, max_epochs=3)


@scenario()
def logging_interval_with_accumulation(lab: Lab) -> None:
    lab.fit(train=loader(14), log_every_n_steps=2, accumulate_grad_batches=3, val_check_interval=2)


@scenario()
def logging_interval_zero(lab: Lab) -> None:
    lab.fit(log_every_n_steps=0)


@scenario(warns=["smaller than the logging interval"])
def logging_interval_longer_than_the_run(lab: Lab) -> None:
    lab.fit(log_every_n_steps=100, callbacks=[])


@scenario()
def the_x_axis_is_logged(lab: Lab) -> None:
    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("step", float(100 + batch_idx))
            self.log("a", 1.0)
            return self.loss(batch)

        def on_train_epoch_end(self) -> None:
            self.log("b", 2.0)
            self.log("step", float(self.current_epoch))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", 1.0, on_step=True, on_epoch=True)
            self.log("epoch", 7.0)

    lab.fit(Net())


@scenario()
def steps_of_validation(lab: Lab) -> Any:
    class Net(lab.Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self.loss(batch), on_step=True, on_epoch=True, prog_bar=True)

        test_step = validation_step

    net = Net()
    trainer = lab.fit(net, val_check_interval=3, log_every_n_steps=5)
    return [trainer.validate(net, loader(4)), trainer.test(net, loader(6)), trainer.validate(net, loader(4))]


@scenario()
def logging_in_hooks_of_evaluation(lab: Lab) -> Any:
    hooks = ["start", "epoch_start", "batch_start", "batch_end", "epoch_end"]
    net = _logs_in(lab.Net, [f"on_{stage}_{hook}" for stage in ("validation", "test") for hook in hooks])()
    trainer = lab.trainer()
    lab.watch(net)
    return [trainer.validate(net, loader(4)), trainer.test(net, loader(4))]


@scenario()
def logging_in_predict_is_refused(lab: Lab) -> None:
    class Net(lab.Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("a", 1.0)

    lab.trainer().predict(lab.watch(Net()), loader(4))


@scenario()
def hyperparameters(lab: Lab) -> Any:
    class Net(lab.Net):
        def __init__(self, width: int, rate: float = 0.5, note: str = "n") -> None:
            super().__init__()
            self.save_hyperparameters(ignore="note")

    net = Net(3, note="other")
    lab.fit(net, max_epochs=1)
    return dict(net.hparams)


# --- torchmetrics


@scenario()
def torchmetrics_logged_as_objects(lab: Lab) -> None:
    import torchmetrics

    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.train_error = torchmetrics.MeanSquaredError()
            self.val_error = torchmetrics.MeanSquaredError()
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            points = self(batch[0])
            self.train_error(points, batch[1])
            self.log("train_error", self.train_error, on_step=True, on_epoch=True, prog_bar=True)
            self.mean.update(points.mean())
            self.log("mean", self.mean, on_step=False, on_epoch=True)
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.val_error.update(self(batch[0]), batch[1])
            self.log("val_error", self.val_error)

    lab.fit(Net(), loader(11, batch_size=4), loader(5))


@scenario()
def torchmetrics_in_epoch_hooks(lab: Lab) -> None:
    import torchmetrics

    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            self.error = torchmetrics.MeanAbsoluteError()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.error.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self) -> None:
            self.log("error", self.error)
            self.log("error_value", self.error.compute())

    lab.fit(Net(), val_check_interval=0.5)


@scenario()
def torchmetrics_collections(lab: Lab) -> None:
    import torchmetrics

    class Net(lab.Net):
        def __init__(self) -> None:
            super().__init__()
            metrics = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()])
            self.train_metrics, self.val_metrics = metrics.clone(prefix="train/"), metrics.clone(prefix="val/")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log_dict(self.train_metrics(self(batch[0]), batch[1]))
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.val_metrics.update(self(batch[0]), batch[1])
            self.log_dict(self.val_metrics)

    lab.fit(Net())


@scenario()
def a_torchmetric_that_is_no_attribute(lab: Lab) -> None:
    import torchmetrics

    class Net(lab.Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            metric = torchmetrics.MeanMetric()
            metric(1.0)
            self.log("a", metric)

    lab.fit(Net())
