"""`Trainer(compile=...)`: a module's steps, some of its layers, or the whole training step through `torch.compile`.

`Compile` is the wish, as the user writes it; `Compiler` fulfils it for one run, and leaves the module as it was. What
cannot be compiled runs as it would without, and that is said once.

The whole training step is one graph: forward, backward, clipping and the update of the weights. Two things stay out:

    self.log    a compiled step only notes what it logs (`_Notes`); the values leave the graph as outputs, and go to the
                logbook behind it
    rates       the optimizer's `step` is traced on a stand-in (`_Update`), whose learning rates are tensors, so that a
                schedule changes an input and no constant; the optimizer itself keeps its numbers, and its state

The first step of a training is made without, so that the optimizer has its state and no graph is needed for making it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils._pytree import tree_map_only

from inazuma.errors import MisconfigurationException
from inazuma.module import LightningModule
from inazuma.optim import clip_by_norm, clip_by_value, params_of, runs_closure_first, zero_grad
from inazuma.precision.amp import MixedPrecision
from inazuma.precision.precision import Precision
from inazuma.ranks import WarningCache, rank_zero_warn

if TYPE_CHECKING:
    from inazuma.logbook import Logbook
    from inazuma.run import Run

_OPTIONS = ("backend", "mode", "fullgraph", "dynamic", "options")  # of torch.compile
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_EVENTS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_VERBS = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "clip_gradients")
_STEPS_OF_PRECISION = {
    verb: (getattr(Precision, verb), getattr(MixedPrecision, verb)) for verb in ("step", "scale_loss", "clip_gradients")
}
# Of the ways in which an optimizer can update, the one with the smallest graph, and without numbers that wait.
_TRACED_WELL = {"foreach": True, "fused": False, "capturable": True}
_BACKWARD_TOO = "trace_autograd_ops"  # torch's switch: `backward` goes into the graph
_INTS_ARE_INPUTS = "allow_unspec_int_on_nn_module"  # what a module holds, as `self.global_step`, once it has changed
_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_LESS = "so the steps of the module are compiled, but not the training step as a whole"


@dataclass(frozen=True)
class Compile:
    """What to compile, and how.

    Args:
        what: True for the steps of the module, "step" for the whole training step besides, or names of submodules.
        options: for `torch.compile`.
    """

    what: bool | str | tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(value: Any, detects_anomaly: bool = False) -> Compile | None:
        """What `Trainer(compile=value)` means; None where nothing is to be compiled.

        Raises:
            MisconfigurationException: no known form, or options that torch.compile does not take.
        """
        options: dict[str, Any] = {}
        what = value
        if isinstance(value, Mapping):
            options = dict(value)
            what = options.pop("what", True)
        if isinstance(what, (list, tuple)) and what and all(isinstance(name, str) for name in what):
            what = tuple(what)
        elif not (what is None or isinstance(what, bool) or what == "step"):
            raise MisconfigurationException(
                f"Trainer(compile={value!r}) is no known wish. Use True for the steps of the module, 'step' for the "
                "whole training step, a list with names of submodules, or a dict with one of these under 'what' and "
                f"{list(_OPTIONS)} for torch.compile."
            )
        _check_options(value, options)
        if not what:
            return None
        if detects_anomaly:
            rank_zero_warn(
                f"Trainer(compile={value!r}, detect_anomaly=True): compiled code does not know the operations that "
                "anomaly detection names, so nothing is compiled. Leave out one of the two."
            )
            return None
        return Compile(what, options)

    def __str__(self) -> str:
        what = list(self.what) if isinstance(self.what, tuple) else self.what
        value = {"what": what, **self.options} if self.options else what
        return f"Trainer(compile={value!r})"


def _check_options(value: Any, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(str(name), ("what", *_OPTIONS), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise MisconfigurationException(
                f"Trainer(compile={value!r}) has the unknown key {name!r}; known are {['what', *_OPTIONS]}.{hint}"
            )
    mode, backend = options.get("mode"), options.get("backend")
    if mode is not None and mode not in _MODES:
        raise MisconfigurationException(f"Trainer(compile={value!r}): the mode {mode!r} is none of {list(_MODES)}.")
    if mode is not None and options.get("options") is not None:
        raise MisconfigurationException(
            f"Trainer(compile={value!r}): torch.compile takes a mode or options, not both. Leave out one of them."
        )
    if isinstance(backend, str) and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        near = difflib.get_close_matches(backend, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MisconfigurationException(
            f"Trainer(compile={value!r}): there is no backend {backend!r}; known are {known}.{hint}"
        )


class _Notes:
    """The logbook of a module that is compiled: inside of a compiled step it takes notes, elsewhere it logs.

    Args:
        log: takes what is logged, with the arguments of `Logbook.log`.
    """

    def __init__(self, log: Callable[..., None]) -> None:
        self.write = log
        self.calls: list[tuple[Any, ...]] | None = None

    def log(self, name: str, value: Any, *how: Any) -> None:
        if self.calls is None:
            self.write(name, value, *how)
            return
        if isinstance(value, Tensor):  # a copy, as the user may go on to change the tensor in place
            value = value.detach().clone()
        self.calls.append((name, value, *how[:-1]))


class _Update:
    """Stands in for an optimizer whose `step` is traced: the same code, parameters and state, but rates are tensors.

    Its class has the optimizer's methods, without what torch wraps around them for eager use.
    """

    optimizer: Optimizer
    param_groups: list[dict[str, Any]]
    state: Any
    step: Callable[[], Any]

    @staticmethod
    def of(optimizer: Optimizer) -> _Update:
        methods: dict[str, Any] = {}
        for base in reversed(type(optimizer).__mro__[:-1]):
            for name, method in vars(base).items():
                if isinstance(method, staticmethod):
                    methods[name] = staticmethod(_plain(method.__func__))
                elif inspect.isfunction(method) and not name.startswith("__"):
                    methods[name] = _plain(method)
        update: _Update = type(f"_{type(optimizer).__name__}", (_Update,), methods)()
        own = {name: value for name, value in vars(optimizer).items() if name != "step"}  # a schedule's, that counts
        update.__dict__.update(own, optimizer=optimizer, param_groups=[])
        return update

    def follow(self) -> None:
        """Take over what the user, a schedule or a checkpoint changed at the optimizer."""
        groups = self.optimizer.param_groups
        if len(self.param_groups) != len(groups):
            self.param_groups = [{"lr": None, "number": None} for _ in groups]
        self.state = self.optimizer.state
        for ours, theirs in zip(self.param_groups, groups, strict=True):
            tensor, number, rate = ours["lr"], ours["number"], theirs["lr"]
            ours.update(theirs, **{name: value for name, value in _TRACED_WELL.items() if name in theirs})
            if isinstance(rate, Tensor):
                continue
            if tensor is None:
                tensor = torch.tensor(rate, dtype=torch.float64)
            elif rate != number:
                tensor.fill_(rate)
            ours["lr"], ours["number"] = tensor, rate


def _plain(function: Any) -> Any:
    """A function without its decorators."""
    for attribute in ("_torchdynamo_orig_callable", "__wrapped__"):
        if (inner := getattr(function, attribute, None)) is not None:
            return _plain(inner)
    return function


class Compiler:
    """What is compiled in one run, until `let_go`.

    Args:
        wish: what the user wants. Submodules that it names are compiled in place.
        run: ready to start.

    Raises:
        MisconfigurationException: there is no submodule of that name.
    """

    def __init__(self, wish: Compile, run: Run) -> None:
        module = self.module = run.module
        self.wish, self.is_manual = wish, run.is_fitting and not module.automatic_optimization
        self.makes_whole_steps = False
        self.steps: dict[str, Callable[..., Any]] = {}
        self._said = WarningCache()
        names = wish.what if isinstance(wish.what, tuple) else ()
        layers = {name: _submodule(wish, module, name) for name in names}
        self.layers = {name: layer for name, layer in layers.items() if layer._compiled_call_impl is None}
        for name, layer in self.layers.items():  # else the user compiled it
            call = _call_of(layer)
            layer._compiled_call_impl = self._compiled(call, call, f"so `{name}` runs as it is")
        book = module._logbook
        self.log: Callable[..., None] = _said_not_logged(module) if book is None else book.log
        self.notes = _Notes(self.log)
        module.attach_logbook(cast("Logbook", self.notes))
        switches = (_INTS_ARE_INPUTS, _BACKWARD_TOO) if wish.what == "step" else (_INTS_ARE_INPUTS,)
        config: Any = torch._dynamo.config
        self._switched = {name: getattr(config, name) for name in switches if hasattr(config, name)}
        for name in self._switched:
            setattr(config, name, True)

    def let_go(self) -> None:
        """Leave module and torch as they were."""
        for layer in self.layers.values():
            vars(layer).pop("_compiled_call_impl", None)
        for name, value in self._switched.items():
            setattr(torch._dynamo.config, name, value)
        self.layers, self.steps = {}, {}

    def step(self, name: str) -> Callable[..., Any]:
        """A step of the module, as this run calls it."""
        step: Callable[..., Any] = getattr(self.module, name)
        if isinstance(self.wish.what, tuple):
            return step
        if name == "training_step" and self.is_manual:
            self._say(f"`{type(self.module).__name__}` optimizes manually, so `training_step` runs as it is")
            return step
        if name not in self.steps:
            notes = self.notes

            def noted(*args: Any) -> Any:
                calls: list[tuple[Any, ...]] = []
                notes.calls = calls
                return step(*args), calls

            self.steps[name] = self._logged(self._compiled(noted, noted, f"so `{name}` runs as it is"))
        compiled = self.steps[name]
        if name != "training_step" or self.wish.what != "step":
            return compiled
        # the few steps that are not made as a whole are not worth a graph
        return lambda *args: (step if self.makes_whole_steps else compiled)(*args)

    def whole_step(self, run: Run) -> Callable[[Any, int, bool], dict[str, Any] | None] | None:
        """The whole training step as a function of the batch, its index, and whether it closes an accumulation window.

        Returns:
            None where something wants to see, or do, what would be inside of the graph. So does the function, for a
            batch that goes the long way.
        """
        if self.wish.what != "step" or not run.is_fitting or not run.is_automatic:
            return None
        if obstacle := _obstacle(run):
            self._say(f"{obstacle}, {_LESS}")
            return None
        at, limits, hooks, notes, optimizer = run.progress, run.limits, run.hooks, self.notes, run.optimizers[0]
        step, takes_batch_idx = self.module.training_step, run.takes_batch_idx
        context = run.precision.forward_context
        around, inside = (nullcontext, context) if isinstance(run.precision, MixedPrecision) else (context, nullcontext)
        update = _Update.of(optimizer)
        self.makes_whole_steps = True

        def noted(
            batch: Any, batch_idx: int, window: int, closes: bool, clip_val: float | None, clip_algorithm: str | None
        ) -> Any:
            calls: list[tuple[Any, ...]] = []
            notes.calls = calls
            with inside():
                output = step(batch, batch_idx) if takes_batch_idx else step(batch)
            outputs = {"loss": output} if isinstance(output, Tensor) else dict(output)
            loss = outputs["loss"] if window == 1 else outputs["loss"] / window
            loss.backward()
            if closes:
                if clip_val:
                    clip = clip_by_value if clip_algorithm == "value" else clip_by_norm
                    clip(params_of(cast("Optimizer", update)), clip_val)
                with torch.no_grad():
                    update.step()
            return tree_map_only(Tensor, Tensor.detach, {**outputs, "loss": loss}), calls

        def nothing(*_: Any) -> Any:
            self.makes_whole_steps = False
            return None, []

        graph = self._logged(self._compiled(noted, nothing, _LESS, fullgraph=True))

        def whole(batch: Any, batch_idx: int, closes: bool) -> dict[str, Any] | None:
            if not self.makes_whole_steps or not at.step or limits.skip_backward:
                return None
            window = limits.accumulate_grad_batches
            if batch_idx % window == 0:
                zero_grad(optimizer)
            update.follow()
            optimizer._opt_called = True  # type: ignore[attr-defined]  # else torch's schedules warn
            hooks.where = "training_step"
            with around():
                outputs: dict[str, Any] | None = graph(
                    batch, batch_idx, window, closes, limits.gradient_clip_val, limits.gradient_clip_algorithm
                )
            hooks.where = ""
            return outputs

        return whole

    def _compiled(
        self, function: Callable[..., Any], instead: Callable[..., Any], so: str, **more: Any
    ) -> Callable[..., Any]:
        """`function` through torch.compile; and from the moment on when that fails, `instead`.

        Torch compiles a graph before it runs it, so that nothing is done twice.
        """
        compiled = torch.compile(_fresh(function), **{**self.wish.options, **more})
        works = True

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal works
            if works:
                try:
                    return compiled(*args, **kwargs)
                except Exception as error:
                    if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
                        raise
                    works = False
                    self._say(f"{_reason(error)}, {so}")
            return instead(*args, **kwargs)

        return run

    def _logged(self, noted: Callable[..., tuple[Any, list[Any]]]) -> Callable[..., Any]:
        """`noted`, with what it noted handed to the logbook behind it."""
        notes, log, attribute_of = self.notes, self.log, self.module._attribute_of_metric

        def run(*args: Any) -> Any:
            try:
                output, calls = noted(*args)
            finally:
                notes.calls = None
            for call in calls:
                log(*call, attribute_of)
            return output

        return run

    def _say(self, what: str) -> None:
        self._said.warn(f"{self.wish}: {what}.")


def _submodule(wish: Compile, module: LightningModule, name: str) -> nn.Module:
    known = dict(module.named_modules())
    if not name or name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {[path for path in known if path]}."
        raise MisconfigurationException(f"{wish}: `{type(module).__name__}` has no submodule {name!r}. {hint}")
    found: nn.Module = known[name]
    return found


def _call_of(layer: nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return layer._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return call


def _said_not_logged(module: LightningModule) -> Callable[..., None]:
    return lambda *_: module._say_not_logged()  # Trainer(barebones=True)


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with code of its own: torch keeps graphs by code, so that those of other runs would count here."""
    assert isinstance(function, FunctionType)
    code, of = function.__code__.replace(), function
    return FunctionType(code, of.__globals__, of.__name__, of.__defaults__, of.__closure__)


def _obstacle(run: Run) -> str:
    """Why a training step cannot be compiled as a whole; empty where it can."""
    name, precision, optimizer = type(run.module).__name__, run.precision, run.optimizers[0]
    if not runs_closure_first(optimizer) or optimizer._optimizer_step_post_hooks or _global_optimizer_post_hooks:
        return f"`{type(optimizer).__name__}` is not known to step by torch's own code alone"
    if heard := [event for event in _EVENTS if run.hooks.table[event]]:
        return f"a callback or the module listens to `{heard[0]}`"
    if overridden := [verb for verb in _VERBS if run.overrides(verb)]:
        return f"`{name}` overrides `{overridden[0]}`"
    if run.guard is not None:
        return "Trainer(bad_steps=...) looks at gradients before weights change"
    if run.hooks.is_timed:
        return "a profiler times what is inside of it"
    if precision.checks_gradients:
        return f"precision={precision.precision!r} decides by the gradients whether to make a step"
    if any(getattr(type(precision), verb) not in known for verb, known in _STEPS_OF_PRECISION.items()):
        return f"`{type(precision).__name__}` makes steps in its own way"
    if run.strategy.world_size > 1:
        return "gradients are reduced over processes"
    if not hasattr(torch._dynamo.config, _BACKWARD_TOO):
        return f"torch {torch.__version__} cannot trace `backward`"
    return ""


def _reason(error: Exception) -> str:
    """What torch.compile says, in a line, and the user's line that it is about."""
    text, _, frames = str(error).strip().partition("from user code:")
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip() and not line.endswith("raised:")]
    own = [
        f" at {Path(file).name}:{line}"
        for file, line in re.findall(r'File "([^"]+)", line (\d+)', frames)
        if not file.startswith(_NOT_THE_USERS)
    ]
    return f"{type(error).__name__}{(own or [''])[-1]} ({(lines or ['no reason given'])[0]})"
