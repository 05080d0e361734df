"""Which file `ckpt_path` means: the callbacks that save know, and the notes of the files in their directories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inazuma import files
from inazuma.callbacks import saved
from inazuma.callbacks.callback import Callback
from inazuma.callbacks.model_checkpoint import ModelCheckpoint, badness
from inazuma.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from inazuma.callbacks.saved import Saved
from inazuma.checkpoint_io import TorchCheckpointIO
from inazuma.errors import CheckpointError
from inazuma.ranks import rank_zero_info, rank_zero_warn
from inazuma.states import TrainerFn

if TYPE_CHECKING:
    from inazuma.trainer import Trainer

VARIABLE = "INAZUMA_CKPT_PATH"  # the `ckpt_path` of a `fit` that is given none


def find(
    ckpt_path: Any,
    fn: TrainerFn,
    model_is_given: bool,
    checkpoint_callbacks: Sequence[Callback],
    trainer: Trainer,
) -> Any:
    """Resolve the `ckpt_path` of fit, validate, test or predict.

    Args:
        ckpt_path: a path or URL, "best", "last", "auto", or None.
        fn: the function it was given to.
        model_is_given: whether the user passed a model; without one, None means "best".
        checkpoint_callbacks: the Trainer's callbacks that save, first one first.
        trainer: what the callbacks belong to.

    Returns:
        The path, or None when nothing is to be loaded.

    Raises:
        ValueError: "best" without a callback that knows it, or before it saved anything; "auto" outside of fit.
        CheckpointError: the file of that path, or the best, is damaged; for "last", all files are.
    """
    if ckpt_path is None and fn is TrainerFn.FITTING and (ckpt_path := os.environ.get(VARIABLE) or None) is not None:
        rank_zero_info(f"{VARIABLE}={ckpt_path} is used as the `ckpt_path` of `fit`.")
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
    if ckpt_path == "last":
        return _last(fn, checkpoint_callbacks, trainer)
    if ckpt_path == "auto":
        return _auto(fn, checkpoint_callbacks, trainer)
    path = _best(fn, checkpoint_callbacks, trainer) if ckpt_path == "best" else ckpt_path
    if isinstance(path, (str, os.PathLike)) and _is_zip(os.fspath(path)):
        _verify(os.fspath(path), trainer)  # before any hook runs; what is no zip file is judged by loading it
    return path


def _best(fn: TrainerFn, callbacks: Sequence[Callback], trainer: Trainer) -> str:
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
    path = with_best[0].best_model_path or _best_by_notes(with_best[0], trainer)
    if path:
        return path
    if trainer.fast_dev_run:
        raise ValueError(
            f'You cannot execute `.{fn}(ckpt_path="best")` after a `fast_dev_run`, which saves nothing. Give the path '
            f"of a file: `.{fn}(ckpt_path=...)`."
        )
    raise ValueError(
        f'`.{fn}(ckpt_path="best")` is set but there is no best checkpoint: `ModelCheckpoint` has saved nothing yet. '
        "Call `fit` first, or give the path of a file."
    )


def _best_by_notes(callback: ModelCheckpoint, trainer: Trainer) -> str:
    """The best file of the run that wrote last, in a process that has not trained; "" if there is none."""
    of_callback = [file for file in _all([callback], trainer) if file.note.get("callback") == callback.state_key]
    of_run = [file for file in of_callback if file.run == of_callback[0].run]
    scores = {file.path: file.score for file in of_run if file.kind == "best" and not callback._is_last(file.path)}
    if of_run:  # the best of all may lie in another directory
        best = of_run[0].note["best"]
        path = best["name"]
        if files.is_local(path):
            path = files.resolve(files.join(callback.dirpath or callback._default_dirpath(trainer), path))
        if best["name"] and path not in scores and files.exists(path):
            scores[path] = saved.as_number(best["score"])
    if callback.monitor is None:
        return next(iter(scores), "")
    ranked = {path: badness(score, callback.mode) for path, score in scores.items() if score is not None}
    return min(ranked, key=ranked.__getitem__, default="")


def _last(fn: TrainerFn, callbacks: Sequence[Callback], trainer: Trainer) -> str | None:
    """The newest file that is named like `last`, or was saved on an exception; if all are damaged, the newest other."""
    found = _all(callbacks, trainer)
    named = {path for c in callbacks if isinstance(c, ModelCheckpoint) for path in c.find_last_checkpoints(trainer)}
    named |= {callback.ckpt_path for callback in callbacks if isinstance(callback, OnExceptionCheckpoint)}
    lasts = [file for file in found if file.path in named or file.kind == "exception"]
    if not lasts:
        rank_zero_warn(
            f'`.{fn}(ckpt_path="last")` loads nothing, as there is no last checkpoint available. '
            "`ModelCheckpoint(..., save_last=True)` keeps one."
        )
        return None
    candidates = lasts + [file for file in found if file not in lasts]
    if (chosen := _first_whole(candidates, fn, trainer)) is not None:
        return chosen.path
    raise CheckpointError(
        f'`.{fn}(ckpt_path="last")` finds no file that can be used: {", ".join(file.path for file in candidates)}. The '
        "warnings above say why. Give the path of another file, or None to start anew."
    )


def _auto(fn: TrainerFn, callbacks: Sequence[Callback], trainer: Trainer) -> str | None:
    """The newest file that can be resumed from, whoever saved it; None to start anew."""
    if fn is not TrainerFn.FITTING:
        raise ValueError(
            f'`.{fn}(ckpt_path="auto")`: "auto" is for `fit`, which may also start anew. Use "last" or "best".'
        )
    candidates = _all(callbacks, trainer)
    if not candidates:  # this start has a directory of its own
        earlier = [path for c in callbacks if isinstance(c, ModelCheckpoint) for path in c.find_earlier(trainer)]
        candidates = saved.newest_first(filter(None, map(saved.read, earlier)))
    chosen = _first_whole(candidates, fn, trainer)
    if chosen is None:
        where = [c.dirpath or c._default_dirpath(trainer) for c in callbacks if isinstance(c, ModelCheckpoint)]
        where += [callback.ckpt_path for callback in callbacks if isinstance(callback, OnExceptionCheckpoint)]
        rank_zero_info(
            '`.fit(ckpt_path="auto")` starts anew: there is no checkpoint to go on from in '
            f"{', '.join(where) or 'any directory, as no callback saves'}."
        )
        return None
    at = f"global step {chosen.step}" if chosen.note else "a file without a note"
    rank_zero_info(f'`.fit(ckpt_path="auto")` goes on from {chosen.path} ({at}).')
    return chosen.path


def _all(callbacks: Sequence[Callback], trainer: Trainer) -> list[Saved]:
    """The checkpoint files in the directories of these callbacks, newest first."""
    paths: dict[str, None] = {}
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            paths |= dict.fromkeys(callback.find_checkpoints(trainer))
        elif isinstance(callback, OnExceptionCheckpoint):
            paths[callback.ckpt_path] = None
    return saved.newest_first(file for path in paths if (file := saved.read(path)) is not None)


def _first_whole(candidates: Sequence[Saved], fn: TrainerFn, trainer: Trainer) -> Saved | None:
    """The first file that is whole; those before it are named, with what is wrong with them."""
    for file in candidates:
        if fn is TrainerFn.FITTING and file.note.get("weights_only"):
            rank_zero_warn(f"{file.path} is skipped: it holds weights only, from which no run can go on.")
            continue
        try:
            _verify(file.path, trainer)
        except (CheckpointError, OSError) as error:
            rank_zero_warn(f"{file.path} is skipped: {error}")
        else:
            return file
    return None


def _is_zip(path: str) -> bool:
    """Whether there is a file that `torch.save` may have written since torch 1.6."""
    if path.startswith(("http://", "https://")) or not files.exists(path) or files.isdir(path):
        return False
    with files.open_for_reading(path) as file:
        return file.read(4) == b"PK\x03\x04"


def _verify(path: str, trainer: Trainer) -> None:
    """Refuse a damaged file. What a `CheckpointIO` of the user's reads in its own way only that one can judge.

    Raises:
        CheckpointError: what is wrong.
    """
    file, own_way = saved.read(path), type(trainer.strategy.checkpoint_io).load_checkpoint
    if (file is not None and file.note) or own_way is TorchCheckpointIO.load_checkpoint:
        files.verify(path)
