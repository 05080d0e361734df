"""Mistakes that users make, each through the public API: the error names the thing and says what to do, before any work
where that is possible. What goes wrong with data and checkpoints is in test_bad_files.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from inazuma import Callback, LightningModule, Trainer
from inazuma.callbacks import EarlyStopping, ModelCheckpoint
from inazuma.errors import MisconfigurationException, PossibleUserWarning
from inazuma.loggers import CSVLogger
from inazuma.testing import BoringDataModule, BoringModel, RandomDataset

NAN = float("nan")


class Counting(BoringModel):
    """Four training batches and two validation batches; counts the training batches that began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.begun += 1

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(2)


def loader(length: int = 4) -> DataLoader[Any]:
    return DataLoader(RandomDataset(32, length))


def trainer(**arguments: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(**{"max_epochs": 1, "accelerator": "cpu", **quiet, **arguments})


def module_with(**methods: Any) -> Counting:
    """A `Counting` of the class `Model`, with these methods."""
    return type("Model", (Counting,), methods)()


def refuses(error: type[Exception], text: str, module: Any, *args: Any, begun: int = 0, **kwargs: Any) -> BaseException:
    """Fit, which must fail with an error that contains `text`, after `begun` training batches have begun."""
    of_trainer = kwargs.pop("trainer", {})
    with pytest.raises(error, match=re.escape(text)) as raised:
        trainer(**of_trainer).fit(module, *args, **kwargs)
    if isinstance(module, Counting):
        assert module.begun == begun
    return raised.value


# --- arguments of the Trainer ---


@pytest.mark.parametrize(
    ("argument", "value", "error", "says"),
    [
        ("max_epoch", 3, TypeError, "unexpected keyword argument 'max_epoch'. Did you mean 'max_epochs'?"),
        ("acumulate_grad_batches", 3, TypeError, "Did you mean 'accumulate_grad_batches'?"),
        ("max_epochs", "3", MisconfigurationException, "should be an int of at least -1 (-1 means no limit)"),
        ("max_epochs", NAN, MisconfigurationException, "Trainer(max_epochs=nan) should be an int"),
        ("max_steps", NAN, MisconfigurationException, "Trainer(max_steps=nan) should be an int"),
        ("min_epochs", "1", MisconfigurationException, "Trainer(min_epochs='1') should be an int of at least 0"),
        ("min_steps", -5, MisconfigurationException, "Trainer(min_steps=-5) should be an int of at least 0"),
        ("log_every_n_steps", 2.5, MisconfigurationException, "at least 0 (0 means never)"),
        ("accumulate_grad_batches", 0, MisconfigurationException, "should be an int of at least 1"),
        ("accumulate_grad_batches", {0: 2}, MisconfigurationException, "`GradientAccumulationScheduler` takes"),
        ("reload_dataloaders_every_n_epochs", 1.5, MisconfigurationException, "should be an int of at least 0"),
        ("limit_train_batches", NAN, MisconfigurationException, "neither a number of batches nor a share"),
        ("limit_val_batches", "all", MisconfigurationException, "neither a number of batches nor a share"),
        ("overfit_batches", -0.5, MisconfigurationException, "Give an int of at least 0, or a float between"),
        ("fast_dev_run", "yes", MisconfigurationException, "a bool or the number of batches to run"),
        ("num_sanity_val_steps", NAN, MisconfigurationException, "an int of at least 0, or -1 for all"),
        ("num_sanity_val_steps", -2, MisconfigurationException, "an int of at least 0, or -1 for all"),
        ("check_val_every_n_epoch", 0, MisconfigurationException, "an int of at least 1, or None"),
        ("val_check_interval", NAN, MisconfigurationException, "neither a number of batches nor a share"),
        ("val_check_interval", 0, MisconfigurationException, "limit_val_batches=0 to switch validation off"),
        ("val_check_interval", "1h", MisconfigurationException, "Trainer(val_check_interval=...): '1h' is not a valid"),
        ("max_time", "1h", MisconfigurationException, "Trainer(max_time=...): '1h' is not a valid duration. Write it"),
        ("max_time", {"hour": 1}, MisconfigurationException, "Its keys are arguments of `datetime.timedelta`"),
        ("gradient_clip_val", "1", TypeError, "Trainer(gradient_clip_val='1') is no number. Give an int or a float."),
        ("gradient_clip_val", NAN, MisconfigurationException, "would make every gradient NaN"),
        ("gradient_clip_algorithm", "nrom", MisconfigurationException, "Allowed algorithms: ['value', 'norm']"),
        ("precision", "16-mixd", ValueError, "Precision '16-mixd' is invalid. Use one of ("),
        ("accelerator", "gpus", ValueError, "Trainer(accelerator='gpus'). Use one of auto, cpu, gpu"),
        ("devices", 0, MisconfigurationException, "`Trainer(devices=0)`"),
        ("devices", "two", TypeError, "should be an int > 0, the number of processes; it is 'two'"),
        ("strategy", "ddpp", ValueError, "Trainer(strategy='ddpp'): this version of inazuma has the strategies 'auto'"),
        ("profiler", "simpel", MisconfigurationException, "The names are ['simple', 'advanced'"),
        ("plugins", "amp", MisconfigurationException, "invalid type for plugin 'amp'"),
        ("deterministic", "wran", TypeError, "Trainer(deterministic='wran') should be True, False or 'warn'"),
        ("benchmark", "yes", TypeError, "Trainer(benchmark='yes') should be True or False"),
        ("enable_progress_bar", "no", TypeError, "Trainer(enable_progress_bar='no') should be True or False"),
        ("enable_checkpointing", ModelCheckpoint(), TypeError, "callbacks go to `Trainer(callbacks=...)`"),
        ("default_root_dir", 3, TypeError, "Trainer(default_root_dir=3) should be a path"),
        ("default_root_dir", __file__, NotADirectoryError, "is a file. Give a directory"),
        ("callbacks", EarlyStopping, TypeError, "It is the class: give an instance, `EarlyStopping(...)`"),
        ("callbacks", [EarlyStopping], TypeError, "(an instance, not the class)"),
        ("callbacks", "early", TypeError, "Trainer(callbacks='early') is neither a `Callback` nor a list of them"),
        ("logger", CSVLogger, TypeError, "Give an instance such as `CSVLogger('logs')`"),
        ("logger", "tensorboard", TypeError, "Trainer(logger='tensorboard') is no `inazuma.loggers.Logger`"),
        ("logger", ["csv"], TypeError, "'csv' is no `inazuma.loggers.Logger`"),
        ("model_registry", "models", MisconfigurationException, "inazuma has no model registry"),
    ],
)
def test_the_trainer_refuses_an_argument(argument: str, value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)) as raised:
        trainer(**{argument: value})
    assert argument in str(raised.value) or repr(value) in str(raised.value)


def test_two_arguments_that_contradict_are_both_named() -> None:
    with pytest.raises(ValueError, match=re.escape("`Trainer(barebones=True, profiler='simple')` was passed")):
        Trainer(barebones=True, profiler="simple")
    with pytest.raises(MisconfigurationException, match=r"val_check_interval=0.5, check_val_every_n_epoch=None"):
        trainer(val_check_interval=0.5, check_val_every_n_epoch=None)
    with pytest.raises(MisconfigurationException, match="`enable_checkpointing=False` but found"):
        trainer(callbacks=ModelCheckpoint(), enable_checkpointing=False)


def test_a_validation_interval_longer_than_the_epoch_is_refused_before_training() -> None:
    says = "Trainer(val_check_interval=9) asks for validation after 9 batches, but an epoch has only 4"
    refuses(ValueError, says, Counting(), trainer={"val_check_interval": 9})


# --- arguments of callbacks ---


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ModelCheckpoint(monitor="loss", mode="mni"), "ModelCheckpoint(mode='mni'): `mode` can be 'min'"),
        (lambda: ModelCheckpoint(monitor=3), "ModelCheckpoint(monitor=3) should be the name of a metric"),  # type: ignore[arg-type]
        (lambda: ModelCheckpoint(save_top_k=3), "ModelCheckpoint(save_top_k=3, monitor=None) has nothing to rank"),
        (lambda: ModelCheckpoint(monitor="loss", save_top_k=NAN), "ModelCheckpoint(save_top_k=nan)"),  # type: ignore[arg-type]
        (lambda: ModelCheckpoint(every_n_epochs="2"), "ModelCheckpoint(every_n_epochs='2') should be at least 0"),  # type: ignore[arg-type]
        (lambda: ModelCheckpoint(train_time_interval=3), "should be a `datetime.timedelta`"),  # type: ignore[arg-type]
        (lambda: ModelCheckpoint(every_n_epochs=1, train_time_interval=timedelta(1)), "mutually exclusive"),
        (lambda: ModelCheckpoint(save_last="yes"), "ModelCheckpoint(save_last='yes') should be True, False or 'link'"),  # type: ignore[arg-type]
        (lambda: EarlyStopping("loss", mode="auto"), "EarlyStopping(mode='auto'): `mode` can be 'min'"),
        (lambda: EarlyStopping(None), "EarlyStopping(monitor=None) should be the name of a metric"),  # type: ignore[arg-type]
        (lambda: EarlyStopping("loss", patience="3"), "EarlyStopping(patience='3') should be a number"),  # type: ignore[arg-type]
        (lambda: EarlyStopping("loss", min_delta=NAN), "EarlyStopping(min_delta=nan) should be a number"),
    ],
)
def test_a_callback_refuses_an_argument(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(MisconfigurationException, match=re.escape(says)):
        make()


class Logs(Counting):
    """Logs `train_loss` and `val_loss`."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))


@pytest.mark.parametrize(
    ("callback", "error"),
    [
        (lambda: ModelCheckpoint(monitor="val_los"), MisconfigurationException),
        (lambda: ModelCheckpoint(monitor="val_los", every_n_train_steps=1), MisconfigurationException),
        (lambda: EarlyStopping("val_los"), RuntimeError),
    ],
)
def test_a_monitor_that_nobody_logs_is_named_with_those_that_are(
    callback: Callable[[], Callback], error: type[Exception]
) -> None:
    made = callback()
    says = f"{type(made).__name__}(monitor='val_los') found no metric of this name. Known are: 'val_loss', "
    arguments = {"callbacks": made, "max_epochs": 3, "enable_checkpointing": isinstance(made, ModelCheckpoint)}
    failure = refuses(error, says, Logs(), begun=4, trainer=arguments)  # the first check comes after one epoch
    assert "'train_loss'" in str(failure)
    assert "Did you mean 'val_loss'? Log it with `self.log('val_los', value)`" in str(failure)


def test_a_scheduler_that_waits_for_an_unknown_metric_names_the_known_ones() -> None:
    says = "conditioned on metric val_los cannot step, as nothing of this name was logged. Known are: ['train_loss'"
    failure = refuses(MisconfigurationException, says, with_scheduler(monitor="val_los"), begun=4)
    assert "Did you mean 'val_loss'?" in str(failure)


# --- the module ---


def test_misspelt_methods_are_named() -> None:
    class Base(LightningModule):
        def trainning_step(self, batch: Any, batch_idx: int) -> None: ...

    class Model(Base):
        def configure_optimizer(self) -> None: ...

    says = "No `training_step()` method defined."
    failure = refuses(MisconfigurationException, says, Model(), loader())
    assert "write `Model.training_step`. Did you mean it by `trainning_step`?" in str(failure)

    Model.training_step = Base.trainning_step  # type: ignore[method-assign]
    failure = refuses(MisconfigurationException, "No `configure_optimizers()` method defined.", Model(), loader())
    assert "Did you mean it by `configure_optimizer`?" in str(failure)


def test_misspelt_evaluation_steps_are_named() -> None:
    class Model(LightningModule):
        def test_steps(self, batch: Any, batch_idx: int) -> None: ...

    with pytest.raises(MisconfigurationException, match=re.escape("No `test_step()` method defined to run")) as raised:
        trainer().test(Model(), loader())
    assert "Did you mean it by `test_steps`?" in str(raised.value)
    with pytest.raises(MisconfigurationException, match=r"No test data: `test_dataloader` must be implemented in"):
        trainer().test(Model())
    with pytest.raises(MisconfigurationException, match=r"requires `forward` \(or `predict_step`\).*`Model` has nei"):
        trainer().predict(Model(), loader())


@pytest.mark.parametrize("misspelt", ["on_train_epoch_ends", "on_validation_epoch_edn"])
def test_a_hook_that_nothing_calls_is_warned_of(misspelt: str) -> None:
    module = module_with(**{misspelt: lambda self: None})
    near = misspelt.replace("ends", "end").replace("edn", "end")
    with pytest.warns(PossibleUserWarning, match=f"`Model.{misspelt}` is no hook and nothing calls it.*`{near}`"):
        trainer(fast_dev_run=True).fit(module)


def test_a_method_with_a_name_like_a_hook_may_be_called_by_others() -> None:
    module = module_with(on_train_epoch_ends=lambda self: None, on_fit_end=lambda self: self.on_train_epoch_ends())
    trainer(fast_dev_run=True).fit(module)  # warnings are errors here


def test_a_module_that_does_not_initialise_its_base_says_so() -> None:
    class Model(LightningModule):
        def __init__(self) -> None:
            self.lr = 0.1

    refuses(MisconfigurationException, "Model.__init__` does not call `super().__init__()`", Model(), loader())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Counting, "got `type`. It is the class: make an instance, `Counting(...)`"),
        (nn.Linear(1, 1), "`model` must be a `LightningModule`"),
        (None, "`Trainer.fit()` requires a `LightningModule`"),
    ],
)
def test_what_is_no_module_is_refused(model: Any, says: str) -> None:
    refuses(TypeError, says, model, loader())


@pytest.mark.parametrize(
    ("method", "function", "says"),
    [
        ("training_step", lambda self, batch, i, optimizer_idx: None, "missing a required argument: 'optimizer_idx'"),
        ("training_step", lambda self: None, "`Model.training_step()` cannot be called as `training_step(batch)`"),
        ("validation_step", lambda self: None, "`Model.validation_step()` cannot be called as"),
        ("validation_step", lambda self, batch, a, b, c: None, "missing a required argument: 'b'"),
        ("on_train_epoch_end", lambda self, outputs: None, "Write `def on_train_epoch_end(self)`"),
        ("on_train_batch_end", lambda self, batch: None, "`def on_train_batch_end(self, outputs, batch, batch_idx)`"),
        ("optimizer_step", lambda self, a, b, c, d, e, f: None, "`Model.optimizer_step(a, b, c, d, e, f)` cannot be"),
        ("setup", lambda self: None, "Write `def setup(self, stage)`"),
    ],
)
def test_a_method_that_takes_other_arguments_is_refused_before_any_work(method: str, function: Any, says: str) -> None:
    prepared: list[str] = []
    module = module_with(**{method: function, "prepare_data": lambda self: prepared.append("prepared")})
    refuses(TypeError, says, module)
    assert not prepared


def test_a_hook_of_a_callback_that_takes_other_arguments_is_refused_before_any_work() -> None:
    class Old(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any, outputs: Any) -> None: ...  # type: ignore[override]

    says = "`Old.on_train_epoch_end(trainer, pl_module, outputs)`"
    failure = refuses(TypeError, says, Counting(), trainer={"callbacks": Old()})
    assert "Write `def on_train_epoch_end(self, trainer, pl_module)`" in str(failure)


def test_hooks_that_this_run_does_not_call_may_look_like_anything() -> None:
    module = module_with(on_test_batch_end=lambda self: None, test_step=lambda self: None)
    trainer(fast_dev_run=True).fit(module)
    assert module.begun == 1


def test_an_old_epoch_hook_is_refused_with_its_successor() -> None:
    module = module_with(validation_epoch_end=lambda self, outputs: None)
    refuses(NotImplementedError, "Use the `on_validation_epoch_end` hook instead", module)


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_several_loaders_need_a_dataloader_idx_and_that_is_said_before_training(sanity_steps: int) -> None:
    says = "You provided multiple `val_dataloader`, but no `dataloader_idx` argument in `Counting.validation_step`."
    arguments = {"num_sanity_val_steps": sanity_steps}
    refuses(RuntimeError, says, Counting(), val_dataloaders=[loader(), loader()], trainer=arguments)


# --- what training_step returns ---


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (lambda loss: "0.5", MisconfigurationException, "'0.5' (str)"),
        (lambda loss: loss.item(), MisconfigurationException, "(float)"),
        (lambda loss: [loss, loss], MisconfigurationException, "(list)"),
        (lambda loss: {"losss": loss}, MisconfigurationException, "a dict with the keys ['losss']"),
        (lambda loss: {"loss": 1}, MisconfigurationException, "a dict with the keys ['loss'], where 'loss' is 1 (int)"),
        (lambda loss: loss.detach(), RuntimeError, "`Model.training_step` returned does not require grad"),
        (lambda loss: loss.expand(3), RuntimeError, "has the shape [3], but grad can be implicitly created only for"),
    ],
)
def test_what_cannot_be_a_loss_is_described(returned: Any, error: type[Exception], says: str) -> None:
    module = module_with(training_step=lambda self, batch, batch_idx: returned(self.step(batch)))
    failure = refuses(error, says, module, begun=1)
    assert failure.__notes__ == ["In `training_step` at epoch 0, batch 0, global step 0, rank 0 (train)."]  # type: ignore[attr-defined]


def test_a_step_that_forgets_to_return_its_loss_is_warned_of_once() -> None:
    with pytest.warns(UserWarning, match=r"`Model.training_step` returned None .* Is a `return loss` missing") as said:
        trainer().fit(module_with(training_step=lambda self, batch, batch_idx: None))
    assert len(said) == 1


def test_what_a_manual_step_must_not_return_is_described() -> None:
    module = module_with(training_step=lambda self, batch, batch_idx: 3)
    module.automatic_optimization = False
    refuses(MisconfigurationException, "3 (int)", module, begun=1)


# --- configure_optimizers ---


def with_scheduler(kind: Any = ReduceLROnPlateau, of_other: bool = False, **more: Any) -> Logs:
    def configure_optimizers(self: Logs) -> Any:
        optimizer, other = SGD(self.parameters(), 0.1), SGD(self.parameters(), 0.1)
        arguments = (1,) if kind is StepLR else ()
        scheduler = kind(other if of_other else optimizer, *arguments)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **more}}

    return type("Model", (Logs,), {"configure_optimizers": configure_optimizers})()


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: with_scheduler(), "`ReduceLROnPlateau` scheduler must include a monitor"),
        (lambda: with_scheduler(StepLR, reduce_on_plateau=True), "dict of a `StepLR` scheduler must include a monitor"),
        (
            lambda: with_scheduler(reduce_on_plateau=False, monitor="loss"),
            '`ReduceLROnPlateau` steps on a metric, but its dict has "reduce_on_plateau": False',
        ),
        (lambda: with_scheduler(monitor=3), 'The "monitor" of the lr scheduler `ReduceLROnPlateau` should be the name'),
        (lambda: with_scheduler(StepLR, of_other=True), "optimizer that `Model.configure_optimizers` did not return"),
        (lambda: with_scheduler(StepLR, interval="steps"), 'is \'steps\'. Use "step" or "epoch"'),
        (lambda: with_scheduler(StepLR, frequency=0), 'The "frequency" key in lr scheduler dict must be'),
    ],
)
def test_schedulers_that_cannot_work_are_refused_before_training(module: Callable[[], Any], says: str) -> None:
    refuses(MisconfigurationException, says, module())


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (lambda self: "sgd", MisconfigurationException, "`Model.configure_optimizers` returned 'sgd'. Return one of"),
        (lambda self: SGD, MisconfigurationException, "`Model.configure_optimizers` returned the class SGD."),
        (lambda self: {"optimiser": 1}, KeyError, "`Model.configure_optimizers` returned has only ['optimiser']"),
        (lambda self: [SGD(self.parameters(), 0.1)] * 2, RuntimeError, "Set `self.automatic_optimization = False`"),
        (lambda self: ([SGD(self.parameters(), 0.1)], [StepLR]), TypeError, "The lr scheduler is the class `StepLR`"),
    ],
)
def test_optimizers_that_cannot_work_are_refused_before_training(
    returned: Any, error: type[Exception], says: str
) -> None:
    refuses(error, says, module_with(configure_optimizers=returned))


# --- self.log ---


@pytest.mark.parametrize(
    ("log", "error", "says"),
    [
        (lambda self: self.log(0.5, "loss"), TypeError, "`self.log(0.5, ...)`: the name should be a str."),
        (lambda self: self.log(["a"], 0.5), TypeError, "`self.log(['a'], ...)`: the name should be a str."),
        (lambda self: self.log("a", {"x": 1}), ValueError, "`dict` values cannot be logged."),
        (lambda self: self.log("a", "0.5"), ValueError, "`self.log('a', '0.5')`"),
        (lambda self: self.log("a", None), ValueError, "`NoneType` values cannot be logged."),
        (lambda self: self.log("a", torch.ones(3)), ValueError, "must have a single element. Its shape is [3]"),
        (lambda self: self.log("a", torch.ones(3).numpy()), ValueError, "`ndarray` values cannot be logged."),
        (lambda self: self.log("a", torch.tensor(1j)), ValueError, "a complex number. Log `.abs()`"),
        (lambda self: self.log("a", 1, reduce_fx="median"), MisconfigurationException, "reduce_fx=median)` is no"),
        (lambda self: self.log("a", 1, reduce_fx=["mean"]), MisconfigurationException, "reduce_fx=['mean'])` is no"),
        (lambda self: self.log("a", 1, on_step=False), MisconfigurationException, "nothing would be kept."),
        (lambda self: self.log("a", 1, batch_size="4"), ValueError, "`self.log('a', ..., batch_size='4')`"),
        (lambda self: self.log("a", 1, batch_size=NAN), ValueError, "the number of samples, at least 0"),
        (
            lambda self: self.log("a/dataloader_idx_0", 1),
            MisconfigurationException,
            "Pass add_dataloader_idx=False to choose the whole name.",
        ),
        (lambda self: self.log_dict([("a", 1)]), TypeError, "`self.log_dict([('a', 1)])` needs a dict"),
        (
            lambda self: (self.log("a", 1), self.log("a", 1, on_epoch=True)),
            MisconfigurationException,
            "`training_step` calls `self.log('a', ...)` twice with different arguments: first on_epoch=False, now",
        ),
    ],
)
def test_log_refuses(log: Any, error: type[Exception], says: str) -> None:
    refuses(error, says, module_with(training_step=lambda self, batch, batch_idx: log(self)), begun=1)


@pytest.mark.parametrize(
    ("hook", "begun"), [("setup", 0), ("configure_model", 0), ("on_fit_start", 0), ("on_train_end", 4)]
)
def test_log_refuses_to_work_in_hooks_without_an_epoch(hook: str, begun: int) -> None:
    module = module_with(**{hook: lambda self, *_: self.log("a", 1.0)})
    refuses(MisconfigurationException, f"You can't `self.log('a', ...)` inside `{hook}`.", module, begun=begun)


def test_log_refuses_on_step_in_hooks_of_an_epoch() -> None:
    module = module_with(on_train_epoch_end=lambda self: self.log("a", 1.0, on_step=True))
    refuses(MisconfigurationException, "Must be on_step=False, on_epoch=True (the defaults).", module, begun=4)


# --- save_hyperparameters ---


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("learning_rate",), KeyError, "Model.__init__ has no argument of this name. It has: lr"),
        ((3,), ValueError, "save_hyperparameters(3)"),
        (("lr", {"a": 1}), ValueError, "got 2 arguments that are not all names"),
    ],
)
def test_save_hyperparameters_refuses(arguments: Any, error: type[Exception], says: str) -> None:
    class Model(LightningModule):
        def __init__(self, lr: float) -> None:
            super().__init__()
            self.save_hyperparameters(*arguments)

    with pytest.raises(error, match=re.escape(says)):
        Model(0.1)


# --- datamodules beside loaders ---


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"train_dataloaders": loader(), "datamodule": BoringDataModule()}, MisconfigurationException, "cannot pass"),
        ({"val_dataloaders": loader(), "datamodule": BoringDataModule()}, MisconfigurationException, "cannot pass"),
        (
            {"datamodule": loader()},
            TypeError,
            "needs a LightningDataModule, got `DataLoader`. Loaders go into the other",
        ),
        ({"datamodule": BoringDataModule}, TypeError, "make an instance, `BoringDataModule(...)`"),
        ({"train_dataloaders": BoringDataModule}, TypeError, "is a class, not an instance of it"),
    ],
)
def test_datamodules_and_loaders_are_not_mixed_up(arguments: Any, error: type[Exception], says: str) -> None:
    refuses(error, says, Counting(), **arguments)
