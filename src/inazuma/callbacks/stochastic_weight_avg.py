"""Stochastic weight averaging: the mean of the weights over the last epochs, at a learning rate held up for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR, AveragedModel, get_swa_avg_fn

from inazuma.callbacks.callback import Callback
from inazuma.errors import MisconfigurationException
from inazuma.optim import LRSchedulerConfig
from inazuma.ranks import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from inazuma.module import LightningModule
    from inazuma.trainer import Trainer


class StochasticWeightAveraging(Callback):
    """Average the weights over the last epochs, and give the module the average when training ends.

    From the start epoch on, the weights with which an epoch begins enter the average, and the learning rate goes to
    `swa_lrs` and stays there, instead of following the module's scheduler. A module with batch norm gets one more epoch
    of forward passes only, which measures the statistics of the averaged weights. If training stops before
    `max_epochs`, the module keeps its own weights. With `max_epochs=-1` it gets the average wherever training stops;
    as there is no last epoch to add one to, batch norm then keeps its statistics.

    Args:
        swa_lrs: the learning rate to go to: one, or one for each parameter group.
        swa_epoch_start: the first epoch to average: its number, counted from 1, or a share of `max_epochs`.
        annealing_epochs: epochs in which the learning rate goes there; 0 at once.
        annealing_strategy: how: "cos" or "linear".
        avg_fn: the new average, from the tensors (average, current, number averaged so far). Default: the mean.
        device: where the average is kept; None for the device of the module.

    Raises:
        MisconfigurationException: an argument is none of these.

    Source: Izmailov et al., 2018, https://arxiv.org/abs/1803.05407.
    """

    _avg_fn: Callable[..., Tensor]
    _average: AveragedModel | None
    _scheduler: SWALR | None  # once it is in force
    _latest_update_epoch: int
    _restored: dict[str, Any] | None  # the state in the checkpoint that is being restored
    _refresh_epoch: int | None  # the epoch added for batch norm
    _momenta: dict[_BatchNorm, float | None]  # the module's own, while another one is in force

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: str = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | None = "cpu",
    ) -> None:
        super().__init__()
        lrs = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not lrs or not all(isinstance(lr, float) and lr > 0 for lr in lrs):
            raise _bad("swa_lrs", swa_lrs, "Give a float above 0, or a list of them for the groups.")
        is_number = isinstance(swa_epoch_start, int) and swa_epoch_start >= 1
        is_share = isinstance(swa_epoch_start, float) and 0 <= swa_epoch_start <= 1
        if not (is_number or is_share):
            raise _bad(
                "swa_epoch_start",
                swa_epoch_start,
                "Give the number of an epoch, 1 or more, or a share of all epochs from 0.0 to 1.0.",
            )
        if not isinstance(annealing_epochs, int) or annealing_epochs < 0:
            raise _bad("annealing_epochs", annealing_epochs, "It is a number of epochs, 0 or more.")
        if annealing_strategy not in ("cos", "linear"):
            raise _bad("annealing_strategy", annealing_strategy, "Use 'cos' or 'linear'.")
        if avg_fn is not None and not callable(avg_fn):
            raise _bad("avg_fn", avg_fn, "The `avg_fn` should be callable.")
        if device is not None and not isinstance(device, (torch.device, str)):
            raise _bad("device", device, "Give a torch.device, its name, or None for the module's.")
        self._swa_lrs = swa_lrs
        self._swa_epoch_start = swa_epoch_start
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy = annealing_strategy
        self._avg_fn = avg_fn or get_swa_avg_fn()  # type: ignore[no-untyped-call]
        self._device = device
        self._forget()

    @property
    def swa_start(self) -> int:
        """The index of the first epoch to average, from 0; known when fit has started."""
        return self._start

    @property
    def swa_end(self) -> float:
        """The index of the last epoch to average, from 0: that of `max_epochs`, or inf; known when fit has started."""
        return self._max_epochs - 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the epochs.

        Raises:
            MisconfigurationException: not one optimizer, several schedulers, or no epoch to average.
        """
        self._check_optimizers(trainer)
        self._plan_epochs(trainer)
        refreshes = self._max_epochs != math.inf and any(isinstance(m, _BatchNorm) for m in pl_module.modules())
        if refreshes and not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "SWA of a module with batch norm needs an epoch without optimizer steps, but in manual optimization "
                f"`{type(pl_module).__name__}.training_step` makes the steps. Use automatic optimization."
            )
        device = pl_module.device if self._device is None else torch.device(self._device)
        self._average = AveragedModel(pl_module, device=device, avg_fn=self._avg_fn)
        if self._restored is not None:
            self._take_restored(trainer, self._restored)
        if refreshes:
            assert trainer.fit_loop.max_epochs is not None
            self._refresh_epoch = trainer.fit_loop.max_epochs
            trainer.fit_loop.max_epochs += 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self._refresh_epoch:  # perhaps resumed inside of it
            self._begin_refresh(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.swa_start <= epoch <= self.swa_end:
            if self._scheduler is None:
                self._replace_scheduler(trainer)
            if epoch > self._latest_update_epoch:
                assert self._average is not None
                self._average.update_parameters(pl_module)
                self._latest_update_epoch = epoch
        elif epoch == self._refresh_epoch:
            self._give_average(pl_module)
            self._begin_refresh(trainer, pl_module)
            for batch_norm in self._momenta:
                batch_norm.reset_running_stats()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_refresh(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_over(trainer):  # else the epoch that refreshes batch norm has done it
            self._give_average(pl_module)
        elif self._max_epochs == math.inf:
            rank_zero_warn(
                f"StochasticWeightAveraging: training stopped after {trainer.current_epoch} epochs, before there was "
                f"anything to average (swa_epoch_start={self._swa_epoch_start}). The module keeps its own weights."
            )
        elif trainer.current_epoch < self._max_epochs:
            rank_zero_warn(
                f"StochasticWeightAveraging: training stopped after {trainer.current_epoch} of {self._max_epochs} "
                "epochs, so the module keeps its own weights instead of the average. If it should stop there, set "
                "max_epochs to it."
            )
        self._restore_trainer(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_over(trainer):  # perhaps resumed where nothing was left to train
            self._give_average(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_trainer(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_trainer(trainer)  # where nothing was left to train

    def state_dict(self) -> dict[str, Any]:
        average = self._average
        return {
            "n_averaged": 0 if average is None else int(average.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if self._scheduler is None else self._scheduler.state_dict(),
            "average_model_state": None if average is None else average.module.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def _forget(self) -> None:
        """Begin anew: a callback may serve several calls of `fit`."""
        self._start, self._max_epochs = 0, 0.0
        self._average = self._scheduler = self._restored = self._refresh_epoch = None
        self._latest_update_epoch = -1
        self._momenta = {}
        self._window: int | None = None  # the accumulation of the Trainer, while the refresh has its own

    def _check_optimizers(self, trainer: Trainer) -> None:
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                "SWA currently works with 1 `optimizer`; `configure_optimizers` returned "
                f"{len(trainer.optimizers)}. Return one, or remove StochasticWeightAveraging."
            )
        if len(trainer.lr_scheduler_configs) > 1:
            raise MisconfigurationException(
                "SWA takes the place of the `lr_scheduler`, and of only one: `configure_optimizers` returned "
                f"{len(trainer.lr_scheduler_configs)}. Return one, or none."
            )
        groups = len(trainer.optimizers[0].param_groups)
        if isinstance(self._swa_lrs, list) and len(self._swa_lrs) != groups:
            raise _bad(
                "swa_lrs",
                self._swa_lrs,
                f"The optimizer has {groups} parameter group(s): give as many learning rates, or one number for all.",
            )

    def _plan_epochs(self, trainer: Trainer) -> None:
        start = self._swa_epoch_start
        self._max_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
        if isinstance(start, float):
            if self._max_epochs == math.inf:
                raise _bad(
                    "swa_epoch_start",
                    start,
                    "SWA with `swa_epoch_start` as a float is not supported when `max_epochs=-1`: there is no "
                    "number of epochs to take this share of. Give the number of an epoch, or Trainer(max_epochs=...).",
                )
            start = int(self._max_epochs * start)
        self._start = max(start - 1, 0)
        if self._start >= self._max_epochs > 0 and not trainer.fast_dev_run:
            raise _bad(
                "swa_epoch_start",
                self._swa_epoch_start,
                f"Trainer(max_epochs={self._max_epochs}) ends before, so nothing would be averaged.",
            )

    def _is_over(self, trainer: Trainer) -> bool:
        """Whether training has reached the moment at which the average replaces the weights."""
        if self._max_epochs == math.inf:
            assert self._average is not None
            return bool(self._average.n_averaged > 0)
        return trainer.current_epoch == self._max_epochs

    def _take_restored(self, trainer: Trainer, state: dict[str, Any]) -> None:
        assert self._average is not None
        self._latest_update_epoch = state["latest_update_epoch"]
        self._average.n_averaged.fill_(state["n_averaged"])
        if state["average_model_state"] is not None:
            self._average.module.load_state_dict(state["average_model_state"])
        if state["scheduler_state"] is not None:  # the Trainer is about to restore it, and the optimizer
            self._replace_scheduler(trainer)

    def _replace_scheduler(self, trainer: Trainer) -> None:
        configs = trainer.lr_scheduler_configs
        rates = [self._swa_lrs] if isinstance(self._swa_lrs, (int, float)) else self._swa_lrs
        groups = trainer.optimizers[0].param_groups
        for group, rate in zip(groups, rates * len(groups) if len(rates) == 1 else rates, strict=True):
            group["initial_lr"] = rate  # the base rate that a checkpoint of Lightning's holds
        self._scheduler = SWALR(
            trainer.optimizers[0],
            swa_lr=self._swa_lrs,  # type: ignore[arg-type]  # torch takes a list, too
            anneal_epochs=self._annealing_epochs,
            anneal_strategy=self._annealing_strategy,  # type: ignore[arg-type]  # checked in __init__
            last_epoch=(trainer.max_epochs or -1) if self._annealing_strategy == "cos" else -1,
        )
        if not configs:
            configs.append(LRSchedulerConfig(self._scheduler))
            return
        replaced = configs[0]
        if replaced.interval != "epoch" or replaced.frequency != 1:
            rank_zero_warn(f"SWA steps once per epoch. Its schedule replaces {replaced}, which steps otherwise.")
        rank_zero_info(f"Swapping scheduler `{type(replaced.scheduler).__name__}` for `SWALR`")
        configs[0] = LRSchedulerConfig(self._scheduler)

    def _give_average(self, module: nn.Module) -> None:
        assert self._average is not None
        if self._average.n_averaged > 0:  # 0: a fast_dev_run that ends before the start epoch
            for current, average in zip(module.parameters(), self._average.module.parameters(), strict=True):
                current.detach().copy_(average)

    def _begin_refresh(self, trainer: Trainer, module: nn.Module) -> None:
        """From here on batches only pass forward, and batch norm takes the plain mean over all of them."""
        trainer.fit_loop.skip_backward = True
        module.zero_grad()  # the one step at the end of the epoch has nothing to apply
        self._window = trainer.accumulate_grad_batches
        if trainer.num_training_batches != math.inf:
            trainer.accumulate_grad_batches = int(trainer.num_training_batches) + 1  # closed by the last batch alone
        for child in module.modules():
            if isinstance(child, _BatchNorm) and child.training and child not in self._momenta:
                self._momenta[child], child.momentum = child.momentum, None  # one in eval mode is frozen: it stays

    def _end_refresh(self, trainer: Trainer) -> None:
        trainer.fit_loop.skip_backward = False
        if self._window is not None:
            trainer.accumulate_grad_batches, self._window = self._window, None
        for batch_norm, momentum in self._momenta.items():
            batch_norm.momentum = momentum
        self._momenta = {}

    def _restore_trainer(self, trainer: Trainer) -> None:
        self._end_refresh(trainer)
        if self._refresh_epoch is not None:
            trainer.fit_loop.max_epochs = self._refresh_epoch
            self._refresh_epoch = None


def _bad(argument: str, value: object, why: str) -> MisconfigurationException:
    return MisconfigurationException(f"StochasticWeightAveraging({argument}={value!r}): {why}")
