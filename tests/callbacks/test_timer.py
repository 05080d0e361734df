"""Timer: time is told by a clock that only the test moves, on Lightning and on inazuma alike."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch
import lightning.pytorch.callbacks.timer
import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
import inazuma.callbacks.timer
from inazuma.callbacks import Timer
from inazuma.errors import MisconfigurationException
from inazuma.states import RunningStage

BATCHES = 4


class Clock:
    """Stands in for the module `time` inside of the timers."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lightning.pytorch.callbacks.timer, "time", clock)
    monkeypatch.setattr(inazuma.callbacks.timer, "time", clock)
    return clock


def make_model(pl: Any, clock: Clock) -> Any:
    """A module whose training batches take 10 s, validation batches 3 s, test batches 5 s and predictions 7 s."""

    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, batch: Any) -> Any:
            clock.now_s += {"train": 10, "validate": 3, "sanity_check": 3, "test": 5, "predict": 7}[
                self.trainer.state.stage.value
            ]
            return self.layer(batch).sum()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self(batch)

        test_step = validation_step

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Model()


def make_trainer(pl: Any, *callbacks: Any, **arguments: Any) -> Any:
    return pl.Trainer(
        **{
            "max_epochs": 3,
            "limit_val_batches": 0,
            "logger": False,
            "callbacks": list(callbacks),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accelerator": "cpu",
            **arguments,
        }
    )


DATA = DataLoader(torch.ones(BATCHES, 2))


def fit(pl: Any, clock: Clock, timer: Any, ckpt_path: Path | None = None, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(pl, *([] if timer is None else [timer]), **arguments)
        trainer.fit(make_model(pl, clock), DATA, DATA, ckpt_path=ckpt_path)
    return trainer


def where(trainer: Any) -> tuple[int, int, bool]:
    return trainer.global_step, trainer.current_epoch, trainer.should_stop


STOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "between batches": ({"duration": {"seconds": 25}}, {}),
    "at a batch": ({"duration": "00:00:00:20"}, {}),
    "in a later epoch": ({"duration": timedelta(seconds=65)}, {}),
    "at once": ({"duration": timedelta(0)}, {}),
    "never": ({"duration": {"hours": 1}}, {}),
    "not asked to": ({}, {}),
    "epoch": ({"duration": {"seconds": 25}, "interval": "epoch"}, {}),
    "epoch, exactly": ({"duration": {"seconds": 40}, "interval": "epoch"}, {}),
    "silent": ({"duration": {"seconds": 25}, "verbose": False}, {}),
    "min_epochs": ({"duration": {"seconds": 25}}, {"min_epochs": 2}),
    "min_steps": ({"duration": {"seconds": 25}}, {"min_steps": 6}),
    "validation counts": ({"duration": {"seconds": 45}}, {"limit_val_batches": 2}),
    "accumulation": ({"duration": {"seconds": 15}}, {"accumulate_grad_batches": 4}),
    "argument of the Trainer": ({}, {"max_time": "00:00:00:25"}),
    "argument beside a Timer": ({"duration": {"seconds": 45}}, {"max_time": "00:00:00:25"}),
}


@pytest.mark.parametrize("name", STOPS)
def test_training_stops_where_it_stops_in_lightning(name: str, clock: Clock) -> None:
    own, arguments = STOPS[name]

    def run(pl: Any) -> tuple[int, int, bool]:
        return where(fit(pl, clock, pl.callbacks.Timer(**own) if own or not arguments else None, **arguments))

    assert run(inazuma) == run(lightning.pytorch)


def test_a_limit_of_time_is_a_limit(clock: Clock) -> None:
    trainer = fit(inazuma, clock, Timer({"seconds": 25}), max_epochs=None)
    assert where(trainer) == (3, 1, True)


def stages(pl: Any, clock: Clock) -> Any:
    timer = pl.callbacks.Timer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_trainer(pl, timer, max_epochs=1, limit_val_batches=1)
        model = make_model(pl, clock)
        trainer.fit(model, DATA, DATA)
        clock.now_s += 100
        trainer.validate(model, DATA, verbose=False)
        trainer.test(model, DATA, verbose=False)
        trainer.predict(model, DATA)
    return timer


def test_each_stage_is_measured(clock: Clock) -> None:
    timer = stages(inazuma, clock)
    elapsed = {stage: timer.time_elapsed(stage) for stage in ("train", "sanity_check", "validate", "test", "predict")}
    assert elapsed == {"train": 43, "sanity_check": 3, "validate": 3, "test": 20, "predict": 28}


@pytest.mark.parametrize("stage", ["train", "validate", "test"])
def test_a_stage_is_measured_as_lightning_measures_it(stage: str, clock: Clock) -> None:
    ours, theirs = stages(inazuma, clock), stages(lightning.pytorch, clock)
    assert ours.time_elapsed(stage) == theirs.time_elapsed(stage)
    assert ours.end_time(stage) - ours.start_time(stage) == theirs.end_time(stage) - theirs.start_time(stage)


def test_a_running_stage_is_measured_up_to_now(clock: Clock) -> None:
    timer = Timer({"seconds": 100})
    assert (timer.time_elapsed(), timer.time_remaining()) == (0, 100)
    elapsed = []

    class Watch(inazuma.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            elapsed.append((timer.time_elapsed(), timer.time_remaining(), timer.end_time()))

    trainer = make_trainer(inazuma, Watch(), timer, max_steps=3)
    trainer.fit(make_model(inazuma, clock), DATA, DATA)
    assert elapsed == [(10, 90, None), (20, 80, None), (30, 70, None)]
    assert timer.end_time() == clock.now_s
    clock.now_s += 50
    assert timer.time_elapsed() == 30


def test_a_stage_can_be_named_by_its_enum(clock: Clock) -> None:
    timer = stages(inazuma, clock)
    assert timer.time_elapsed(RunningStage.TESTING) == timer.time_elapsed("test") == 20


def test_without_a_duration_there_is_no_remaining_time() -> None:
    assert Timer().time_remaining() is None


def test_a_second_fit_is_measured_anew(clock: Clock) -> None:
    timer = Timer()
    elapsed = []
    watch = inazuma.callbacks.LambdaCallback(on_train_batch_end=lambda *_: elapsed.append(timer.time_elapsed()))
    trainer = make_trainer(inazuma, watch, timer, max_epochs=1)
    model = make_model(inazuma, clock)
    trainer.fit(model, DATA, DATA)
    clock.now_s += 1000
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, DATA, DATA)
    assert elapsed == [10, 20, 30, 40] * 2
    assert timer.time_elapsed() == 40


def test_the_state_is_lightnings(clock: Clock) -> None:
    ours = fit(inazuma, clock, Timer()).callbacks[0].state_dict()
    theirs = fit(lightning.pytorch, clock, lightning.pytorch.callbacks.Timer()).callbacks[0].state_dict()
    assert ours == theirs == {"time_elapsed": {"train": 120, "sanity_check": 0, "validate": 0, "test": 0, "predict": 0}}


def resume(pl: Any, clock: Clock, path: Path, duration_s: int) -> tuple[Any, Any]:
    trainer = fit(pl, clock, pl.callbacks.Timer(), max_epochs=1)
    trainer.save_checkpoint(path)
    clock.now_s += 5000  # nobody trained
    timer = pl.callbacks.Timer({"seconds": duration_s})
    return fit(pl, clock, timer, ckpt_path=path), timer


@pytest.mark.parametrize("duration_s", [30, 40, 65, 500])
def test_the_time_before_a_resume_counts(duration_s: int, clock: Clock, tmp_path: Path) -> None:
    ours, our_timer = resume(inazuma, clock, tmp_path / "ours.ckpt", duration_s)
    theirs, their_timer = resume(lightning.pytorch, clock, tmp_path / "theirs.ckpt", duration_s)
    assert where(ours) == where(theirs)
    assert our_timer.time_elapsed() == their_timer.time_elapsed() == 10 * ours.global_step


def test_rank_0_decides(clock: Clock) -> None:
    timer = Timer({"seconds": 25})
    trainer = make_trainer(inazuma, timer)
    trainer.strategy = SimpleNamespace(broadcast=lambda decision, src=0: True)  # rank 0 says so
    timer.on_fit_start(trainer, make_model(inazuma, clock))
    assert trainer.should_stop


def test_it_says_that_the_time_is_up(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inazuma"):
        fit(inazuma, clock, Timer({"seconds": 25}), min_epochs=2)
    said = [message for message in caplog.messages if "Time limit" in message]
    assert said == ["Time limit reached: 0:00:30 of training have passed. Signaling Trainer to stop."]


def test_it_can_be_silent(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inazuma"):
        fit(inazuma, clock, Timer({"seconds": 25}, verbose=False))
    assert not [message for message in caplog.messages if "Time limit" in message]


def test_max_time_beside_a_timer_is_ignored_aloud(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inazuma"):
        make_trainer(inazuma, Timer(), max_time="00:00:00:25")
    assert any("Ignoring `Trainer(max_time=...)`: the Timer" in message for message in caplog.messages)


@pytest.mark.parametrize("interval", ["batch", "steps", 1, None])
def test_another_interval_is_refused(interval: Any) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"Unsupported parameter value `Timer\(interval=.*choices are: step, epoch"
    ):
        Timer(interval=interval)


def test_a_duration_that_is_none_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="'1 hour' is not a valid duration. Write it as 'DD:HH:MM:SS'"):
        Timer("1 hour")
    with pytest.raises(MisconfigurationException, match="'1 hour' is not a valid duration"):
        make_trainer(inazuma, max_time="1 hour")


@pytest.mark.parametrize("ask", ["start_time", "end_time", "time_elapsed", "time_remaining"])
def test_an_unknown_stage_is_refused(ask: str) -> None:
    with pytest.raises(ValueError, match="Timer: 'val' is no stage. Use one of train, sanity_check, validate, test, "):
        getattr(Timer({"hours": 1}), ask)("val")
