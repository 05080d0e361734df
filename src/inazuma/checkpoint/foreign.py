"""The position in Lightning's words: its `loops` entry, written so that Lightning resumes right, and read.

Lightning keeps four counters for each thing it counts (ready, started, processed, completed) and tells from their
differences where a run stood; here that is `Progress.next`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inazuma.progress import Limits, Next, Progress

if TYPE_CHECKING:
    from inazuma.run import Run

Counter = dict[str, int]


def _counter(ready: int, completed: int | None = None, processed: int | None = None) -> Counter:
    processed = ready if processed is None else processed
    completed = processed if completed is None else completed
    return {"ready": ready, "completed": completed, "started": ready, "processed": processed}


def _batches(total: Counter, current: Counter, is_last: bool) -> dict[str, Any]:
    return {"total": total, "current": current, "is_last_batch": is_last}


def _steps(count: int, in_epoch: int) -> dict[str, Any]:
    return {"total": {"ready": count, "completed": count}, "current": {"ready": in_epoch, "completed": in_epoch}}


def to_loops(at: Progress, run: Run) -> dict[str, Any]:
    """The entry `loops` of a checkpoint at this position."""
    # saved in on_train_epoch_end: the epoch counts as processed, not as completed
    epochs_ready = at.epoch + (at.next != Next.START_EPOCH)
    epochs_processed = at.epoch + (at.next == Next.FINISH_EPOCH)
    epochs = _counter(epochs_ready, completed=at.epoch, processed=epochs_processed)
    # saved in on_train_batch_end: the batch counts as processed, not as completed
    open_batch = int(at.next == Next.REPORT)
    batches = _batches(
        _counter(at.total_batches, completed=at.total_batches - open_batch),
        _counter(at.batch, completed=at.batch - open_batch),
        at.is_last_batch,
    )
    window = run.limits.accumulate_grad_batches
    steps_in_epoch = (at.batch + window - 1) // window if at.is_last_batch else at.batch // window
    automatic = at.step if run.is_automatic else 0
    zero_grads = {**_counter(automatic)}
    del zero_grads["processed"]
    zero_current = {"ready": steps_in_epoch, "completed": steps_in_epoch, "started": steps_in_epoch}
    nothing = _batches(_counter(0), _counter(0), False)
    validated = _counter(at.validated_batches)
    validation = _batches(validated, dict(validated), bool(at.validated_batches))
    stateful = [part["position"] for part in (run.batches_state() or {"parts": []})["parts"]]
    return {
        "fit_loop": {
            "state_dict": {"combined_loader": stateful} if any(s is not None for s in stateful) else {},
            "epoch_loop.state_dict": {"_batches_that_stepped": at.stepped_batches},
            "epoch_loop.batch_progress": batches,
            "epoch_loop.scheduler_progress": _steps(at.schedule_steps, at.schedule_steps),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": {
                    "step": _steps(automatic, steps_in_epoch),
                    "zero_grad": {"total": zero_grads, "current": zero_current},
                }
            },
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": _steps(0 if run.is_automatic else at.step, 0),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": validation,
            "epoch_progress": {"total": epochs, "current": dict(epochs)},
        },
        "validate_loop": {"state_dict": {}, "batch_progress": nothing},
        "test_loop": {"state_dict": {}, "batch_progress": nothing},
        "predict_loop": {
            "state_dict": {},
            "batch_progress": {k: v for k, v in nothing.items() if k != "is_last_batch"},
        },
    }


def from_loops(loops: dict[str, Any], checkpoint: dict[str, Any], at: Progress, limits: Limits) -> None:
    """Set the position from the entry `loops` of a checkpoint that Lightning wrote."""
    loop = loops["fit_loop"]
    epochs = loop["epoch_progress"]["current"]
    batches = loop["epoch_loop.batch_progress"]
    done, is_last = batches["current"]["processed"], batches["is_last_batch"]
    # Saved in on_train_batch_end, or in on_validation_end: the batch is not counted as stepped yet.
    has_validated = loop["epoch_loop.val_loop.batch_progress"]["is_last_batch"]
    is_uncounted = done > batches["current"]["completed"] or (has_validated and done == batches["current"]["ready"])
    at.step = checkpoint["global_step"]
    at.stepped_batches = loop["epoch_loop.state_dict"].get("_batches_that_stepped", 0)
    at.total_batches = batches["total"]["processed"]
    is_inside = epochs["ready"] > epochs["completed"] == epochs["processed"]
    if is_inside and is_uncounted and limits.closes_window(done - 1, is_last):
        at.stepped_batches += 1
    at.epoch = epochs["processed"]
    if epochs["processed"] > epochs["completed"] or epochs["ready"] == epochs["completed"]:
        at.next = Next.START_EPOCH
    elif is_last and done:
        at.epoch, at.next = at.epoch + 1, Next.START_EPOCH
    else:
        at.batch, at.is_last_batch, at.next = done, False, Next.TAKE_BATCH
