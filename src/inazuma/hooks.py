"""The table of events, and `Hooks`, which knows who hears each of them and calls them in order.

An event goes to the callbacks in list order, then to the module. Four rows differ:

    setup, teardown       datamodule, callbacks, module
    on_sanity_check_*     callbacks
    on_exception          callbacks, datamodule
    on_train_epoch_end    callbacks, module, callbacks with `runs_after_module` (those that watch or save)

Who overrides what is found out once, when a run is assembled: an event that nobody hears costs one dictionary lookup.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from inazuma.callbacks.callback import Callback
from inazuma.errors import PossibleUserWarning
from inazuma.ranks import rank_zero_warn
from inazuma.timing import Timing
from inazuma.weak import Weak

if TYPE_CHECKING:
    from inazuma.datamodule import LightningDataModule
    from inazuma.module import LightningModule
    from inazuma.profilers.profiler import Profiler
    from inazuma.trainer import Trainer


_STAGE_EVENTS = [
    f"on_{stage}_{moment}"
    for stage in ("train", "validation", "test", "predict")
    for moment in ("start", "end", "epoch_start", "epoch_end", "batch_start", "batch_end")
]
_STEP_EVENTS = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
_CALLBACKS_ONLY = ["on_sanity_check_start", "on_sanity_check_end"]

EVENTS: dict[str, tuple[str, ...]] = {
    "setup": ("datamodule", "callbacks", "module"),
    "teardown": ("datamodule", "callbacks", "module"),
    **dict.fromkeys(_CALLBACKS_ONLY, ("callbacks",)),
    "on_exception": ("callbacks", "datamodule"),
    **dict.fromkeys(["on_fit_start", "on_fit_end", *_STAGE_EVENTS, *_STEP_EVENTS], ("callbacks", "module")),
    "on_train_epoch_end": ("early callbacks", "module", "late callbacks"),
}
# Fired inside a batch. A checkpoint saved in one of them restarts that batch.
INSIDE_A_BATCH = ("on_train_batch_start", *_STEP_EVENTS)


def overrides(hearer: object, method: str, base: type) -> bool:
    """Whether `hearer` has its own `method`: in its class, on the instance, or because it is not a `base` at all."""
    own = getattr(hearer, method, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(base, method, None)


def check_call(hearer: object, name: str, *calls: Sequence[str]) -> None:
    """Refuse a method that cannot take the arguments that it will be called with.

    Args:
        hearer: whose method.
        name: of the method.
        calls: the names of the positional arguments, for each way in which it may be called.

    Raises:
        TypeError: it takes none of them.
    """
    own = _signature(getattr(hearer, name))
    if own is None:
        return
    reason = ""
    for arguments in reversed(calls):
        try:
            own.bind(*arguments)
        except TypeError as error:
            reason = str(error)
        else:
            return
    bare = [parameter.replace(annotation=parameter.empty) for parameter in own.parameters.values()]
    own = own.replace(parameters=bare, return_annotation=own.empty)
    expected = ", ".join(("self", *calls[0]))
    raise TypeError(
        f"`{type(hearer).__name__}.{name}{own}` cannot be called as `{name}({', '.join(calls[0])})`: {reason}. "
        f"Write `def {name}({expected})`."
    )


def check_hooks(hearer: object, base: type, names: Iterable[str]) -> None:
    """Refuse hooks whose parameters do not fit those of `base`, as in programs for old versions; warn of misspelt ones.

    Args:
        hearer: a module, a datamodule or a callback.
        base: the class that declares its hooks.
        names: the hooks that will be called.

    Raises:
        TypeError: a hook cannot be called; before any work, and not in the middle of an epoch.
    """
    for name in names:
        if hasattr(base, name) and overrides(hearer, name, base):
            declared = inspect.signature(getattr(base, name)).parameters.values()
            positional = [p for p in declared if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
            required = [p.name for p in positional if p.default is p.empty]
            check_call(hearer, name, [p.name for p in positional], required)
    known = [name for name in dir(base) if name.startswith("on_")]
    for name in dict.fromkeys(name for kind in _users_classes(hearer) for name in vars(kind)):
        if not name.startswith("on_") or hasattr(base, name) or mentions(hearer, name):
            continue
        if near := difflib.get_close_matches(name, known, 1, cutoff=0.9):
            rank_zero_warn(
                f"`{type(hearer).__name__}.{name}` is no hook and nothing calls it. Did you mean `{near[0]}`?",
                category=PossibleUserWarning,
            )


def _signature(method: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):  # written in C, it does not say
        return None


def _users_classes(hearer: object) -> list[type]:
    return [kind for kind in type(hearer).__mro__ if not kind.__module__.startswith(("inazuma.", "torch.", "builtins"))]


def mentions(hearer: object, name: str) -> bool:
    """Whether a method that the user gave this object, in a class of theirs or on the instance, uses `name`."""
    methods = [method for owner in (hearer, *_users_classes(hearer)) for method in vars(owner).values()]
    codes = [getattr(method, "__code__", None) for method in methods]
    return any(code is not None and name in code.co_names for code in codes)


def timed(profiler: Profiler, action: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with its time booked under `action`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with profiler.profile(action):
            return call(*args, **kwargs)

    return run


class Hooks:
    """Who hears which event of one run.

    `where` is the name of the hook or step that runs now ("" between them); it is written before user code is entered,
    so that `self.log` and error messages know.
    """

    _trainer: Weak[Trainer] = Weak()  # the Trainer holds the run, and the run this

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        module_base: type[LightningModule],
        callbacks: Sequence[Callback],
        datamodule: LightningDataModule | None = None,
        profiler: Profiler | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.where = ""
        self.timing = timing or Timing()
        self._trainer, self._module, self._module_base = trainer, module, module_base
        self._datamodule, self._profiler = datamodule, profiler
        self.table: dict[str, tuple[Callable[..., Any], ...]] = {}
        self.hear(callbacks)

    def hear(self, callbacks: Sequence[Callback]) -> None:
        """Build the table for these callbacks."""
        self.table = {event: tuple(self._hearers(event, order, callbacks)) for event, order in EVENTS.items()}

    def let_go(self) -> None:
        """The run is over: nobody hears anything."""
        self.table = dict.fromkeys(EVENTS, ())

    def _hearers(
        self, event: str, order: tuple[str, ...], callbacks: Sequence[Callback]
    ) -> Iterable[Callable[..., Any]]:
        for who in order:
            if who == "module":
                if overrides(self._module, event, self._module_base):
                    yield self._booked(self._module, self.verb(event, getattr(self._module, event)))
                elif event == "on_train_batch_start" and callbacks:
                    yield _no_answer  # -1 from a callback does not end the epoch, from the module it does
            elif who == "datamodule":
                if self._datamodule is not None:
                    action = f"[LightningDataModule]{type(self._datamodule).__name__}.{event}"
                    yield self._booked(self._datamodule, self._timed(action, getattr(self._datamodule, event)))
            else:
                for callback in callbacks:
                    if who == "callbacks" or (who == "late callbacks") == callback.runs_after_module:
                        yield from self._of_callback(callback, event)

    def _of_callback(self, callback: Callback, event: str) -> Iterable[Callable[..., Any]]:
        if overrides(callback, event, Callback):
            call = partial(getattr(callback, event), *self.seen_by_callbacks)
            yield self._booked(callback, self._timed(f"[Callback]{callback.state_key}.{event}", call))

    @property
    def seen_by_callbacks(self) -> tuple[Trainer, LightningModule]:
        """The first two arguments of every hook of a callback."""
        assert self._trainer is not None  # whoever runs, or saves, has it
        return self._trainer, self._module

    @property
    def is_timed(self) -> bool:
        """Whether a profiler listens."""
        return self._profiler is not None

    def _booked(self, hearer: object, call: Callable[..., Any]) -> Callable[..., Any]:
        return self.timing.of(type(hearer).__name__, call)

    def _timed(self, action: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return call if self._profiler is None else timed(self._profiler, action, call)

    def verb(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the module with exactly one implementer, timed when a profiler listens."""
        return self._timed(f"[LightningModule]{type(self._module).__name__}.{name}", call)

    def fire(self, event: str, *args: Any) -> Any:
        """Call everybody who hears `event`. Returns the answer of the last one."""
        answer = None
        if calls := self.table[event]:
            outer, self.where = self.where, event
            for call in calls:
                answer = call(*args)
            self.where = outer
        return answer

    def call(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call one method of user code outside the events, under its name."""
        outer, self.where = self.where, name
        answer = call(*args, **kwargs)
        self.where = outer
        return answer


def _no_answer(*_: Any) -> None:
    return None
