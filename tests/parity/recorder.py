"""Runs one program on Lightning or on inazuma and writes down everything a user could see of it.

`Lab` hands a scenario the package to use (`lab.pl`) and small models, loaders and trainers built from it. Modules,
callbacks and datamodules that pass through `lab.watch` note every call of a hook, what it was given, and where the
trainer stood. `run` returns the `Record` of a scenario.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import inspect
import io
import logging
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

_STAGES = ("train", "validation", "test", "predict")
_STAGE_HOOKS = [
    f"on_{stage}_{moment}"
    for stage in _STAGES
    for moment in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
]
_STEP_HOOKS = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
_COMMON = ["setup", "teardown", "on_fit_start", "on_fit_end", *_STAGE_HOOKS, *_STEP_HOOKS]
_SAVING = ["state_dict", "load_state_dict", "on_save_checkpoint", "on_load_checkpoint"]
_SOURCES = [f"{stage}_dataloader" for stage in ("train", "val", "test", "predict")]
_TRANSFER = ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]

CALLBACK_HOOKS = [*_COMMON, *_SAVING, "on_sanity_check_start", "on_sanity_check_end", "on_exception"]
MODULE_HOOKS = [
    *_COMMON,
    *_SAVING,
    *_TRANSFER,
    "prepare_data",
    "configure_callbacks",
    "configure_model",
    "configure_gradient_clipping",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "lr_scheduler_step",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_test_model_eval",
    "on_predict_model_eval",
]
DATAMODULE_HOOKS = ["prepare_data", "setup", "teardown", "on_exception", "state_dict", "load_state_dict"]
STEPS = [f"{stage}_step" for stage in ("training", "validation", "test", "predict")]
# Their mere presence changes what the Trainer does, so that they are watched only where the program defines them.
IF_DEFINED = [
    *_SOURCES,
    *_TRANSFER,
    *STEPS,
    "configure_optimizers",
    "on_validation_model_train",
]
# The moments at which the metrics are read. Reading is not free of effects in Lightning, and nobody reads elsewhere.
METRIC_MOMENTS = {hook for hook in _COMMON if hook.endswith(("_start", "_end")) or hook == "teardown"}
NOT_COMPARED = {"time_elapsed", "stopping_reason_message"}  # in callbacks: the clock, and a sentence for people
OWN_KEYS = {"inazuma"}  # what inazuma adds to the keys of a Lightning checkpoint


@dataclass
class Event:
    """One call of one hook."""

    who: str
    hook: str
    args: dict[str, Any]
    state: dict[str, Any]  # where the trainer stood when the call began
    metrics: dict[str, dict[str, float]] | None = None

    @property
    def name(self) -> str:
        return f"{self.who}.{self.hook}"


@dataclass
class Record:
    """What a run showed: the parts of it that are compared, each under the name that scenarios use for deviations."""

    events: list[Event] = field(default_factory=list)
    returned: Any = None
    raised: str | None = None
    error: BaseException | None = None
    csv: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    warnings: list[warnings.WarningMessage] = field(default_factory=list)


@dataclass(frozen=True)
class Scenario:
    """A program, and the ways in which inazuma is allowed to differ on it."""

    name: str
    program: Callable[[Lab], Any]
    deviates: Mapping[str, str]  # part of the record -> the words by which docs/differences.md lists it
    warns: Sequence[str]  # patterns of the warnings inazuma may give
    needs: str | None  # the callback it uses; skipped where inazuma does not have it
    draws: bool = False  # random numbers after a validation: inazuma runs with `exact_resume=False`


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    deviates: Mapping[str, str] | None = None,
    warns: Sequence[str] = (),
    needs: str | None = None,
    draws: bool = False,
) -> Callable[[Callable[[Lab], Any]], Callable[[Lab], Any]]:
    """Enter a program into the suite, under the name of its function."""

    def enter(program: Callable[[Lab], Any]) -> Callable[[Lab], Any]:
        name = program.__name__
        assert name not in SCENARIOS, f"two scenarios are named {name}"
        SCENARIOS[name] = Scenario(name, program, deviates or {}, warns, needs, draws)
        return program

    return enter


class Lab:
    """What a scenario works with: one of the two packages, an empty directory, and small programs built from them."""

    def __init__(self, package: str, root: Path) -> None:
        self.pl: Any = importlib.import_module(package)
        self.root = root
        self.events: list[Event] = []
        self.modules: list[Any] = []
        self.watched: dict[type, type] = {}
        self.Net = _net(self.pl)

    def part(self, name: str) -> ModuleType:
        """A module of the package: `lab.part("callbacks")`."""
        return importlib.import_module(f"{self.pl.__name__}.{name}")

    @property
    def callbacks(self) -> Any:
        return self.part("callbacks")

    def trainer(self, callbacks: Sequence[Any] = (), **arguments: Any) -> Any:
        """A quiet Trainer on one CPU whose files go into the scenario's directory, with one watching callback."""

        class Watcher(self.pl.Callback):
            pass

        watched = [self.watch(callback) for callback in [Watcher(), *callbacks]]
        if not arguments.get("barebones"):
            arguments.setdefault("logger", self.csv_logger())
            arguments.setdefault("log_every_n_steps", 1)
        arguments.setdefault("max_epochs", 2)
        return self.pl.Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=self.root,
            callbacks=watched,
            enable_progress_bar=False,
            enable_model_summary=False,
            **arguments,
        )

    def csv_logger(self) -> Any:
        return self.part("loggers").CSVLogger(self.root, name="logs")

    def fit(
        self,
        module: Any = None,
        train: Any = None,
        val: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        **arguments: Any,
    ) -> Any:
        """Fit `module` (default `Net`) with a new Trainer, on 6 train and 3 val batches unless given. False: none."""
        module = self.watch(self.Net() if module is None else module)
        trainer = self.trainer(**arguments)
        if datamodule is not None:
            trainer.fit(module, datamodule=self.watch(datamodule), ckpt_path=ckpt_path)
            return trainer
        train, val = loader() if train is None else train, loader(6) if val is None else val
        trainer.fit(module, *(None if given is False else given for given in (train, val)), ckpt_path=ckpt_path)
        return trainer

    def watch(self, thing: Any) -> Any:
        """Make the hooks of a module, callback or datamodule note that they were called. Returns the same object."""
        if isinstance(thing, self.pl.LightningModule):
            base, hooks = self.pl.LightningModule, MODULE_HOOKS
            if thing not in self.modules:
                self.modules.append(thing)
        elif isinstance(thing, self.pl.LightningDataModule):
            base, hooks = self.pl.LightningDataModule, DATAMODULE_HOOKS
        else:
            base, hooks = self.pl.Callback, CALLBACK_HOOKS
        cls = type(thing)
        if cls in self.watched.values():
            return thing
        if cls not in self.watched:  # one class each: which callback replaces which goes by their types
            self.watched[cls] = self._watched_class(cls, base, hooks)
        thing.__class__ = self.watched[cls]
        return thing

    def _watched_class(self, cls: type, base: type, hooks: Sequence[str]) -> type:
        methods = {hook: self._noted(cls, base, hook) for hook in hooks}
        for hook in IF_DEFINED:
            own = getattr(cls, hook, None)
            if own is not None and own is not getattr(base, hook, None):
                methods[hook] = functools.wraps(own)(self._noted(cls, base, hook))
        return type(cls.__name__, (cls,), {**methods, "__module__": cls.__module__, "__qualname__": cls.__qualname__})

    def _noted(self, cls: type, base: type, hook: str) -> Callable[..., Any]:
        own: Callable[..., Any] = getattr(cls, hook)
        # The hook as the package declares it, so that a program may name or gather the arguments as it likes.
        signature = inspect.signature(own if hook in STEPS else getattr(base, hook))
        has_trainer = "trainer" in signature.parameters
        # The callbacks of the package are watched for when they are called. They read metrics as they like.
        reads_metrics = hook in METRIC_MOMENTS and not issubclass(cls, self.pl.LightningDataModule)

        def noted(this: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(this, *args, **kwargs)
            bound.apply_defaults()
            given = dict(list(bound.arguments.items())[1:])
            trainer = given.get("trainer") if has_trainer else _trainer_of(this)
            self.events.append(
                Event(
                    who=cls.__name__,
                    hook=hook,
                    args=_shown_arguments(hook, given),
                    state={} if trainer is None else _where(trainer, hook),
                    metrics=_metrics(trainer) if reads_metrics and trainer is not None else None,
                )
            )
            return own(this, *args, **kwargs)

        noted.__name__ = hook
        return noted


def run(package: str, program: Scenario, root: Path) -> Record:
    """Run a scenario on `package` in the empty directory `root`."""
    root.mkdir(parents=True)
    record = Record()
    with _quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lab = Lab(package, root)
        lab.pl.seed_everything(7)
        try:
            record.returned = _detached(program.program(lab))
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            record.raised, record.error = type(error).__name__, error
    record.events = list(lab.events)  # a copy: `state_dict` below is watched
    record.warnings = list(caught or ())
    record.weights = [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in lab.modules]
    record.files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    record.csv = {name: _rows(root / name) for name in record.files if name.endswith("metrics.csv")}
    record.checkpoints = {name: _checkpoint(root / name, root) for name in record.files if name.endswith(".ckpt")}
    return record


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No output, one thread."""
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
        torch.set_num_threads(threads)


def _trainer_of(thing: Any) -> Any:
    try:
        return thing.trainer
    except (RuntimeError, AttributeError):
        return None  # not attached yet, or a callback's `state_dict`, which is not told


def _where(trainer: Any, hook: str) -> dict[str, Any]:
    module = trainer.lightning_module
    where = {
        "fn": _word(trainer.state.fn),
        "stage": _word(trainer.state.stage),
        "status": _word(trainer.state.status),
        "global_step": trainer.global_step,
        "current_epoch": trainer.current_epoch,
        "should_stop": trainer.should_stop,
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "module.training": None if module is None else module.training,
        "lr": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
    }
    if hook.startswith("on_train_batch"):
        where["is_last_batch"] = trainer.is_last_batch
    return where


def _word(member: Any) -> str | None:
    return None if member is None else str(member.value)


def _metrics(trainer: Any) -> dict[str, dict[str, float]]:
    kinds = ("callback_metrics", "logged_metrics", "progress_bar_metrics")
    return {kind: {name: _number(value) for name, value in getattr(trainer, kind).items()} for kind in kinds}


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)  # the progress bar's are numbers already


def _shown_arguments(hook: str, given: dict[str, Any]) -> dict[str, Any]:
    if hook in ("state_dict", "load_state_dict"):
        return {}
    if "checkpoint" in given:
        checkpoint = given["checkpoint"]
        keys = sorted(set(checkpoint) - OWN_KEYS)
        return {"checkpoint": {"keys": keys, **{key: checkpoint[key] for key in ("epoch", "global_step")}}}
    return {name: shown(value) for name, value in given.items() if name not in ("trainer", "pl_module")}


def shown(value: Any) -> Any:
    """What is compared of an argument: numbers and structure, a tensor by its shape and sum, others by their type."""
    if isinstance(value, Tensor):
        total = value.detach().double().sum().item()
        return {"shape": tuple(value.shape), "dtype": str(value.dtype), "sum": total, "grad": value.requires_grad}
    if isinstance(value, str):
        return str(getattr(value, "value", value))  # a member of a string enum equals its word
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): shown(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, torch.optim.Optimizer):  # wrapped for the user, or as it is; by the name that torch gave it
        names = [cls.__name__ for cls in type(value).__mro__ if cls.__module__.startswith("torch.")]
        return f"wrapped {names[0]}" if type(value).__name__.startswith("Lightning") else names[0]
    if callable(value) and not isinstance(value, torch.nn.Module):
        return "a callable"
    return type(value).__name__


def _detached(value: Any) -> Any:
    """Results as they are, but without graph, and safe from later changes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _detached(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_detached(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return [{name: float(cell) if cell else None for name, cell in row.items()} for row in csv.DictReader(file)]


def _checkpoint(path: Path, root: Path) -> Any:
    content = torch.load(path, weights_only=False)

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            keys = {key: str(key).replace(os.path.realpath(root), "<root>") for key in value if key not in NOT_COMPARED}
            return {shown_key: plain(value[key]) for key, shown_key in keys.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.replace(os.path.realpath(root), "<root>") if isinstance(value, str) else value

    # What is in `loops` shows when Lightning resumes from it: tests/resume/test_interchange.py. Here only its form.
    content["loops"] = {name: sorted(loop) for name, loop in content["loops"].items()}
    return plain({key: value for key, value in content.items() if key not in OWN_KEYS | {"pytorch-lightning_version"}})


def broken(record: Record) -> bool:
    """Whether the run ended by a mistake of this file, which looks the same on both packages."""
    frames = [] if record.error is None else list(traceback.walk_tb(record.error.__traceback__))
    return bool(frames) and frames[-1][0].f_code.co_filename == __file__


# --- comparison


def differences(expected: Record, got: Record) -> dict[str, str]:
    """Where two records differ: the part of the record -> the first difference in words. Empty: nowhere."""
    found = {**_different_events(expected.events, got.events)}
    for part in ("raised", "returned", "csv", "files", "checkpoints", "weights"):
        where = first_difference(getattr(expected, part), getattr(got, part))
        if where is not None:
            found[part] = where
    return found


def _different_events(expected: list[Event], got: list[Event]) -> dict[str, str]:
    """The order of hooks first; what they saw only up to the first hook out of order."""
    found = {}
    same = min(len(expected), len(got))
    for i in range(same):
        if expected[i].name != got[i].name:
            same = i
            break
    if len(expected) != len(got) or same < len(expected):
        found["hooks"] = _neighbours(expected, got, same)
    for part in ("args", "state", "metrics"):
        first: dict[str, str] = {}  # by the place in the value: the first event at which it differs
        for i in range(same):
            where = first_difference(getattr(expected[i], part), getattr(got[i], part))
            if where is not None:
                first.setdefault(where.split(":")[0], f"{where}\n{_neighbours(expected, got, i)}")
        if first:
            found[part] = "\n".join(list(first.values())[:4])
    return found


def _neighbours(expected: list[Event], got: list[Event], at: int, around: int = 4) -> str:
    lines = [f"at event {at} (expected has {len(expected)}, got {len(got)}):"]
    for i in range(max(0, at - around), at + around + 1):
        left = expected[i].name if i < len(expected) else "-"
        right = got[i].name if i < len(got) else "-"
        lines.append(f"  {'>' if i == at else ' '} {i:4} {left:48} {right if right != left else '='}")
    return "\n".join(lines)


def first_difference(expected: Any, got: Any, path: str = "") -> str | None:
    """The first place at which two nested values differ. Tensors are equal bit by bit, floats within 1e-6."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        missing, extra = [k for k in expected if k not in got], [k for k in got if k not in expected]
        if missing or extra:
            return f"{path or 'keys'}: missing {missing}, extra {extra}"
        pairs = [(f"{path}[{key!r}]", expected[key], got[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            return f"{path}: expected {len(expected)} items, got {len(got)}:\n  {expected}\n  {got}"
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(expected, got, strict=True))]
    else:
        return None if _equal(expected, got) else f"{path}: expected {expected!r}, got {got!r}"
    return next((where for name, a, b in pairs if (where := first_difference(a, b, name)) is not None), None)


def _equal(expected: Any, got: Any) -> bool:
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        same_kind = expected.dtype == got.dtype and expected.shape == got.shape
        return same_kind and torch.equal(expected.nan_to_num(123.0), got.nan_to_num(123.0))
    if isinstance(expected, float) and isinstance(got, float):
        return math.isclose(expected, got, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(expected) and math.isnan(got))
    return type(expected) is type(got) and bool(expected == got)


# --- the small programs


class Points(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Points of a noisy linear map from 4 to 2 dimensions."""

    def __init__(self, length: int) -> None:
        numbers = torch.Generator().manual_seed(length)
        self.x = torch.randn(length, 4, generator=numbers)
        self.y = self.x[:, :2] - self.x[:, 2:] + 0.1 * torch.randn(length, 2, generator=numbers)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Stream(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """The same points without a length."""

    def __init__(self, length: int) -> None:
        self.points = Points(length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.points[i] for i in range(len(self.points)))


def loader(length: int = 12, batch_size: int = 2, **arguments: Any) -> DataLoader[Any]:
    """Batches of `Points`, 6 unless said otherwise."""
    return DataLoader(Points(length), batch_size=batch_size, **arguments)


def stream(length: int = 12, batch_size: int = 2) -> DataLoader[Any]:
    """Batches of a `Stream`."""
    return DataLoader(Stream(length), batch_size=batch_size)


def _net(pl: Any) -> Any:
    class Net(pl.LightningModule):
        """Two layers, SGD, a logged loss in every step."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

        def loss(self, batch: Any) -> Tensor:
            x, y = batch
            return torch.nn.functional.mse_loss(self(x), y)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("val_loss", loss)
            return loss

        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("test_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Net
