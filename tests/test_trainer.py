"""The Trainer as users see it: arguments, attributes before, in and after a run, what callbacks set, its end."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from inazuma import Callback, LightningModule, Trainer
from inazuma.callbacks import EarlyStopping, ModelCheckpoint
from inazuma.errors import MisconfigurationException
from inazuma.loggers import CSVLogger
from inazuma.states import RunningStage, TrainerFn, TrainerStatus
from inazuma.testing import BoringModel, RandomDataset

ROOT = Path(__file__).parents[1]


class Net(BoringModel):
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch)  # type: ignore[no-any-return]

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 4))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Steps(LightningModule):
    """Steps, and no data."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    test_step = predict_step = validation_step


def trainer_of(*callbacks: Callback, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | arguments))


class On(Callback):
    """Calls a function with the Trainer in one hook, each time or at one count."""

    def __init__(self, hook: str, do: Any, at: int | None = None) -> None:
        self.count = 0

        def hear(trainer: Trainer, *_: Any) -> None:
            self.count += 1
            if at is None or self.count == at:
                do(trainer)

        setattr(self, hook, hear)


# Arguments


def test_defaults_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "0.5")
    monkeypatch.setenv("PL_TRAINER_ACCELERATOR", "cpu")
    monkeypatch.setenv("PL_TRAINER_LOGGER", "False")
    trainer = Trainer(limit_train_batches=3)
    assert (trainer.max_epochs, trainer.limit_train_batches, trainer.accelerator) == (7, 3, "cpu")
    assert trainer.loggers == []


def test_arguments_may_be_given_by_position() -> None:
    trainer = Trainer("cpu", "auto", 1, 1, "64-true", max_epochs=2)
    assert (trainer.accelerator, trainer.precision, trainer.max_epochs) == ("cpu", "64-true", 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Trainer(max_epoch=1), "unexpected keyword argument 'max_epoch'. Did you mean 'max_epochs'"),
        (lambda: Trainer("cpu", accelerator="cpu"), "multiple values for argument 'accelerator'"),
        (lambda: Trainer(*["auto"] * 60), "at most .* arguments, 60 were given"),
    ],
)
def test_arguments_that_python_would_refuse_are_refused(call: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        call()


def test_fast_dev_run_replaces_the_limits() -> None:
    trainer = trainer_of(fast_dev_run=2, max_epochs=9, max_steps=100, val_check_interval=0.1)
    trainer.fit(Net())
    assert (trainer.global_step, trainer.current_epoch, trainer.num_training_batches) == (2, 1, 2)
    assert (trainer.max_epochs, trainer.max_steps, trainer.num_val_batches) == (1, 2, [2])


def test_no_limit_at_all_is_a_thousand_epochs_and_is_said() -> None:
    trainer = trainer_of(On("on_train_batch_end", stop), max_epochs=None)
    with pytest.warns(UserWarning, match="`max_epochs` was not set, .* training ends after 1000 epochs"):
        trainer.fit(Net())
    assert trainer.max_epochs == 1000


# Attributes, before, in and after a run


def test_attributes_before_a_run() -> None:
    trainer = trainer_of(num_sanity_val_steps=-1)
    assert (trainer.global_step, trainer.current_epoch) == (0, 0)
    assert math.isinf(trainer.num_training_batches)
    assert math.isinf(trainer.num_sanity_val_steps)
    assert trainer.num_val_batches == trainer.num_test_batches == trainer.num_predict_batches == []
    assert trainer.lightning_module is trainer.model is trainer.datamodule is trainer.train_dataloader is None
    assert trainer.optimizers == trainer.lr_scheduler_configs == trainer.callbacks == []
    assert trainer.callback_metrics == trainer.logged_metrics == trainer.progress_bar_metrics == {}
    assert not any((trainer.training, trainer.validating, trainer.testing, trainer.predicting, trainer.evaluating))
    assert not any((trainer.should_stop, trainer.interrupted, trainer.received_sigterm, trainer.sanity_checking))
    assert trainer.state.status is TrainerStatus.INITIALIZING
    assert (trainer.is_global_zero, trainer.world_size, trainer.global_rank, trainer.num_devices) == (True, 1, 0, 1)
    assert trainer.log_dir == trainer.default_root_dir == os.path.realpath(os.getcwd())
    with pytest.raises(AttributeError, match=r"has nothing to save before .* `Trainer.fit`, `validate`"):
        trainer.save_checkpoint("a.ckpt")


def test_attributes_in_a_run_say_where_it_is() -> None:
    seen: dict[str, Any] = {}

    def look(name: str) -> Any:
        def note(trainer: Trainer) -> None:
            seen[name] = trainer.state.fn, trainer.state.stage, trainer.global_step, trainer.current_epoch

        return note

    watch = [
        On("on_sanity_check_start", look("sanity")),
        On("on_train_batch_start", look("first batch"), at=1),
        On("on_train_batch_end", look("first batch done"), at=1),
        On("on_validation_start", look("validation"), at=3),
        On("on_train_epoch_end", look("second epoch ends"), at=2),
        On("on_test_start", look("test")),
        On("on_predict_start", look("predict")),
    ]
    trainer, net = trainer_of(*watch, max_epochs=2), Net()
    trainer.fit(net)
    trainer.test(net, verbose=False)
    trainer.predict(net)
    fit = TrainerFn.FITTING
    assert seen == {
        "sanity": (fit, RunningStage.SANITY_CHECKING, 0, 0),
        "first batch": (fit, RunningStage.TRAINING, 0, 0),
        "first batch done": (fit, RunningStage.TRAINING, 1, 0),
        "validation": (fit, RunningStage.VALIDATING, 8, 1),  # the third, with the sanity check
        "second epoch ends": (fit, RunningStage.TRAINING, 8, 1),
        "test": (TrainerFn.TESTING, RunningStage.TESTING, 8, 2),
        "predict": (TrainerFn.PREDICTING, RunningStage.PREDICTING, 8, 2),
    }


def test_attributes_after_a_run() -> None:
    trainer, net = trainer_of(ModelCheckpoint(), EarlyStopping("x"), enable_checkpointing=True), Net()
    assert trainer.early_stopping_callbacks == [trainer.early_stopping_callback]
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, EarlyStopping)]
    trainer.fit(net)
    assert trainer.state.finished
    assert (trainer.state.fn, trainer.state.stage) == (TrainerFn.FITTING, None)
    assert (trainer.global_step, trainer.current_epoch, trainer.num_training_batches) == (4, 1, 4)
    assert (trainer.num_val_batches, trainer.num_sanity_val_batches) == ([4], [2])
    assert (trainer.val_check_batch, trainer.estimated_stepping_batches) == (4, 4)
    assert trainer.lightning_module is trainer.model is net
    assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.SGD]
    assert [config.interval for config in trainer.lr_scheduler_configs] == ["epoch"]
    assert isinstance(trainer.train_dataloader, DataLoader)
    assert isinstance(trainer.val_dataloaders, DataLoader)
    assert trainer.early_stopping_callback is trainer.progress_bar_callback is None
    assert trainer.checkpoint_callback is trainer.checkpoint_callbacks[0]
    assert trainer.is_last_batch


def test_loaders_are_shown_in_the_structure_that_they_were_given_in() -> None:
    trainer = trainer_of()
    one, other = DataLoader(RandomDataset(32, 2)), DataLoader(RandomDataset(32, 3))

    class Two(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.step(batch["a"])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            pass

    trainer.fit(Two(), {"a": one, "b": other}, [one, other])
    assert trainer.train_dataloader == {"a": one, "b": other}
    assert trainer.val_dataloaders == [one, other]
    assert (trainer.num_training_batches, trainer.num_val_batches) == (3, [2, 3])


@pytest.mark.parametrize("stage", ["training", "validating", "testing", "predicting", "sanity_checking"])
def test_a_stage_may_be_set(stage: str) -> None:
    trainer = trainer_of()
    setattr(trainer, stage, True)
    assert getattr(trainer, stage)
    assert trainer.evaluating == (stage in ("validating", "testing", "sanity_checking"))
    setattr(trainer, stage, False)
    assert trainer.state.stage is None


def test_loggers_may_be_set() -> None:
    trainer, logger = trainer_of(), CSVLogger("logs", name="a", version="b")
    trainer.logger = logger
    assert (trainer.loggers, trainer.log_dir) == ([logger], os.path.join("logs", "a", "b"))
    trainer.logger = None
    assert (trainer.loggers, trainer.logger, trainer.log_dir) == ([], None, trainer.default_root_dir)


# What callbacks set while a run goes on


def stop(trainer: Trainer) -> None:
    trainer.should_stop = True


def set_(name: str, value: Any) -> Any:
    return lambda trainer: setattr(trainer, name, value)


def test_should_stop_ends_the_run_and_is_forgotten_by_the_next_fit() -> None:
    trainer, net = trainer_of(On("on_train_batch_end", stop, at=2), max_epochs=3), Net()
    trainer.fit(net)
    assert (trainer.global_step, trainer.current_epoch, trainer.should_stop) == (2, 1, True)
    trainer.fit(net)
    assert (trainer.global_step, trainer.current_epoch, trainer.should_stop) == (10, 3, False)


def test_the_accumulation_window_may_be_set_in_a_run() -> None:
    trainer = trainer_of(On("on_train_epoch_start", set_("accumulate_grad_batches", 4), at=2), max_epochs=3)
    trainer.fit(Net())
    assert trainer.global_step == 4 + 1 + 1


def test_limits_may_be_set_before_the_loaders_are_asked_for() -> None:
    trainer = trainer_of(
        On("setup", set_("limit_train_batches", 2)),
        On("setup", set_("limit_val_batches", 1)),
        On("setup", set_("val_check_interval", 1)),
        batches := On("on_validation_batch_end", lambda trainer: None),
        num_sanity_val_steps=0,
    )
    trainer.fit(Net())
    assert (trainer.global_step, batches.count) == (2, 2)


def test_limits_set_in_a_run_hold_when_the_loaders_are_asked_for_again() -> None:
    callback = On("on_train_epoch_end", set_("limit_train_batches", 1), at=1)
    trainer = trainer_of(callback, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    trainer.fit(Net())
    assert trainer.global_step == 4 + 1 + 1


def test_the_log_interval_may_be_set_in_a_run(tmp_path: Path) -> None:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("value", 1.0)
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path, name="", version="")
    callback = On("on_train_epoch_start", set_("log_every_n_steps", 2), at=2)
    trainer_of(callback, max_epochs=2, log_every_n_steps=4, logger=logger).fit(Logs())
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step")
    assert [int(row.split(",")[column]) for row in rows[1:]] == [3, 5, 7]


def test_max_epochs_and_max_steps_of_the_fit_loop_may_be_set_in_a_run() -> None:
    def shorter(trainer: Trainer) -> None:
        trainer.fit_loop.max_epochs = 2

    def by_steps(trainer: Trainer) -> None:
        trainer.fit_loop.max_steps = 3

    trainer = trainer_of(On("on_train_start", shorter), max_epochs=5)
    trainer.fit(Net())
    assert (trainer.current_epoch, trainer.max_epochs) == (2, 2)
    trainer = trainer_of(On("on_train_start", by_steps), max_epochs=5)
    trainer.fit(Net())
    assert (trainer.global_step, trainer.max_steps) == (3, 3)


def test_forward_passes_alone_learn_nothing() -> None:
    def skip(trainer: Trainer) -> None:
        trainer.fit_loop.skip_backward = True

    net = Net()
    before = net.layer.weight.clone()
    trainer_of(On("on_train_start", skip)).fit(net)
    assert torch.equal(net.layer.weight, before)


# Evaluation


def test_results_come_one_dict_per_loader() -> None:
    class Logs(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("batches", 1.0, reduce_fx="sum")
            self.log("both", 2.0, on_step=True, on_epoch=True)

        def on_validation_epoch_end(self) -> None:
            self.log("at_end", 3.0)

    loaders = [DataLoader(RandomDataset(32, 2)), DataLoader(RandomDataset(32, 3))]
    trainer = trainer_of()
    assert trainer.validate(Logs(), loaders, verbose=False) == [
        {
            "batches/dataloader_idx_0": 2.0,
            "both_epoch/dataloader_idx_0": 2.0,
            "at_end": 3.0,
        },
        {
            "batches/dataloader_idx_1": 3.0,
            "both_epoch/dataloader_idx_1": 2.0,
            "at_end": 3.0,
        },
    ]
    assert trainer.validate(Logs(), loaders[1], verbose=False) == [{"batches": 3.0, "both_epoch": 2.0, "at_end": 3.0}]
    assert "both" in trainer.callback_metrics


def test_results_are_printed_unless_verbose_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    class Logs(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("accuracy", 0.25)

    trainer = trainer_of()
    trainer.test(Logs(), verbose=False)
    assert "accuracy" not in capsys.readouterr().out
    trainer.test(Logs())
    printed = capsys.readouterr().out
    assert "accuracy" in printed
    assert "0.25" in printed


@pytest.mark.parametrize("inference_mode", [True, False])
def test_evaluation_runs_without_gradients(inference_mode: bool) -> None:
    modes: list[tuple[bool, bool]] = []

    class Looks(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    trainer_of(inference_mode=inference_mode, limit_val_batches=1).validate(Looks(), verbose=False)
    assert modes == [(False, inference_mode)]


def test_predictions_come_one_per_batch_or_not_at_all() -> None:
    trainer, net = trainer_of(), Net()
    predictions = trainer.predict(net)
    assert predictions is not None
    assert [tuple(prediction.shape) for prediction in predictions] == [(1, 2)] * 4
    assert trainer.predict(net, return_predictions=False) is None


def test_the_checkpoint_path_may_be_set_for_all_calls(tmp_path: Path) -> None:
    trainer, net = trainer_of(), Net()
    trainer.fit(net)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    weight = net.layer.weight.detach().clone()
    other = Net()
    trainer.ckpt_path = tmp_path / "a.ckpt"
    trainer.validate(other, verbose=False)
    assert torch.equal(other.layer.weight, weight)
    again = Net()
    trainer.test(again, verbose=False)
    assert torch.equal(again.layer.weight, weight)
    assert trainer.ckpt_path == tmp_path / "a.ckpt"
    with pytest.warns(UserWarning, match="the argument is used this time"):
        trainer.validate(again, ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)


def test_a_run_needs_a_module_once() -> None:
    trainer = trainer_of()
    with pytest.raises(TypeError, match=r"`Trainer.validate\(\)` requires a `LightningModule`"):
        trainer.validate()
    with pytest.raises(TypeError, match="must be a `LightningModule`.* got `Linear`"):
        trainer.fit(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("fn", "words"), [("validate", "validation"), ("test", "test"), ("predict", "prediction")])
def test_a_stage_without_data_says_which_hook_gives_it(fn: str, words: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"No {words} data"):
        getattr(trainer_of(), fn)(Steps())


# The end


PROGRAM = """
    import os, signal, sys
    from inazuma import Callback, LightningModule, Trainer
    from inazuma.testing import BoringModel

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored

    class Kill(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            print("batch", batch_idx, flush=True)
            if batch_idx == 2:
                os.kill(os.getpid(), {signal})

        def on_exception(self, trainer, module, exception):
            print("heard", type(exception).__name__, trainer.received_sigterm, trainer.interrupted, flush=True)

        def teardown(self, trainer, module, stage):
            print("teardown", flush=True)

    Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[Kill()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(BoringModel())
    print("after", flush=True)
"""


@pytest.mark.parametrize(
    ("sent", "code", "heard"),
    [
        (signal.SIGTERM, 143, "heard SIGTERMException True True"),
        (signal.SIGINT, 130, "heard KeyboardInterrupt False True"),
    ],
)
def test_a_signal_ends_the_process_after_the_batch_with_its_exit_code(sent: int, code: int, heard: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM).format(signal=int(sent))],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.splitlines() == ["batch 0", "batch 1", "batch 2", heard]


def test_the_handler_of_sigterm_is_the_users_again_after_a_run() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    before = signal.getsignal(signal.SIGTERM)
    inside: list[Any] = []
    trainer_of(On("on_train_start", lambda trainer: inside.append(signal.getsignal(signal.SIGTERM)))).fit(Net())
    assert inside != [before]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_leaves_the_trainer_ready_for_another_run() -> None:
    def fail(trainer: Trainer) -> None:
        raise ValueError("once")

    trainer, net = trainer_of(On("on_train_batch_end", fail, at=2)), Net()
    with pytest.raises(ValueError, match="once"):
        trainer.fit(net)
    assert trainer.interrupted
    assert trainer.state.stage is None
    trainer.fit(net)
    assert trainer.state.finished
