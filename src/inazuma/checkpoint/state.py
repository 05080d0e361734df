"""What a checkpoint holds: one list of parts, read in two directions by `gather` and `restore_*`.

Lightning's keys stay where Lightning puts them, so that files are exchanged both ways; what an exact resume needs
besides stands under the one key "inazuma":

    epoch, global_step, pytorch-lightning_version      for readers
    state_dict                                         the module
    loops                                              the position as Lightning writes it (checkpoint/foreign.py)
    callbacks, optimizer_states, lr_schedulers         their states, by state_key and by order
    <precision class>, <datamodule class>              theirs, where they have any
    hparams_name, hyper_parameters, datamodule_…       arguments of `__init__`
    inazuma                                            position, random generators, loaders, logged values, gradients;
                                                       with `Trainer(bad_steps=...)`, what a window that is open did;
                                                       the note on the file (callbacks/saved.py)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inazuma.checkpoint.foreign import from_loops, to_loops
from inazuma.checkpoint.layout import problem
from inazuma.checkpoint.plain import refuse_objects
from inazuma.errors import CheckpointError, MisconfigurationException
from inazuma.files import weights_of
from inazuma.hparams import dump_hparams
from inazuma.optim import optimizer_to
from inazuma.progress import Next
from inazuma.ranks import rank_zero_warn

if TYPE_CHECKING:
    from inazuma.run import Run

LIGHTNING_VERSION = "2.6.6"  # whose layout this is
FORMAT = 1  # of what stands under "inazuma"


def gather(run: Run, weights_only: bool = False) -> dict[str, Any]:
    """Everything a run needs to go on from here.

    Args:
        run: the run.
        weights_only: leave out what only training needs.

    Raises:
        CheckpointError: a state, or what a hook added, holds an object that is no plain data; its place is named.
    """
    at, module, datamodule = run.position(), run.module, run.datamodule
    if run.is_inside_batch and run.boundary is None and run.hooks.where != "on_exception":
        run.warn_once(
            f"A checkpoint was saved inside a batch (in `{run.hooks.where}`). A run resumed from it repeats the batch, "
            "and is exact only if the code that calls `save_checkpoint` stands in a method of the module or callback "
            "whose hook it is called from. Save in `on_train_batch_end` instead."
        )
    checkpoint: dict[str, Any] = {
        "epoch": at.epoch,
        "global_step": at.step,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": run.strategy.module_state(),
        "loops": to_loops(at, run),
    }
    if run.boundary is not None:
        checkpoint["state_dict"].update(run.boundary.buffers)
    if not weights_only:
        states = ((callback.state_key, callback.state_dict()) for callback in run.callbacks)
        checkpoint["callbacks"] = {key: state for key, state in states if state}
        checkpoint["optimizer_states"] = [optimizer.state_dict() for optimizer in run.optimizers]
        checkpoint["lr_schedulers"] = [config.scheduler.state_dict() for config in run.schedulers]
        if precision_state := run.precision.state_dict():
            checkpoint[type(run.precision).__qualname__] = precision_state
    dump_hparams(module, checkpoint)
    if datamodule is not None:
        dump_hparams(datamodule, checkpoint)
        if datamodule_state := run.hooks.call("state_dict", datamodule.state_dict):
            checkpoint[type(datamodule).__qualname__] = datamodule_state
    if not weights_only:
        checkpoint["inazuma"] = {
            "format": FORMAT,
            "progress": at.state_dict(),
            "rng": run.rng_state(),
            "batches": run.batches_state(),
            "logbook": run.logbook_state(),
            "gradients": run.open_gradients(),
            "loggers": [logger.position() for logger in run.logbook.loggers],
        }
        if run.guard is not None:
            checkpoint["inazuma"]["bad_steps"] = run.guard.state_dict(at)
        for callback in run.callbacks:
            run.hooks.call("on_save_checkpoint", callback.on_save_checkpoint, *run.hooks.seen_by_callbacks, checkpoint)
    run.hooks.call("on_save_checkpoint", module.on_save_checkpoint, checkpoint)
    refuse_objects(checkpoint)
    return checkpoint


def restore_module(run: Run, checkpoint: dict[str, Any], path: Any) -> None:
    """Load weights, and let module, datamodule and callbacks take back what they saved.

    Raises:
        CheckpointError: the file has no weights.
        RuntimeError: they do not fit the module; the keys are named.
    """
    module, datamodule, hooks = run.module, run.datamodule, run.hooks
    hooks.call("on_load_checkpoint", module.on_load_checkpoint, checkpoint)
    try:
        run.strategy.load_module_state(weights_of(checkpoint, path), strict=module.strict_loading)
    except RuntimeError as error:
        raise RuntimeError(
            f"The weights in checkpoint {path} do not fit `{type(module).__name__}`: {error}\n"
            "Build the module as it was when the file was written. `self.strict_loading = False` in its `__init__` "
            "leaves out keys that are missing or unexpected."
        ) from error
    if datamodule is not None and (state := checkpoint.get(type(datamodule).__qualname__)) is not None:
        hooks.call("load_state_dict", datamodule.load_state_dict, state)
    if "callbacks" not in checkpoint:  # weights only
        return
    states: Mapping[Any, Any] = checkpoint["callbacks"]
    if not isinstance(states, Mapping):
        raise CheckpointError(
            f"Checkpoint {path} holds a {type(states).__name__} as the states of callbacks, not a dictionary: it is "
            "damaged, or something else wrote it. Its weights can be loaded with `load_from_checkpoint`."
        )
    for callback in run.callbacks:
        hooks.call("on_load_checkpoint", callback.on_load_checkpoint, *run.hooks.seen_by_callbacks, checkpoint)
    if not states:
        return
    known = {callback.state_key for callback in run.callbacks} | {
        callback._legacy_state_key for callback in run.callbacks
    }
    if missing := [str(key) for key in states if key not in known]:
        rank_zero_warn(
            "The checkpoint has the state of callbacks that this Trainer lacks, and that state is not used. "
            f"Please add the following callbacks: {missing}."
        )
    for callback in run.callbacks:
        state = states.get(callback.state_key, states.get(callback._legacy_state_key))
        if state:
            hooks.call("load_state_dict", callback.load_state_dict, copy.deepcopy(state))


def restore_training(run: Run, checkpoint: dict[str, Any], path: Any) -> None:
    """Bring precision, position, optimizers, schedules, loaders, logged values and random generators back.

    Raises:
        KeyError: the file holds weights only.
        CheckpointError: other optimizers or schedules than this run has.
        MisconfigurationException: the file is further on than `max_epochs`.
    """
    name = type(run.precision).__qualname__
    if name in checkpoint:
        run.precision.load_state_dict(checkpoint[name])
    try:
        _restore_position(run, checkpoint, path)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"The position in checkpoint {path} cannot be read ({error!r}): it is damaged, or something else wrote it. "
            "Its weights can be loaded with `load_from_checkpoint`."
        ) from error
    for key in ("optimizer_states", "lr_schedulers"):
        if key not in checkpoint:
            raise KeyError(
                f"Trying to restore training state but checkpoint {path} contains only the model: it has no {key!r}. "
                "`ModelCheckpoint(save_weights_only=True)` saves such files. Load it with "
                "`load_from_checkpoint`, or pass it to validate, test or predict."
            )
    limits, at = run.limits, run.progress
    if limits.max_epochs not in (None, -1) and at.epoch > limits.max_epochs:
        raise MisconfigurationException(
            f"The checkpoint has current_epoch={at.epoch}, which is beyond "
            f"Trainer(max_epochs={limits.max_epochs}). `max_epochs` counts from the first epoch of the run, resumes "
            f"included: use more than {at.epoch}."
        )
    _load_each("optimizers", checkpoint["optimizer_states"], run.optimizers, path)
    for optimizer in run.optimizers:
        optimizer_to(optimizer, run.strategy.root_device)
    _load_each("lr_schedulers", checkpoint["lr_schedulers"], [c.scheduler for c in run.schedulers], path)


def _restore_position(run: Run, checkpoint: dict[str, Any], path: Any) -> None:
    own = checkpoint.get("inazuma")
    if own is not None and "note" in own:
        run.id = str(own["note"]["run"])
    if own is None or set(own) == {"note"}:  # of Lightning, or weights only
        if "loops" in checkpoint:
            from_loops(checkpoint["loops"], checkpoint, run)
    else:
        if own["format"] > FORMAT:
            raise CheckpointError(
                f"Checkpoint {path} was written by a newer inazuma (format {own['format']}; this one knows {FORMAT}). "
                "Update inazuma to resume from it; the weights can be loaded with `load_from_checkpoint`."
            )
        if (found := problem(own)) is not None:
            raise CheckpointError(
                f"The training state in checkpoint {path} cannot be read: {found}. The file is damaged, or another "
                "version of inazuma wrote it. Its weights can be loaded with `load_from_checkpoint`."
            )
        run.progress.load_state_dict(own["progress"])
        if own["batches"] is not None:
            run.batches.load_state_dict(own["batches"])
        for name, parameter in run.module.named_parameters():
            if (gradient := own["gradients"].get(name)) is not None:
                parameter.grad = gradient.to(parameter.device, copy=True)
        if run.guard is not None:
            run.guard.load_state_dict(own.get("bad_steps"))
        run.resume, run.resume_path = own, path
    _resume_loggers(run, own)
    run.resumes_inside_an_epoch = run.progress.next not in (Next.START_EPOCH, Next.FINISH_EPOCH)


def _resume_loggers(run: Run, own: dict[str, Any] | None) -> None:
    at, loggers = run.progress, run.logbook.loggers
    positions: list[Any] = [] if own is None else own.get("loggers", [])
    if len(positions) != len(loggers):  # other loggers than those of the file
        positions = [None] * len(loggers)
    step = at.stepped_batches + (at.next in (Next.VALIDATE, Next.COUNT))  # there the step of the batch is logged
    for logger, position in zip(loggers, positions, strict=True):
        logger.resume(position, step)


def _load_each(what: str, states: list[Any], objects: list[Any], path: Any) -> None:
    count = len(states) if isinstance(states, list) else "no list of them"
    if count != len(objects):
        raise CheckpointError(
            f"{what}: checkpoint {path} has {count}, this run has {len(objects)}. `configure_optimizers` must "
            "return as many as in the run that wrote the file."
        )
    for index, (state, target) in enumerate(zip(states, objects, strict=True)):
        try:
            target.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{what}[{index}] of checkpoint {path} does not fit this run: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{what}[{index}] of checkpoint {path} cannot be loaded: {error!r}.") from error
