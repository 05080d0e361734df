"""The clocks: when a run steps, logs, validates and stops, against a model of 30 lines written from the rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from inazuma import Callback, LightningModule, Trainer
from inazuma.errors import MisconfigurationException
from inazuma.loggers.logger import DummyLogger

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The train loader gave"),
]
Trace = list[Any]


@dataclass(frozen=True)
class Case:
    """One run: the loader, and the Trainer's arguments on time."""

    length: int
    is_sized: bool
    limit: int | float | None
    accumulate: int
    interval: int | float | None
    every_n_epoch: int | None
    max_epochs: int
    max_steps: int
    min_epochs: int | None
    min_steps: int | None
    stop_at: int | None  # `should_stop` is set after so many batches
    log_every: int

    @property
    def promised(self) -> int | float:
        """The length of an epoch, as far as it is known before."""
        length = self.length if self.is_sized else math.inf
        if isinstance(self.limit, int):
            return min(length, self.limit)
        return length if self.limit is None or math.isinf(length) else int(length * self.limit)


@st.composite
def cases(draw: Any) -> Case:
    length, is_sized = draw(st.integers(1, 20)), draw(st.booleans())
    limits: Any = st.none() | st.integers(1, 24)
    if is_sized:
        limits |= st.floats(0.05, 1.0).filter(lambda share: int(length * share) >= 1)
    limit = draw(limits)
    every_n_epoch = draw(st.none() | st.integers(1, 3))
    promised = Case(length, is_sized, limit, 1, None, 1, 1, -1, None, None, None, 1).promised
    intervals: Any = st.none()
    if every_n_epoch is None:
        intervals |= st.integers(1, 30)
    else:
        intervals |= st.integers(1, int(min(promised, 20)))
        intervals |= st.just(1.0) if math.isinf(promised) else st.floats(0.01, 1.0)
    max_epochs = draw(st.sampled_from([-1, 1, 2, 3, 4]))
    max_steps = draw(st.integers(1, 30) if max_epochs == -1 else st.just(-1) | st.integers(1, 30))
    return Case(
        length,
        is_sized,
        limit,
        draw(st.integers(1, 4)),
        draw(intervals),
        every_n_epoch,
        max_epochs,
        max_steps,
        draw(st.none() | st.integers(0, 3)),
        draw(st.none() | st.integers(1, 20)),
        draw(st.none() | st.integers(1, 40)),
        draw(st.integers(1, 6)),
    )


def expected(case: Case) -> Trace:
    """What happens, in order: "step", "batch", "validate", "epoch", and ("row", x) for each row of a logger."""
    trace: Trace = []
    batches = step = stepped = epoch = 0
    stop = False
    length = int(min(case.length, case.promised))
    least_epochs = (1 if case.min_steps else 0) if case.min_epochs is None else case.min_epochs

    def ends() -> bool:
        stops = stop and epoch >= least_epochs and step >= (case.min_steps or 0)
        return stops or (case.max_steps != -1 and step >= case.max_steps)

    def validation_is_due(batch: int, is_last: bool) -> bool:
        if case.every_n_epoch is not None and (epoch + 1) % case.every_n_epoch:
            return False
        if stop and epoch >= least_epochs and step >= (case.min_steps or 0):
            return True
        count = batches if case.every_n_epoch is None else batch
        if isinstance(case.interval, int):
            return count % case.interval == 0
        if math.isinf(case.promised) or (case.interval in (None, 1.0) and case.every_n_epoch is not None):
            return is_last
        return count % max(1, int(case.promised * (case.interval or 1.0))) == 0

    while not ends() and epoch != case.max_epochs:
        for batch in range(1, length + 1):
            steps = batch % case.accumulate == 0 or batch == length
            trace += ["step", "batch"] if steps else ["batch"]
            step, batches = step + steps, batches + 1
            stop = stop or batches == case.stop_at
            if steps and (stop or (stepped + 1) % case.log_every == 0):
                trace.append(("row", stepped))
            if validation_is_due(batch, batch == length):
                trace += ["validate", ("row", stepped)]
            stepped += steps
            if ends():
                break
        trace += ["epoch", ("row", stepped - 1)]
        epoch += 1
    return trace


class Recorder(DummyLogger):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.trace.append(("row", step))


class Watch(Callback):
    def __init__(self, trace: Trace, stop_at: int | None = None) -> None:
        self.trace, self.stop_at = trace, stop_at

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.trace.append("step")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.trace.append("batch")
        if self.trace.count("batch") == self.stop_at:
            trainer.should_stop = True

    def on_validation_start(self, *_: Any) -> None:
        self.trace.append("validate")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.trace.append("epoch")


class Net(LightningModule):
    """One number, which logs once in each way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("step_value", 1.0, on_step=True, on_epoch=False)
        self.log("epoch_value", 1.0, on_step=False, on_epoch=True, batch_size=1)
        return self.weight * batch

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_value", 1.0, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Stream(IterableDataset[Tensor]):
    """Batches without a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(())] * self.length)


def loader(length: int, is_sized: bool = True) -> DataLoader[Tensor]:
    return DataLoader([torch.ones(())] * length if is_sized else Stream(length), batch_size=None)  # type: ignore[arg-type]


def trainer_of(case: Case, trace: Trace) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=Recorder(trace),
        callbacks=[Watch(trace, case.stop_at)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_train_batches=case.limit,
        accumulate_grad_batches=case.accumulate,
        val_check_interval=case.interval,
        check_val_every_n_epoch=case.every_n_epoch,
        max_epochs=case.max_epochs,
        max_steps=case.max_steps,
        min_epochs=case.min_epochs,
        min_steps=case.min_steps,
        log_every_n_steps=case.log_every,
    )


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_a_run_steps_logs_validates_and_stops_when_the_rules_say(case: Case) -> None:
    trace: Trace = []
    trainer = trainer_of(case, trace)
    trainer.fit(Net(), loader(case.length, case.is_sized), loader(1))
    assert trace == expected(case)
    assert trainer.global_step == trace.count("step")
    assert trainer.current_epoch == trace.count("epoch")
    if case.stop_at is None and case.max_epochs != -1 and case.is_sized:
        assert trainer.estimated_stepping_batches == trainer.global_step


@settings(max_examples=40, deadline=None)
@given(first=st.integers(1, 4), more=st.integers(1, 4), accumulate=st.integers(1, 3), interval=st.integers(1, 12))
def test_a_run_in_two_parts_does_what_it_does_in_one(first: int, more: int, accumulate: int, interval: int) -> None:
    case = Case(5, True, None, accumulate, interval, None, first, -1, None, None, None, 3)
    trace: Trace = []
    trainer, net = trainer_of(case, trace), Net()
    trainer.fit(net, loader(5), loader(1))
    trainer.fit_loop.max_epochs = first + more
    trainer.fit(net, loader(5), loader(1))
    assert trace == expected(Case(5, True, None, accumulate, interval, None, first + more, -1, None, None, None, 3))


@pytest.mark.parametrize(
    ("arguments", "is_sized", "error", "text"),
    [
        ({"val_check_interval": 5}, True, ValueError, r"val_check_interval=5\) asks for .* an epoch has only 4"),
        ({"val_check_interval": 0.5}, False, MisconfigurationException, r"val_check_interval=0.5.* has no length"),
        ({"limit_train_batches": 0.5}, False, MisconfigurationException, r"limit_train_batches=0.5.* has no length"),
        ({"limit_train_batches": 0.1}, True, MisconfigurationException, r"limit_train_batches=0.1.* at least .*0.25"),
    ],
)
def test_a_clock_that_the_loader_does_not_allow_is_refused_before_training(
    arguments: dict[str, Any], is_sized: bool, error: type[Exception], text: str
) -> None:
    trace: Trace = []
    trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1, callbacks=[Watch(trace)], **arguments)
    with pytest.raises(error, match=text):
        trainer.fit(Net(), loader(4, is_sized), loader(1))
    assert "batch" not in trace


@pytest.mark.parametrize("interval", [7, 4])
def test_a_validation_interval_longer_than_an_epoch_counts_on_into_the_next(interval: int) -> None:
    trace: Trace = []
    case = Case(3, True, None, 1, interval, None, 5, -1, None, None, None, 50)
    trainer_of(case, trace).fit(Net(), loader(3), loader(1))
    validated = [trace[:i].count("batch") for i, what in enumerate(trace) if what == "validate"]
    assert validated == list(range(interval, 16, interval))


def test_a_stream_counted_across_epochs_validates_at_the_end_of_each() -> None:
    trace: Trace = []
    case = Case(5, False, None, 1, None, None, 2, -1, None, None, None, 50)
    trainer_of(case, trace).fit(Net(), loader(5, is_sized=False), loader(1))
    assert [trace[:i].count("batch") for i, what in enumerate(trace) if what == "validate"] == [5, 10]


def test_a_share_that_leaves_a_remainder_does_not_validate_at_the_end() -> None:
    trace: Trace = []
    case = Case(10, True, None, 1, 0.3, 1, 1, -1, None, None, None, 50)
    trainer_of(case, trace).fit(Net(), loader(10), loader(1))
    assert [trace[:i].count("batch") for i, what in enumerate(trace) if what == "validate"] == [3, 6, 9]


@pytest.mark.parametrize("stop_at", [None, 2])
def test_no_row_of_a_step_is_written_when_the_interval_is_zero(stop_at: int | None) -> None:
    trace: Trace = []
    case = Case(4, True, None, 1, None, 1, 1, -1, None, None, stop_at, 0)
    trainer_of(case, trace).fit(Net(), loader(4), loader(1))
    last = (stop_at or 4) - 1
    assert [what for what in trace if what[0] == "row"] == [("row", last), ("row", last)]  # validation, and the epoch
