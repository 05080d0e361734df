"""Run: what one call of the Trainer needs, and `assemble`, which builds it step by step.

Everything that can be known before the first batch is found out here and not asked again.
"""

from __future__ import annotations

import difflib
import inspect
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inazuma import loop
from inazuma.bad_steps import BadSteps, Guard
from inazuma.callbacks.callback import Callback
from inazuma.checkpoint.state import restore_module, restore_training
from inazuma.compiling import Compile, Compiler
from inazuma.data.batches import Batches
from inazuma.data.loaders import Loaders, request_error
from inazuma.data.transfer import Transfer, make_transfer
from inazuma.datahooks import DataHooks
from inazuma.errors import CheckpointError, MisconfigurationException, PossibleUserWarning
from inazuma.hooks import EVENTS, INSIDE_A_BATCH, Hooks, check_call, check_hooks, mentions, overrides
from inazuma.logbook import Logbook, Results
from inazuma.module import LightningModule
from inazuma.optim import LightningOptimizer, LRSchedulerConfig, configure, optimizer_to
from inazuma.precision.precision import Precision
from inazuma.progress import Limits, Progress
from inazuma.ranks import WarningCache, rank_zero_warn
from inazuma.seed import capture_rng, isolate_rng, restore_rng
from inazuma.states import RunningStage, TrainerFn, TrainerState
from inazuma.strategies.strategy import Strategy
from inazuma.timing import Timing
from inazuma.tree import recursive_detach

if TYPE_CHECKING:
    from inazuma.datamodule import LightningDataModule


@dataclass(frozen=True)
class Boundary:
    """The state at the last moment from which a run can be repeated: what a checkpoint saved in between holds.

    Args:
        rng: the random generators then.
        progress: the position then; None where it has not moved since (in validation).
        logbook: the logged values then; None where those of training have not changed since.
        buffers: the module's buffers then, which a forward pass may change.
        gradients: of an accumulation window that was open then.
        batches: where the loaders were then; None where they have not moved since.
    """

    rng: dict[str, Any]
    progress: Progress | None = None
    logbook: dict[str, Any] | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    batches: dict[str, Any] | None = None


@dataclass
class Run:
    """The nouns of one call of `fit`, `validate`, `test` or `predict`. The loop works on them."""

    module: LightningModule
    datamodule: LightningDataModule | None
    strategy: Strategy
    precision: Precision
    callbacks: list[Callback]
    hooks: Hooks
    logbook: Logbook
    limits: Limits
    progress: Progress
    state: TrainerState
    loaders: dict[str, Loaders]
    check_signals: Callable[[], None]
    timing: Timing
    exact: bool = True  # Trainer(exact_resume=...)
    bad_steps: BadSteps | None = None
    compile: Compile | None = None

    optimizers: list[Optimizer] = field(default_factory=list)
    proxies: list[LightningOptimizer] = field(default_factory=list)
    schedulers: list[LRSchedulerConfig] = field(default_factory=list)
    training_results: Results = field(default_factory=lambda: Results(is_training=True))
    evaluation_results: Results = field(default_factory=lambda: Results(is_training=False))
    boundary: Boundary | None = None  # set while something runs that can only be repeated from its beginning
    window: Boundary | None = None  # the beginning of the accumulation window in work or to come
    has_validated: bool = False  # since the window was marked
    resume: dict[str, Any] | None = None  # what a checkpoint says of random generators and logged values
    resume_path: Any = None  # of that checkpoint
    resumes_inside_an_epoch: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # a resume keeps it

    def __post_init__(self) -> None:
        self.batches = Batches(self.train, self.progress)
        self._said = WarningCache()
        self.modes: dict[nn.Module, bool] = {}  # of the submodules, while an evaluation has its own
        self.is_inside_batch = False
        is_guarded = self.bad_steps is not None and self.state.fn is TrainerFn.FITTING
        self.guard = Guard(self, self.bad_steps) if is_guarded and self.bad_steps is not None else None
        self.catches: tuple[type[Exception], ...] = () if self.guard is None else self.guard.catches
        self.compiler: Compiler | None = None
        self.decide()

    def decide(self) -> None:
        """Settle what is not asked again: who overrides what, and which way a batch goes.

        Again at the end of `assemble`, since `setup` and `configure_model` may change the module and the callbacks.
        """
        module = self.module
        self.hooks.hear(self.callbacks)
        for callback in self.callbacks:
            callback.log, callback.log_dict = module.log, module.log_dict
        self.is_automatic = module.automatic_optimization
        self.is_fitting = self.state.fn is TrainerFn.FITTING
        self.validates = self.is_fitting and self.val.is_there and self.overrides("validation_step")
        self.validates = self.validates and self.limits.limit_val_batches > 0
        self.overrides_clipping = any(map(self.overrides, ("configure_gradient_clipping", "clip_gradients")))
        self.checks_grad = not self.overrides("backward")
        self.marks_windows = self.guard is not None or self._may_save_inside_a_batch()
        self.forward_context: Callable[[], AbstractContextManager[Any]] = self.precision.forward_context
        self.training_step = self.hooks.verb("training_step", self.module_step("training_step"))
        if self.guard is not None:
            self.training_step = self.guard.watched(self.training_step)
        self.takes_batch_idx = takes_index(module.training_step)
        self.optimizer_step = self.hooks.verb("optimizer_step", module.optimizer_step)
        self.backward = self.hooks.verb("backward", module.backward)
        self.transfer: Transfer = self.timing.of(
            "transfer",
            make_transfer(module, self.datamodule, self.hooks, self.precision.convert_input, self.strategy.root_device),
        )
        self.set_optimizers(self.optimizers)

    @property
    def train(self) -> Loaders:
        return self.loaders["train"]

    @property
    def val(self) -> Loaders:
        return self.loaders["val"]

    @property
    def is_sanity_checking(self) -> bool:
        return self.state.stage is RunningStage.SANITY_CHECKING

    def overrides(self, method: str) -> bool:
        """Whether the user's module has its own `method`."""
        return overrides(self.module, method, LightningModule)

    def warn_once(self, message: str) -> None:
        self._said.warn(message)

    def _may_save_inside_a_batch(self) -> bool:
        """Whether an object that hears events inside of batches has code that saves checkpoints."""
        hearers = [(self.module, LightningModule), *((callback, Callback) for callback in self.callbacks)]
        return any(
            any(overrides(hearer, event, base) for event in INSIDE_A_BATCH) and mentions(hearer, "save_checkpoint")
            for hearer, base in hearers
        )

    def mark_window(self) -> None:
        """Remember the state before a window's first batch is fetched, for checkpoints saved inside of its batches.

        They start the window anew, since no weight changes in it; or from the last validation in it, which is not to be
        repeated. Costs nothing unless somebody saves there.
        """
        if not self.marks_windows:
            return
        opens = self.progress.batch % self.limits.accumulate_grad_batches == 0
        if opens or self.has_validated or self.window is None:
            self.has_validated = False
            logbook = self.logbook.state_dict(self.training_results)
            buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
            gradients = {name: gradient.clone() for name, gradient in self.open_gradients().items()}
            self.window = Boundary(
                capture_rng(), replace(self.progress), logbook, buffers, gradients, self.batches.state_dict()
            )

    def open_gradients(self) -> dict[str, Tensor]:
        """The gradients that batches to come add to, by parameter name: those of an accumulation window that is open.

        In manual optimization only the module knows which these are: all that are there.
        """
        if self.boundary is not None and self.boundary.progress is not None:
            return self.boundary.gradients
        at = self.progress
        if self.is_inside_batch or (self.is_automatic and self.limits.closes_window(at.batch - 1, at.is_last_batch)):
            return {}
        return {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}

    def enter_validation(self) -> None:
        """Validation begins. A checkpoint saved inside of it starts it anew."""
        self.boundary = Boundary(capture_rng())
        self.has_validated = True

    def leave_validation(self) -> None:
        """Validation is done, but for its last events: training goes on with the random generators it had before."""
        if not self.exact:
            self.boundary = None

    def apart(self) -> AbstractContextManager[None]:
        """In this block random numbers may be drawn without effect on those of training."""
        return isolate_rng() if self.exact else nullcontext()

    def position(self) -> Progress:
        """Where a checkpoint saved now continues."""
        if self.boundary is not None and self.boundary.progress is not None:
            return self.boundary.progress
        if not self.is_inside_batch:
            return self.progress
        # Nobody was expected to save here, as after an exception: the window starts anew with the generators of now.
        done = self.progress.batch % self.limits.accumulate_grad_batches
        at = self.progress
        return replace(at, batch=at.batch - done, total_batches=at.total_batches - done, is_last_batch=False)

    def rng_state(self) -> dict[str, Any]:
        if self.boundary is not None:
            return self.boundary.rng
        return capture_rng() if self.resume is None else self.resume["rng"]

    def batches_state(self) -> dict[str, Any] | None:
        if self.boundary is not None and self.boundary.batches is not None:
            return self.boundary.batches
        return self.batches.state_dict() if self.is_fitting and self.train.parts else None

    def logbook_state(self) -> dict[str, Any]:
        if self.boundary is None or self.boundary.logbook is None:
            return self.logbook.state_dict(self.training_results)
        return self.boundary.logbook

    def restore_logbook(self) -> None:
        """Take up the logged values of the run that is resumed, after the sanity check."""
        if self.resume is not None:
            find: Callable[[str], Any] = self.module.get_submodule
            with _readable("logged values", self.resume_path):
                self.logbook.load_state_dict(self.resume["logbook"], self.training_results, find)

    def restore_rng(self) -> None:
        """Take up the random generators of the run that is resumed, as the last thing before training goes on."""
        if self.resume is not None:
            if self.exact:
                with _readable("random generators", self.resume_path):
                    restore_rng(self.resume["rng"])
            self.resume = None

    def set_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Take these optimizers, and make the proxies whose `step` goes through precision and hooks."""
        self.optimizers = list(optimizers)
        make = self._automatic_step if self.is_automatic else self._manual_step
        no_sync = self.strategy.no_sync
        self.proxies = [LightningOptimizer(o, make(o), self.module, no_sync) for o in self.optimizers]
        # What the default `optimizer_step` comes to, without the way there; None where somebody listens to that.
        self.step: Callable[..., Any] | None = None
        if self.is_automatic and self.optimizers and not self.overrides("optimizer_step") and not self.hooks.is_timed:
            self.step = partial(self._automatic_step(self.optimizers[0]), self.optimizers[0])
        whole_step = None if self.compiler is None else self.compiler.whole_step(self)
        self.whole_step = None if whole_step is None else self.timing.of("step", whole_step)

    def _automatic_step(self, optimizer: Optimizer) -> Callable[..., Any]:
        # weak, like the next: the run holds these functions
        ready: Callable[[], None] = partial(loop.before_step, weakref.proxy(self), optimizer)
        if self.guard is not None:
            ready = self.guard.checked(ready, optimizer)
        return partial(self.precision.step, ready=ready)

    def _manual_step(self, optimizer: Optimizer) -> Callable[..., Any]:
        return partial(loop.manual_step, weakref.proxy(self))

    def module_step(self, name: str) -> Callable[..., Any]:
        """A step of the module, compiled if that is wanted."""
        step: Callable[..., Any] = getattr(self.module, name)
        return step if self.compiler is None else self.compiler.step(name)

    def evaluation_step(self, name: str) -> Callable[..., Any]:
        """A step of the module as a function of `(batch, batch_idx)`, or `(batch, batch_idx, dataloader_idx)`."""
        step = self.timing.of("step", self.hooks.verb(name, self.module_step(name)))
        if takes_index(getattr(self.module, name)):
            return step
        return lambda batch, *_: step(batch)

    def check_dataloader_idx(self, kind: str, loaders: Loaders) -> None:
        """Refuse hooks whose signature does not fit the number of loaders.

        Raises:
            RuntimeError: several loaders and no `dataloader_idx`, or one loader and a `dataloader_idx` without default.
        """
        for name in (f"{kind}_step", f"on_{kind}_batch_start", f"on_{kind}_batch_end"):
            if not self.overrides(name):
                continue
            parameters = inspect.signature(getattr(self.module, name)).parameters
            takes_any = any(p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD for p in parameters.values())
            wanted = parameters.get("dataloader_idx")
            where = f"`{type(self.module).__name__}.{name}`"
            if loaders.is_several and wanted is None and not takes_any:
                raise RuntimeError(
                    f"You provided multiple `{loaders.hook}`, but no `dataloader_idx` argument in {where}. "
                    "Give it one, `dataloader_idx=0`: it says which loader the batch is from."
                )
            if not loaders.is_several and wanted is not None and wanted.default is wanted.empty:
                raise RuntimeError(
                    f"You provided only a single `{loaders.hook}`, but have included `dataloader_idx` in {where}. "
                    "Remove it, or write `dataloader_idx=0`."
                )

    def let_go(self) -> None:
        """The run is over: leave nothing that keeps module and Trainer alive."""
        self.hooks.let_go()
        self.module.attach_logbook(None)
        if self.compiler is not None:
            self.compiler.let_go()
            self.compiler = self.whole_step = None
            self.training_step = self.module.training_step
        for callback in self.callbacks:
            for name in ("log", "log_dict"):
                vars(callback).pop(name, None)

    @staticmethod
    def to_cpu(output: Any) -> Any:
        """Predictions are kept on the CPU, where there is room."""
        return recursive_detach(output, to_cpu=True)


@contextmanager
def _readable(what: str, path: Any) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"The {what} in checkpoint {path} cannot be read ({error!r}): it is damaged, or something else wrote it. "
            "Its weights can be loaded with `load_from_checkpoint`."
        ) from error


def takes_index(step: Callable[..., Any]) -> bool:
    """Whether a step wants `batch_idx`: by that name, as a second parameter of any name, or among `*args`."""
    parameters = inspect.signature(step).parameters.values()
    if any(p.name == "batch_idx" or p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) >= 2


def assemble(
    run: Run,
    resume: Callable[[], tuple[Any, dict[str, Any] | None]],
    log_hyperparameters: bool,
) -> None:
    """Make a run ready to start, in Lightning's order.

    Args:
        run: the run.
        resume: reads the checkpoint to resume from, once the setup hooks are done: `(its path, its content or None)`.
        log_hyperparameters: give the hyper-parameters of module and datamodule to the loggers.
    """
    hooks, module, datamodule, strategy = run.hooks, run.module, run.datamodule, run.strategy
    check(run)
    for owner, base in ((datamodule, DataHooks), (module, DataHooks)):
        if owner is not None and overrides(owner, "prepare_data", base):
            hooks.call("prepare_data", owner.prepare_data)
    for logger in run.logbook.loggers:
        logger.experiment  # noqa: B018  # makes the run's folder, before anybody writes into it
    hooks.fire("setup", run.state.fn)
    with run.precision.init_context():
        hooks.call("configure_model", module.configure_model)
    path, checkpoint = resume()
    if checkpoint is not None:
        restore_module(run, checkpoint, path)
    run.precision.convert_module(module)
    strategy.module_to_device(module)
    if run.is_fitting:
        run.optimizers, run.schedulers = hooks.call("configure_optimizers", configure, module)
        run.decide()
        for optimizer in run.optimizers:
            optimizer_to(optimizer, strategy.root_device)
        hooks.fire("on_fit_start")
    else:
        run.decide()
    if log_hyperparameters:
        _log_hyperparameters(run)
    if run.is_fitting:
        run.progress.begin_anew()
        if checkpoint is not None:
            restore_training(run, checkpoint, path)
    if run.compile is not None:
        run.compiler = Compiler(run.compile, run)
        run.decide()


def check(run: Run) -> None:
    """Find out, before any work, whether the module can do what is asked of it.

    Raises:
        MisconfigurationException: a step, loader or optimizer is missing, or arguments contradict the module.
        NotImplementedError: a hook of an old Lightning that would never be called.
    """
    module, name, fn = run.module, type(run.module).__name__, run.state.fn
    for old, new in (("training", "train"), ("validation", "validation"), ("test", "test")):
        if callable(getattr(module, f"{old}_epoch_end", None)):
            raise NotImplementedError(
                f"`{name}.{old}_epoch_end` would never be called: Lightning 2.0 removed this hook. "
                f"Use the `on_{new}_epoch_end` hook instead, and keep the outputs of the steps yourself."
            )
    for step in ("training_step", "validation_step", "test_step", "predict_step"):
        if "dataloader_iter" in inspect.signature(getattr(module, step)).parameters:
            raise MisconfigurationException(
                f"`{name}.{step}(dataloader_iter)`: steps that take batches from the loader themselves are not "
                f"supported. Write `{step}(batch, batch_idx)`; the batch comes to the device before the step."
            )
    if fn is TrainerFn.FITTING:
        _check_fit(run)
    elif fn is TrainerFn.PREDICTING:
        _need_loader(run, "predict")
        if not run.overrides("predict_step") and not overrides(module, "forward", LightningModule):
            raise MisconfigurationException(
                f"`trainer.predict()` requires `forward` (or `predict_step`) method to run; `{name}` has neither."
            )
    else:
        kind, stage = ("validation", "val") if fn is TrainerFn.VALIDATING else ("test", "test")
        _need_loader(run, stage)
        if not run.overrides(f"{kind}_step"):
            raise MisconfigurationException(
                f"No `{kind}_step()` method defined to run `Trainer.{fn}`. "
                f"Write `{name}.{kind}_step(batch, batch_idx)`.{_misspelt(module, f'{kind}_step')}"
            )
    _check_signatures(run)


def _check_fit(run: Run) -> None:
    module, name, limits = run.module, type(run.module).__name__, run.limits
    for method in ("training_step", "configure_optimizers"):
        if not run.overrides(method):
            raise MisconfigurationException(
                f"No `{method}()` method defined. Lightning `Trainer` expects as minimum `training_step()`, "
                f"`train_dataloader()` and `configure_optimizers()` to be defined; write `{name}.{method}`."
                f"{_misspelt(module, method)}"
            )
    _need_loader(run, "train")
    has_step = run.overrides("validation_step")
    if run.val.is_there and not has_step:
        rank_zero_warn(
            "You passed in a `val_dataloader`, but there is no `validation_step`, so nothing is validated."
            f"{_misspelt(module, 'validation_step')}"
        )
    if has_step and not run.val.is_there:
        rank_zero_warn(
            "You defined a `validation_step`, but there is no `val_dataloader`, so nothing is validated.",
            category=PossibleUserWarning,
        )
    if not run.is_automatic:
        if run.guard is not None:
            raise MisconfigurationException(
                f"Trainer(bad_steps=...) is not supported for manual optimization: `{name}.training_step` makes its "
                "steps itself. Remove the argument, and look at losses there before you step."
            )
        for argument, value, default in (
            ("gradient_clip_val", limits.gradient_clip_val, None),
            ("accumulate_grad_batches", limits.accumulate_grad_batches, 1),
        ):
            if value not in (default, 0):
                raise MisconfigurationException(
                    f"Automatic gradient clipping and accumulation are not supported for manual optimization: remove "
                    f"`Trainer({argument}={value!r})` or switch to automatic optimization. In `training_step` call "
                    "`self.clip_gradients(...)`, or step every n batches."
                )


def _misspelt(module: LightningModule, method: str) -> str:
    """A question, where the user has a method of almost this name."""
    own = set(dir(type(module))) - set(dir(LightningModule))
    near = difflib.get_close_matches(method, own, 1, cutoff=0.8)
    return f" Did you mean it by `{near[0]}`?" if near else ""


_STAGES = {
    TrainerFn.FITTING: ("train", "validation"),
    TrainerFn.VALIDATING: ("validation",),
    TrainerFn.TESTING: ("test",),
    TrainerFn.PREDICTING: ("predict",),
}
_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_FIT_HOOKS = (
    *("configure_optimizers", "optimizer_step", "optimizer_zero_grad", "backward", "lr_scheduler_step"),
    *("configure_gradient_clipping", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_fit_start", "on_fit_end", "on_save_checkpoint", "train_dataloader"),
)


def _check_signatures(run: Run) -> None:
    """Refuse steps and hooks that this run would call with arguments that they do not take."""
    assert run.state.fn is not None
    stages = [stage for stage in _STAGES[run.state.fn] if stage != "validation" or run.validates or not run.is_fitting]
    for stage in stages:
        step = "training_step" if stage == "train" else f"{stage}_step"
        if run.overrides(step):
            calls = [["batch", "batch_idx"]] if takes_index(getattr(run.module, step)) else [["batch"]]
            if stage != "train":
                calls.append([*calls[0], "dataloader_idx"])
            check_call(run.module, step, *calls)
    events = [event for event in EVENTS if event.startswith(tuple(f"on_{stage}_" for stage in stages))]
    names = ["setup", "teardown", "prepare_data", "configure_model", *events, *_BATCH_HOOKS]
    names += _FIT_HOOKS if run.is_fitting else ()
    check_hooks(run.module, LightningModule, names)
    for callback in run.callbacks:
        check_hooks(callback, Callback, names)
    if run.datamodule is not None:
        check_hooks(run.datamodule, DataHooks, names)


def _need_loader(run: Run, stage: str) -> None:
    if not run.loaders[stage].is_there:
        raise request_error(stage)


_CLI_KEYS = ("_instantiator", "_class_path")  # how Lightning's CLI finds a class again: no hyper-parameters


def _log_hyperparameters(run: Run) -> None:
    """Hand the hyper-parameters of module and datamodule, as they were saved first, to the loggers."""
    owners = [owner for owner in (run.module, run.datamodule) if owner is not None and owner._log_hyperparams]
    initial: dict[str, Any] | None = None
    for owner in owners:
        hparams = {key: value for key, value in owner.hparams_initial.items() if key not in _CLI_KEYS}
        if initial is None:
            initial = hparams
            continue
        clashes = [key for key in initial.keys() & hparams.keys() if _differ(initial[key], hparams[key])]
        if clashes:
            raise RuntimeError(
                f"Error while merging hparams: {sorted(clashes)} have one value in the LightningModule and another in "
                "the LightningDataModule. Rename one, or save it with "
                "`save_hyperparameters(logger=False)`."
            )
        initial.update(hparams)
    for logger in run.logbook.loggers:
        if initial is not None:
            logger.log_hyperparams(initial)
        logger.log_graph(run.module)
        logger.save()


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return not torch.equal(one, other)
    return type(one) is not type(other) or bool(one != other)
