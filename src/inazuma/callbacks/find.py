"""Which file `ckpt_path` means: the callbacks that save know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inazuma import files
from inazuma.callbacks.callback import Callback
from inazuma.callbacks.model_checkpoint import ModelCheckpoint
from inazuma.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from inazuma.ranks import rank_zero_warn
from inazuma.states import TrainerFn

if TYPE_CHECKING:
    from inazuma.trainer import Trainer


def find(
    ckpt_path: Any,
    fn: TrainerFn,
    model_is_given: bool,
    checkpoint_callbacks: Sequence[Callback],
    trainer: Trainer,
) -> Any:
    """Resolve the `ckpt_path` of fit, validate, test or predict.

    Args:
        ckpt_path: a path or URL, "best", "last", or None.
        fn: the function it was given to.
        model_is_given: whether the user passed a model; without one, None means "best".
        checkpoint_callbacks: the Trainer's callbacks that save, first one first.
        trainer: what the callbacks belong to.

    Returns:
        The path, or None when nothing is to be loaded.

    Raises:
        ValueError: "best" without a callback that knows it, or before it saved anything.
    """
    if ckpt_path is None and fn is TrainerFn.FITTING:
        if not any(isinstance(callback, OnExceptionCheckpoint) for callback in checkpoint_callbacks):
            return None
        rank_zero_warn(
            "`fit(ckpt_path=None)` with an `OnExceptionCheckpoint` callback goes on from the last checkpoint, if there "
            'is one. Pass ckpt_path="last" to say so and silence this warning.'
        )
        ckpt_path = "last"
    elif ckpt_path is None:
        if model_is_given:
            return None
        rank_zero_warn(
            f"`.{fn}()` was called without a model and without `ckpt_path`, so the best checkpoint of the last `fit` "
            f"is loaded. Say which one you mean to silence this: `.{fn}(ckpt_path='best')` or "
            f"`.{fn}(ckpt_path='last')`."
        )
        ckpt_path = "best"
    if ckpt_path == "best":
        return _best(fn, checkpoint_callbacks, bool(trainer.fast_dev_run))
    if ckpt_path == "last":
        return _last(fn, checkpoint_callbacks, trainer)
    return ckpt_path


def _best(fn: TrainerFn, callbacks: Sequence[Callback], fast_dev_run: bool) -> str:
    with_best = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if not with_best:
        raise ValueError(
            f'`.{fn}(ckpt_path="best")` is set but the Trainer has no `ModelCheckpoint`, which would know the best. '
            "Enable checkpointing, or give the path of a file."
        )
    if len(with_best) > 1:
        rank_zero_warn(
            f'`.{fn}(ckpt_path="best")` finds {len(with_best)} `ModelCheckpoint` callbacks in the Trainer, and asks '
            "only the first for its best. Give the path of a file to choose another."
        )
    path = with_best[0].best_model_path
    if path:
        return path
    if fast_dev_run:
        raise ValueError(
            f'You cannot execute `.{fn}(ckpt_path="best")` after a `fast_dev_run`, which saves nothing. Give the path '
            f"of a file: `.{fn}(ckpt_path=...)`."
        )
    raise ValueError(
        f'`.{fn}(ckpt_path="best")` is set but there is no best checkpoint: `ModelCheckpoint` has saved nothing yet. '
        "Call `fit` first, or give the path of a file."
    )


def _last(fn: TrainerFn, callbacks: Sequence[Callback], trainer: Trainer) -> str | None:
    candidates: list[str] = []
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            candidates += callback.find_last_checkpoints(trainer)
        elif isinstance(callback, OnExceptionCheckpoint):
            candidates.append(callback.ckpt_path)
    found = [path for path in candidates if files.exists(path)]
    if not found:
        rank_zero_warn(
            f'`.{fn}(ckpt_path="last")` loads nothing, as there is no last checkpoint available. '
            "`ModelCheckpoint(..., save_last=True)` keeps one."
        )
        return None
    return max(found, key=files.modified_at)
