"""What is logged, against a model of the rules; and that logging waits for the device only where rows are written."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from inazuma import Callback, LightningModule, Trainer
from inazuma.callbacks import LearningRateMonitor
from inazuma.loggers import CSVLogger
from inazuma.loggers.logger import DummyLogger

pytestmark = pytest.mark.filterwarnings("ignore:You called `self.log:UserWarning")  # integers are converted
REDUCTIONS: dict[str, Any] = {
    "mean": lambda pairs: sum(v * n for v, n in pairs) / sum(n for _, n in pairs),
    "sum": lambda pairs: sum(v for v, _ in pairs),
    "min": lambda pairs: min(v for v, _ in pairs),
    "max": lambda pairs: max(v for v, _ in pairs),
}
KINDS: dict[str, Any] = {
    "float": float,
    "int": int,
    "bool": bool,
    **{
        str(dtype): (lambda value, dtype=dtype: torch.tensor(value, dtype=dtype))
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
    },
    "one element": lambda value: torch.tensor([[value]]),
}


@dataclass(frozen=True)
class How:
    """The arguments under which one name is logged."""

    on_step: bool
    on_epoch: bool
    reduce_fx: str
    prog_bar: bool
    logger: bool


@dataclass(frozen=True)
class Call:
    name: str
    value: Any
    batch_size: int | None  # None: found in the batch


@dataclass(frozen=True)
class Script:
    """Everything that is logged in a run: `train[epoch][batch]` and `val[epoch][batch]` are lists of calls."""

    how: dict[str, How]
    sizes: list[int]  # of the training batches, and of the validation batches
    train: list[list[list[Call]]]
    val: list[list[list[Call]]]
    log_every: int
    looks: bool  # whether a callback reads the dictionaries after each batch


hows = st.builds(
    How, st.booleans(), st.booleans(), st.sampled_from(sorted(REDUCTIONS)), st.booleans(), st.booleans()
).filter(lambda how: how.on_step or how.on_epoch)


@st.composite
def calls(draw: Any, names: str) -> Call:
    value = KINDS[draw(st.sampled_from(sorted(KINDS)))](draw(st.integers(-40, 40)) / 4)
    return Call(draw(st.sampled_from(names)), value, draw(st.none() | st.integers(1, 5)))


@st.composite
def scripts(draw: Any) -> Script:
    epochs, batches = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def stage(names: str) -> list[list[list[Call]]]:
        return [[draw(st.lists(calls(names), max_size=3)) for _ in range(batches)] for _ in range(epochs)]

    return Script(
        {name: draw(hows) for name in "abcxy"},
        draw(st.lists(st.integers(1, 5), min_size=batches, max_size=batches)),
        stage("abc"),
        stage("xy"),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )


class Model:
    """What the dictionaries and the loggers must hold, by the rules."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.callback: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self.bar: dict[str, float] = {}
        self.rows: list[Any] = []
        self.looks: list[Any] = []

    def show(self, values: dict[str, float], is_step: bool, to_callbacks: bool = True) -> dict[str, float]:
        """Put values under their names into the dictionaries; returns those for loggers."""
        new: dict[str, float] = {}
        for name, value in values.items():
            how = self.script.how[name]
            long_name = f"{name}_{'step' if is_step else 'epoch'}" if how.on_step and how.on_epoch else name
            if to_callbacks:
                self.callback.update({name: value, long_name: value})
            if how.prog_bar:
                self.bar[long_name] = value
            if how.logger:
                new[long_name] = value
        self.logged.update(new)
        return new

    def row(self, values: dict[str, float], step: int, epoch: int | None) -> None:
        if values:
            self.rows.append((step, values if epoch is None else {**values, "epoch": epoch}))

    def stage(self, epoch: int, batches: list[list[Call]], is_train: bool, stepped: int) -> dict[str, float]:
        """All batches of a stage. Returns the values of its epoch."""
        steps: dict[str, float] = {}
        seen: dict[str, list[tuple[float, int]]] = defaultdict(list)
        for index, in_batch in enumerate(batches):
            for call in in_batch:
                value = float(call.value)
                if self.script.how[call.name].on_step:
                    steps[call.name] = value
                seen[call.name].append((value, call.batch_size or self.script.sizes[index]))
            new = self.show(steps, is_step=True, to_callbacks=is_train)
            if not is_train:
                self.row(new, epoch * len(batches) + index, None)
            elif (stepped + index + 1) % self.script.log_every == 0:
                self.row(new, stepped + index, epoch)
            if is_train and self.script.looks:
                self.looks.append((dict(self.callback), dict(self.logged), dict(self.bar)))
        how = self.script.how
        return {name: REDUCTIONS[how[name].reduce_fx](pairs) for name, pairs in seen.items() if how[name].on_epoch}

    def run(self) -> None:
        for epoch, (train, val) in enumerate(zip(self.script.train, self.script.val, strict=True)):
            first = epoch * len(train)
            of_train = self.stage(epoch, train, True, first)
            of_val = self.stage(epoch, val, False, first)
            self.row(self.show(of_val, is_step=False), first + len(train) - 1, epoch)
            self.row(self.show(of_train, is_step=False), first + len(train) - 1, epoch)


class Net(LightningModule):
    """Logs what the script says."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.weight = nn.Parameter(torch.ones(()))

    def play(self, calls: list[Call]) -> None:
        for call in calls:
            self.log(call.name, call.value, batch_size=call.batch_size, **vars(self.script.how[call.name]))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.play(self.script.train[self.current_epoch][batch_idx])
        return self.weight * batch.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.play(self.script.val[self.current_epoch][batch_idx])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def shown(trainer: Trainer) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    callback = {name: float(value) for name, value in trainer.callback_metrics.items()}
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    return callback, logged, dict(trainer.progress_bar_metrics)


class Look(Callback):
    def __init__(self) -> None:
        self.looks: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.looks.append(shown(trainer))


def trainer_of(logger: Any, callbacks: list[Callback], max_epochs: int, log_every: int, **options: Any) -> Trainer:
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        max_epochs=max_epochs,
        log_every_n_steps=log_every,
        **{**off, **options},
    )


def close(got: dict[str, Any], wanted: dict[str, float]) -> bool:
    return got == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@settings(max_examples=150, deadline=None)
@given(script=scripts())
def test_the_dictionaries_and_the_rows_hold_what_was_logged(script: Script) -> None:
    model, net, logger, look = Model(script), Net(script), Recorder(), Look()
    trainer = trainer_of(logger, [look] if script.looks else [], len(script.train), script.log_every)
    batches: Any = [torch.ones(size, 1) for size in script.sizes]
    trainer.fit(net, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    model.run()
    assert [step for step, _ in logger.rows] == [step for step, _ in model.rows]
    for (_, got), (_, wanted) in zip(logger.rows, model.rows, strict=True):
        assert close(got, wanted)
    for got, wanted in zip(look.looks, model.looks, strict=True):
        assert all(close(one, other) for one, other in zip(got, wanted, strict=True))
    for one, other in zip(shown(trainer), (model.callback, model.logged, model.bar), strict=True):
        assert close(one, other)


class LogsPairs(LightningModule):
    """Logs values with their weights under the name of a reduction, `per_batch` of them in each batch."""

    def __init__(self, pairs: list[tuple[float, float]], reduction: str, dtype: torch.dtype, per_batch: int) -> None:
        super().__init__()
        self.layer, self.pairs, self.reduction, self.dtype_, self.per_batch = (
            nn.Linear(1, 1),
            pairs,
            reduction,
            dtype,
            per_batch,
        )

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        for value, weight in self.pairs[batch_idx * self.per_batch : (batch_idx + 1) * self.per_batch]:
            number = torch.tensor(value, dtype=self.dtype_)
            self.log("it", number, on_epoch=True, on_step=False, reduce_fx=self.reduction, batch_size=weight)  # type: ignore[arg-type]
        return self.layer(batch).sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=200),
    weights=st.lists(st.one_of(st.just(8), st.integers(1, 100), st.floats(0.125, 100, width=32)), min_size=1),
    reduction=st.sampled_from(["mean", "sum", "min", "max"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    batches=st.integers(1, 3),
)
def test_the_value_of_an_epoch_has_the_bits_of_one_addition_after_the_other(
    values: list[float], weights: list[float], reduction: str, dtype: torch.dtype, batches: int
) -> None:
    pairs = [(value, weights[index % len(weights)]) for index, value in enumerate(values)]
    trainer = trainer_of(False, [], 1, 1)
    net = LogsPairs(pairs, reduction, dtype, per_batch=-(-len(pairs) // batches))
    trainer.fit(net, DataLoader(torch.ones(batches, 1), batch_size=1))  # type: ignore[arg-type]

    total = torch.tensor({"min": float("inf"), "max": -float("inf")}.get(reduction, 0.0), dtype=dtype)
    for value, weight in pairs:
        number = torch.tensor(value, dtype=dtype)
        if reduction in ("mean", "sum"):
            total = total + (number * weight if reduction == "mean" else number)
        else:
            total = (torch.minimum if reduction == "min" else torch.maximum)(total, number)
    wanted = total / sum(weight for _, weight in pairs) if reduction == "mean" else total
    assert torch.equal(trainer.callback_metrics["it"], wanted) or wanted.isnan()


class Waits(TorchFunctionMode):
    """Notes each call that would wait for a device."""

    WAITING = (
        *(Tensor.item, Tensor.cpu, Tensor.tolist, Tensor.numpy),
        *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.nonzero, torch.equal, torch.allclose),
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


class LogsEverything(LightningModule):
    """Logs in all ways, and notes for each batch how often somebody waited in it."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.waits, self.before, self.per_batch = waits, 0, list[int]()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        if batch_idx:
            self.per_batch.append(self.waits.count - self.before)
        self.before = self.waits.count

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch).mean()
        for reduction in REDUCTIONS:
            self.log(reduction, loss, on_step=True, on_epoch=True, reduce_fx=reduction, prog_bar=True)
        self.log_dict({"number": 1.0, "half": loss.half(), "flag": loss > 0}, on_step=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.per_batch.append(self.waits.count - self.before)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all that is on by default": dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), True
    ),
    "clipping by norm": {"gradient_clip_val": 0.5},
    "clipping by value": {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    "bf16": {"precision": "bf16-mixed"},
    "accumulation": {"accumulate_grad_batches": 2},
    "rates": {"callbacks": [LearningRateMonitor()]},
    "no exact resume": {"exact_resume": False},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_step_waits_for_the_device_only_where_it_writes_a_row(name: str, tmp_path: Path) -> None:
    arguments = {"logger": CSVLogger(tmp_path), "callbacks": [], "max_epochs": 1, "log_every": 4, **ARGUMENTS[name]}
    with Waits() as waits:
        net = LogsEverything(waits)
        trainer_of(**arguments).fit(net, DataLoader(torch.ones(10, 2), batch_size=1))  # type: ignore[arg-type]
    every = 4 * arguments.get("accumulate_grad_batches", 1)
    assert [number for number, waits in enumerate(net.per_batch, start=1) if waits] == [*range(every, 11, every)]


def test_the_graph_of_a_logged_value_is_not_kept_unless_asked_for() -> None:
    class Graph(LogsEverything):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = self.layer(batch).mean()
            self.log("without", loss)
            self.log("with", loss, enable_graph=True)
            metrics = self.trainer.callback_metrics
            assert metrics["with"].requires_grad
            assert not metrics["without"].requires_grad
            return loss

    trainer_of(False, [], 1, 1).fit(Graph(Waits()), DataLoader(torch.ones(2, 2), batch_size=1))  # type: ignore[arg-type]


def test_a_value_that_the_user_changes_afterwards_stays_as_it_was_logged() -> None:
    class Changes(LogsEverything):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            value = torch.tensor(3.0)
            self.log("value", value, on_step=True, on_epoch=True)
            value.fill_(100.0)
            return self.layer(batch).mean()

    trainer = trainer_of(False, [], 1, 1)
    trainer.fit(Changes(Waits()), DataLoader(torch.ones(2, 2), batch_size=1))  # type: ignore[arg-type]
    assert trainer.callback_metrics == {"value": 3.0, "value_step": 3.0, "value_epoch": 3.0}
