"""PyTorchProfiler: operators on CPU and GPU, and a trace to look at in a browser, for a few steps of each kind."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerAction, ProfilerActivity, tensorboard_trace_handler
from torch.utils.hooks import RemovableHandle

from inazuma.errors import MisconfigurationException
from inazuma.files import PathLike
from inazuma.profilers.profiler import Profiler
from inazuma.ranks import rank_zero_warn

Schedule = Callable[[int], ProfilerAction]

WAIT, WARMUP, ACTIVE = 1, 1, 3  # steps of the default schedule; few, so that a long run is hardly slowed


class PyTorchProfiler(Profiler):
    """Record a few steps of each kind with `torch.profiler`: a table of operators in the report, and a trace file.

    A step is a `training_step`, `validation_step`, `test_step` or `predict_step` and all that follows until the next
    one begins: a training step's backward and optimizer step are in it. Each kind goes through the schedule once; a
    step of another kind interrupts it, and the trace so far is written. Validation is recorded once training was, so
    that the sanity check does not count.

    Args:
        dirpath, filename: see `Profiler`. The trace goes to `dirpath`, which must be local, too.
        group_by_input_shapes: one row of the table for each shape of the input; records shapes.
        emit_nvtx: mark the operators for Nsight instead of recording anything; needs CUDA.
        export_to_chrome: write `<name>.<time>.pt.trace.json`, for https://ui.perfetto.dev or TensorBoard.
        row_limit: rows of the table; -1 for all.
        sort_by_key: column to sort by, one of `AVAILABLE_SORT_KEYS`. None: total time, on the GPU if there is one.
        record_module_names: mark the time of each submodule's forward.
        table_kwargs: for `EventList.table`, as `max_name_column_width`.
        **profiler_kwargs: for `torch.profiler.profile`. `schedule` replaces one step of waiting, one of warming up and
            three that are recorded (all, in an epoch of fewer than five); `on_trace_ready` replaces the trace file.

    Raises:
        MisconfigurationException: `sort_by_key`, `schedule` or `group_by_input_shapes` cannot work.
        KeyError: an entry of `table_kwargs` is not the table's, or is an argument of its own.
        TypeError: an argument that `torch.profiler.profile` does not have.
    """

    STEP_FUNCTIONS: ClassVar[tuple[str, ...]] = ("training_step", "validation_step", "test_step", "predict_step")
    RECORD_FUNCTIONS: ClassVar[tuple[str, ...]] = (
        *STEP_FUNCTIONS,
        "backward",
        "optimizer_step",
        "optimizer_zero_grad",
        "configure_gradient_clipping",
    )
    AVAILABLE_SORT_KEYS: ClassVar[set[str]] = {"count"} | {
        f"{part}{device}_{what}"
        for device in ("cpu", "cuda", "device")
        for part, what in [
            ("", "time"),
            ("", "time_total"),
            ("self_", "time_total"),
            ("", "memory_usage"),
            ("self_", "memory_usage"),
        ]
    }

    def __init__(
        self,
        dirpath: PathLike | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._check(sort_by_key, table_kwargs or {}, profiler_kwargs)
        if group_by_input_shapes and profiler_kwargs.setdefault("record_shapes", True) is False:
            raise MisconfigurationException(
                "PyTorchProfiler(group_by_input_shapes=True, record_shapes=False): there are no shapes to group by. "
                "Leave record_shapes out."
            )
        on_gpu = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        self._profiler_kwargs = {"activities": activities, **profiler_kwargs}
        self._schedule: Schedule | None = self._profiler_kwargs.pop("schedule", None)
        self._on_trace_ready = self._profiler_kwargs.pop("on_trace_ready", None)
        self._group_by_input_shapes = group_by_input_shapes
        if emit_nvtx and not on_gpu:
            raise MisconfigurationException("PyTorchProfiler(emit_nvtx=True) needs CUDA, and there is no CUDA device.")
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._record_module_names = record_module_names
        self._table_kwargs = {
            "sort_by": sort_by_key or ("cuda_time_total" if on_gpu else "cpu_time_total"),
            "row_limit": row_limit,
            **(table_kwargs or {}),
        }
        self._forget()

    def _check(self, sort_by_key: str | None, table_kwargs: dict[str, Any], profiler_kwargs: dict[str, Any]) -> None:
        if sort_by_key is not None and sort_by_key not in self.AVAILABLE_SORT_KEYS:
            raise MisconfigurationException(
                f"PyTorchProfiler(sort_by_key={sort_by_key!r}): there is no such column. "
                f"Use one of {sorted(self.AVAILABLE_SORT_KEYS)}."
            )
        if (schedule := profiler_kwargs.get("schedule")) is not None:
            if not callable(schedule):
                raise MisconfigurationException(f"PyTorchProfiler(schedule={schedule!r}): a schedule is a function.")
            if not isinstance(action := schedule(0), ProfilerAction):
                raise MisconfigurationException(
                    f"PyTorchProfiler(schedule=...): for step 0 the schedule returned {action!r}. "
                    "It must return a torch.profiler.ProfilerAction."
                )
        columns = set(inspect.signature(EventList.table).parameters) - {"self", "sort_by", "row_limit"}
        for key in table_kwargs:
            if key not in columns:
                raise KeyError(f"PyTorchProfiler(table_kwargs={{{key!r}: ...}}): use keys among {sorted(columns)}.")
        known = set(inspect.signature(torch.profiler.profile.__init__).parameters) - {"self"}
        for key in profiler_kwargs:
            if key not in known:
                raise TypeError(
                    f"PyTorchProfiler({key}=...): neither it nor torch.profiler.profile has this argument. "
                    f"torch.profiler.profile takes {sorted(known)}."
                )

    def _forget(self) -> None:
        """Begin a run of which nothing is known yet."""
        self._steps = dict.fromkeys(self.STEP_FUNCTIONS, 0)  # that went through the schedule so far, by kind
        self._done: set[str] = set()  # kinds that went through the schedule
        self._traces: dict[str, torch.profiler.profile] = {}  # the last one of each kind
        self._session: _Session | None = None
        self._labels: dict[str, list[record_function]] = {}  # of the running actions
        self._nvtx = ExitStack()

    @property
    def function_events(self) -> EventList | None:
        """The events of the trace that was finished last; None before the first."""
        last: Any = next(reversed(self._traces.values()), None)
        return None if last is None else last.events()

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins: forget the last one."""
        super().setup(stage, local_rank, log_dir)
        self._forget()
        if self._emit_nvtx:
            self._nvtx.enter_context(torch.cuda.profiler.profile())
            shapes = self._profiler_kwargs.get("record_shapes", False)
            self._nvtx.enter_context(torch.autograd.profiler.emit_nvtx(record_shapes=shapes))  # type: ignore[no-untyped-call]

    def start(self, action_name: str) -> None:
        """The action begins; a step of the model moves the schedule on."""
        function = action_name.rpartition(".")[2]
        if function not in self.RECORD_FUNCTIONS:
            return
        # With automatic optimization the training step runs inside `optimizer_step`, which is then where it begins:
        # torch miscounts what it has begun before a recording starts or stops.
        kind = "training_step" if function == "optimizer_step" else function
        if kind in self.STEP_FUNCTIONS and not self._labels and not self._emit_nvtx:
            self._begin_step(kind)
        label = _begin_label(f"[pl][profile]{action_name}")  # the prefix is what TensorBoard's plugin looks for
        self._labels.setdefault(action_name, []).append(label)

    def stop(self, action_name: str) -> None:
        """The action ends."""
        if labels := self._labels.get(action_name):
            labels.pop().__exit__(None, None, None)
            if not labels:
                del self._labels[action_name]

    def _begin_step(self, kind: str) -> None:
        """Go on with the session of this kind; or close the one there is, and open another if this kind is due."""
        if (session := self._session) is not None:
            if session.kind == kind and session.profile.current_action is not ProfilerAction.RECORD_AND_SAVE:
                self._steps[kind] += 1
                session.profile.step()
                return
            self._close_session()
        is_early = kind == "validation_step" and self._stage == "fit" and "training_step" not in self._done
        if kind not in self._done and not is_early:
            self._open_session(kind, self._steps[kind])
            self._steps[kind] += 1

    def _open_session(self, kind: str, position: int) -> None:
        schedule = self._schedule or _default_schedule(self._steps_in_an_epoch(kind))
        profile = torch.profiler.profile(
            schedule=lambda step: schedule(position + step),
            on_trace_ready=partial(self._keep_trace, kind),
            **self._profiler_kwargs,
        )
        self._session = _Session(kind, profile)
        if self._record_module_names and self.lightning_module is not None:
            self._session.exit_stack.enter_context(RegisterRecordFunction(self.lightning_module))
        self._session.exit_stack.enter_context(profile)

    def _close_session(self) -> None:
        """Stop recording; if anything was recorded, `_keep_trace` is called by torch."""
        if self._session is None:
            return
        session, self._session = self._session, None
        if session.profile.current_action is ProfilerAction.RECORD_AND_SAVE:
            self._done.add(session.kind)
        session.exit_stack.close()

    def _steps_in_an_epoch(self, kind: str) -> float:
        if self.lightning_module is None:
            return math.inf
        trainer = self.lightning_module.trainer
        batches: float | list[float] = {
            "training_step": trainer.num_training_batches,
            "validation_step": trainer.num_val_batches,
            "test_step": trainer.num_test_batches,
            "predict_step": trainer.num_predict_batches,
        }[kind]
        return sum(batches) if isinstance(batches, list) else batches

    def _keep_trace(self, kind: str, trace: torch.profiler.profile) -> None:
        self._traces.pop(kind, None)  # so that the last one stands last
        self._traces[kind] = trace
        if self._on_trace_ready is not None:
            self._on_trace_ready(trace)
        elif self._export_to_chrome and self.dirpath is not None:
            tensorboard_trace_handler(os.fspath(self.dirpath), self.file_name(kind, extension=""))(trace)
        elif self._export_to_chrome:
            rank_zero_warn(
                "PyTorchProfiler wrote no trace file, because it has no directory: give it a dirpath=, "
                "or export_to_chrome=False."
            )

    def summary(self) -> str:
        """One table of operators for each kind of step; empty if nothing was recorded."""
        self._close_session()
        tables = {
            kind: trace.key_averages(group_by_input_shape=self._group_by_input_shapes).table(**self._table_kwargs)
            for kind, trace in self._traces.items()
        }
        return self.report_of(tables) if tables else ""

    def teardown(self, stage: str | None) -> None:
        """A run ends: stop recording."""
        self._close_session()
        for label in [label for labels in self._labels.values() for label in labels]:
            label.__exit__(None, None, None)
        self._labels.clear()
        self._nvtx.close()


@dataclass
class _Session:
    """One recording: `torch.profiler` can hold only one at a time."""

    kind: str
    profile: torch.profiler.profile
    exit_stack: ExitStack = field(default_factory=ExitStack)


def _default_schedule(steps: float) -> Schedule:
    """Wait, warm up and record a few steps; where an epoch has too few of them for that, record them all."""
    if steps >= WAIT + WARMUP + ACTIVE:
        return torch.profiler.schedule(wait=WAIT, warmup=WARMUP, active=ACTIVE)
    return lambda step: ProfilerAction.RECORD if step < steps - 1 else ProfilerAction.RECORD_AND_SAVE


def _begin_label(name: str) -> record_function:
    label = record_function(name)
    label.__enter__()  # type: ignore[no-untyped-call]
    return label


class RegisterRecordFunction:
    """Within this block the forward of every submodule carries its name in what a profiler records.

    Args:
        model: its own forward is not marked, those of its submodules are, as `torch.nn.modules.linear.Linear: head.0`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: list[RemovableHandle] = []
        self._open: dict[str, list[record_function]] = {}  # a module may call itself

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            if name:
                label = f"[pl][module]{type(module).__module__}.{type(module).__name__}: {name}"
                self._handles += [
                    module.register_forward_pre_hook(partial(self._begin, label)),
                    module.register_forward_hook(partial(self._end, label), always_call=True),  # also if it raises
                ]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, label: str, *_: Any) -> None:
        self._open.setdefault(label, []).append(_begin_label(label))

    def _end(self, label: str, *_: Any) -> None:
        self._open[label].pop().__exit__(None, None, None)
