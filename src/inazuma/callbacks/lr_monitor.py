"""Hand learning rates to the loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from inazuma.callbacks.callback import Callback
from inazuma.errors import MisconfigurationException

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class LearningRateMonitor(Callback):
    """Log the learning rates of all optimizers, under names such as `lr-Adam`.

    A second Adam is `lr-Adam-1`. Several parameter groups are `lr-Adam/pg1`, `lr-Adam/pg2`, or carry the "name" of
    their group: `lr-Adam/backbone`. The "name" in a scheduler's config takes the place of `lr-Adam`. What was logged
    under a name without group becomes that of the first group, when groups are added in training.

    `lrs` keeps all learning rates that were logged, by name; `last_momentum_values` and `last_weight_decay_values` the
    last ones. The values also stand in `trainer.callback_metrics`.

    Args:
        logging_interval: "step", "epoch", or None for what the "interval" of each scheduler says, and both for an
            optimizer without one. Steps are logged every `Trainer(log_every_n_steps=...)`.
        log_momentum: also log momentum, or Adam's first beta: `lr-SGD-momentum`.
        log_weight_decay: also log weight decay: `lr-SGD-weight_decay`.

    Raises:
        MisconfigurationException: another `logging_interval`.
    """

    def __init__(
        self, logging_interval: str | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        super().__init__()
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): `logging_interval` can be 'step', "
                "'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the names.

        Raises:
            MisconfigurationException: no logger, or two parameter groups of one optimizer have one name.
        """
        if not trainer.loggers:
            raise MisconfigurationException(
                "Cannot use `LearningRateMonitor` without a logger: there is nowhere to log the rates to. Remove the "
                "callback, or give Trainer(logger=...)."
            )
        groups = [name for optimizer, prefix, _ in _optimizers(trainer) for name, _ in _groups(optimizer, prefix)]
        self.lrs = {name: [] for name in groups}
        self.last_momentum_values = {f"{name}-momentum": None for name in groups}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in groups}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        every, done = trainer.log_every_n_steps, trainer.fit_loop.epoch_loop._batches_that_stepped
        if every and ((done + 1) % every == 0 or trainer.should_stop):
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, "epoch")

    def _log(self, trainer: Trainer, interval: str) -> None:
        if self.logging_interval not in (None, interval):
            return
        values: dict[str, float] = {}
        for optimizer, prefix, own_interval in _optimizers(trainer):
            if self.logging_interval is None and own_interval not in (None, interval):
                continue
            for name, group in _groups(optimizer, prefix):
                values.update(self._read(name, group))
        if not values:
            return
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({name: torch.tensor(value, device=device) for name, value in values.items()})

    def _read(self, name: str, group: dict[str, Any]) -> dict[str, float]:
        """The values of one parameter group, which are also kept here."""
        values = {name: float(group["lr"])}  # waits for the GPU where the rate is a tensor there
        if name not in self.lrs:  # of a group that was added meanwhile
            only_group = name.removesuffix("/pg1")
            self.lrs[name] = self.lrs.pop(only_group, []) if only_group != name else []
        self.lrs[name].append(values[name])
        if self.log_momentum:
            key = f"{name}-momentum"
            betas = group.get("betas")
            values[key] = self.last_momentum_values[key] = float(betas[0] if betas else group.get("momentum", 0))
        if self.log_weight_decay:
            key = f"{name}-weight_decay"
            values[key] = self.last_weight_decay_values[key] = float(group.get("weight_decay", 0))
        return values


def _optimizers(trainer: Trainer) -> Iterator[tuple[Optimizer, str, str | None]]:
    """Each optimizer of a scheduler, then those without one: optimizer, name, interval of the scheduler if any."""
    names = _Names()
    scheduled: list[Optimizer] = []
    for config in trainer.lr_scheduler_configs:
        optimizer = getattr(config.scheduler, "optimizer", None)
        if optimizer is not None:  # a scheduler of the user's own kind need not have it
            scheduled.append(optimizer)
            yield optimizer, names.give(optimizer, config.name), config.interval
    for optimizer in trainer.optimizers:
        if not any(optimizer is other for other in scheduled):
            yield optimizer, names.give(optimizer, None), None


class _Names:
    """Lightning's names: the number behind a name counts the optimizers of its class that have no name of their own."""

    def __init__(self) -> None:
        self._unnamed: Counter[type[Optimizer]] = Counter()
        self._taken: set[str] = set()

    def give(self, optimizer: Optimizer, own: str | None) -> str:
        kind = type(optimizer)
        self._unnamed[kind] += own is None
        name = f"lr-{kind.__name__}" if own is None else own
        count = self._unnamed[kind] - 1
        numbered = f"{name}-{count}" if count > 0 else name
        while numbered in self._taken:  # where Lightning would lose one of the two
            count = max(count, 0) + 1
            numbered = f"{name}-{count}"
        self._taken.add(numbered)
        return numbered


def _groups(optimizer: Optimizer, prefix: str) -> list[tuple[str, dict[str, Any]]]:
    """The parameter groups and their names."""
    groups = optimizer.param_groups
    if len(groups) == 1 and "name" not in groups[0]:
        return [(prefix, groups[0])]
    names = [str(group.get("name", f"pg{number}")) for number, group in enumerate(groups, start=1)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise MisconfigurationException(
            f"{prefix} has duplicated parameter group names {twice}, and learning rates are logged by these names. "
            "Give each group of the optimizer its own."
        )
    return [(f"{prefix}/{name}", group) for name, group in zip(names, groups, strict=True)]
