"""`self.log`: keep what the user logs, reduce it, and show it to callbacks, the progress bar and loggers.

A logged value stays on its device as a tensor: a call of `log` costs a dictionary lookup, a tuple comparison and a copy
of the value; values are reduced many at a time. They become Python numbers only where somebody shows or stores them
(`as_numbers`; the only place here that waits for the device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from inazuma.errors import MisconfigurationException
from inazuma.ranks import WarningCache
from inazuma.timing import Timing
from inazuma.tree import batch_size_of

if TYPE_CHECKING:
    from inazuma.loggers.logger import Logger

Reduce = Callable[[Tensor, str, Any], Tensor]  # (value, "mean" | "sum" | "min" | "max", group) -> over all ranks

# Where `self.log` may be called, and what `on_step=None, on_epoch=None` mean there (spec: hooks of one step log the
# step, hooks of one evaluation batch log its mean, hooks of an epoch can only log the epoch).
_STEP_HOOKS = frozenset(
    [
        "training_step",
        "on_train_batch_start",
        "on_train_batch_end",
        "on_before_zero_grad",
        "optimizer_zero_grad",
        "on_before_backward",
        "backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "optimizer_step",
        "configure_gradient_clipping",
        "clip_gradients",
    ]
)
_EVAL_HOOKS = frozenset(
    [
        "validation_step",
        "test_step",
        "on_validation_batch_start",
        "on_validation_batch_end",
        "on_test_batch_start",
        "on_test_batch_end",
    ]
)
_EPOCH_HOOKS = frozenset(
    f"on_{stage}_{moment}"
    for stage in ("train", "validation", "test")
    for moment in ("start", "epoch_start", "epoch_end")
)
_REDUCTIONS: dict[Any, str] = {
    **{name: name for name in ("min", "max", "mean", "sum")},
    "avg": "mean",
    torch.mean: "mean",
    torch.sum: "sum",
    torch.min: "min",
    torch.max: "max",
    min: "min",
    max: "max",
    sum: "sum",
}
_LARGEST = torch.finfo(torch.float32).max
_AT_ONCE = 64  # values of one name that are reduced together
_START = {"mean": 0.0, "sum": 0.0, "min": math.inf, "max": -math.inf}


class Metric(Protocol):
    """What the logbook needs of a `torchmetrics.Metric`."""

    _forward_cache: Any

    def compute(self) -> Any: ...

    def reset(self) -> None: ...


class Source(Protocol):
    """What the logbook needs to know of the run: which hook runs now."""

    where: str


@dataclass(frozen=True)
class Flags:
    """How one name is logged: the arguments of `self.log`, with the defaults of the hook filled in."""

    prog_bar: bool
    logger: bool
    on_step: bool
    on_epoch: bool
    reduction: str
    enable_graph: bool
    sync_dist: bool
    add_dataloader_idx: bool
    metric_attribute: str | None
    rank_zero_only: bool


class Entry:
    """One logged name of one hook: its flags, its last value and its running reduction."""

    def __init__(self, hook: str, name: str, dataloader_idx: int | None, flags: Flags) -> None:
        self.hook, self.dataloader_idx, self.flags = hook, dataloader_idx, flags
        self.asked: tuple[Any, ...] = ()  # the arguments as the user wrote them, to compare fast
        self.sync_group: Any = None
        self.metric: Metric | None = None
        suffix = f"/dataloader_idx_{dataloader_idx}" if flags.add_dataloader_idx and dataloader_idx is not None else ""
        is_forked = flags.on_step and flags.on_epoch
        self.name = name + suffix
        self.step_name = f"{name}_step{suffix}" if is_forked else self.name
        self.epoch_name = f"{name}_epoch{suffix}" if is_forked else self.name
        # what `add` reads, without a second dot
        self.on_step, self.on_epoch, self.reduction = flags.on_step, flags.on_epoch, flags.reduction
        self.enable_graph = flags.enable_graph
        self.weighs = self.on_epoch and self.reduction == "mean"
        self.reset()

    def reset(self) -> None:
        """Forget the values; the entry shows nothing until it is logged again."""
        self.is_empty = True
        self.last: Tensor | None = None
        self.total: Tensor | None = None  # the reduction of all values but those that are pending
        self.pending: list[tuple[Tensor, float]] = []  # values, each with its weight in a mean
        self.weight: float = 0.0  # of all values
        self.computed: Tensor | None = None

    def add(self, value: Tensor, batch_size: float) -> None:
        """Take in one value: a floating scalar. `batch_size` is its weight in a mean."""
        self.is_empty = False
        if not self.enable_graph:
            value = value.detach()
        value = value.clone()  # the user may go on to change the logged tensor in place
        if self.on_step:
            self.last = value
        if self.on_epoch:
            self.computed = None
            self.weight += batch_size
            self.pending.append((value, batch_size))
            if len(self.pending) == _AT_ONCE or self.enable_graph:
                self.reduce_pending()

    def reduce_pending(self) -> Tensor | None:
        """Bring the total up to date, with the same bits as if each value had been taken in when it came."""
        if not self.pending:
            return self.total
        values, weights = zip(*self.pending, strict=True)
        self.pending = []
        with torch.inference_mode(False):  # nothing could be added to an inference tensor later
            if self.total is None:
                self.total = torch.full_like(values[0], _START[self.reduction], requires_grad=False)
            kinds = {(value.is_cpu, value.dtype) for value in values}
            if kinds == {(True, self.total.dtype)} and not (self.enable_graph or any(map(_is_tensor, weights))):
                self.total = _reduced_at_once(self.total, torch.stack(values), weights, self.reduction)
            else:
                for value, weight in zip(values, weights, strict=True):
                    self.total = _reduced(self.total, value, weight, self.reduction)
        return self.total

    def step_value(self, reduce: Reduce) -> Tensor | None:
        """The last value logged; None where only the epoch is."""
        if not self.on_step:
            return None
        if self.metric is not None:
            return _metric_value(self.metric._forward_cache, self.name)
        if self.last is not None and self._syncs:
            return reduce(self.last.clone(), self.reduction, self.sync_group)
        return self.last

    def epoch_value(self, reduce: Reduce) -> Tensor | None:
        """The reduction of all values logged since the last reset; None where only steps are."""
        if self.on_epoch and self.computed is None:
            if self.metric is not None:
                self.computed = _metric_value(self.metric.compute(), self.name)
            elif (total := self.reduce_pending()) is not None:
                self.computed = self._over_ranks(total, reduce)
        return self.computed

    def _over_ranks(self, total: Tensor, reduce: Reduce) -> Tensor:
        if self.reduction != "mean":
            return reduce(total.clone(), self.reduction, self.sync_group) if self._syncs else total.clone()
        if not self._syncs:
            return total / self.weight
        sums = reduce(torch.stack([total, torch.full_like(total, self.weight)]), "sum", self.sync_group)
        return sums[0] / sums[1]

    @property
    def _syncs(self) -> bool:
        return self.flags.sync_dist and not self.flags.rank_zero_only


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _reduced(total: Tensor, value: Tensor, weight: float, reduction: str) -> Tensor:
    if reduction == "mean":
        return total + value * weight
    if reduction == "sum":
        return total + value
    return torch.minimum(total, value) if reduction == "min" else torch.maximum(total, value)


def _reduced_at_once(total: Tensor, values: Tensor, weights: Sequence[float], reduction: str) -> Tensor:
    """`_reduced` for one after the other of `values`, `[n]` on the CPU."""
    if reduction == "min":
        return torch.minimum(total, values.amin())
    if reduction == "max":
        return torch.maximum(total, values.amax())
    if reduction == "mean":
        same = weights.count(weights[0]) == len(weights)
        values = values * (weights[0] if same else torch.tensor(weights, dtype=values.dtype))
    # on the CPU this adds in order and rounds each time, as `sum` does not
    return total.reshape(1).index_add(0, torch.zeros(len(values), dtype=torch.int64), values).reshape(())


def _metric_value(value: Any, name: str) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return None if value is None else value.detach()
    raise ValueError(
        f"The metric logged as {name!r} computed {value}, but `.compute()` has to return a tensor. "
        "Log the parts of a larger result one by one, or with `self.log_dict`."
    )


class Results:
    """The entries of one stage. Training keeps its own while validation runs in between."""

    def __init__(self, is_training: bool) -> None:
        self.is_training = is_training
        self.entries: dict[tuple[str, str, int | None], Entry] = {}
        self.dataloader_idx: int | None = None  # of the batch in work, where a stage has several loaders
        # True in the first batch of an epoch, False in later ones, None outside of batches. Inside of batches step
        # values are shown, outside epoch values.
        self.first_batch: bool | None = None
        self.last_hook: str | None = None
        self.logs_steps = False  # whether any entry shows step values to loggers

    def reset(self) -> None:
        """Forget all values, those of torchmetrics too."""
        for entry in self.entries.values():
            entry.reset()
            if entry.metric is not None:
                entry.metric.reset()
        self.first_batch = self.last_hook = None

    def reset_hook(self, hook: str) -> None:
        """Start a hook's reductions afresh; torchmetrics keep what they saw until the epoch ends."""
        for entry in self.entries.values():
            if entry.hook == hook and entry.dataloader_idx == self.dataloader_idx and entry.metric is None:
                entry.reset()

    def visible(self) -> Iterator[Entry]:
        return (e for e in self.entries.values() if not e.is_empty and e.dataloader_idx == self.dataloader_idx)


class Logbook:
    """All that is logged in one run, and the dictionaries that show it.

    Args:
        source: knows which hook runs now, by its attribute `where`.
        reduce: reduces a tensor over the ranks.
        device: where Python numbers become tensors.
        loggers: what `report` writes to.
        timing: of the run.
    """

    def __init__(
        self,
        source: Source,
        reduce: Reduce,
        device: torch.device,
        loggers: Sequence[Logger],
        timing: Timing | None = None,
    ) -> None:
        self.source, self.reduce, self.device, self.loggers = source, reduce, device, loggers
        self.timing = timing or Timing()
        self.results: Results | None = None  # None: nothing can be logged now
        self.batch: Any = None
        self.batch_size: int | None = None
        self.callback: dict[str, Tensor] = {}
        self.logged: dict[str, Tensor] = {}
        self.progress_bar: dict[str, float] = {}
        self._is_behind = False  # whether something was logged since `update`
        self._said = WarningCache()

    # Taking in

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
        attribute_of: Callable[[str, Any, str | None], str] | None = None,
    ) -> None:
        """See `LightningModule.log`. `attribute_of` names the module's attribute that holds a metric."""
        asked = (
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            enable_graph,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            metric_attribute,
            rank_zero_only,
        )
        results = self.results
        if results is None:
            raise self._not_here(name)
        if not isinstance(name, str):
            raise TypeError(
                f"`self.log({name!r}, ...)`: the name should be a str. The order is `self.log(name, value)`."
            )
        hook = self.source.where
        entry = results.entries.get((hook, name, results.dataloader_idx if add_dataloader_idx else None))
        if (
            entry is None
            or entry.asked != asked
            or entry.dataloader_idx != results.dataloader_idx
            or (entry.metric is not None and entry.metric is not value)
        ):
            _check_batch_size(name, batch_size)
            entry = self._entry(results, name, asked, value, attribute_of)
        if results.last_hook != hook:
            if results.first_batch is not False:
                results.reset_hook(hook)
            results.last_hook = hook
        self._is_behind = True
        if entry.metric is not None:
            entry.is_empty, entry.computed = False, None
            return
        if type(value) is not Tensor or value.dim() or value.dtype not in (torch.float32, torch.float64):
            value = self._as_scalar(name, value)
        if batch_size is None and entry.weighs:
            batch_size = self.batch_size
            if batch_size is None:
                batch_size = self.batch_size = self._size_of_batch()
        entry.add(value, 1 if batch_size is None else batch_size)

    def _entry(
        self,
        results: Results,
        name: str,
        asked: tuple[Any, ...],
        value: Any,
        attribute_of: Callable[[str, Any, str | None], str] | None,
    ) -> Entry:
        """The entry for this name in this hook: checked, and made where there is none."""
        hook = self.source.where
        flags = self._flags(name, hook, asked)
        is_metric = _is_metric(value)
        if is_metric and attribute_of is not None and flags.metric_attribute is None:
            flags = Flags(**{**vars(flags), "metric_attribute": attribute_of(name, value, None)})
        key = (hook, name, results.dataloader_idx if flags.add_dataloader_idx else None)
        entry = results.entries.get(key)
        if entry is None:
            if not is_metric:
                self._as_scalar(name, value)  # refuse before an entry is there
            entry = results.entries[key] = Entry(hook, name, results.dataloader_idx, flags)
            results.logs_steps |= flags.on_step and flags.logger
            if is_metric:
                entry.metric = value
        elif entry.flags != flags:
            raise MisconfigurationException(
                f"`{hook}` calls `self.log({name!r}, ...)` twice with different arguments: "
                f"{_differences(entry.flags, flags)}. Log it under another name, or with the same arguments."
            )
        elif entry.dataloader_idx != results.dataloader_idx:
            raise MisconfigurationException(
                f"You called `self.log({name!r}, ..., add_dataloader_idx=False)` twice in `{hook}` with different "
                f"arguments: for loader {entry.dataloader_idx} and for loader {results.dataloader_idx}. Put the index "
                "into the name, or leave add_dataloader_idx=True."
            )
        elif is_metric:
            entry.metric = value  # made anew by the user
        entry.asked, entry.sync_group = asked, asked[7]
        return entry

    def _flags(self, name: str, hook: str, asked: tuple[Any, ...]) -> Flags:
        prog_bar, logger, on_step, on_epoch, reduce_fx, graph, sync, _, add_idx, attribute, zero_only = asked
        if hook in _STEP_HOOKS:
            default_step, default_epoch = True, False
        elif hook in _EVAL_HOOKS:
            default_step, default_epoch = False, True
        elif hook in _EPOCH_HOOKS:
            default_step, default_epoch = False, True
            if on_step or on_epoch is False:
                raise MisconfigurationException(
                    f"You can't `self.log({name!r}, on_step={on_step}, on_epoch={on_epoch})` inside `{hook}`: it runs "
                    "once an epoch. Must be on_step=False, on_epoch=True (the defaults)."
                )
        else:
            raise self._not_here(name)
        on_step = default_step if on_step is None else on_step
        on_epoch = default_epoch if on_epoch is None else on_epoch
        if not on_step and not on_epoch:
            raise MisconfigurationException(
                f"`self.log({name!r}, on_step=False, on_epoch=False)` is not useful: nothing would be kept. "
                "Set one of them."
            )
        if add_idx and "/dataloader_idx_" in name:
            raise MisconfigurationException(
                f"`self.log({name!r}, ...)`: the name should not contain information like "
                "`dataloader_idx`, which is added for you. Pass add_dataloader_idx=False to choose the whole name."
            )
        reduction = None
        if isinstance(reduce_fx, Hashable):
            reduction = _REDUCTIONS.get(reduce_fx.lower() if isinstance(reduce_fx, str) else reduce_fx)
        if reduction is None:
            raise MisconfigurationException(
                f"`self.log({name!r}, ..., reduce_fx={reduce_fx})` is no known reduction. Use 'min', 'max', 'mean' or "
                "'sum', or log a `torchmetrics.Metric`, which reduces as it likes."
            )
        if logger and not self.loggers:
            self._said.warn(
                f"`self.log({name!r}, ..., logger=True)` reaches no logger, because you have no logger configured. "
                "Give Trainer(logger=...) one, or leave out logger=True."
            )
        use_logger = True if logger is None else logger
        return Flags(prog_bar, use_logger, on_step, on_epoch, reduction, graph, sync, add_idx, attribute, zero_only)

    def _not_here(self, name: str) -> MisconfigurationException:
        hook = self.source.where
        if not hook:
            return MisconfigurationException(
                f"`self.log({name!r}, ...)` was called while no Trainer manages it: no "
                "step or hook of the Trainer is running. Call it from a step or hook, and do not call those yourself."
            )
        return MisconfigurationException(
            f"You can't `self.log({name!r}, ...)` inside `{hook}`. Log in a training, validation or test step, or in "
            f"the hooks around batches and epochs{_unless_predict(hook)}."
        )

    def _as_scalar(self, name: str, value: Any) -> Tensor:
        """`value` as a tensor of shape [] and at least float32."""
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"`self.log({name!r}, {value})` got a tensor, which must have a single element. Its shape "
                    f"is {list(value.shape)}: take its mean, or log the elements under names of their own."
                )
            if value.is_complex():
                raise ValueError(
                    f"`self.log({name!r}, {value})` was called with a complex number. Log `.abs()`, or its `.real` and "
                    "`.imag` under names of their own."
                )
            if not value.is_floating_point() and value.dtype is not torch.bool:
                self._said.warn(
                    f"You called `self.log({name!r}, ...)` with a whole number in `{self.source.where}`; it needs to "
                    "be floating for a mean, and is converted to torch.float32. Pass a float to silence this, or for a "
                    f"count that needs no mean, use `self.logger.log_metrics({{{name!r}: ...}})`."
                )
            if value.dtype not in (torch.float32, torch.float64):
                value = value.to(torch.float32)
            scalar: Tensor = value.reshape(())
            return scalar
        if getattr(value, "size", 1) == 1 and hasattr(value, "item"):  # numpy's scalars
            value = value.item()
        if isinstance(value, (bool, int, float)):
            number = float(value)
            if abs(number) > _LARGEST:  # as a cast would; torch.full refuses it
                number = math.copysign(math.inf, number)
            return torch.full((), number, dtype=torch.float32, device=self.device)  # does not wait for the device
        raise ValueError(
            f"`self.log({name!r}, {value!r})`: `{type(value).__name__}` values cannot be logged. Give a "
            "number, a tensor with one element or a torchmetrics.Metric; a dict goes to `self.log_dict`."
        )

    def _size_of_batch(self) -> int:
        if self.batch is None:
            return 1
        size, is_certain = batch_size_of(self.batch)
        if size is None:
            raise MisconfigurationException(
                f"inazuma could not infer the batch size from the batch of type {type(self.batch).__name__} to weigh a "
                f"mean logged in `{self.source.where}`. To ensure the average is correct, pass it: "
                "`self.log(..., batch_size=batch_size)`."
            )
        if not is_certain:
            self._said.warn(
                f"The batch is an ambiguous collection: its first tensor says `batch_size` {size}, which weighs the "
                "means of epochs, but not all of it agrees. Say it: `self.log(..., batch_size=batch_size)`."
            )
        return size

    # Moments of a run

    def begin_batch(self, batch: Any, dataloader_idx: int | None = None) -> None:
        """A batch is about to be used; sizes are inferred from it, values count as its."""
        self.batch, self.batch_size = batch, None
        if (results := self.results) is not None:
            results.first_batch = results.first_batch is None
            results.dataloader_idx = dataloader_idx

    def end_batch(self) -> None:
        self.batch = self.batch_size = None

    def give_up_batch(self) -> None:
        """The module ended the epoch in place of a batch: what it logged as steps for it is not shown."""
        self.end_batch()
        self._is_behind = False

    def end_batches(self, shows: bool = True) -> dict[str, Tensor]:
        """The last batch of an epoch, or of a loader, is done: from here epoch values are shown. Returns them."""
        if self._is_behind:
            self.update()
        if self.results is not None:
            self.results.first_batch = None
        return self.update()[0] if shows else {}

    def end_epoch(self) -> dict[str, Tensor]:
        """The hooks of the epoch's end are done. Returns the values of the epoch for loggers."""
        if self.results is not None:
            self.results.last_hook = None
        return self.update()[0]

    def clear(self) -> None:
        """Forget everything that is shown, and the values behind it."""
        if self.results is not None:
            self.results.reset()
        self.callback, self.logged, self.progress_bar = {}, {}, {}

    # Showing

    def update(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Bring what is shown up to date. Returns what is new for loggers and for callbacks."""
        logged: dict[str, Tensor] = {}
        callback: dict[str, Tensor] = {}
        self._is_behind = False
        if (results := self.results) is None:
            return logged, callback
        shows_steps = results.first_batch is not None
        for entry in results.visible():
            value = entry.step_value(self.reduce) if shows_steps else entry.epoch_value(self.reduce)
            if value is None:
                continue
            name = entry.step_name if shows_steps else entry.epoch_name
            if entry.flags.logger:
                logged[name] = value
            if results.is_training or not shows_steps:
                callback[entry.name] = callback[name] = value
            if entry.flags.prog_bar:
                self.progress_bar[name] = value  # type: ignore[assignment]  # a number once somebody looks
        self.callback.update(callback)
        self.logged.update(logged)
        return logged, callback

    def progress_bar_numbers(self) -> dict[str, float]:
        """What the progress bar shows, as numbers. Waits for the device."""
        self.update()
        self.progress_bar = as_numbers(self.progress_bar)
        return self.progress_bar

    def report(self, metrics: dict[str, Any], step: int, epoch: int | None) -> None:
        """Hand metrics to all loggers. Waits for the device.

        Args:
            metrics: names and scalars. A metric named "step" takes the place of `step`.
            step: the x axis.
            epoch: added to the metrics; None adds nothing and leaves "step" a metric like others.
        """
        if not self.loggers or not metrics:
            return
        self.logged.update(metrics)
        numbers = as_numbers(metrics)
        if epoch is not None:
            if (own_step := numbers.pop("step", None)) is not None:
                step = int(own_step)
            else:
                numbers.setdefault("epoch", epoch)
        with self.timing.during("logging"):
            for logger in self.loggers:
                logger.log_metrics(metrics=numbers, step=step)
                logger.save()

    # State

    def state_dict(self, training: Results) -> dict[str, Any]:
        """Everything that a resumed run needs to show and report what the straight run would."""
        entries = [
            {
                "key": list(key),
                "flags": dict(vars(entry.flags)),
                "values": {
                    "is_empty": entry.is_empty,
                    "last": entry.last,
                    "total": None if (total := entry.reduce_pending()) is None else total.detach(),
                    "weight": entry.weight,
                    "computed": entry.computed,
                },
                "metric": None if entry.metric is None else _metric_state(entry.metric),
            }
            for key, entry in training.entries.items()
        ]
        moment = {"first_batch": training.first_batch, "last_hook": training.last_hook}
        shown: dict[str, dict[str, Any]] = {
            "callback": dict(self.callback),
            "logged": dict(self.logged),
            "progress_bar": dict(self.progress_bar),
        }
        return {"entries": entries, "moment": moment, "shown": shown, "is_behind": self._is_behind}

    def load_state_dict(self, state: dict[str, Any], training: Results, metric_at: Callable[[str], Metric]) -> None:
        """Take back what `state_dict` gave. `metric_at` finds a torchmetrics object by the module's attribute."""
        for item in state["entries"]:
            hook, name, idx = item["key"]
            entry = training.entries[hook, name, idx] = Entry(hook, name, idx, Flags(**item["flags"]))
            entry.__dict__.update({n: _to(value, self.device) for n, value in item["values"].items()})
            training.logs_steps |= entry.on_step and entry.flags.logger
            if item["metric"] is not None:
                entry.metric = metric_at(item["flags"]["metric_attribute"])
                entry.metric.__dict__.update({n: _to(value, self.device) for n, value in item["metric"].items()})
        training.__dict__.update(state["moment"])
        self._is_behind = bool(state["is_behind"])
        self.callback, self.logged, self.progress_bar = (
            dict(state["shown"][name]) for name in ("callback", "logged", "progress_bar")
        )

    def take_back(self, state: dict[str, Any], training: Results, metric_at: Callable[[str], Metric]) -> None:
        """Forget what was logged since `state_dict` gave `state`, as if its batches had not been."""
        moment = training.first_batch, training.last_hook
        for entry in training.entries.values():
            if entry.metric is not None:
                entry.metric.reset()
        training.entries.clear()
        self.load_state_dict(state, training, metric_at)
        training.first_batch, training.last_hook = moment
        for entry in training.entries.values():
            entry.last = None  # else shown again, as if of this step


def as_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Tensors to Python numbers. Waits for the device, once: the one place of logging that does."""
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    if len({(value.dtype, value.device, value.shape) for value in tensors.values()}) == 1:
        return {**metrics, **dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))}
    return {**metrics, **{name: value.item() for name, value in tensors.items()}}


def _metric_state(metric: Metric) -> dict[str, Any]:
    """The running sums of a `torchmetrics.Metric`, which its own `state_dict` leaves out."""
    sums = {name: getattr(metric, name) for name in getattr(metric, "_defaults", {})}
    copied = {
        name: [item.clone() for item in value] if isinstance(value, list) else value.clone()
        for name, value in sums.items()
    }
    return {**copied, "_update_count": getattr(metric, "_update_count", 0)}


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _is_metric(value: Any) -> bool:
    """Whether `value` is a `torchmetrics.Metric`, found without importing torchmetrics."""
    return not isinstance(value, Tensor) and all(hasattr(value, n) for n in ("_forward_cache", "compute", "reset"))


def _check_batch_size(name: str, batch_size: Any) -> None:
    """Refuse, when a name is logged first, what cannot be a number of samples; a tensor is taken as it is."""
    if batch_size is None or isinstance(batch_size, Tensor):
        return
    if not hasattr(batch_size, "__float__") or not float(batch_size) >= 0:  # NaN too
        raise ValueError(
            f"`self.log({name!r}, ..., batch_size={batch_size!r})`: the batch size should be the number of samples, at "
            "least 0."
        )


def _differences(first: Flags, now: Flags) -> str:
    changed = [name for name, value in vars(first).items() if value != getattr(now, name)]
    return ", ".join(f"first {name}={getattr(first, name)!r}, now {getattr(now, name)!r}" for name in changed)


def _unless_predict(hook: str) -> str:
    return "; predicting does not log" if "predict" in hook else ""
