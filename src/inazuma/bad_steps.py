"""What happens when a loss or a gradient is NaN or infinite, or when memory runs out: raise, skip, or go back.

`BadSteps` is the policy, as the user writes it; `Guard` watches the steps of one run by it. Without a policy there is
no guard, and the loop runs none of this. With one, it comes in at three places, all settled when the run is assembled:
it wraps `training_step` and keeps what it begins with, it looks at losses and gradients where an optimizer is about to
change weights, and the loop hands it what is raised inside a step.
"""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import LBFGS, Optimizer

from inazuma import files
from inazuma.checkpoint.state import gather
from inazuma.errors import BadStepError, MisconfigurationException
from inazuma.optim import params_of
from inazuma.progress import Progress
from inazuma.ranks import rank_zero_warn
from inazuma.seed import capture_rng

if TYPE_CHECKING:
    from inazuma.run import Run

_ANSWERS = {"nan": ("raise", "skip", "rewind"), "oom": ("raise", "skip")}
_SHOWN = 32  # samples that a message names; the error and the file have all


@dataclass(frozen=True)
class BadSteps:
    """What to do with a step that cannot be made: the value of `Trainer(bad_steps=...)`.

    A step is the batches of one accumulation window. It is bad when the loss of one of them, or a gradient, is NaN or
    infinite, or when memory runs out while it is computed. This is looked at once per step, on true gradients, before
    `on_before_optimizer_step` and clipping; on an accelerator it costs one wait for the device per step.

    "raise" ends the run with a `BadStepError`: where, what, which samples, and the path of a file with the state before
    the step and its batches. The file is a checkpoint, from which `fit(ckpt_path=...)` continues with that step;
    `inazuma.testing.replay_bad_step` runs the step alone.

    "skip" makes no optimizer step. The gradients of the whole window are dropped; weights, optimizers and schedules
    stay as they are, buffers and logged values go back to what they were before the window. Data, random generators and
    the count of batches go on; `global_step` does not count. `on_train_batch_end` comes with `{}` for outputs.

    "rewind" skips the step, and takes back the last steps as well: weights, buffers, optimizers, schedules and the
    precision's state become those of `rewind_steps` steps ago, or of the oldest state there is. Data and all counters
    go on, so the batches in between are not trained again. The states are copies in memory, on the device, and not part
    of checkpoints: behind a resume or a rewind they are collected anew. What callbacks hold (averages of weights) and
    what the module keeps outside of parameters and buffers stays.

    Each skipped or rewound step is told in a warning, with its samples, and counted: `trainer.progress.dropped_steps`.

    Args:
        nan: "raise", "skip" or "rewind"; None does not look. A precision with a loss scaler (float16) meets infinite
            gradients by design and leaves such steps out itself: with it, only losses are looked at.
        oom: "raise" or "skip", when memory runs out in `training_step`, `backward` or the hooks around; None leaves the
            error as it is. The rest of an accumulation window is not run. Out of memory while weights change cannot be
            skipped, except where a copy is there.
        limit: so many bad steps in a row end the run with a `BadStepError`. After a rewind, `rewind_steps` good steps
            end the row.
        rewind_steps: how many steps to take back.
        snapshot_every_n_steps: take a copy in every n-th step only. A rewind then goes up to n - 1 steps further back;
            there are at most `rewind_steps` copies of all weights and optimizer states.
        lr_factor: multiply the learning rates with this at every rewind: those of the optimizers, and the bases that
            torch's schedules start from.
        dirpath: where files go, a path or URL. Default: the folder "bad_steps" in `Trainer(default_root_dir=...)`.

    Raises:
        MisconfigurationException: a value that is none of these, or one that would do nothing.
    """

    nan: str | None = "raise"
    oom: str | None = "raise"
    limit: int = 5
    rewind_steps: int = 1
    snapshot_every_n_steps: int = 1
    lr_factor: float = 1.0
    dirpath: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, answers in _ANSWERS.items():
            if (value := getattr(self, name)) is not None and value not in answers:
                raise MisconfigurationException(
                    f"BadSteps({name}={value!r}) is no known answer. Use one of {list(answers)}, or None for none."
                )
        if self.nan is None and self.oom is None:
            raise MisconfigurationException("BadSteps(nan=None, oom=None) does nothing. Use Trainer(bad_steps=None).")
        for name in ("limit", "rewind_steps", "snapshot_every_n_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MisconfigurationException(f"BadSteps({name}={value!r}) should be an int of at least 1.")
        if not isinstance(self.lr_factor, (int, float)) or not 0 < self.lr_factor <= 1:
            raise MisconfigurationException(
                f"BadSteps(lr_factor={self.lr_factor!r}) should be a number above 0, and at most 1."
            )
        if self.dirpath is not None and not isinstance(self.dirpath, (str, os.PathLike)):
            raise MisconfigurationException(f"BadSteps(dirpath={self.dirpath!r}) should be a path or URL.")
        self._refuse_idle(self.nan == "rewind", "rewind", ("rewind_steps", "snapshot_every_n_steps", "lr_factor"))
        self._refuse_idle(bool({self.nan, self.oom} & {"skip", "rewind"}), "skip", ("limit",))

    def _refuse_idle(self, is_used: bool, by: str, names: Iterable[str]) -> None:
        defaults = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        for name in names:
            if not is_used and getattr(self, name) != defaults[name]:
                raise MisconfigurationException(
                    f"BadSteps({name}={getattr(self, name)!r}) does nothing, since no answer is {by!r}. Leave it out, "
                    f"or use BadSteps(nan={by!r})."
                )

    @staticmethod
    def of(value: Any, root: str) -> BadSteps | None:
        """The policy that `Trainer(bad_steps=value)` means; its files go below `root`.

        Raises:
            MisconfigurationException: no policy.
        """
        if value is None:
            return None
        if value in ("raise", "skip"):
            value = BadSteps(nan=value, oom=value)
        elif value == "rewind":
            value = BadSteps(nan="rewind", oom="skip")
        if not isinstance(value, BadSteps):
            raise MisconfigurationException(
                f"Trainer(bad_steps={value!r}) is no known policy. Use 'raise', 'skip', 'rewind' or a `BadSteps(...)`, "
                "or None to leave bad steps to the program."
            )
        return value if value.dirpath is not None else replace(value, dirpath=files.join(root, "bad_steps"))


class _BadStep(Exception):
    """Raised inside an optimizer's closure, before weights change, to leave the step.

    Args:
        is_new: False where the step was found bad at an earlier batch of its window.
    """

    def __init__(self, is_new: bool) -> None:
        super().__init__("this step is bad, and is not made")
        self.is_new = is_new


@dataclass
class _Forward:
    """One run of `training_step`: what it began with, and its loss (before the division by the window)."""

    number: int  # of the batch, over all epochs
    batch_idx: int
    indices: Any
    batch: Any = None
    rng: dict[str, Any] | None = None  # None: done by the run that this one resumes
    loss: Tensor | None = None


@dataclass
class _State:
    """A copy of what an optimizer step changes, from before `step`."""

    step: int
    of: list[int]  # which optimizers, schedules and parameter groups: no others can take it
    weights: list[Tensor]
    buffers: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedules: list[dict[str, Any]]
    precision: dict[str, Any]


class Guard:
    """Watches the steps of one run.

    Args:
        run: automatic optimization.
        policy: what to do.
    """

    def __init__(self, run: Run, policy: BadSteps) -> None:
        self.run, self.policy = run, policy
        #: what the loop hands to `answers`: the error for a lack of memory is a RuntimeError, of several kinds
        self.catches: tuple[type[Exception], ...] = (_BadStep,)
        if policy.oom is not None:
            self.catches = (_BadStep, RuntimeError, MemoryError)
        self.forwards: list[_Forward] = []  # of the window in work
        self.undo: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # buffers and logged values before the window
        self.runs = 0  # of the closure, in the batch in work
        self.seen: dict[str, Tensor] = {}  # buffers before the last run, where there are several
        self.is_stepping = False  # whether weights may have begun to change
        self.repeats = False  # whether the optimizer runs its closure several times in a step
        self.copy: _State | None = None  # from before the step in work
        every, back = policy.snapshot_every_n_steps, policy.rewind_steps
        self.states: deque[_State] = deque(maxlen=math.ceil((back - 1) / every) + 1)

    # Watching

    def watched(self, training_step: Callable[..., Any]) -> Callable[..., Any]:
        """`training_step`, with a note of what it begins with and of its loss."""

        def watched_step(batch: Any, *args: Any) -> Any:
            self._begin(batch)
            output = training_step(batch, *args)
            loss = loss_of(output)
            self.forwards[-1].loss = None if loss is None else loss.detach()
            return output

        return watched_step

    def checked(self, ready: Callable[[], None], optimizer: Optimizer) -> Callable[[], None]:
        """`ready`, which precedes the change of weights, behind a look at losses and gradients."""
        if isinstance(optimizer, LBFGS) and not self.repeats:
            self.repeats = True
            if self.policy.nan == "rewind":  # the step in work has a copy too
                assert self.states.maxlen is not None
                self.states = deque(maxlen=self.states.maxlen + 1)

        def check() -> None:
            if self.policy.nan is not None and not self.run.limits.skip_backward and self._is_bad(optimizer):
                raise _BadStep(is_new=True)
            if self.runs == 1:
                self._keep_copies()
            ready()
            self.is_stepping = True

        return check

    def _begin(self, batch: Any) -> None:
        run, at = self.run, self.run.progress
        if at.drops_window:
            raise _BadStep(is_new=False)
        if self._is_in_step:
            self.runs += 1
            self.repeats = True  # the next step has a copy, if this one has none
            self.forwards.pop()
            self.seen = _copied_buffers(run.module)
        else:
            if at.batch % run.limits.accumulate_grad_batches == 0 or self.undo is None:
                self.undo = _copied_buffers(run.module), run.logbook.state_dict(run.training_results)
                self.forwards = []
            self.runs, self.is_stepping, self.copy = 1, False, None
        self.forwards.append(_Forward(at.total_batches, at.batch, run.batches.indices, batch, capture_rng()))

    def _is_bad(self, optimizer: Optimizer) -> bool:
        finite = [torch.isfinite(forward.loss).all() for forward in self.forwards if forward.loss is not None]
        gradients = [_dense(p.grad) for p in params_of(optimizer) if p.grad is not None]
        if gradients and not self.run.precision.checks_gradients:
            finite.append(torch.isfinite(get_total_norm(gradients, math.inf)))  # the largest: cannot overflow
        if not finite:
            return False
        device = self.run.strategy.root_device
        return not torch.stack([one.to(device) for one in finite]).all().item()  # waits for the device

    def _keep_copies(self) -> None:
        step = self.run.progress.step
        is_due = self.policy.nan == "rewind" and step % self.policy.snapshot_every_n_steps == 0
        if is_due or self.repeats:
            assert self.undo is not None
            self.copy = self._captured(step, self.undo[0])
        if is_due and self.copy is not None:
            if self.states and self.states[-1].step == step:  # of an attempt that went bad behind this place
                self.states.pop()
            self.states.append(self.copy)

    def _captured(self, step: int, buffers: dict[str, Tensor]) -> _State:
        run = self.run
        return _State(
            step,
            self._changing(),
            [param.detach().clone() for optimizer in run.optimizers for param in params_of(optimizer)],
            buffers,
            [copy.deepcopy(optimizer.state_dict()) for optimizer in run.optimizers],
            [copy.deepcopy(config.scheduler.state_dict()) for config in run.schedulers],
            copy.deepcopy(run.precision.state_dict()),
        )

    def _changing(self) -> list[int]:
        """Optimizers and schedules, by identity, and the sizes of parameter groups."""
        groups = [len(group["params"]) for optimizer in self.run.optimizers for group in optimizer.param_groups]
        return [*map(id, self.run.optimizers), *(id(config.scheduler) for config in self.run.schedulers), *groups]

    # Answering

    def answers(self, error: Exception) -> bool:
        """Deal with what was raised inside a step.

        Returns:
            Whether the step is left out and the run goes on; False if the error is none of the guard's.

        Raises:
            BadStepError: the run is to end.
        """
        if isinstance(error, _BadStep):
            if not error.is_new:
                self.run.hooks.where = ""
                return True
            kind, what, answer = "nan", self._what_is_bad(), self.policy.nan
        elif is_out_of_memory(error) and self._is_in_step:
            first_line = str(error).partition("\n")[0]
            kind, what, answer = "oom", f"out of memory ({type(error).__name__}: {first_line})", self.policy.oom
        else:
            return False
        run, at = self.run, self.run.progress
        run.hooks.where = ""
        indices = [forward.indices for forward in self.forwards]
        row = self._count()
        where = f"epoch {at.epoch}, batch {at.batch}, global step {at.step}"
        report = f"Bad step at {where}: {what}. Samples: {_named(indices)}."
        is_whole = self.copy is not None or not (self.is_stepping or self.runs > 1)
        if answer == "raise" or row >= self.policy.limit or not is_whole:
            reason = ""
            if not is_whole:
                reason = " It cannot be left out, as weights may have changed in part; the file has them as they are."
            elif answer != "raise":
                reason = f" It is bad step {row} in a row, and BadSteps(limit={self.policy.limit}) ends the run here."
            path, advice = self._save(what)
            raise BadStepError(report + reason + advice, path, indices) from (error if kind == "oom" else None)
        _release(error)
        self._take_back()
        done = "The step was not made" if answer == "skip" else self._rewind()
        for parameter in run.module.parameters():
            parameter.grad = None
        at.drops_window = True
        self.forwards, self.undo, self.copy = [], None, None
        if kind == "oom" and run.strategy.root_device.type == "cuda":
            torch.cuda.empty_cache()  # what is left is in pieces that fit no large batch
        rank_zero_warn(
            f"{report} {done}; these samples were not trained on. It is number {at.dropped_steps}, {row} in a row of "
            f"less than {self.policy.limit}."
        )
        return True

    @property
    def _is_in_step(self) -> bool:
        """Whether the batch in work came as far as its `training_step`."""
        return bool(self.forwards) and self.forwards[-1].number == self.run.progress.total_batches

    def _count(self) -> int:
        """Count a bad step. Returns how many came in a row."""
        at = self.run.progress
        regained = self.policy.rewind_steps if self.policy.nan == "rewind" else 1
        is_in_row = at.dropped_steps > 0 and at.step - at.last_dropped_step < regained
        at.dropped_steps += 1
        at.dropped_in_a_row = at.dropped_in_a_row + 1 if is_in_row else 1
        at.last_dropped_step = at.step
        return at.dropped_in_a_row

    def _what_is_bad(self) -> str:
        bad = [f for f in self.forwards if f.loss is not None and not torch.isfinite(f.loss).all()]
        if bad:
            values = ", ".join(f"{forward.loss.tolist()}" for forward in bad if forward.loss is not None)
            of = "" if len(self.forwards) == 1 else f" (batch {', '.join(str(forward.batch_idx) for forward in bad)})"
            return f"the loss is {values}{of}"
        parameters = self.run.module.named_parameters()
        names = [n for n, p in parameters if p.grad is not None and not torch.isfinite(_dense(p.grad)).all()]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"not finite are the gradients of {', '.join(names[:8])}{more}"

    def _take_back(self) -> None:
        """Undo what the batches of the window changed."""
        run = self.run
        if self.copy is not None:
            self._restore(self.copy)
        if self.undo is not None:
            _put_back(run.module, self.undo[0])
            find: Callable[[str], Any] = run.module.get_submodule
            run.logbook.take_back(self.undo[1], run.training_results, find)
        run.precision.give_up_step()

    def _restore(self, state: _State) -> None:
        """Take up a state, which the run goes on to work on: it is not to be restored again once a step was made."""
        run = self.run
        weights = [param for optimizer in run.optimizers for param in params_of(optimizer)]
        with torch.no_grad():
            for weight, saved in zip(weights, state.weights, strict=True):
                weight.copy_(saved)
        _put_back(run.module, state.buffers)
        for optimizer, saved_state in zip(run.optimizers, state.optimizers, strict=True):
            optimizer.load_state_dict(saved_state)
        for config, saved_state in zip(run.schedulers, state.schedules, strict=True):
            config.scheduler.load_state_dict(saved_state)
        if state.precision:
            run.precision.load_state_dict(state.precision)

    def _rewind(self) -> str:
        """Go back, and begin to collect states anew. Returns what was done."""
        states = [state for state in self.states if state.of == self._changing()]
        if not states:
            return "There is no earlier state to go back to, so the step was only skipped"
        step, factor = self.run.progress.step, self.policy.lr_factor
        old_enough = [state for state in states if state.step <= step - self.policy.rewind_steps]
        state = old_enough[-1] if old_enough else states[0]
        self._restore(state)
        slower = ""
        if factor != 1:
            _scale_learning_rates(self.run.optimizers, [c.scheduler for c in self.run.schedulers], factor)
            slower = f", and learning rates are multiplied by {factor}"
        self.states.clear()
        self.states.append(self._captured(state.step, state.buffers))
        return f"Weights, optimizers and schedules went back to those before step {state.step}{slower}"

    # The file

    def _save(self, what: str) -> tuple[str | None, str]:
        """Write the state before the step, and its batches. Returns the path, and what to say of it."""
        changed: list[str] = []
        try:
            bad_step = self._described(what, changed)
            self._take_back()
            checkpoint = {**gather(self.run), "bad_step": bad_step}
            path = self._free_path()
            files.atomic_save(checkpoint, path)
        except Exception as error:  # the bad step is what ends the run, whatever else fails
            return None, f" The state before it could not be saved in {self.policy.dirpath}: {error!r}."
        advice = (
            f" The state before it and its batches are in {path}: `inazuma.testing.replay_bad_step(path, module)` runs "
            "it again. Trainer(bad_steps='skip') leaves such steps out."
        )
        if changed:
            kinds = ", ".join(dict.fromkeys(changed))
            advice += f" A safe file cannot hold {kinds}: give `batches=` to replay them as they were."
        return path, advice

    def _described(self, what: str, changed: list[str]) -> dict[str, Any]:
        """What a file says of the step besides what all checkpoints have; `changed` as in `as_plain`."""
        run = self.run
        again: dict[str, Tensor] = {}  # weights and buffers of the last forward pass, where the closure ran twice
        if self.runs > 1:
            again = {name: weight.detach().cpu().clone() for name, weight in run.module.named_parameters()} | self.seen
        return {
            "what": what,
            "progress": run.progress.state_dict(),
            "indices": as_plain([forward.indices for forward in self.forwards], changed),
            "batches": [
                {
                    "batch": as_plain(forward.batch, changed),
                    "batch_idx": forward.batch_idx,
                    "rng": forward.rng,
                    "loss": None if forward.loss is None else forward.loss.cpu(),
                }
                for forward in self.forwards
                if forward.rng is not None
            ],
            "again": again,
            "window": run.limits.accumulate_grad_batches,
            "precision": run.precision.precision,
            "accelerator": run.strategy.root_device.type,
            "evaluating": [name for name, child in run.module.named_modules() if not child.training],
        }

    def _free_path(self) -> str:
        assert self.policy.dirpath is not None
        at = self.run.progress
        stem = f"bad-step-epoch={at.epoch}-batch={at.batch}-step={at.step}"
        path, version = files.join(self.policy.dirpath, f"{stem}.ckpt"), 0
        while files.exists(path):
            version += 1
            path = files.join(self.policy.dirpath, f"{stem}-v{version}.ckpt")
        return path

    def teardown(self) -> None:
        """Let go of batches and copies."""
        self.forwards, self.undo, self.copy, self.seen = [], None, None, {}
        self.states.clear()

    # What a checkpoint keeps of a window that is open; counters are in `Progress`

    def state_dict(self, at: Progress) -> dict[str, Any] | None:
        """What is needed to judge a window that is continued at `at`; None where `at` opens one."""
        done = [forward for forward in self.forwards if forward.number < at.total_batches]
        if not done or self.undo is None or self.run.limits.closes_window(at.batch - 1, at.is_last_batch):
            return None
        kept = [
            {"number": f.number, "batch_idx": f.batch_idx, "indices": as_plain(f.indices, []), "loss": f.loss}
            for f in done
        ]
        return {"forwards": kept, "buffers": self.undo[0], "logbook": self.undo[1]}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.forwards = [_Forward(**forward) for forward in state["forwards"]]
            self.undo = state["buffers"], state["logbook"]


def loss_of(output: Any) -> Tensor | None:
    """The loss in what a `training_step` returned, if there is one."""
    if not isinstance(output, Tensor) and output is not None:
        try:
            output = output["loss"]
        except (TypeError, KeyError, IndexError):
            return None
    return output if isinstance(output, Tensor) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on an accelerator, in torch's allocator for the CPU, or in Python."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def as_plain(data: Any, changed: list[str]) -> Any:
    """Nested data as what `torch.load(weights_only=True)` accepts, with tensors on the CPU.

    Args:
        data: a batch, say.
        changed: takes the names of types that became another type: a mapping a dict, a sequence a list, an array a
            tensor, anything else a text.
    """
    kind = type(data)
    if isinstance(data, Tensor):
        tensor = data.detach().cpu()
        is_part = tensor.layout is torch.strided and tensor.untyped_storage().nbytes() > tensor.nbytes
        return tensor.clone() if is_part else tensor  # else the file would hold all that it is a part of
    if data is None or kind in (bool, int, float, complex, str, bytes):
        return data
    if kind in (list, tuple):
        return kind(as_plain(item, changed) for item in data)
    if kind is dict and all(type(key) in (bool, int, float, str, bytes) for key in data):
        return {key: as_plain(value, changed) for key, value in data.items()}
    changed.append(kind.__qualname__)
    if isinstance(data, Mapping):
        return {str(key): as_plain(value, changed) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [as_plain(item, changed) for item in data]
    if hasattr(data, "__array__"):
        try:
            return torch.as_tensor(data).clone()
        except (TypeError, ValueError, RuntimeError):
            pass  # an array of texts or objects
    return repr(data)


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.coalesce().values()


def _copied_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _put_back(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    now = dict(module.named_buffers())
    for name, saved in buffers.items():
        buffer = now.get(name)
        if buffer is not None and buffer.shape == saved.shape:
            with torch.no_grad():
                buffer.copy_(saved)
        else:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, saved.clone())


def _scale_learning_rates(optimizers: Iterable[Optimizer], schedules: Iterable[Any], factor: float) -> None:
    """Multiply what an optimizer uses now, and what a schedule computes the next rates from."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if isinstance(group.get(name), Tensor):
                    group[name].mul_(factor)  # in place, as a captured graph may read it
                elif name in group:
                    group[name] *= factor
    for schedule in schedules:
        for name in ("base_lrs", "max_lrs", "_last_lr"):
            if isinstance(rates := getattr(schedule, name, None), list):
                setattr(schedule, name, [rate * factor for rate in rates])
        inner = getattr(schedule, "_schedulers", ())  # of a SequentialLR or ChainedScheduler
        _scale_learning_rates((), inner, factor)


def _release(error: BaseException | None) -> None:
    """Let go of the tensors that frames hold from which an exception came, the graph above all."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _named(indices: list[Any]) -> str:
    """Samples for a message: all of a window in one list."""
    if any(batch is None for batch in indices):
        return "unknown, as no sampler says"
    flat = [index for batch in indices for index in (batch if isinstance(batch, (list, tuple)) else [batch])]
    more = f" and {len(flat) - _SHOWN} more" if len(flat) > _SHOWN else ""
    return f"{flat[:_SHOWN]}{more}"
