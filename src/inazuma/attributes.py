"""The attributes of a Trainer: what it shows of its run, and lets be set."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from inazuma.callbacks.callback import Callback
from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.callbacks.early_stopping import EarlyStopping
from inazuma.callbacks.progress import ProgressBar
from inazuma.datamodule import LightningDataModule
from inazuma.hooks import overrides
from inazuma.loggers.logger import Logger
from inazuma.loggers.utilities import DirectoryLogger
from inazuma.module import LightningModule
from inazuma.optim import LightningOptimizer, LRSchedulerConfig
from inazuma.precision.precision import Precision
from inazuma.progress import Limits, Progress
from inazuma.run import Run
from inazuma.signals import Signals
from inazuma.states import RunningStage, TrainerState, TrainerStatus
from inazuma.strategies.strategy import Strategy
from inazuma.views import FitLoopView

T = TypeVar("T")


class _OfLimits(Generic[T]):
    """An attribute of the Trainer that lives in `Limits`, and may be set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Attributes, owner: type) -> T:
        return getattr(trainer.limits, self.name)  # type: ignore[no-any-return]

    def __set__(self, trainer: Attributes, value: T) -> None:
        setattr(trainer.limits, self.name, value)


class _InStage:
    """`trainer.training` and its like: whether that stage runs; may be set."""

    def __init__(self, stage: RunningStage) -> None:
        self.stage = stage

    def __get__(self, trainer: Attributes, owner: type) -> bool:
        return trainer.state.stage is self.stage

    def __set__(self, trainer: Attributes, value: bool) -> None:
        if value:
            trainer.state.stage = self.stage
        elif trainer.state.stage is self.stage:
            trainer.state.stage = None


class Attributes:
    """Reads from the run, the limits, the callbacks and the loggers of a Trainer. Holds nothing of its own."""

    state: TrainerState
    limits: Limits
    progress: Progress
    strategy: Strategy
    precision_plugin: Precision
    default_root_dir: str
    _run: Run | None
    _module: LightningModule | None
    _datamodule: LightningDataModule | None
    _callbacks: list[Callback]
    _loggers: list[Logger]
    _signals: Signals
    _ckpt_path: Any
    _user_managed_ckpt_path: bool

    @property
    def _of_run(self) -> Run:
        if self._run is None:
            raise RuntimeError("No run yet: call fit, validate, test or predict first.")
        return self._run

    # The module and its parts

    @property
    def lightning_module(self) -> Any:
        """The module of the last call."""
        return self._module

    @property
    def model(self) -> nn.Module | None:
        """What runs the steps: the module, or a wrapper of it."""
        return self.strategy.model

    @property
    def datamodule(self) -> LightningDataModule | None:
        return self._datamodule

    @property
    def optimizers(self) -> list[Optimizer]:
        """torch's optimizers, as `configure_optimizers` made them."""
        return [] if self._run is None else self._run.optimizers

    @optimizers.setter
    def optimizers(self, optimizers: list[Optimizer]) -> None:
        self._of_run.set_optimizers(optimizers)

    @property
    def lightning_optimizers(self) -> list[LightningOptimizer]:
        """Their proxies, whose `step` goes through precision and hooks."""
        return [] if self._run is None else self._run.proxies

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        return [] if self._run is None else self._run.schedulers

    @property
    def precision(self) -> str:
        return self.precision_plugin.precision

    @property
    def scaler(self) -> Any:
        """The gradient scaler of mixed precision, or None."""
        return getattr(self.precision_plugin, "scaler", None)

    # The machine

    @property
    def accelerator(self) -> str:
        """The kind of device: "cpu", "cuda" or "mps"."""
        return self.strategy.root_device.type

    @property
    def global_rank(self) -> int:
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        return self.strategy.node_rank

    @property
    def world_size(self) -> int:
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        return self.strategy.is_global_zero

    @property
    def num_devices(self) -> int:
        return len(self.device_ids)

    @property
    def device_ids(self) -> list[int]:
        return [self.strategy.root_device.index or 0]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any] | None:
        """Arguments for a distributed sampler; None with one process."""
        return None

    # Where the run stands

    @property
    def fit_loop(self) -> FitLoopView:
        """Position and limits of training under Lightning's names."""
        return FitLoopView(self, self.progress, self.limits)

    @property
    def global_step(self) -> int:
        """Optimizer steps done, over all optimizers and epochs."""
        return self.progress.step

    @property
    def run_id(self) -> str:
        """Tells this run from others; a run that is resumed keeps it. "" before the first run."""
        return "" if self._run is None else self._run.id

    @property
    def current_epoch(self) -> int:
        """The index of the running epoch; afterwards the number of epochs done."""
        return self.progress.epoch

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch in work is the last one of the epoch."""
        return self.progress.is_last_batch

    @property
    def validation_follows(self) -> bool:
        """Whether validation runs after the training batch that was just done."""
        return self._run is not None and self._run.validates and self.limits.validation_due(self.progress)

    @property
    def should_stop(self) -> bool:
        """Whether somebody asked to stop; set it to True to end the run at the next batch."""
        return self.limits.should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self.limits.should_stop = stop

    @property
    def received_sigterm(self) -> bool:
        """Whether the process was asked to end."""
        return self._signals.received_sigterm

    @property
    def interrupted(self) -> bool:
        return self.state.status is TrainerStatus.INTERRUPTED

    training = _InStage(RunningStage.TRAINING)
    sanity_checking = _InStage(RunningStage.SANITY_CHECKING)
    validating = _InStage(RunningStage.VALIDATING)
    testing = _InStage(RunningStage.TESTING)
    predicting = _InStage(RunningStage.PREDICTING)

    @property
    def evaluating(self) -> bool:
        return self.state.stage is not None and self.state.stage.evaluating

    # Limits

    limit_train_batches = _OfLimits[int | float]()
    limit_val_batches = _OfLimits[int | float]()
    limit_test_batches = _OfLimits[int | float]()
    limit_predict_batches = _OfLimits[int | float]()
    overfit_batches = _OfLimits[int | float]()
    val_check_interval = _OfLimits[Any]()
    check_val_every_n_epoch = _OfLimits[int | None]()
    log_every_n_steps = _OfLimits[int]()
    accumulate_grad_batches = _OfLimits[int]()
    reload_dataloaders_every_n_epochs = _OfLimits[int]()
    gradient_clip_val = _OfLimits[int | float | None]()
    gradient_clip_algorithm = _OfLimits[str | None]()

    @property
    def max_epochs(self) -> int | None:
        return self.limits.max_epochs

    @property
    def min_epochs(self) -> int | None:
        return self.limits.min_epochs

    @property
    def max_steps(self) -> int:
        return self.limits.max_steps

    @property
    def min_steps(self) -> int | None:
        return self.limits.min_steps

    @property
    def fast_dev_run(self) -> int | bool:
        return self.limits.fast_dev_run

    @property
    def val_check_batch(self) -> int | float | None:
        """Validation every so many batches; None while unknown, or when it goes by time."""
        return self.limits.val_check_batch

    @property
    def num_sanity_val_steps(self) -> int | float:
        return self.limits.num_sanity_val_steps

    @property
    def enable_validation(self) -> bool:
        """Whether `fit` validates."""
        if self._run is not None and self._run.is_fitting:
            return self._run.validates
        module = self._module
        return (
            module is not None and overrides(module, "validation_step", LightningModule) and self.limit_val_batches > 0
        )

    @property
    def num_training_batches(self) -> int | float:
        """Batches of a training epoch; inf while unknown."""
        run = self._run
        return float("inf") if run is None or not run.train.parts else run.train.num_batches

    def _num_batches(self, stage: str) -> list[int | float]:
        return [] if self._run is None else list(self._run.loaders[stage].batches)

    @property
    def num_val_batches(self) -> list[int | float]:
        """Batches of each validation loader."""
        return self._num_batches("val")

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        return [min(self.num_sanity_val_steps, batches) for batches in self.num_val_batches]

    @property
    def num_test_batches(self) -> list[int | float]:
        return self._num_batches("test")

    @property
    def num_predict_batches(self) -> list[int | float]:
        return self._num_batches("predict")

    @property
    def estimated_stepping_batches(self) -> int | float:
        """How many optimizer steps `fit` will take; inf where nothing bounds them, -1 where it cannot be known.

        Asks for the train loader if it is not there yet.
        """
        if self.limits.max_epochs == -1:
            return self.limits.stepping_batches(0)
        run = self._of_run
        run.train.open(run, self.current_epoch)
        return self.limits.stepping_batches(run.train.num_batches)

    # Loaders

    def _loaders_of(self, stage: str) -> Any:
        return None if self._run is None else self._run.loaders[stage].loaders

    @property
    def train_dataloader(self) -> Any:
        """The train loaders, in the user's structure; None before they are asked for."""
        return self._loaders_of("train")

    @property
    def val_dataloaders(self) -> Any:
        return self._loaders_of("val")

    @property
    def test_dataloaders(self) -> Any:
        return self._loaders_of("test")

    @property
    def predict_dataloaders(self) -> Any:
        return self._loaders_of("predict")

    # Callbacks

    @property
    def callbacks(self) -> list[Callback]:
        return self._callbacks

    @callbacks.setter
    def callbacks(self, callbacks: list[Callback]) -> None:
        self._callbacks = callbacks
        if self._run is not None:
            self._run.callbacks = callbacks
            if self.state.status is TrainerStatus.RUNNING:
                self._run.decide()

    def _callbacks_of(self, kind: type[Any]) -> list[Any]:
        return [callback for callback in self._callbacks if isinstance(callback, kind)]

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        return self._callbacks_of(Checkpoint)

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that saves, or None."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        return self._callbacks_of(EarlyStopping)

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        return next(iter(self._callbacks_of(ProgressBar)), None)

    @property
    def ckpt_path(self) -> Any:
        """What the last call loaded. Set it to have all later calls load that."""
        return self._ckpt_path

    @ckpt_path.setter
    def ckpt_path(self, path: Any) -> None:
        self._ckpt_path, self._user_managed_ckpt_path = path, bool(path)

    # Logging

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [] if logger is None else [logger]

    @property
    def loggers(self) -> list[Logger]:
        return self._loggers

    @loggers.setter
    def loggers(self, loggers: list[Logger] | None) -> None:
        self._loggers = list(loggers or [])
        if self._run is not None:
            self._run.logbook.loggers = self._loggers

    @property
    def log_dir(self) -> str | None:
        """The first logger's `log_dir` if it writes CSV or TensorBoard, else `save_dir`; or `default_root_dir`."""
        if not self.loggers:
            folder: Any = self.default_root_dir
        else:
            first = self.loggers[0]
            folder = first.log_dir if isinstance(first, DirectoryLogger) else first.save_dir
        log_dir: str | None = self.strategy.broadcast(folder)
        return log_dir

    def _shown(self, name: str) -> Any:
        if self._run is None:
            return {}
        self._run.logbook.update()
        return getattr(self._run.logbook, name)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """What was logged, for callbacks: steps while an epoch runs, epochs afterwards."""
        metrics: dict[str, Tensor] = self._shown("callback")
        return metrics

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """What was logged, for loggers."""
        metrics: dict[str, Tensor] = self._shown("logged")
        return metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """What was logged with `prog_bar=True`, as numbers. Waits for the device."""
        return {} if self._run is None else self._run.logbook.progress_bar_numbers()
