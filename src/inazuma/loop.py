"""THE LOOP: fit, train_epoch, train_batch, after_batch, validate, predict.

Functions over a `Run`; everything that can be decided before the first batch is decided in `run.assemble`.

    fit
        sanity check: a few validation batches
        on_train_start
        for each epoch
            on_train_epoch_start
            for each batch
                transfer to the device
                on_train_batch_start
                optimizer step, with a closure that runs
                    forward            training_step
                    zero grad          where an accumulation window opens
                    backward           on_before_backward, backward, on_after_backward
                    clip               where the window closes: on_before_optimizer_step, clipping
                step the schedules
                on_train_batch_end
                log                    every n steps
                validate               if it is time
            on_train_epoch_end
            log                        the means of the epoch
        on_train_end

The position (`run.progress`) is written before an event is fired, so that a checkpoint saved in the event continues
behind it. Every place that waits for the device is in the logbook's `report`, at a stated interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inazuma.errors import MisconfigurationException
from inazuma.modes import restore_modes, training_modes
from inazuma.optim import monitored_metric
from inazuma.progress import Next
from inazuma.ranks import rank_zero_info, rank_zero_warn
from inazuma.seed import isolate_rng
from inazuma.states import RunningStage

if TYPE_CHECKING:
    from inazuma.data.loaders import Loaders
    from inazuma.run import Run


def fit(run: Run) -> None:
    """Train until a limit is reached or somebody asks to stop."""
    at, limits, hooks = run.progress, run.limits, run.hooks
    sanity_check(run)
    run.state.stage = RunningStage.TRAINING
    run.logbook.results = run.training_results
    run.restore_logbook()
    if not run.train.open(run, at.epoch):
        return
    if at.next == Next.FINISH_EPOCH:  # resumed from a checkpoint of on_train_epoch_end
        end_epoch(run)
    if at.next in (Next.START_EPOCH, Next.TAKE_BATCH) and limits.training_done(at):
        run.restore_rng()
        rank_zero_info(f"`Trainer.fit` has nothing to train: {limits.training_done(at)}.")
        return
    if run.validates and limits.validates_in_epoch(at.epoch):
        run.state.stage = RunningStage.VALIDATING
        with run.apart():
            run.val.open(run, at.epoch)
        run.state.stage = RunningStage.TRAINING
        run.check_dataloader_idx("validation", run.val)
    hooks.fire("on_train_start")
    run.restore_rng()
    while at.next != Next.START_EPOCH or not limits.training_done(at):
        train_epoch(run)
    hooks.fire("on_train_end")
    rank_zero_info(f"`Trainer.fit` stopped: {limits.training_done(at)}.")


def sanity_check(run: Run) -> None:
    """Run a few validation batches before training, to find mistakes early. Leaves no trace."""
    if not (run.validates and run.limits.num_sanity_val_steps) or run.resumes_inside_an_epoch:
        return
    run.state.stage = RunningStage.SANITY_CHECKING
    with isolate_rng(), run.timing.during("validation", is_whole=True):
        run.hooks.fire("on_sanity_check_start")
        with torch.no_grad():
            evaluate(run, run.val, "validation", limit=run.limits.num_sanity_val_steps)
        run.hooks.fire("on_sanity_check_end")
    run.logbook.clear()


def train_epoch(run: Run) -> None:
    """One epoch, from wherever it stands: a resumed run enters it at any of its stages."""
    at, hooks = run.progress, run.hooks
    if at.next == Next.START_EPOCH:
        run.train.open(run, at.epoch)
        run.train.set_epoch(at.epoch)
        run.batches.begin_epoch()
        at.batch, at.validated_batches, at.is_last_batch, at.next = 0, 0, False, Next.TAKE_BATCH
        at.drops_window = False
        hooks.fire("on_train_epoch_start")
        if run.limits.stops_now(at):  # asked for in that hook
            at.next = Next.END_EPOCH
    else:  # resumed inside the epoch
        run.train.set_epoch(at.epoch)
    if at.next in (Next.REPORT, Next.VALIDATE, Next.COUNT):
        after_batch(run)
    if at.next == Next.TAKE_BATCH:
        run.mark_window()
        for batch, is_last in run.timing.waiting("data", run.batches.epoch(at.batch)):
            at.is_last_batch, run.boundary = is_last, run.window
            train_batch(run, run.transfer(batch), at.batch)
            if at.next == Next.REPORT:  # type: ignore[comparison-overlap]  # train_batch moves it
                after_batch(run)
            if at.next != Next.TAKE_BATCH:
                break
            run.mark_window()
        else:
            end_short_epoch(run)
    end_epoch(run)


def train_batch(run: Run, batch: Any, batch_idx: int) -> None:
    """Forward, backward, clip, step: the step is made where an accumulation window closes."""
    at, hooks, module, limits, timing = run.progress, run.hooks, run.module, run.limits, run.timing
    optimizer = run.optimizers[0] if run.is_automatic else None
    outputs: dict[str, Any] | None = None
    was_run = False

    def forward_backward() -> Tensor | None:
        nonlocal outputs, was_run
        was_run = True
        outer, hooks.where = hooks.where, "training_step"
        with run.forward_context():
            output = run.training_step(batch, batch_idx) if run.takes_batch_idx else run.training_step(batch)
        if optimizer is None:  # manual optimization: all the rest happens in training_step
            outputs = as_outputs(run, output)
            hooks.where = outer
            return None
        loss, outputs = as_loss(run, output, window)
        hooks.where = outer
        if limits.skip_backward:
            return loss
        if batch_idx % window == 0:
            hooks.fire("on_before_zero_grad", optimizer)
            hooks.call("optimizer_zero_grad", module.optimizer_zero_grad, at.epoch, batch_idx, optimizer)
        if loss is not None:
            backward(run, loss)
        return loss

    if not begin_batch(run, batch, batch_idx):
        return
    window, closes = limits.accumulate_grad_batches, limits.closes_window(batch_idx, at.is_last_batch)
    closure = timing.of("step", forward_backward)
    try:
        if batch is None:
            pass
        elif optimizer is None:
            closure()
        elif run.whole_step is not None and (compiled := run.whole_step(batch, batch_idx, closes)) is not None:
            outputs = compiled  # all of the step is done
            at.step += closes
        elif not closes:
            with run.strategy.no_sync():
                closure()
        else:
            hooks.where = "optimizer_step"
            before = timing.switch("optimizer")
            if run.step is None:
                run.optimizer_step(at.epoch, batch_idx, run.proxies[0], closure)
            else:
                run.step(closure)
            timing.switch(before)
            hooks.where = ""
            at.step += 1
            if not was_run:
                raise MisconfigurationException(
                    f"The closure hasn't been executed: `{type(module).__name__}.optimizer_step` did not run it, so "
                    "nothing was computed. Call `optimizer.step(closure=optimizer_closure)`, or `optimizer_closure()` "
                    "before the step."
                )
    except run.catches as error:  # nothing, unless Trainer(bad_steps=...) watches
        if run.guard is None or not run.guard.answers(error):
            raise
        timing.switch("trainer")
        outputs = {}
    finish_batch(run, outputs, batch, batch_idx)


def begin_batch(run: Run, batch: Any, batch_idx: int) -> bool:
    """Tell that a batch begins. Returns False when the module ends the epoch instead."""
    at = run.progress
    run.is_inside_batch = True
    run.logbook.begin_batch(batch)
    if batch is None:
        run.warn_once("train_dataloader yielded None instead of a batch; such a batch is skipped.")
    elif run.hooks.fire("on_train_batch_start", batch, batch_idx) == -1:
        at.is_last_batch, at.next, run.is_inside_batch, run.boundary = True, Next.END_EPOCH, False, None
        at.total_batches += 1
        run.logbook.give_up_batch()
        step_schedulers(run, "step", given_up=1)
        step_schedulers(run, "epoch")
        return False
    return True


def finish_batch(run: Run, outputs: Any, batch: Any, batch_idx: int) -> None:
    """Step the schedules, write the position, and tell that a batch is done."""
    at = run.progress
    at.batch, at.total_batches = batch_idx + 1, at.total_batches + 1
    if run.schedulers:
        if run.limits.closes_window(batch_idx, at.is_last_batch):
            step_schedulers(run, "step")
        if at.is_last_batch:
            step_schedulers(run, "epoch")
    at.next, run.is_inside_batch, run.boundary = (
        Next.REPORT,
        False,
        None,
    )  # before the event: a checkpoint saved in it must know
    run.hooks.fire("on_train_batch_end", outputs, batch, batch_idx)
    run.logbook.end_batch()


def as_loss(run: Run, output: Any, window: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The loss to go backward from, divided by the accumulation window, and the outputs for on_train_batch_end."""
    if output is None:
        run.warn_once(
            f"`{type(run.module).__name__}.training_step` returned None instead of a loss, so nothing is learnt from "
            "such a batch. Is a `return loss` missing? If it is on purpose, ignore this."
        )
        return None, {}
    loss, outputs = output, dict[str, Any]()
    if not isinstance(output, Tensor):
        try:
            loss, outputs = output["loss"], dict(output)
        except (TypeError, KeyError, IndexError):
            loss = None
        if not isinstance(loss, Tensor):
            raise MisconfigurationException(
                f"`{type(run.module).__name__}.training_step` returned {_describe(output)}, in which automatic "
                "optimization finds no loss. Return the loss as a tensor, a dict with it under 'loss', or None to skip "
                "the batch."
            )
    if not loss.requires_grad and run.checks_grad:
        raise RuntimeError(
            f"The loss that `{type(run.module).__name__}.training_step` returned does not require grad and does not "
            "have a grad_fn, so there is nothing to learn from it. Was it detached, computed under `torch.no_grad()`, "
            "or are all parameters frozen?"
        )
    if loss.numel() != 1 and run.checks_grad:
        raise RuntimeError(
            f"The loss that `{type(run.module).__name__}.training_step` returned has the shape {list(loss.shape)}, but "
            "grad can be implicitly created only for scalar outputs. Reduce it first, for example with `.mean()`."
        )
    if window != 1:
        loss = loss / window
    outputs["loss"] = loss.detach()
    return loss, outputs


def as_outputs(run: Run, output: Any) -> dict[str, Any]:
    """What a manual `training_step` returned, for on_train_batch_end."""
    if output is None:
        return {}
    if isinstance(output, Tensor):
        return {"loss": output.detach()}
    try:
        outputs = dict(output)
    except (TypeError, ValueError):
        raise MisconfigurationException(
            f"`{type(run.module).__name__}.training_step` returned {_describe(output)}. In manual optimization, return "
            "a Tensor, a dict or None."
        ) from None
    if isinstance(outputs.get("loss"), Tensor):
        outputs["loss"] = outputs["loss"].detach()
    return outputs


def _describe(output: Any) -> str:
    if not isinstance(output, dict):
        return f"{output!r} ({type(output).__name__})"
    of_loss = f", where 'loss' is {_describe(output['loss'])}" if "loss" in output else ""
    return f"a dict with the keys {list(output)}{of_loss}"


def backward(run: Run, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """Compute gradients, with the events around it."""
    hooks = run.hooks
    loss = run.precision.scale_loss(loss)
    hooks.fire("on_before_backward", loss)
    outer, hooks.where = hooks.where, "backward"
    run.backward(loss, *args, **kwargs)
    hooks.where = outer
    hooks.fire("on_after_backward")


def before_step(run: Run, optimizer: Optimizer) -> None:
    """What happens to true gradients before the weights change: the event, and clipping."""
    run.hooks.fire("on_before_optimizer_step", optimizer)
    limits = run.limits
    if run.overrides_clipping or limits.gradient_clip_val:
        run.hooks.call(
            "configure_gradient_clipping",
            run.module.configure_gradient_clipping,
            optimizer,
            limits.gradient_clip_val,
            limits.gradient_clip_algorithm,
        )


def manual_step(run: Run, optimizer: Optimizer, closure: Callable[[], Any], **kwargs: Any) -> Any:
    """One `optimizer.step()` that a manual `training_step` makes. Clipping is the user's."""
    fire = partial(run.hooks.fire, "on_before_optimizer_step", optimizer)
    answer = run.precision.step(optimizer, closure, fire, **kwargs)
    run.progress.step += 1
    return answer


def step_schedulers(run: Run, interval: str, plateau: bool = False, given_up: int = 0) -> None:
    """Advance the schedules of this interval: those that follow a metric (`plateau`), or all others.

    A batch that is `given_up`, because the module ended the epoch in its place, counts towards their frequency.
    """
    if not run.is_automatic:
        return
    at = run.progress
    if interval == "step" and at.drops_window:  # no step was made
        return
    done = at.batch + given_up if interval == "step" else at.epoch + 1
    for config in run.schedulers:
        if config.interval != interval or config.reduce_on_plateau != plateau or done % config.frequency:
            continue
        metric = None
        if plateau:
            run.logbook.update()
            metric = monitored_metric(config, run.logbook.callback)
            if metric is None:
                continue
        run.hooks.call("lr_scheduler_step", run.module.lr_scheduler_step, config.scheduler, metric)
        at.schedule_steps += 1


def after_batch(run: Run) -> None:
    """Log, validate and count, once a batch is trained. A resumed run enters it at any of its stages."""
    at, limits, book = run.progress, run.limits, run.logbook
    closes = limits.closes_window(at.batch - 1, at.is_last_batch)
    if at.next == Next.REPORT:
        if closes and limits.logs_now(at):
            book.report(book.update()[0], at.stepped_batches, at.epoch)  # waits for the device
        at.next = Next.VALIDATE
    if at.next == Next.VALIDATE:
        if run.validates and limits.validation_due(at):
            validate(run, then=Next.COUNT, clear_gradients=closes)
        at.next = Next.COUNT
    if closes:
        if run.schedulers:
            step_schedulers(run, "step", plateau=True)
        at.stepped_batches += 1
        at.drops_window = False
    if at.is_last_batch or limits.steps_reached(at) or limits.stops_now(at):
        at.next = Next.END_EPOCH
    else:
        at.next = Next.TAKE_BATCH
    run.check_signals()


def end_short_epoch(run: Run) -> None:
    """The loader ended before the length it gave: do what was left for the last batch.

    Raises:
        MisconfigurationException: it gave nothing at all.
    """
    at = run.progress
    if not at.batch:
        raise MisconfigurationException(
            f"`{run.train.name}` gave no batch in epoch {at.epoch}. Is it a generator, which can be walked once? Give "
            "a DataLoader, or an object whose `__iter__` begins anew."
        )
    rank_zero_warn(
        f"The train loader gave {at.batch} batches in epoch {at.epoch}, but its length says {run.train.num_batches}. "
        "The epoch ends here, without a step for a window of accumulated gradients that is still open."
    )
    at.is_last_batch, at.next = True, Next.END_EPOCH
    step_schedulers(run, "epoch")
    if run.validates and run.limits.validates_at_epoch_end and run.limits.validates_in_epoch(at.epoch):
        validate(run, then=Next.END_EPOCH, clear_gradients=True)


def end_epoch(run: Run) -> None:
    """The hooks, schedules and logs of an epoch's end."""
    at, book = run.progress, run.logbook
    if at.next == Next.END_EPOCH:
        book.end_batches()
        at.next = Next.FINISH_EPOCH
        run.hooks.fire("on_train_epoch_end")
        book.end_epoch()
    if at.is_last_batch:
        step_schedulers(run, "epoch", plateau=True)
    book.report(book.update()[0], at.stepped_batches - 1, at.epoch)  # waits for the device
    run.training_results.reset()
    at.epoch, at.next = at.epoch + 1, Next.START_EPOCH
    run.check_signals()


def validate(run: Run, then: Next, clear_gradients: bool) -> None:
    """Validation inside fit; training goes on with `then` as if it had not been."""
    run.state.stage = RunningStage.VALIDATING
    run.enter_validation()
    if clear_gradients:  # else an open accumulation window would lose them
        run.hooks.call("on_validation_model_zero_grad", run.module.on_validation_model_zero_grad)
    first_batch = run.training_results.first_batch
    with run.apart(), run.timing.during("validation", is_whole=True), torch.no_grad():
        evaluate(run, run.val, "validation", then=then)
    run.boundary, run.training_results.first_batch = None, first_batch
    run.logbook.results = run.training_results
    run.state.stage = RunningStage.TRAINING
    run.limits.last_validation_at_s = time.monotonic()


def evaluate(
    run: Run, loaders: Loaders, kind: str, limit: int | float | None = None, then: Next | None = None
) -> list[dict[str, Tensor]]:
    """Run the module over evaluation loaders ("validation" or "test"), with all hooks, and log what it logs.

    Returns:
        One dict per loader of what was logged, as tensors.
    """
    hooks, book, module, at = run.hooks, run.logbook, run.module, run.progress
    is_sanity = run.state.stage is RunningStage.SANITY_CHECKING
    if not loaders.open(run, at.epoch):
        return []
    run.check_dataloader_idx(kind, loaders)
    loaders.set_epoch(at.epoch)
    book.update()
    results = book.results = run.evaluation_results
    results.reset()
    results.first_batch = run.training_results.first_batch  # until the first batch, steps are shown as before
    run.modes = training_modes(module)
    hooks.call(f"on_{kind}_model_eval", getattr(module, f"on_{kind}_model_eval"))
    hooks.fire(f"on_{kind}_start")
    hooks.fire(f"on_{kind}_epoch_start")

    start, end, step_name = f"on_{kind}_batch_start", f"on_{kind}_batch_end", f"{kind}_step"
    evaluation_step = run.evaluation_step(step_name)
    outputs: list[dict[str, Tensor]] = []
    for idx, stream in loaders.streams(at.epoch, limit):
        # hooks and steps hear of the loader only where there are several
        which = (idx,) if loaders.is_several else ()
        results.dataloader_idx = idx if loaders.is_several else None
        for batch_idx, batch in enumerate(run.timing.waiting("data", stream)):
            batch = run.transfer(batch, idx)
            book.begin_batch(batch, idx if loaders.is_several else None)
            hooks.fire(start, batch, batch_idx, *which)
            hooks.where = step_name
            with run.forward_context():
                output = evaluation_step(batch, batch_idx, *which)
            hooks.where = ""
            hooks.fire(end, output, batch, batch_idx, *which)
            book.end_batch()
            if not is_sanity:
                at.validated_batches += 1
                if results.logs_steps:
                    book.report(book.update()[0], loaders.seen[idx], None)  # waits for the device
                loaders.seen[idx] += 1
            run.check_signals()
            del batch, output  # not alive beside those of the next step
        outputs.append(book.end_batches(shows=not is_sanity))
    results.dataloader_idx = None
    hooks.fire(f"on_{kind}_epoch_end")
    at_end = book.end_epoch()
    outputs = [{**output, **at_end} for output in outputs]
    if not is_sanity:
        book.report({k: v for output in outputs for k, v in output.items()}, at.stepped_batches, at.epoch)
    if then is not None:
        at.next = then  # before the event: a checkpoint saved in it must know
        run.leave_validation()
    hooks.fire(f"on_{kind}_end")
    results.reset()
    if run.overrides(f"on_{kind}_model_train"):
        hooks.call(f"on_{kind}_model_train", getattr(module, f"on_{kind}_model_train"))
    else:
        restore_modes(run.modes)
    run.modes = {}
    return outputs


def predict(run: Run, loaders: Loaders, keep: bool) -> list[list[Any]]:
    """Run `predict_step` over the loaders. Returns, if `keep`, one list of outputs per loader, on the CPU."""
    hooks, module = run.hooks, run.module
    if not loaders.open(run, run.progress.epoch):
        return []
    run.check_dataloader_idx("predict", loaders)
    run.modes = training_modes(module)
    hooks.call("on_predict_model_eval", module.on_predict_model_eval)
    hooks.fire("on_predict_start")
    hooks.fire("on_predict_epoch_start")
    predict_step = run.evaluation_step("predict_step")
    predictions: list[list[Any]] = []
    for idx, stream in loaders.streams(run.progress.epoch):
        which = (idx,) if loaders.is_several else ()
        predictions.append([])
        for batch_idx, batch in enumerate(run.timing.waiting("data", stream)):
            batch = run.transfer(batch, idx)
            hooks.fire("on_predict_batch_start", batch, batch_idx, *which)
            hooks.where = "predict_step"
            with run.forward_context():
                output = predict_step(batch, batch_idx, *which)
            hooks.where = ""
            if output is None:
                run.warn_once("predict_step returned None for a batch, so the predictions have None for it.")
            hooks.fire("on_predict_batch_end", output, batch, batch_idx, *which)
            if keep:
                predictions[idx].append(run.to_cpu(output))
            run.check_signals()
            del batch, output  # not alive beside those of the next step
    hooks.fire("on_predict_epoch_end")
    hooks.fire("on_predict_end")
    restore_modes(run.modes)
    run.modes = {}
    return predictions
