"""The base of all loggers: where metrics and hyperparameters of a run go."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor
from torch.nn import Module

from inazuma.ranks import rank_zero_only

if TYPE_CHECKING:
    from inazuma.callbacks.checkpoint import Checkpoint

L = TypeVar("L")
T = TypeVar("T")


class Logger(ABC):
    """Takes what a run measures and keeps it somewhere. Subclass it to send metrics to a place of your own.

    The Trainer calls `log_hyperparams`, `log_graph` and `save` once when a run begins, `log_metrics` followed by `save`
    whenever there is something to log, and `finalize` when the run ends. It calls them on every rank: decorate methods
    that should speak once with `rank_zero_only`, and the property `experiment` with `rank_zero_experiment`.
    """

    @property
    @abstractmethod
    def name(self) -> str | None:
        """The name of the experiment; runs of one experiment stand side by side."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """What tells this run from the others of its experiment."""

    @property
    def experiment(self) -> Any:
        """What does the logging inside, for calls that the logger itself does not offer; None when there is none."""
        return None

    @property
    def root_dir(self) -> str | None:
        """The directory that holds all versions of the experiment; None when nothing is kept in local files."""
        return None

    @property
    def log_dir(self) -> str | None:
        """The directory of this version; None when nothing is kept in local files."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The directory above all experiments; None when nothing is kept in local files."""
        return None

    @property
    def group_separator(self) -> str:
        """What stands between the group and the name of a metric, as in "train/loss"."""
        return "/"

    @abstractmethod
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record numbers by name.

        Args:
            metrics: plain numbers; the Trainer has reduced them and taken them off the device.
            step: the position on the x-axis; None leaves the choice to the logger.
        """

    @abstractmethod
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record what the run was started with. Further arguments are the logger's own."""

    def log_graph(self, model: Module, input_array: Tensor | None = None) -> None:
        """Record the graph of `model`, traced with `input_array` (default: `model.example_input_array`)."""

    def position(self) -> Any:
        """How much was logged so far, as plain data for a checkpoint; given to `resume`."""
        return None

    def resume(self, position: Any, step: int) -> None:
        """Called once when a run goes on from a checkpoint, before it logs metrics: drop what an earlier run logged
        behind that checkpoint in the place where this logger goes on. A logger that cannot do that does nothing.

        Args:
            position: what `position` gave when the checkpoint was saved; None from a file that does not say.
            step: the first step, on the x-axis of `log_metrics`, that is logged again.
        """

    def save(self) -> None:
        """Write what is still held in memory. Called after every `log_metrics`, so it must be cheap."""

    def finalize(self, status: str) -> None:
        """The run is over. `status` is "success", "failed", "finished" or "aborted"."""
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Called after `checkpoint_callback` wrote a checkpoint, for loggers that upload it."""


class DummyExperiment:
    """Stands in for an experiment where nothing may be logged: takes every call and every index, does nothing."""

    def nop(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # pickle and copy ask for these and must be told no
            raise AttributeError(name)
        return self.nop

    def __getitem__(self, index: Any) -> DummyExperiment:
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing."""

    def __iter__(self) -> Iterator[Any]:  # without it Python would index forever
        return iter(())


class DummyLogger(Logger):
    """Takes the place of a logger in runs that leave no trace (`fast_dev_run`): every call works and does nothing."""

    @property
    def experiment(self) -> DummyExperiment:
        """Takes every call and does nothing."""
        return DummyExperiment()

    @property
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return DummyExperiment().nop

    def __getitem__(self, index: int) -> DummyLogger:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def rank_zero_experiment(fn: Callable[[L], T]) -> Callable[[L], T]:
    """Decorator of a logger's `experiment`: the real one on rank 0, a `DummyExperiment` on every other rank."""

    @functools.wraps(fn)
    def experiment(self: L) -> T:
        return fn(self) if rank_zero_only.rank == 0 else cast(T, DummyExperiment())

    return experiment


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def merge_dicts(
    dicts: Sequence[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Any] | None = None,
    default_func: Callable[[Sequence[float]], float] = _mean,
) -> dict[str, Any]:
    """Merge dicts into one; values that share a key become one value.

    Args:
        dicts: may be nested, with the same nesting under the same key. None counts as missing.
        agg_key_funcs: function from the list of values to one value, by key; a dict of functions for a nested key.
        default_func: the function of all other keys.

    Returns:
        Keys in the order in which they first appear.
    """
    funcs = agg_key_funcs or {}
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in dicts for key in one):
        values = [one[key] for one in dicts if one.get(key) is not None]
        func = funcs.get(key)
        if values and isinstance(values[0], Mapping):
            merged[key] = merge_dicts(values, func, default_func)
        else:
            merged[key] = (func or default_func)(values)
    return merged
