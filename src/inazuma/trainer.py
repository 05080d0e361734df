"""The front door: the constructor, fit, validate, test and predict.

Every constructor argument goes to exactly one owner. After that the Trainer is a door: attributes read from the owner.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from inazuma import devices as device_room
from inazuma import files, loop
from inazuma.arguments import check_barebones, check_kinds, clipping, set_determinism, split_plugins, with_environment
from inazuma.attributes import Attributes
from inazuma.bad_steps import BadSteps
from inazuma.callbacks.callback import Callback
from inazuma.callbacks.defaults import TOOLS, with_defaults, with_module_callbacks
from inazuma.callbacks.find import VARIABLE, find
from inazuma.callbacks.model_checkpoint import ModelCheckpoint
from inazuma.callbacks.timer import Timer
from inazuma.checkpoint.state import gather
from inazuma.checkpoint_io import AsyncCheckpointIO
from inazuma.compiling import Compile
from inazuma.data.loaders import Loaders, death_of_worker, message_first
from inazuma.datahooks import DataHooks
from inazuma.datamodule import LightningDataModule
from inazuma.errors import MisconfigurationException
from inazuma.hooks import Hooks, overrides
from inazuma.logbook import Logbook, as_numbers
from inazuma.loggers import select as select_loggers
from inazuma.loggers.logger import Logger
from inazuma.modes import WithoutInit, restore_modes
from inazuma.module import LightningModule
from inazuma.optim import optimizer_to
from inazuma.precision.select import select as select_precision
from inazuma.profilers import PassThroughProfiler, Profiler
from inazuma.profilers import select as select_profiler
from inazuma.progress import Limits, Progress
from inazuma.ranks import log, rank_zero_info, rank_zero_warn
from inazuma.run import Run, assemble
from inazuma.signals import Signals, is_interactive, name_of
from inazuma.states import RunningStage, TrainerFn, TrainerState, TrainerStatus
from inazuma.strategies.cluster import SLURMEnvironment, hpc_checkpoint, next_hpc_checkpoint
from inazuma.strategies.select import select as select_strategy
from inazuma.strategies.strategy import Strategy
from inazuma.tables import print_results
from inazuma.timing import Timing

STAGES = {
    TrainerFn.FITTING: RunningStage.TRAINING,
    TrainerFn.VALIDATING: RunningStage.VALIDATING,
    TrainerFn.TESTING: RunningStage.TESTING,
    TrainerFn.PREDICTING: RunningStage.PREDICTING,
}


class Trainer(Attributes):
    """Trains, validates, tests and predicts with a `LightningModule`.

    Args:
        accelerator: "cpu", "gpu", "cuda", "mps" or "auto".
        strategy: "auto", or a `Strategy`.
        devices: how many devices, which (a list of indices), or "auto".
        num_nodes: the number of machines.
        precision: "32-true" (default), "64-true", "16-true", "bf16-true", "16-mixed" or "bf16-mixed".
        logger: True (default) for TensorBoard, or CSV files where that is not installed; a logger, several, or False.
        callbacks: one or several.
        fast_dev_run: run n batches (True: 1) of each loader and save nothing, to find mistakes.
        max_epochs: stop after this many epochs; -1 for no limit. Default 1000 if nothing else ends the run.
        min_epochs: do not stop early before this many epochs.
        max_steps: stop after this many optimizer steps; -1 for no limit.
        min_steps: do not stop early before this many optimizer steps.
        max_time: stop after this time: "DD:HH:MM:SS", a timedelta, or a dict of its arguments.
        limit_train_batches: how many batches (int), or which share of them (float), of each epoch. Default: all.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for testing.
        limit_predict_batches: likewise for predicting.
        overfit_batches: train and validate on this many batches, or this share, unshuffled.
        val_check_interval: validate every n batches (int), every share of an epoch (float), or after a time. Default:
            at the end of each epoch.
        check_val_every_n_epoch: validate in every n-th epoch; None counts `val_check_interval` across epochs.
        num_sanity_val_steps: validation batches before training. Default 2; -1 for all.
        log_every_n_steps: how often the values of steps go to loggers. Default 50.
        enable_checkpointing: save the newest state with a `ModelCheckpoint`. Default True.
        enable_progress_bar: default True.
        enable_model_summary: print the layers before training. Default True.
        accumulate_grad_batches: batches per optimizer step.
        gradient_clip_val: clip gradients to this norm or value; None does not clip.
        gradient_clip_algorithm: "norm" (default) or "value".
        deterministic: use deterministic algorithms; "warn" only warns where there are none.
        benchmark: `torch.backends.cudnn.benchmark`; None leaves it.
        inference_mode: validate, test and predict under `torch.inference_mode` rather than `no_grad`.
        use_distributed_sampler: shard data over processes.
        profiler: "simple", "advanced", "pytorch", or a `Profiler`.
        detect_anomaly: find the operation that made a gradient NaN; slow.
        barebones: switch off everything that costs time and is not training.
        plugins: a `Precision`, `CheckpointIO` or `SLURMEnvironment`, or several.
        sync_batchnorm: synchronise batch norm over processes.
        reload_dataloaders_every_n_epochs: ask for the loaders again every n epochs; 0 for never.
        default_root_dir: where files go. Default: the working directory.
        enable_autolog_hparams: give hyper-parameters to the loggers.
        exact_resume: a run that is resumed goes on bit by bit like one that was never stopped: with the batches, the
            random numbers and the logged values of then. For that, what data sets draw is keyed by epoch and batch, so
            that it does not depend on `num_workers`, and validation leaves the random numbers of training alone. False
            draws all of them from the global generators, as Lightning does, and resumes without them.
        model_registry: a name in a model registry.
        async_checkpointing: write checkpoints in the background, from a copy in CPU memory; see `AsyncCheckpointIO`.
        bad_steps: what to do when a loss or gradient is NaN or infinite, or memory runs out: "raise" (with samples, and
            a file to replay the step), "skip" (the step is not made), "rewind" (and the last steps are taken back), or
            a `BadSteps(...)`. Default None: nothing is looked at, and it costs nothing.
        stop_signals: the signals that end a run at its next step, with a checkpoint; [] for none. Default: SIGTERM,
            SIGINT (Ctrl-C), SIGUSR1 and SIGUSR2. `inazuma.signals` has the exit codes.
        compile: what goes through `torch.compile`: True for the steps of the module, "step" for the whole training step
            (forward, backward, clipping and the update of the weights) and the other steps, or a list with names of
            submodules. A dict has one of these under "what", and options of torch.compile: "backend", "mode",
            "fullgraph", "dynamic", "options". What cannot be compiled runs as it is, which is said once. Files are the
            same as without.

    Raises:
        MisconfigurationException: an argument, or a combination, that cannot work.
        TypeError, ValueError: an argument of the wrong kind, or an unknown name.
    """

    @with_environment
    def __init__(
        self,
        *,
        accelerator: str = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: str | int | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        check_val_every_n_epoch: int | None = 1,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Profiler | str | None = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any | list[Any] | None = None,
        sync_batchnorm: bool = False,
        reload_dataloaders_every_n_epochs: int = 0,
        default_root_dir: str | os.PathLike[str] | None = None,
        enable_autolog_hparams: bool = True,
        model_registry: str | None = None,
        exact_resume: bool = True,
        async_checkpointing: bool = False,
        bad_steps: str | BadSteps | None = None,
        stop_signals: Iterable[int] | None = None,
        compile: bool | str | list[str] | dict[str, Any] = False,
    ) -> None:
        if model_registry is not None:
            raise MisconfigurationException(
                f"Trainer(model_registry={model_registry!r}): inazuma has no model registry. Save checkpoints to a "
                "path or URL with `ModelCheckpoint(dirpath=...)`."
            )
        check_kinds(locals())
        self.barebones = barebones
        if barebones:
            check_barebones(locals())
            logger, enable_checkpointing, enable_progress_bar, enable_model_summary = False, False, False, False
            log_every_n_steps, num_sanity_val_steps = 0, 0
            rank_zero_info(
                "Trainer(barebones=True): checkpoints, loggers, progress bar, model summary, sanity check and profiler "
                "are off, and `self.log` does nothing."
            )
        self.default_root_dir = files.resolve(os.getcwd() if default_root_dir is None else default_root_dir)
        self.bad_steps = BadSteps.of(bad_steps, self.default_root_dir)
        self.compile = Compile.of(compile, detect_anomaly)
        clip_val, clip_algorithm = clipping(gradient_clip_val, gradient_clip_algorithm)
        self.limits = Limits(
            max_epochs=max_epochs,
            min_epochs=min_epochs,
            max_steps=max_steps,
            min_steps=min_steps,
            limit_train_batches=limit_train_batches,  # type: ignore[arg-type]  # Limits fills in what is None
            limit_val_batches=limit_val_batches,  # type: ignore[arg-type]
            limit_test_batches=limit_test_batches,  # type: ignore[arg-type]
            limit_predict_batches=limit_predict_batches,  # type: ignore[arg-type]
            overfit_batches=overfit_batches,
            fast_dev_run=fast_dev_run,
            val_check_interval=val_check_interval,
            check_val_every_n_epoch=check_val_every_n_epoch,
            num_sanity_val_steps=2 if num_sanity_val_steps is None else num_sanity_val_steps,
            log_every_n_steps=50 if log_every_n_steps is None else log_every_n_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            reload_dataloaders_every_n_epochs=reload_dataloaders_every_n_epochs,
            gradient_clip_val=clip_val,
            gradient_clip_algorithm=clip_algorithm,
        )
        self.progress = Progress()
        self.state = TrainerState()
        self.benchmark = benchmark
        self.inference_mode = inference_mode
        self.detect_anomaly = detect_anomaly
        self.enable_autolog_hparams = enable_autolog_hparams
        self.exact_resume = exact_resume
        self.use_distributed_sampler = use_distributed_sampler
        self.sync_batchnorm = sync_batchnorm
        set_determinism(deterministic, benchmark)

        own_precision, checkpoint_io, environment = split_plugins(plugins)
        if own_precision is not None and precision is not None:
            raise ValueError(f"Received both `precision={precision!r}` and the plugin {own_precision!r}. Use one.")
        found = device_room.select(accelerator, devices)
        if devices == "auto" and len(found) > 1:
            rank_zero_info(f"{len(found)} devices are there; this version of inazuma uses the first one, {found[0]}.")
            found = found[:1]
        self.strategy = select_strategy(strategy, found, num_nodes, checkpoint_io)
        if async_checkpointing and not isinstance(self.strategy.checkpoint_io, AsyncCheckpointIO):
            self.strategy.checkpoint_io = AsyncCheckpointIO(self.strategy.checkpoint_io)
        self.num_nodes = num_nodes
        self.precision_plugin = own_precision or select_precision(precision, self.strategy.root_device)

        self.checkpoint_note: dict[str, Any] = {}  # what a callback that saves says of the file it is about to write
        self._ckpt_path: Any = None  # of the run in work; or set by the user, for all runs
        self._user_managed_ckpt_path = False
        self._signals = Signals(self._save_at_signal, stop_signals)
        self._environment = environment or SLURMEnvironment()
        self._run: Run | None = None
        self._datamodule: LightningDataModule | None = None
        self._module: LightningModule | None = None
        self.loggers = select_loggers(logger, self.default_root_dir, bool(fast_dev_run))
        self.profiler = select_profiler(profiler)
        self.timing = Timing()  # where the time of the last run went
        self._callbacks = with_defaults(
            callbacks, max_time, enable_checkpointing, enable_progress_bar, enable_model_summary
        )
        if any(device_room.available(kind) for kind in ("cuda", "mps")):
            rank_zero_info(device_room.describe(found))
        for tool in TOOLS:
            tool.join(self)

    # What the constructor makes

    # The four functions

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train.

        Args:
            model: the module to train.
            train_dataloaders: an iterable of batches, a collection of such, or a datamodule. Default: the module's.
            val_dataloaders: likewise.
            datamodule: gives the loaders.
            ckpt_path: what to resume from: a path or URL; "last", the newest state; "best"; "auto", the newest whole
                checkpoint of any kind in the directories where callbacks save, or nothing if there is none. "last" and
                "auto" pass over a damaged file, and say so. Default: the environment variable `INAZUMA_CKPT_PATH`,
                which may hold any of these: with "auto" a restarted job goes on without a change of its script.
            weights_only: as in `torch.load`; default True for local files.

        Raises:
            MisconfigurationException, TypeError, ValueError: the program cannot work; said before training starts.
            FileNotFoundError: no checkpoint at `ckpt_path`.
            CheckpointError: the checkpoint at `ckpt_path`, or the best one, is damaged.
        """
        given = {"train": train_dataloaders, "val": val_dataloaders}
        with self._running(TrainerFn.FITTING, model, given, datamodule, ckpt_path, weights_only) as run:
            loop.fit(run)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate on validation data.

        Args:
            model: the module; None for that of the last call, with the best checkpoint of the last fit.
            dataloaders: an iterable of batches, a collection of such, or a datamodule. Default: the module's.
            ckpt_path: weights to load: a path or URL, "best" or "last".
            verbose: print the result.
            datamodule: gives the loaders.
            weights_only: as in `torch.load`; default True for local files.

        Returns:
            One dict per loader of what was logged over the epoch.
        """
        return self._evaluate(
            TrainerFn.VALIDATING, "val", model, dataloaders, ckpt_path, verbose, datamodule, weights_only
        )

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate on test data; arguments and result as in `validate`."""
        return self._evaluate(
            TrainerFn.TESTING, "test", model, dataloaders, ckpt_path, verbose, datamodule, weights_only
        )

    def _evaluate(
        self,
        fn: TrainerFn,
        stage: str,
        model: LightningModule | None,
        dataloaders: Any,
        ckpt_path: Any,
        verbose: bool,
        datamodule: LightningDataModule | None,
        weights_only: bool | None,
    ) -> list[dict[str, float]]:
        kind = "validation" if stage == "val" else stage
        results: list[dict[str, float]] = []  # what is left of a run that Ctrl-C ended in an interactive session
        with (
            self._running(fn, model, {stage: dataloaders}, datamodule, ckpt_path, weights_only) as run,
            self._without_gradients(),
        ):
            results = [as_numbers(result) for result in loop.evaluate(run, run.loaders[stage], kind)]
        if verbose and self.is_global_zero:
            print_results(results, str(fn))
        return results

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: Any = None,
        weights_only: bool | None = None,
    ) -> list[Any] | None:
        """Predict.

        Args:
            model: the module; None for that of the last call, with the best checkpoint of the last fit.
            dataloaders: an iterable of batches, a collection of such, or a datamodule. Default: the module's.
            datamodule: gives the loaders.
            return_predictions: keep what `predict_step` returns, on the CPU. Default True.
            ckpt_path: weights to load: a path or URL, "best" or "last".
            weights_only: as in `torch.load`; default True for local files.

        Returns:
            The outputs, one per batch; with several loaders one such list per loader; None if not kept.
        """
        keep = return_predictions is not False
        predictions: list[list[Any]] = []
        is_several = False
        with (
            self._running(
                TrainerFn.PREDICTING, model, {"predict": dataloaders}, datamodule, ckpt_path, weights_only
            ) as run,
            self._without_gradients(),
        ):
            predictions = loop.predict(run, run.loaders["predict"], keep)
            is_several = run.loaders["predict"].is_several
        if not keep or not predictions:
            return None
        return predictions if is_several else predictions[0]

    def _without_gradients(self) -> AbstractContextManager[Any]:
        return torch.inference_mode() if self.inference_mode else torch.no_grad()

    # One call, from its start to its end

    @contextmanager
    def _running(
        self,
        fn: TrainerFn,
        model: LightningModule | None,
        given: dict[str, Any],
        datamodule: LightningDataModule | None,
        ckpt_path: Any,
        weights_only: bool | None,
    ) -> Iterator[Run]:
        """Prepare a run, let it run, and end it: as it should, or with an exception."""
        module = self._module = self._checked_module(model, fn)
        if ckpt_path is not None and self._user_managed_ckpt_path:
            rank_zero_warn(
                f"`trainer.ckpt_path = {self._ckpt_path!r}` was set, but `trainer.{fn}(ckpt_path=...)` was called: the "
                "argument is used this time."
            )
        self.state = TrainerState(TrainerStatus.RUNNING, fn, STAGES[fn])
        if fn is TrainerFn.FITTING:
            self.limits.resolve_max_epochs(has_timer=any(isinstance(c, Timer) for c in self._callbacks))
            self.should_stop = False
        run, self.timing = None, Timing()
        try:
            given, datamodule = _split_datamodule(given, datamodule, fn)
            path = self._resolved(ckpt_path, fn, model is not None)
            run = self._make_run(module, given, datamodule)
            assemble(run, lambda: self._load(path, weights_only), self.enable_autolog_hparams)
            self._signals.listen("saving" if run.is_fitting else "ending", self._environment.requeue_signals)
            with torch.autograd.set_detect_anomaly(self.detect_anomaly or torch.is_anomaly_enabled()):
                with self.timing.during("trainer"):
                    yield run
            self._end(run)
            self._tell_time(run)
        except BaseException as error:
            if (death := death_of_worker(error)) is None:
                self._end_with(error, module, run)
                if isinstance(error, KeyboardInterrupt) and is_interactive() and self._signals.is_at_boundary:
                    return
                raise
            death.__traceback__ = error.__traceback__
            self._end_with(death, module, run)
            try:
                raise death from None
            finally:
                del death  # its traceback holds this frame
        else:
            self._end_late()
        finally:
            self._signals.leave()
            self.timing.stop()
            if run is not None:
                run.let_go()

    def _checked_module(self, model: LightningModule | None, fn: TrainerFn) -> LightningModule:
        if model is None:
            if self._module is None:
                raise TypeError(
                    f"`Trainer.{fn}()` requires a `LightningModule`, and no earlier call had one. Give `model`."
                )
            return self._module
        if isinstance(original := getattr(model, "_orig_mod", None), LightningModule):
            return _with_compiled_steps(original, model)
        if not isinstance(model, LightningModule):
            hint = f" It is the class: make an instance, `{model.__name__}(...)`." if isinstance(model, type) else ""
            if any(base.__name__ == "LightningModule" for base in type(model).__mro__):
                hint = " It is a LightningModule of another package: import all of them from one."
            raise TypeError(
                "`model` must be a `LightningModule`, or one from `torch.compile`, "
                f"got `{type(model).__qualname__}`.{hint}"
            )
        if "_modules" not in vars(model):
            raise MisconfigurationException(
                f"`{type(model).__qualname__}.__init__` does not call `super().__init__()`: put it in its first line."
            )
        return model

    def _make_run(self, module: LightningModule, given: dict[str, Any], datamodule: LightningDataModule | None) -> Run:
        self._datamodule = datamodule
        module.trainer = self
        if datamodule is not None:
            datamodule.trainer = self
        self.strategy.connect(module)
        self._callbacks = with_module_callbacks(self._callbacks, module)
        profiler = None if isinstance(self.profiler, PassThroughProfiler) else self.profiler
        hooks = Hooks(self, module, LightningModule, self._callbacks, datamodule, profiler, self.timing)
        reduce = self.strategy.reduce
        logbook = Logbook(
            hooks, lambda v, op, group: reduce(v, group, op), self.strategy.root_device, self.loggers, self.timing
        )
        module.attach_logbook(None if self.barebones else logbook)
        fn = self.state.fn
        previous = self._run
        loaders = {} if previous is None else dict(previous.loaders)  # a test does not forget how long training was
        for stage in ("train", "val", "test", "predict"):
            if stage in given or stage not in loaders:
                loaders[stage] = _loaders(
                    stage, given.get(stage), module, datamodule, str(fn), self.limits, self.exact_resume
                )
        self._run = Run(
            module=module,
            datamodule=datamodule,
            strategy=self.strategy,
            precision=self.precision_plugin,
            callbacks=self._callbacks,
            hooks=hooks,
            logbook=logbook,
            limits=self.limits,
            progress=self.progress,
            state=self.state,
            loaders=loaders,
            check_signals=self._signals.check,
            timing=self.timing,
            exact=self.exact_resume,
            bad_steps=self.bad_steps,
            compile=self.compile,
        )
        if previous is not None:  # a checkpoint saved after an evaluation still holds those of the fit before
            self._run.set_optimizers(previous.optimizers)
            self._run.schedulers = previous.schedulers
            if fn is not TrainerFn.FITTING:
                self._run.id = previous.id
        if profiler is not None:
            profiler.lightning_module = module
            rank = self.local_rank if self.world_size > 1 else None
            profiler.setup(stage=str(fn), local_rank=rank, log_dir=self.log_dir)
        return self._run

    def _resolved(self, ckpt_path: Any, fn: TrainerFn, model_is_given: bool) -> Any:
        if fn is TrainerFn.FITTING and TOOLS and TOOLS[-1].decides:
            said = self._ckpt_path if ckpt_path is None and self._user_managed_ckpt_path else ckpt_path
            self._ckpt_path, self._user_managed_ckpt_path = TOOLS[-1].resume_from(said), False
            return self._ckpt_path
        if ckpt_path is None and self._user_managed_ckpt_path:
            return self._ckpt_path
        is_open = ckpt_path is None and fn is TrainerFn.FITTING and not os.environ.get(VARIABLE)
        if ckpt_path == "hpc" or (is_open and SLURMEnvironment.detect()):
            found = hpc_checkpoint(self.default_root_dir)
            if found is None and ckpt_path == "hpc":
                raise ValueError(
                    f'`.{fn}(ckpt_path="hpc")` finds no `hpc_ckpt_<n>.ckpt` in {self.default_root_dir}, where a SLURM '
                    "job that is requeued leaves one. Give the path of a file, or no `ckpt_path`."
                )
            ckpt_path = found
        path = find(ckpt_path, fn, model_is_given, self.checkpoint_callbacks, self)
        self._ckpt_path, self._user_managed_ckpt_path = path, False
        return path

    def _load(self, path: Any, weights_only: bool | None) -> tuple[Any, dict[str, Any] | None]:
        if path is None:
            return None, None
        rank_zero_info(f"Loading the checkpoint {path}")
        return path, self.strategy.load_checkpoint(path, weights_only=weights_only)

    def _end(self, run: Run) -> None:
        """The last hooks of a run that went well."""
        self._put_back(run)
        if run.is_fitting:
            run.hooks.fire("on_fit_end")
        run.hooks.fire("teardown", self.state.fn)
        for logger in self.loggers:
            logger.finalize("success")
        self.profiler.describe()
        self.profiler.teardown(stage=str(self.state.fn))
        self.state.status, self.state.stage = TrainerStatus.FINISHED, None

    def _tell_time(self, run: Run) -> None:
        """One line on where the time of this run went; with advice where it was measured that it would help."""
        timing, told = self.timing, f"`Trainer.{self.state.fn}` took {self.timing}."
        workers = getattr(run.train.parts[0], "num_workers", None) if run.is_fitting and run.train.parts else None
        if workers is not None and timing.total_s > 10 and timing.shares["data"] > 0.2:
            told += (
                f" Waiting for `{run.train.name}` is a good part of it: with num_workers={workers}, loading is slower "
                f"than training; this machine has {os.cpu_count()} cores."
            )
        rank_zero_info(told)

    def _put_back(self, run: Run) -> None:
        """Leave module, optimizers and precision as another run may find them."""
        run.logbook.results = run.logbook.batch = None
        run.hooks.where, run.is_inside_batch = "", False
        restore_modes(run.modes)
        for loaders in run.loaders.values():
            loaders.close()
        if run.guard is not None:
            run.guard.teardown()
        self.precision_plugin.teardown()
        self.strategy.teardown()
        if self.strategy.root_device.type != "cpu":
            for optimizer in run.optimizers:
                optimizer_to(optimizer, torch.device("cpu"))

    def _end_with(self, error: BaseException, module: LightningModule, run: Run | None) -> None:
        """Tell everybody that the run ends by an exception, and where it happened."""
        self.state.status = TrainerStatus.INTERRUPTED
        signals, requeues = self._signals, False
        if signals.is_at_boundary:
            requeues = signals.received in self._environment.requeue_signals
        elif isinstance(error, KeyboardInterrupt) and run is not None and signals.is_cut_short:
            signals.kill_workers()
            for loaders in run.loaders.values():
                loaders.close()
        try:
            if run is None:  # it could not be made
                Hooks(self, module, LightningModule, self._callbacks).fire("on_exception", error)
            else:
                _note(error, run)
                run.hooks.fire("on_exception", error)
            for logger in self.loggers:
                logger.finalize("finished" if requeues else "failed")
        finally:  # a hook that raises in its turn leaves nothing half done
            if run is not None:
                self._put_back(run)
            self.profiler.teardown(stage=str(self.state.fn))
            self.state.stage = None
            if requeues and self.is_global_zero:
                self._environment.requeue()
        if isinstance(error, KeyboardInterrupt):
            rank_zero_info("Stopped by Ctrl-C.")
            if not is_interactive():
                raise SystemExit(130) from error

    def _end_late(self) -> None:
        """End the program if a signal came behind the last boundary of a run that is done now, and all is saved.

        Not at a prompt, and not where SLURM would only do all of it again.
        """
        received = self._signals.received
        if received is None or received in self._environment.requeue_signals:
            return
        if received != signal.SIGINT:
            self._signals.end_program()
        elif not is_interactive():
            raise SystemExit(130)

    def _save_at_signal(self, number: int) -> None:
        """Save the run at the step boundary where a signal ends it. A failure is reported, and the run ends the same.

        The first `ModelCheckpoint` saves. A job that SLURM runs again finds its place without `ckpt_path` by
        Lightning's `hpc_ckpt_<n>.ckpt`: the same file under a second name, where the disk can do that.
        """
        run = self._of_run
        if not run.is_fitting or run.is_sanity_checking or self.fast_dev_run:
            return
        try:
            saver = next((c for c in self._callbacks if isinstance(c, ModelCheckpoint)), None)
            path = "" if saver is None else saver.save_now(self, kind="signal")
            if number in self._environment.requeue_signals:
                path = self._save_for_requeue(path)
            if path and self.strategy.checkpoint_io.keeps_notes:
                files.verify(path)
        except Exception as error:
            log.error(
                f"{name_of(number)}: the checkpoint could not be written ({type(error).__name__}: {error}). The run "
                "ends without it; older files are as they were."
            )
            return
        if path:
            rank_zero_info(f"{name_of(number)}: the run is saved in {path}.")
        else:
            why = "the Trainer has no `ModelCheckpoint`" if saver is None else "see above, or no step was made yet"
            rank_zero_info(f"{name_of(number)}: nothing is saved ({why}).")

    def _save_for_requeue(self, saved: str) -> str:
        path = next_hpc_checkpoint(self.default_root_dir)
        try:
            if saved and self.is_global_zero:
                os.link(saved, path)
                return saved
        except OSError:  # on another disk, a store, a folder
            pass
        self.save_checkpoint(path)
        self.strategy.checkpoint_io.wait()
        return saved or path

    # What modules and callbacks call

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save the run to a file, which `fit(ckpt_path=...)` continues from.

        Args:
            filepath: a path or URL.
            weights_only: leave out what only training needs.
            storage_options: for a `CheckpointIO` that knows them.

        Raises:
            AttributeError: there is no module yet.
        """
        if self._run is None:
            raise AttributeError(
                "`Trainer.save_checkpoint()` has nothing to save before a model came to the Trainer. Call "
                "`Trainer.fit`, `validate`, `test` or `predict` first."
            )
        with self.profiler.profile("save_checkpoint"), self.timing.during("saving"):
            checkpoint = gather(self._run, weights_only=bool(weights_only))
            checkpoint.setdefault("inazuma", {})["note"] = self._note(checkpoint, bool(weights_only))
            try:
                self.strategy.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
            finally:  # the others wait there, also if rank 0 could not save
                self.strategy.barrier("Trainer.save_checkpoint")

    def _note(self, checkpoint: dict[str, Any], weights_only: bool) -> dict[str, Any]:
        """What a file says of itself, for whoever looks for the best or the newest of a directory."""
        about = {"run": self.run_id, "time": time.time(), "kind": "manual", "weights_only": weights_only}
        return {"epoch": checkpoint["epoch"], "global_step": checkpoint["global_step"], **about, **self.checkpoint_note}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients, with precision and hooks: what `LightningModule.manual_backward` calls."""
        loop.backward(self._of_run, loss, *args, **kwargs)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only, above the progress bar."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            (print if bar is None else bar.print)(*args, **kwargs)

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Create modules inside this context on the device and in the precision of this Trainer.

        Args:
            empty_init: leave the weights uninitialised, to be loaded from a checkpoint.
        """
        with self.strategy.root_device, self.precision_plugin.init_context():
            if empty_init:
                with WithoutInit():
                    yield
            else:
                yield

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None}  # loaders, optimizers and hooks of a run cannot be copied


def _split_datamodule(
    given: dict[str, Any], datamodule: LightningDataModule | None, fn: TrainerFn
) -> tuple[dict[str, Any], LightningDataModule | None]:
    """A datamodule in the first loader slot is taken as one."""
    first = next(iter(given))
    if isinstance(given[first], LightningDataModule):
        if datamodule is not None:
            raise MisconfigurationException(f"You passed two datamodules to `trainer.{fn}(...)`. Pass one.")
        given, datamodule = {**given, first: None}, given[first]
    if datamodule is not None:
        if not isinstance(datamodule, LightningDataModule):
            raise TypeError(
                f"`trainer.{fn}(datamodule=...)` needs a LightningDataModule, got `{type(datamodule).__qualname__}`. "
                + (
                    f"It is the class: make an instance, `{datamodule.__name__}(...)`."
                    if isinstance(datamodule, type)
                    else "Loaders go into the other arguments."
                )
            )
        if any(loaders is not None for loaders in given.values()):
            names = "train_dataloader` or `val_dataloaders" if fn is TrainerFn.FITTING else "dataloaders"
            raise MisconfigurationException(f"You cannot pass `{names}` to `trainer.{fn}(datamodule=...)`")
    return given, datamodule


def _loaders(
    stage: str,
    given: Any,
    module: LightningModule,
    datamodule: LightningDataModule | None,
    fn: str,
    limits: Limits,
    exact: bool,
) -> Loaders:
    """Where the loaders of a stage come from: the argument, the datamodule, or the module."""
    argument = f"{stage}_dataloaders" if fn == "fit" else "dataloaders"
    owner: Any = None
    if given is None:
        hook = f"{stage}_dataloader"
        owner = next((o for o in (datamodule, module) if o is not None and overrides(o, hook, DataHooks)), None)
    return Loaders(stage, given, owner, f"Trainer.{fn}({argument}=...)", limits, exact)


def _with_compiled_steps(original: LightningModule, compiled: Any) -> LightningModule:
    """The module inside a `torch.compile`d one, its steps compiled with the same settings."""
    for name in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
        if overrides(original, name, LightningModule) and name not in vars(original):
            original.__dict__[name] = compiled.dynamo_ctx(getattr(original, name))
    return original


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("inazuma.")


def _note(error: BaseException, run: Run) -> None:
    """Add to an exception where in the run it happened."""
    message_first(error)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # Errors of ours say enough; those of datasets and workers come out of the loop with no hook at work.
    is_running = any(frame.f_globals is vars(loop) for frame in frames) and not _is_ours(frames[-1])
    if not isinstance(error, Exception) or not hasattr(error, "add_note") or not (run.hooks.where or is_running):
        return
    at, where = run.progress, f"In `{run.hooks.where}`"
    if not run.hooks.where:
        where = "Between hooks, where batches are fetched,"
    batch = f"batch {at.batch}" if run.state.stage is RunningStage.TRAINING else f"after {at.batch} training batches"
    error.add_note(
        f"{where} at epoch {at.epoch}, {batch}, global step {at.step}, rank {run.strategy.global_rank} "
        f"({run.state.stage})."
    )
