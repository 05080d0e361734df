"""The Trainer's list of callbacks: the user's, those that the Trainer adds, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from inazuma.callbacks.callback import Callback
from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.callbacks.model_checkpoint import ModelCheckpoint
from inazuma.callbacks.model_summary import ModelSummary, default_model_summary
from inazuma.callbacks.progress import ProgressBar, default_progress_bar
from inazuma.callbacks.timer import Timer
from inazuma.duration import parse_duration
from inazuma.errors import MisconfigurationException
from inazuma.hooks import overrides
from inazuma.ranks import rank_zero_info

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class Tool(Protocol):
    """What runs the user's program in its process, and looks at a `fit` of it."""

    @property
    def decides(self) -> bool:
        """Whether the next `fit` is the one that it looks at."""

    def join(self, trainer: Trainer) -> None:
        """Called with every Trainer that the program makes, as to add a callback."""

    def resume_from(self, ckpt_path: Any) -> Any:
        """The path that this `fit` resumes from, where the program says `ckpt_path`; None for the start."""


TOOLS: list[Tool] = []  # that are at work


def with_defaults(
    callbacks: list[Callback] | Callback | None,
    max_time: Any,
    enable_checkpointing: bool | None,
    enable_progress_bar: bool | None,
    enable_model_summary: bool | None,
) -> list[Callback]:
    """The user's callbacks and those that the Trainer's arguments add, in order."""
    if callbacks is not None and not isinstance(callbacks, (Callback, list, tuple)):
        hint = (
            f" It is the class: give an instance, `{callbacks.__name__}(...)`." if isinstance(callbacks, type) else ""
        )
        raise TypeError(f"Trainer(callbacks={callbacks!r}) is neither a `Callback` nor a list of them.{hint}")
    own = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
    _check_state_keys(own)
    _refuse_contradiction(own, Checkpoint, "enable_checkpointing", enable_checkpointing)
    _refuse_contradiction(own, ProgressBar, "enable_progress_bar", enable_progress_bar)
    bars = [callback for callback in own if isinstance(callback, ProgressBar)]
    if len(bars) > 1:
        raise MisconfigurationException(
            f"You added multiple progress bar callbacks: {bars}. They would draw over each other. Give the Trainer one."
        )
    if enable_checkpointing is not False and not any(isinstance(c, Checkpoint) for c in own):
        own.append(ModelCheckpoint())
    if max_time is not None:
        if any(isinstance(callback, Timer) for callback in own):
            rank_zero_info("Ignoring `Trainer(max_time=...)`: the Timer among the callbacks decides. Remove either.")
        else:
            own.append(Timer(duration=parse_duration(max_time, "Trainer(max_time=...)"), interval="step"))
    if enable_progress_bar is not False and not bars:
        bars = [default_progress_bar()]
        own.append(bars[0])
    if enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in own):
        own.append(default_model_summary(bars[0] if bars else None))
    return reordered(own)


def _refuse_contradiction(
    callbacks: Sequence[Callback], kind: type[Callback], argument: str, value: bool | None
) -> None:
    found = [type(callback).__name__ for callback in callbacks if isinstance(callback, kind)]
    if value is False and found:
        raise MisconfigurationException(
            f"Trainer was configured with `{argument}=False` but found {found} in callbacks list. "
            "Remove one of the two."
        )


def _check_state_keys(callbacks: Sequence[Callback]) -> None:
    seen = set()
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"Trainer(callbacks=...): {callback!r} is no `Callback`. Give instances of `inazuma.Callback` "
                "(an instance, not the class)."
            )
        if overrides(callback, "state_dict", Callback):
            if callback.state_key in seen:
                raise RuntimeError(
                    f"Found more than one stateful callback with the `state_key` {callback.state_key!r}: a checkpoint "
                    f"could keep the state of only one of them. Override `{type(callback).__name__}.state_key` so that "
                    "it tells them apart."
                )
            seen.add(callback.state_key)


def reordered(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks that save come last, so that what they save holds what all others did."""
    saving = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    return [callback for callback in callbacks if not isinstance(callback, Checkpoint)] + saving


def with_module_callbacks(callbacks: list[Callback], module: LightningModule) -> list[Callback]:
    """The Trainer's callbacks, with those of `configure_callbacks` in place of ones of the same type."""
    own = module.configure_callbacks()
    own = [own] if isinstance(own, Callback) else list(own or [])
    if not own:
        return callbacks
    kinds = {type(callback) for callback in own}
    replaced = [c for c in callbacks if any(issubclass(kind, type(c)) for kind in kinds)]
    if replaced:
        rank_zero_info(
            "`LightningModule.configure_callbacks` returned callbacks of the same type as these of the Trainer, and "
            f"takes their place: {sorted(type(callback).__name__ for callback in replaced)}"
        )
    merged = [callback for callback in callbacks if callback not in replaced] + own
    _check_state_keys(merged)
    return reordered(merged)
