"""What `configure_optimizers` may return, the optimizer a module sees, and clipping."""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import _global_optimizer_pre_hooks

from inazuma.errors import MisconfigurationException
from inazuma.ranks import rank_zero_warn
from inazuma.tree import apply_to_collection

if TYPE_CHECKING:
    from inazuma.module import LightningModule


# --- what configure_optimizers returns -------------------------------------------------------------------------------


@dataclass
class LRSchedulerConfig:
    """A learning-rate scheduler and when to step it.

    Args:
        scheduler: a torch scheduler, or any object with `state_dict` and `load_state_dict`.
        name: what `LearningRateMonitor` calls it; None leaves the choice to the monitor.
        interval: "epoch" or "step".
        frequency: step every so many epochs, or batches of the epoch.
        reduce_on_plateau: `lr_scheduler_step` receives the value of `monitor`.
        monitor: name in `callback_metrics`.
        strict: a missing `monitor` is an error; False makes it a warning and skips the step.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class NoOptimizer(Optimizer):
    """Stands in when `configure_optimizers` returns None: runs the closure, changes no weight, has no state."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(0)], {})  # torch refuses an empty list
        self.param_groups.clear()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def __repr__(self) -> str:
        return "No Optimizer"


def configure(module: LightningModule) -> tuple[list[Optimizer], list[LRSchedulerConfig]]:
    """Call the module's `configure_optimizers` and bring what it returns into one shape.

    Returns:
        The optimizers and the schedulers, each in the order in which they were returned.

    Raises:
        MisconfigurationException: no known form, a scheduler of another optimizer, or a value that cannot work.
        KeyError: a dictionary without "optimizer".
        TypeError: a scheduler without `state_dict` and `load_state_dict`.
        RuntimeError: several optimizers in automatic optimization.
    """
    returned = module.configure_optimizers()
    automatic = module.automatic_optimization
    optimizers, schedulers, monitor = ([], [], None) if returned is None else _split(module, returned)
    if returned is None or (automatic and not optimizers and not schedulers):
        rank_zero_warn(
            f"`{_where(module)}` returned `{returned}`, so this fit will run with no optimizer: the steps are counted, "
            "no weight changes. Return an optimizer to train."
        )
        return [NoOptimizer()], []
    if automatic and len(optimizers) > 1:
        raise RuntimeError(
            f"`{_where(module)}` returned {len(optimizers)} optimizers, but multiple optimizers are only supported "
            "with manual optimization: which of them should a batch step? Set `self.automatic_optimization = False` in "
            "`__init__` and step them in `training_step`, from `a, b = self.optimizers()`."
        )
    read = _scheduler_config if automatic else _manual_scheduler_config
    configs = [read(scheduler, monitor) for scheduler in schedulers]
    for config in configs:
        _check_scheduler(module, config, optimizers)
    return optimizers, configs


def _where(module: LightningModule) -> str:
    return f"{type(module).__name__}.configure_optimizers"


def _split(module: LightningModule, returned: Any) -> tuple[list[Optimizer], list[Any], str | None]:
    """The optimizers, the schedulers as they were given, and the `monitor` next to a bare scheduler."""
    if isinstance(returned, Optimizer):
        return [returned], [], None
    if isinstance(returned, Mapping):
        return _split_dict(module, returned)
    if isinstance(returned, (list, tuple)):
        if all(isinstance(item, Optimizer) for item in returned):
            return list(returned), [], None
        if all(isinstance(item, Mapping) for item in returned):
            parts = [_split_dict(module, item) for item in returned]
            return [o for part in parts for o in part[0]], [s for part in parts for s in part[1]], None
        if len(returned) == 2 and isinstance(returned[0], list):
            optimizers, schedulers = returned
            if all(isinstance(item, Optimizer) for item in optimizers):
                return optimizers, list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers], None
    raise MisconfigurationException(
        f"Unknown configuration for model optimizers: `{_where(module)}` returned {_outline(returned)}. Return one of\n"
        "  optimizer\n"
        "  [optimizer, ...]\n"
        "  [optimizer, ...], [scheduler, ...]\n"
        '  {"optimizer": optimizer, "lr_scheduler": scheduler}\n'
        '  [{"optimizer": optimizer, "lr_scheduler": scheduler}, ...]\n'
        'where "lr_scheduler" may be left out and a scheduler may be written as '
        '{"scheduler": scheduler, "interval": "step", ...}.'
    )


def _split_dict(module: LightningModule, returned: Mapping[str, Any]) -> tuple[list[Optimizer], list[Any], str | None]:
    if "optimizer" not in returned:
        raise KeyError(f"optimizer (the dictionary that `{_where(module)}` returned has only {list(returned)})")
    if unknown := set(returned) - {"optimizer", "lr_scheduler", "monitor"}:
        rank_zero_warn(
            f"`{_where(module)}` returned a dict with unsupported keys: {unknown}. They are ignored; it may have "
            '"optimizer", "lr_scheduler" and "monitor".',
            category=RuntimeWarning,
        )
    optimizer = returned["optimizer"]
    if not isinstance(optimizer, Optimizer):
        raise MisconfigurationException(
            f'Unknown configuration for model optimizers: `{_where(module)}` returned {{"optimizer": '
            f"{_outline(optimizer)}}}, which is no `torch.optim.Optimizer`. For several, return a list of dictionaries."
        )
    schedulers = [returned["lr_scheduler"]] if "lr_scheduler" in returned else []
    return [optimizer], schedulers, returned.get("monitor")


def _outline(value: Any) -> str:
    """What came, by types: the values of an optimizer fill a screen."""
    if isinstance(value, (list, tuple)):
        items = ", ".join(_outline(item) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_outline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def _scheduler_config(scheduler: Any, monitor: str | None) -> LRSchedulerConfig:
    """The scheduler of automatic optimization; `monitor` belongs to a bare ReduceLROnPlateau."""
    if isinstance(scheduler, Mapping):
        config = _from_dict(scheduler, reduce_on_plateau=isinstance(scheduler.get("scheduler"), ReduceLROnPlateau))
    elif isinstance(scheduler, ReduceLROnPlateau):
        config = LRSchedulerConfig(scheduler, reduce_on_plateau=True, monitor=monitor)
    else:
        config = LRSchedulerConfig(scheduler)
    follows_a_metric = config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau)
    if follows_a_metric and config.monitor is None:
        raise MisconfigurationException(
            f"The dict of a `{type(config.scheduler).__name__}` scheduler must include a monitor: "
            'it steps on a metric. Return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, '
            '"monitor": "val_loss"}}, with the name of something that you log.'
            if isinstance(scheduler, Mapping)
            else "`configure_optimizers` must include a monitor for its `ReduceLROnPlateau` scheduler: "
            'it steps on a metric. Return {"optimizer": optimizer, "lr_scheduler": scheduler, '
            '"monitor": "val_loss"}, with the name of something that you log.'
        )
    if config.monitor is not None and not isinstance(config.monitor, str):
        raise MisconfigurationException(
            f'The "monitor" of the lr scheduler `{type(config.scheduler).__name__}` should be the name of a metric, as '
            f"in `self.log(name, value)`, but is {config.monitor!r}."
        )
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch":
        rank_zero_warn(
            "A `OneCycleLR` scheduler steps once per epoch here, because its 'interval' is 'epoch'. It is made to step "
            "after each batch: 'interval': 'step'.",
            category=RuntimeWarning,
        )
    return config


def _manual_scheduler_config(scheduler: Any, monitor: str | None) -> LRSchedulerConfig:
    """The scheduler of manual optimization: the user steps it, so what says on which metric is dropped."""
    if not isinstance(scheduler, Mapping):
        return LRSchedulerConfig(scheduler)
    unused = [key for key in scheduler if key in ("monitor", "strict", "reduce_on_plateau")]
    if unused:
        rank_zero_warn(
            f"The dict of an lr scheduler has {unused}, which mean nothing in manual optimization, where you call "
            "`lr_scheduler.step()` yourself and pass it the metric. Remove them.",
            category=RuntimeWarning,
        )
    return _from_dict({key: value for key, value in scheduler.items() if key not in unused}, reduce_on_plateau=False)


def _from_dict(given: Mapping[str, Any], reduce_on_plateau: bool) -> LRSchedulerConfig:
    known = LRSchedulerConfig.__dataclass_fields__
    if unknown := set(given) - set(known):
        rank_zero_warn(
            f"The dict of an lr scheduler has unsupported keys: {unknown}. They are ignored; known are {list(known)}.",
            category=RuntimeWarning,
        )
    if "scheduler" not in given:
        raise MisconfigurationException(
            f'The dict of an lr scheduler must hold it under the key "scheduler"; this one has {list(given)}.'
        )
    values = {key: value for key, value in given.items() if key in known}
    config = LRSchedulerConfig(**{"reduce_on_plateau": reduce_on_plateau, **values})
    if config.interval not in ("step", "epoch"):
        raise MisconfigurationException(
            f'The "interval" of an lr scheduler is {config.interval!r}. Use "step" or "epoch".'
        )
    if not isinstance(config.frequency, int) or config.frequency < 1:
        raise MisconfigurationException(
            f'The "frequency" key in lr scheduler dict must be a whole number, 1 or more, but is {config.frequency!r}.'
        )
    return config


def _check_scheduler(module: LightningModule, config: LRSchedulerConfig, optimizers: list[Optimizer]) -> None:
    scheduler = config.scheduler
    name = type(scheduler).__name__
    if isinstance(scheduler, type):
        raise TypeError(
            f"The lr scheduler is the class `{scheduler.__name__}`: `{_where(module)}` must make an instance of it, "
            f"`{scheduler.__name__}(optimizer, ...)`."
        )
    if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
        raise TypeError(
            f"The provided lr scheduler `{name}` is invalid: without `state_dict` and `load_state_dict` it cannot be "
            "saved in a checkpoint. Use a torch scheduler, or give your class both methods."
        )
    owner = getattr(scheduler, "optimizer", None)
    if owner is not None and not any(owner is optimizer for optimizer in optimizers):
        raise MisconfigurationException(
            f"The lr scheduler `{name}` belongs to an optimizer that `{_where(module)}` did not return, so "
            "it would change no learning rate of this fit. Build it on one of the returned optimizers."
        )
    if (
        module.automatic_optimization
        and isinstance(scheduler, ReduceLROnPlateau)
        and not config.reduce_on_plateau
        and not _steps_schedulers_itself(module)
    ):
        raise MisconfigurationException(
            f'`{name}` steps on a metric, but its dict has "reduce_on_plateau": False, so it would get none. Leave '
            "that key out, or override `lr_scheduler_step(self, scheduler, metric)` in your module."
        )
    if (
        module.automatic_optimization
        and not isinstance(scheduler, (LRScheduler, ReduceLROnPlateau))
        and not _steps_schedulers_itself(module)
    ):
        raise MisconfigurationException(
            f"`{name}` is used as an lr scheduler but is no `LRScheduler` of PyTorch, so it is not known how to "
            "step it. Override `lr_scheduler_step(self, scheduler, metric)` in your module, or use a torch scheduler."
        )


def _steps_schedulers_itself(module: LightningModule) -> bool:
    """Whether the user wrote `lr_scheduler_step`: a definition besides the one of the base class."""
    definitions = [base for base in type(module).__mro__ if "lr_scheduler_step" in vars(base)]
    return len(definitions) > 1 or "lr_scheduler_step" in vars(module)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def monitored_metric(config: LRSchedulerConfig, metrics: Mapping[str, Any]) -> Any:
    """The value that a `reduce_on_plateau` scheduler steps on, or None when it is to be skipped.

    Raises:
        MisconfigurationException: the metric is missing and the scheduler is `strict`.
    """
    assert config.monitor is not None
    if config.monitor in metrics:
        return metrics[config.monitor]
    name = type(config.scheduler).__name__
    if config.strict:
        raise MisconfigurationException(
            f"{name} conditioned on metric {config.monitor} cannot step, as nothing of this name was logged. "
            f"Known are: {list(metrics)}.{_did_you_mean(config.monitor, metrics)} "
            f"Log it with `self.log({config.monitor!r}, ...)`"
            ', or set "strict": False in the lr scheduler dict to skip the scheduler while the metric is missing.'
        )
    rank_zero_warn(
        f"{name} conditioned on metric {config.monitor} did not step, as nothing of this name was logged and "
        f'"strict" is False. Known are: {list(metrics)}.',
        category=RuntimeWarning,
    )
    return None


# --- the optimizer a module sees -------------------------------------------------------------------------------------


class LightningOptimizer:
    """A user's optimizer whose `step` goes through the Trainer. Everything else is the user's optimizer itself.

    An instance belongs to a class `Lightning<Name>`, which subclasses the class of the optimizer, and has the same
    `__dict__` as the optimizer: what is read or changed on one is read or changed on the other.

    Args:
        optimizer: the user's.
        step: called as `step(optimizer, closure, **kwargs)` with the user's optimizer and a closure that can be called.
        module: whose parameters `toggle_model` freezes.
        no_sync: makes the context in which a backward pass does not reduce gradients over processes.
    """

    __slots__ = ("_module", "_no_sync", "_step", "_wrapped_step", "optimizer")  # __dict__ is the optimizer's

    def __new__(cls, optimizer: Optimizer, *args: Any, **kwargs: Any) -> LightningOptimizer:
        return object.__new__(_proxy_class(type(optimizer)))  # type: ignore[arg-type]  # classes are hashable

    def __init__(
        self,
        optimizer: Optimizer,
        step: Callable[..., Any],
        module: LightningModule | None = None,
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.__dict__ = optimizer.__dict__  # type: ignore[misc]
        self.optimizer = optimizer
        self._step = step
        self._module = module
        self._no_sync = no_sync
        self._wrapped_step: Callable[..., Any] | None = None

    @property
    def step(self) -> Callable[..., Any]:
        """`step(closure=None, **kwargs)`: one optimizer step, with the precision and the hooks of the Trainer.

        Args:
            closure: runs forward and backward again and returns the loss.
            kwargs: go to the optimizer's own `step`.

        Raises:
            MisconfigurationException: `closure` cannot be called.
        """
        # A property, because a scheduler puts its own `step` into the optimizer's __dict__, which this object shares.
        return self._wrapped_step or self._through_trainer

    @step.setter
    def step(self, wrapped: Callable[..., Any]) -> None:
        self._wrapped_step = wrapped  # by a scheduler that is built on this object, to count the steps

    def _through_trainer(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        if closure is None:
            closure = _nothing
        elif not callable(closure):
            raise MisconfigurationException(
                f"`optimizer.step(closure={closure!r})`: the closure should be callable. Pass a function that runs "
                "forward and backward and returns the loss, or nothing."
            )
        return self._step(self.optimizer, closure, **kwargs)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Freeze, inside the context, the parameters that only other optimizers have.

        Args:
            sync_grad: False also leaves the gradients of this process unreduced, to accumulate over several batches.
        """
        assert self._module is not None
        with nullcontext() if sync_grad else self._no_sync():
            self._module.toggle_optimizer(self)
            try:
                yield
            finally:
                self._module.untoggle_optimizer(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.optimizer.__setstate__(state)  # torch's own would wrap the `step` of this class in the optimizer's hooks

    def __del__(self) -> None:
        pass  # a __del__ of the optimizer's class runs once, for the optimizer


@cache
def _proxy_class(kind: type[Optimizer]) -> type[LightningOptimizer]:
    return type(f"Lightning{kind.__name__}", (LightningOptimizer, kind), {})


def _nothing() -> None:
    """The closure of an optimizer step that was given none."""


def params_of(optimizer: Optimizer | LightningOptimizer) -> Iterator[Tensor]:
    """Every parameter of an optimizer, group by group."""
    groups: list[dict[str, Any]] = optimizer.param_groups  # type: ignore[union-attr]  # of the shared __dict__
    return (param for group in groups for param in group["params"])


def toggle_optimizer(
    optimizers: Iterable[Optimizer | LightningOptimizer],
    optimizer: Optimizer | LightningOptimizer,
    outer: Sequence[dict[Tensor, bool]] = (),
) -> dict[Tensor, bool]:
    """Set `requires_grad` to False on the parameters that only other optimizers have.

    Args:
        optimizers: all of them.
        optimizer: the one whose parameters keep the flag that they had before any toggling.
        outer: what the calls returned that are still in force, outermost first.

    Returns:
        The parameters whose flag changed, with the flag from before: for `untoggle_optimizer`.
    """
    original = ChainMap(*outer)
    own = set(params_of(optimizer))
    changed: dict[Tensor, bool] = {}
    for param in (param for each in optimizers for param in params_of(each)):
        wanted = param in own and original.get(param, param.requires_grad)
        if param.requires_grad != wanted:
            changed[param] = param.requires_grad
            param.requires_grad = wanted
    return changed


def untoggle_optimizer(changed: Mapping[Tensor, bool]) -> None:
    """Undo one `toggle_optimizer`, given what it returned."""
    for param, requires_grad in changed.items():
        param.requires_grad = requires_grad


def zero_grad(optimizer: Optimizer) -> None:
    """`optimizer.zero_grad()`: the same, without torch's 15 µs of preparations, where the class has torch's method."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = None


def runs_closure_first(optimizer: Optimizer) -> bool:
    """Whether `optimizer.step(closure)` is known to be the closure, once, and then `optimizer.step()`.

    So it is with torch's own, except for LBFGS, and except where a hook wants to be called before the closure.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or kind is LBFGS:
        return False
    if optimizer._optimizer_step_pre_hooks or _global_optimizer_pre_hooks:
        return False
    own = vars(optimizer).get("step")  # schedules put a function there that counts
    return own is None or getattr(own, "__wrapped__", None) is kind.step


def optimizer_to(optimizer: Optimizer, device: torch.device) -> None:
    """Move the state of an optimizer, in place, next to parameters that were moved to `device`."""
    for group in optimizer.param_groups:
        # Torch reads the step counter with .item() unless the kernel does: on the GPU that would wait in every step.
        counter_too = device.type == "cpu" or group.get("fused") or group.get("capturable")
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            for key, value in state.items():
                if key != "step" or counter_too:
                    state[key] = apply_to_collection(value, Tensor, lambda tensor: tensor.to(device))


# --- clipping --------------------------------------------------------------------------------------------------------


class GradClipAlgorithmType(str, Enum):
    """What `gradient_clip_algorithm` may be; upper and lower case are the same."""

    VALUE = "value"
    NORM = "norm"

    @classmethod
    def _missing_(cls, value: object) -> GradClipAlgorithmType | None:
        return next((member for member in cls if isinstance(value, str) and member.value == value.lower()), None)

    @classmethod
    def parse(cls, value: str) -> GradClipAlgorithmType:
        """The member of this name.

        Raises:
            MisconfigurationException: there is none.
        """
        try:
            return cls(value)
        except ValueError:
            allowed = [member.value for member in cls]
            raise MisconfigurationException(
                f"`gradient_clip_algorithm={value!r}` is invalid. Allowed algorithms: {allowed}."
            ) from None


def clip_by_norm(params: Iterable[Tensor], value: float) -> Tensor:
    """Scale gradients in place so that their joint 2-norm is at most `value`.

    Returns:
        The norm before clipping: scalar `[]` on the gradients' device (reading it waits for the GPU).
    """
    return clip_grad_norm_(params, value)


def clip_by_value(params: Iterable[Tensor], value: float) -> None:
    """Limit every entry of the gradients, in place, to `[-value, value]`."""
    clip_grad_value_(params, value)
