"""EarlyStopping: the same program runs on Lightning and on inazuma, and must stop at the same place."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch
import lightning.pytorch.callbacks.early_stopping
import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import EarlyStopping
from inazuma.callbacks.early_stopping import EarlyStoppingReason
from inazuma.errors import MisconfigurationException
from inazuma.strategies.strategy import SingleDeviceStrategy

NAN, INF = float("nan"), float("inf")


def make_model(pl: Any, values: list[float], where: str) -> Any:
    """A module that logs `values`, one after another, at the end of validation ("val") or of the epoch ("train")."""

    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)
            self.logged = 0

        def log_next(self) -> None:
            if not self.trainer.sanity_checking:
                self.log("metric", values[min(self.logged, len(values) - 1)])
                self.logged += 1

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch).sum()

        def on_train_epoch_end(self) -> None:
            if where == "train":
                self.log_next()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def on_validation_epoch_end(self) -> None:
            if where == "val":
                self.log_next()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Model()


def fit(pl: Any, stopping: Any, values: list[float], where: str = "val", quiet: bool = True, **arguments: Any) -> Any:
    arguments = {
        "max_epochs": 10,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "callbacks": [stopping],
        **arguments,
    }
    ckpt_path = arguments.pop("ckpt_path", None)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        trainer = pl.Trainer(**arguments)
        data = DataLoader(torch.ones(4, 2), batch_size=1)
        trainer.fit(make_model(pl, values, where), data, data, ckpt_path=ckpt_path)
    return trainer


def report(stopping: Any, trainer: Any) -> dict[str, Any]:
    state = stopping.state_dict()
    message = state.pop("stopping_reason_message")
    return {
        **state,
        "best_score": repr(state["best_score"].item()),
        "has_message": message is not None,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "should_stop": trainer.should_stop,
    }


SAME_AS_LIGHTNING: dict[str, tuple[dict[str, Any], list[float], dict[str, Any]]] = {
    "patience": ({}, [3, 2, 1, 1, 1, 1, 1], {}),
    "improves for ever": ({}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], {}),
    "improves again": ({"patience": 2}, [3, 4, 2, 3, 1, 2, 2], {}),
    "patience 0": ({"patience": 0}, [1, 1], {}),
    "patience 1": ({"patience": 1}, [1, 1], {}),
    "min_delta": ({"patience": 1, "min_delta": 0.5}, [3, 2.4, 2.0], {}),
    "min_delta, exactly": ({"patience": 1, "min_delta": 0.1}, [0.3, 0.2, 0.1, 0.0], {}),
    "min_delta, max": ({"patience": 2, "min_delta": 0.5, "mode": "max"}, [1, 1.5, 2.1, 2.2, 2.3], {}),
    "max": ({"mode": "max", "patience": 2}, [1, 3, 2, 2, 9], {}),
    "threshold": ({"stopping_threshold": 1.0}, [3, 1.0, 0.9], {}),
    "threshold, max": ({"stopping_threshold": 2.0, "mode": "max"}, [1, 2, 2.5], {}),
    "divergence": ({"divergence_threshold": 5.0}, [1, 5.0, 6.0], {}),
    "divergence, max": ({"divergence_threshold": 0.0, "mode": "max"}, [1, 0.0, -1.0], {}),
    "nan": ({}, [1, NAN], {}),
    "inf": ({"mode": "max"}, [1, INF], {}),
    "nan allowed": ({"check_finite": False, "patience": 2}, [1, NAN, NAN, NAN], {}),
    "not strict, missing": ({"monitor": "other", "strict": False}, [1], {"max_epochs": 2}),
    "validation twice an epoch": ({"patience": 3}, [1], {"val_check_interval": 0.5}),
    "validation after each batch": ({"patience": 3}, [1], {"val_check_interval": 1}),
    "validation every second epoch": ({"patience": 2}, [1], {"check_val_every_n_epoch": 2}),
    "asked for after validation": ({"patience": 1, "check_on_train_epoch_end": False}, [1], {}),
    "asked for at epoch end": (
        {"patience": 1, "check_on_train_epoch_end": True},
        [1],
        {"val_check_interval": 0.5},
    ),
    "metric of the module's epoch end": ({"patience": 2}, [1], {"where": "train"}),
    "min_epochs": ({"patience": 1}, [1], {"min_epochs": 5}),
    "min_steps": ({"patience": 1, "check_on_train_epoch_end": False}, [1], {"min_steps": 14}),
    "fast_dev_run": ({"patience": 0}, [1], {"fast_dev_run": True}),
    "no validation": ({"patience": 1}, [1], {"where": "train", "limit_val_batches": 0, "max_epochs": 4}),
    "no validation, which would come every second epoch": (
        {"patience": 1},
        [1],
        {"where": "train", "limit_val_batches": 0, "check_val_every_n_epoch": 2, "max_epochs": 4},
    ),
    "no validation, and its metric": (
        {"monitor": "other"},
        [1],
        {"where": "train", "limit_val_batches": 0, "val_check_interval": 0.5, "max_epochs": 2},
    ),
}


@pytest.mark.parametrize("case", SAME_AS_LIGHTNING)
def test_training_stops_where_lightning_stops(case: str) -> None:
    stopping, values, arguments = SAME_AS_LIGHTNING[case]
    reports = []
    for pl in (lightning.pytorch, inazuma):
        callback = pl.callbacks.EarlyStopping(**{"monitor": "metric", **stopping})
        reports.append(report(callback, fit(pl, callback, values, **arguments)))
    assert reports[1] == reports[0]


@pytest.mark.parametrize("arguments", [{}, {"mode": "max", "patience": 7}])
def test_state_is_laid_out_as_lightnings(arguments: dict[str, Any]) -> None:
    theirs, ours = (
        lightning.pytorch.callbacks.EarlyStopping("metric", **arguments),
        EarlyStopping("metric", **arguments),
    )
    assert ours.state_key == theirs.state_key
    assert ours.state_dict() == theirs.state_dict()


def test_reasons_are_numbered_like_lightnings() -> None:
    theirs = lightning.pytorch.callbacks.early_stopping.EarlyStoppingReason
    assert {reason.name: reason.value for reason in EarlyStoppingReason} == {r.name: r.value for r in theirs}


@pytest.mark.parametrize(
    ("arguments", "values", "reason", "text"),
    [
        ({"patience": 2}, [1.0], EarlyStoppingReason.PATIENCE_EXHAUSTED, "did not improve in 2 checks"),
        ({}, [NAN], EarlyStoppingReason.NON_FINITE_METRIC, "metric = nan is not finite"),
        ({"stopping_threshold": 2.0}, [1.0], EarlyStoppingReason.STOPPING_THRESHOLD, "metric = 1.0 < 2.0"),
        ({"divergence_threshold": 0.5}, [1.0], EarlyStoppingReason.DIVERGENCE_THRESHOLD, "1.0 is worse than 0.5"),
    ],
)
def test_the_reason_is_kept_and_told(
    arguments: dict[str, Any],
    values: list[float],
    reason: EarlyStoppingReason,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopping = EarlyStopping("metric", **arguments)
    with caplog.at_level("INFO", logger="inazuma"):
        fit(inazuma, stopping, values)
    assert stopping.stopping_reason is reason
    assert text in (stopping.stopping_reason_message or "")
    assert text in caplog.text


def test_verbose_tells_of_improvements(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="inazuma"):
        fit(inazuma, EarlyStopping("metric", verbose=True), [3.0, 2.5], max_epochs=2)
    assert "metric improved to 3.000" in caplog.text
    assert "metric improved by 0.500 to 2.500" in caplog.text


@pytest.mark.parametrize("interval", ["00:00:00:00", timedelta(0), {"seconds": 0}])
def test_it_checks_after_each_validation_of_an_interval_in_time(interval: Any) -> None:
    """Lightning dies with an AttributeError."""
    stopping = EarlyStopping("metric", patience=2)
    trainer = fit(inazuma, stopping, [1.0], val_check_interval=interval)
    assert trainer.global_step == 3
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_one_rank_that_wants_to_stop_stops_all() -> None:
    class StoppingRank(SingleDeviceStrategy):
        def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
            return decision or not all

    stopping = EarlyStopping("metric")
    trainer = fit(inazuma, stopping, [3.0, 2.0, 1.0], strategy=StoppingRank("cpu"))
    assert trainer.current_epoch == 1
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED  # the reason is the other rank's


def test_a_check_that_will_never_come_is_told() -> None:
    stopping = EarlyStopping("metric", patience=1)
    with pytest.warns(UserWarning, match=r"it will never stop. Use check_on_train_epoch_end=True"):
        fit(inazuma, stopping, [1.0], where="train", quiet=False, limit_val_batches=0, val_check_interval=0.5)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_min_delta_is_kept_with_the_sign_of_lightning(mode: str) -> None:
    arguments: dict[str, Any] = {"monitor": "metric", "mode": mode, "min_delta": 0.5}
    expected = lightning.pytorch.callbacks.EarlyStopping(**arguments)
    assert EarlyStopping(**arguments).min_delta == expected.min_delta


def test_a_resumed_run_goes_on_counting_with_the_saved_patience(tmp_path: Path) -> None:
    first = EarlyStopping("metric", patience=3)
    trainer = fit(inazuma, first, [1.0], max_epochs=3)
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    second = EarlyStopping("metric", patience=30)
    resumed = fit(inazuma, second, [1.0], ckpt_path=tmp_path / "at.ckpt")
    assert resumed.current_epoch == 4
    assert (second.wait_count, second.patience) == (3, 3)


def test_state_survives_a_round_trip_through_a_file(tmp_path: Path) -> None:
    stopping = EarlyStopping("metric", patience=1)
    fit(inazuma, stopping, [1.0])
    torch.save(stopping.state_dict(), tmp_path / "state")
    other = EarlyStopping("metric")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.state_dict() == stopping.state_dict()
    assert other.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_states_of_older_files_have_no_reason() -> None:
    stopping = EarlyStopping("metric")
    stopping.load_state_dict(
        {"wait_count": 2, "stopped_epoch": 0, "best_score": torch.tensor(1.0), "patience": 5},
    )
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert (stopping.wait_count, stopping.patience) == (2, 5)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"EarlyStopping\(mode='best'\): `mode` can be 'min'"):
        EarlyStopping("metric", mode="best")


def test_a_missing_metric_is_reported_with_the_names_known() -> None:
    with pytest.raises(RuntimeError) as error:
        fit(inazuma, EarlyStopping("metrik"), [1.0])
    assert "EarlyStopping(monitor='metrik') found no metric of this name" in str(error.value)
    assert "Known are: 'metric'. Did you mean 'metric'?" in str(error.value)
    assert "strict=False" in str(error.value)


def test_a_missing_metric_is_a_warning_where_that_is_asked_for(tmp_path: Path) -> None:
    stopping = EarlyStopping("other", strict=False, verbose=True)
    trainer = inazuma.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[stopping],
    )
    data = DataLoader(torch.ones(4, 2), batch_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_model(inazuma, [1.0], "val"), data, data)
    assert [w for w in caught if "monitor='other') found no metric" in str(w.message)]
    assert not trainer.should_stop
