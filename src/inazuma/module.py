"""LightningModule: the methods a user may write, with their defaults."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from inazuma import files
from inazuma.datahooks import DataHooks
from inazuma.errors import MisconfigurationException
from inazuma.hparams import HyperparametersMixin, OnlyOnClass, init_arguments
from inazuma.modes import evaluating
from inazuma.optim import GradClipAlgorithmType, LightningOptimizer, toggle_optimizer, untoggle_optimizer, zero_grad
from inazuma.ranks import WarningCache, rank_zero_deprecation, rank_zero_warn
from inazuma.weak import Weak

if TYPE_CHECKING:
    from inazuma.logbook import Logbook, Metric
    from inazuma.loggers.logger import Logger
    from inazuma.trainer import Trainer

_said = WarningCache()


class ModelHooks:
    """The events a module may hear. Callbacks hear an event first, then the module."""

    def on_fit_start(self) -> None:
        """Called when the module and its optimizers are ready, before the sanity check."""

    def on_fit_end(self) -> None:
        """Called when fit is done."""

    def on_train_start(self) -> None:
        """Called before the first epoch of this fit."""

    def on_train_end(self) -> None:
        """Called after the last epoch of this fit."""

    def on_train_epoch_start(self) -> None:
        """Called before the first batch of an epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after the last batch of an epoch, when its means are known."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before a training batch is used. Return -1 to skip the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after a training batch; `outputs` is what `training_step` returned, as a dict with a detached loss."""

    def on_validation_start(self) -> None:
        """Called when validation begins."""

    def on_validation_end(self) -> None:
        """Called when validation is done and its metrics are known."""

    def on_validation_epoch_start(self) -> None:
        """Called before the first validation batch."""

    def on_validation_epoch_end(self) -> None:
        """Called after the last validation batch."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a validation batch is used."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a validation batch."""

    def on_test_start(self) -> None:
        """Called when testing begins."""

    def on_test_end(self) -> None:
        """Called when testing is done."""

    def on_test_epoch_start(self) -> None:
        """Called before the first test batch."""

    def on_test_epoch_end(self) -> None:
        """Called after the last test batch."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a test batch is used."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a test batch."""

    def on_predict_start(self) -> None:
        """Called when prediction begins."""

    def on_predict_end(self) -> None:
        """Called when prediction is done."""

    def on_predict_epoch_start(self) -> None:
        """Called before the first batch to predict."""

    def on_predict_epoch_end(self) -> None:
        """Called after the last batch to predict."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before a batch to predict is used."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after a batch was predicted."""

    def on_validation_model_zero_grad(self) -> None:
        """Called before validation inside fit, between accumulation windows, to free gradients. Default: zero_grad."""
        cast(nn.Module, self).zero_grad()

    def on_validation_model_eval(self) -> None:
        """Put the module in evaluation mode. Default: `self.eval()`."""
        cast(nn.Module, self).eval()

    def on_validation_model_train(self) -> None:
        """Put the module back in training mode. If not overridden, every submodule gets back the mode it had."""
        cast(nn.Module, self).train()

    def on_test_model_eval(self) -> None:
        """Put the module in evaluation mode. Default: `self.eval()`."""
        cast(nn.Module, self).eval()

    def on_test_model_train(self) -> None:
        """Put the module back in training mode. If not overridden, every submodule gets back the mode it had."""
        cast(nn.Module, self).train()

    def on_predict_model_eval(self) -> None:
        """Put the module in evaluation mode. Default: `self.eval()`."""
        cast(nn.Module, self).eval()

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Called before the gradients are cleared, between `training_step` and `backward`."""

    def on_before_backward(self, loss: Tensor) -> None:
        """Called before `loss.backward()`; the loss is divided by the accumulation factor and scaled under AMP."""

    def on_after_backward(self) -> None:
        """Called when the gradients of this batch are there."""

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Called after backward and before clipping and the step."""

    def configure_model(self) -> None:
        """Build layers here to have them made on the right device and dtype. May be called more than once."""


class CheckpointHooks:
    """What a module may add to a checkpoint and read from it."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called with the whole checkpoint before it is written; may change it."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called with the whole checkpoint before the weights are loaded; may change it."""


class LightningModule(ModelHooks, DataHooks, CheckpointHooks, HyperparametersMixin, nn.Module):
    """The science: layers, steps and optimizers. A `Trainer` does the rest.

    Write `__init__`, `training_step` and `configure_optimizers`; add `validation_step`, `test_step`, `predict_step`
    and hooks as needed. It stays a `torch.nn.Module` and works without a Trainer: steps can be called, `self.log` then
    does nothing but warn once.
    """

    __jit_unused_properties__: ClassVar[list[str]] = [
        "example_input_array",
        "on_gpu",
        "current_epoch",
        "global_step",
        "global_rank",
        "local_rank",
        "logger",
        "loggers",
        "automatic_optimization",
        "trainer",
        "fabric",
        "strict_loading",
        "device",
        "dtype",
        "hparams",
        "hparams_initial",
    ]

    _trainer: Weak[Trainer] = Weak()  # the Trainer holds the module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logbook: Logbook | None = None
        self._example_input_array: Any = None
        self._automatic_optimization = True
        self._strict_loading: bool | None = None
        self._toggled: list[dict[Tensor, bool]] = []  # what is to be undone, outermost first
        # Goes wherever `.to()`, `.half()`, `.cuda()` send the module: knows its device and dtype without parameters.
        self._compass = torch.empty(0)

    # Where the module is, and who drives it

    @property
    def trainer(self) -> Trainer:
        """The Trainer that drives this module, or did last. The module does not keep it alive.

        Raises:
            RuntimeError: no Trainer has been given this module yet (in `__init__`, say), or it is gone.
        """
        if self._trainer is None and self.__dict__.get("_is_exporting"):
            raise AttributeError("trainer")  # TorchScript asks for every attribute, and takes this for an answer
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__qualname__} is not attached to a `Trainer`. The Trainer is known from `setup` on, "
                "not in `__init__`; and as long as somebody holds it: give it a name, `trainer = Trainer(...)`."
            )
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        for child in self.modules():
            if isinstance(child, LightningModule):
                child._trainer = trainer

    def attach_logbook(self, logbook: Logbook | None) -> None:
        """Tell this module, and modules in it, where `self.log` goes."""
        for child in self.modules():
            if isinstance(child, LightningModule):
                child.__dict__["_logbook"] = logbook

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.__dict__["_compass"] = fn(self._compass)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def device(self) -> torch.device:
        """Where the module was last sent."""
        return self._compass.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype the module was last sent to."""
        return self._compass.dtype

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def logger(self) -> Logger | None:
        """The Trainer's first logger, or None."""
        return None if self._trainer is None else self._trainer.logger

    @property
    def loggers(self) -> list[Logger]:
        """All loggers of the Trainer."""
        return [] if self._trainer is None else self._trainer.loggers

    @property
    def current_epoch(self) -> int:
        """The index of the running epoch; 0 without a Trainer."""
        return 0 if self._trainer is None else self._trainer.current_epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps done, over all optimizers; 0 without a Trainer."""
        return 0 if self._trainer is None else self._trainer.global_step

    @property
    def global_rank(self) -> int:
        return 0 if self._trainer is None else self._trainer.global_rank

    @property
    def local_rank(self) -> int:
        return 0 if self._trainer is None else self._trainer.local_rank

    @property
    def example_input_array(self) -> Any:
        """An input for `forward` (a tensor, or a tuple or dict of arguments): for summaries, graphs and export."""
        return self._example_input_array

    @example_input_array.setter
    def example_input_array(self, example: Any) -> None:
        self._example_input_array = example

    @property
    def automatic_optimization(self) -> bool:
        """Whether the Trainer calls zero_grad, backward and step. Set it to False in `__init__` to do that yourself."""
        return self._automatic_optimization

    @automatic_optimization.setter
    def automatic_optimization(self, automatic: bool) -> None:
        self._automatic_optimization = automatic

    @property
    def strict_loading(self) -> bool:
        """Whether a checkpoint must hold exactly this module's keys. Default True."""
        return self._strict_loading is None or self._strict_loading

    @strict_loading.setter
    def strict_loading(self, strict: bool) -> None:
        self._strict_loading = strict

    # Steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of one batch: `training_step(batch)` or `training_step(batch, batch_idx)`.

        Returns:
            The loss, a dict with the key "loss" and whatever else, or None to skip the batch.
        """
        rank_zero_warn("`training_step` must be implemented: it returns the loss of a batch")

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch: `(batch[, batch_idx[, dataloader_idx]])`. What it returns goes to the batch-end hooks."""

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch of the test data: `(batch[, batch_idx[, dataloader_idx]])`."""

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict one batch: `(batch[, batch_idx[, dataloader_idx]])`. Default: `self(batch)`."""
        batch = kwargs.get("batch", args[0] if args else None)
        return self(batch)

    # Optimization

    def configure_optimizers(self) -> Any:
        """The optimizers, and schedules of their learning rates.

        Returns:
            An optimizer; a list of them (manual optimization); a dict with "optimizer" and "lr_scheduler" (a schedule,
            or a dict with "scheduler", "interval", "frequency", "monitor", "strict", "name"); a list of such dicts;
            a pair of lists; or None to train without.
        """
        rank_zero_warn("`configure_optimizers` must be implemented: it returns what trains the weights")

    def configure_callbacks(self) -> Any:
        """Callbacks of this module: one or a list. They replace the Trainer's of the same type."""
        return []

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients. Override it to pass arguments; default `loss.backward(*args, **kwargs)`."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Make one step. `optimizer_closure` runs forward, zero_grad and backward; it has to be run.

        Default: `optimizer.step(closure=optimizer_closure)`.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients. Default: `optimizer.zero_grad()`."""
        zero_grad(optimizer)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Advance a schedule; `metric` is the monitored value, or None. Override it for schedules unlike torch's."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients before a step, with the Trainer's values. Default: `self.clip_gradients`."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of `optimizer`'s parameters in place.

        Args:
            optimizer: whose parameters.
            gradient_clip_val: the largest norm, or the largest absolute entry; None or 0 does nothing.
            gradient_clip_algorithm: "norm" (default) or "value".

        Raises:
            MisconfigurationException: other values than the Trainer's were given, or an unknown algorithm.
        """
        own_val, own_algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        if gradient_clip_val is None:
            gradient_clip_val = own_val or 0.0
        elif own_val is not None and own_val != gradient_clip_val:
            raise MisconfigurationException(
                f"`clip_gradients(gradient_clip_val={gradient_clip_val!r})` contradicts "
                f"Trainer(gradient_clip_val={own_val!r}). Leave one of the two out."
            )
        if gradient_clip_algorithm is None:
            gradient_clip_algorithm = own_algorithm or "norm"
        elif own_algorithm is not None and own_algorithm != gradient_clip_algorithm.lower():
            raise MisconfigurationException(
                f"`clip_gradients(gradient_clip_algorithm={gradient_clip_algorithm!r})` contradicts "
                f"Trainer(gradient_clip_algorithm={str(own_algorithm)!r}). Leave one of the two out."
            )
        algorithm = GradClipAlgorithmType.parse(gradient_clip_algorithm)
        self.trainer.precision_plugin.clip_gradients(_raw(optimizer), gradient_clip_val, algorithm)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """The optimizers of `configure_optimizers`: the single one, or a list.

        Args:
            use_pl_optimizer: give proxies whose `step` goes through the Trainer (precision, hooks, `global_step`);
                False gives torch's objects.
        """
        trainer = self.trainer
        optimizers: list[Any] = list(trainer.lightning_optimizers if use_pl_optimizer else trainer.optimizers)
        return optimizers[0] if len(optimizers) == 1 else optimizers

    def lr_schedulers(self) -> Any:
        """The schedules of `configure_optimizers`: None, the single one, or a list."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not schedulers else schedulers[0] if len(schedulers) == 1 else schedulers

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients in manual optimization: as `loss.backward(*args, **kwargs)`, with precision and hooks.

        Raises:
            MisconfigurationException: optimization is automatic.
        """
        self._check_manual("manual_backward")
        self.trainer.backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Let gradients flow only into this optimizer's parameters, until `untoggle_optimizer`."""
        self._toggled.append(toggle_optimizer(self.trainer.optimizers, optimizer, self._toggled))

    def untoggle_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> None:
        """Undo `toggle_optimizer`."""
        if self._toggled:
            untoggle_optimizer(self._toggled.pop())

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer | LightningOptimizer) -> Generator[None]:
        """`toggle_optimizer` for the length of a `with` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def _check_manual(self, method: str) -> None:
        if self.automatic_optimization:
            raise MisconfigurationException(
                f"When using `self.{method}()`, optimization must be manual: set `self.automatic_optimization = False` "
                "in `__init__` of your LightningModule, or return the loss from `training_step`."
            )

    # Logging

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log a value. It stays on its device; nothing waits for it.

        Args:
            name: the key, any string.
            value: a number, a tensor with one element, or a torchmetrics.Metric.
            prog_bar: show it in the progress bar.
            logger: write it to the loggers. Default True.
            on_step: keep the value of each step. Default: True in hooks of a training batch, else False.
            on_epoch: keep the reduction over the epoch. Default: False in hooks of a training batch, else True. With
                both, the names are `name_step` and `name_epoch`.
            reduce_fx: "mean" (weighted by batch size), "sum", "min" or "max".
            enable_graph: keep the autograd graph.
            sync_dist: reduce over the processes.
            sync_dist_group: the process group for that.
            add_dataloader_idx: with several evaluation loaders, append `/dataloader_idx_N` to the name.
            batch_size: the weight of this value in a mean; found in the batch if not given.
            metric_attribute: the module's attribute that holds the metric, where it cannot be found.
            rank_zero_only: only rank 0 calls this; no reduction over processes.

        Raises:
            MisconfigurationException: logging is not possible in this hook, or arguments contradict.
            ValueError: the value is none of the above.
        """
        if self._logbook is None:
            self._say_not_logged()
            return
        self._logbook.log(
            name,
            value,
            prog_bar,
            logger,
            on_step,
            on_epoch,
            reduce_fx,
            enable_graph,
            sync_dist,
            sync_dist_group,
            add_dataloader_idx,
            batch_size,
            metric_attribute,
            rank_zero_only,
            self._attribute_of_metric,
        )

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[[Any], Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any | None = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log a dict of values, or a torchmetrics.MetricCollection; arguments as in `log`."""
        if not hasattr(dictionary, "items"):
            raise TypeError(
                f"`self.log_dict({dictionary!r})` needs a dict of names and values. A single value goes to "
                "`self.log(name, value)`."
            )
        items = dictionary.items(keep_base=False) if hasattr(dictionary, "add_metrics") else dictionary.items()  # type: ignore[call-arg]
        for name, value in items:
            self.log(
                name,
                value,
                prog_bar=prog_bar,
                logger=logger,
                on_step=on_step,
                on_epoch=on_epoch,
                reduce_fx=reduce_fx,
                enable_graph=enable_graph,
                sync_dist=sync_dist,
                sync_dist_group=sync_dist_group,
                add_dataloader_idx=add_dataloader_idx,
                batch_size=batch_size,
                rank_zero_only=rank_zero_only,
            )

    def _say_not_logged(self) -> None:
        if self._trainer is not None and self._trainer.barebones:
            _said.warn("`self.log()` does nothing while `Trainer(barebones=True)` is configured. Leave it out to log.")
        elif self._trainer is not None:
            raise MisconfigurationException(
                "`self.log(...)` was called while no Trainer manages it: no step or hook of the Trainer is running. "
                "Call it from a step or hook, and do not call those yourself."
            )
        else:
            _said.warn(
                "`self.log()` does nothing: the `self.trainer` reference is not registered, as no Trainer has this "
                "module yet. Call it from steps and hooks during `fit`, `validate` or `test`."
            )

    def _attribute_of_metric(self, name: str, metric: Metric, attribute: str | None) -> str:
        """The name of the submodule that is this metric: a checkpoint finds it again by that name."""
        for path, child in self.named_modules():
            if child is metric:
                return str(path)
        raise MisconfigurationException(
            f"Could not find the `LightningModule` attribute with the metric logged as {name!r}, by which a checkpoint "
            "would know it. Assign the metric to an attribute in `__init__`, or name one: "
            f"`self.log({name!r}, ..., metric_attribute=...)`."
        )

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only, above the progress bar."""
        if self._trainer is None:
            print(*args, **kwargs)
        else:
            self._trainer.print(*args, **kwargs)

    # Several processes

    def all_gather(self, data: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Gather tensors (or numbers, or collections of them) from all processes.

        Returns:
            The same structure with shapes `[world_size, ...]`; unchanged with one process.
        """
        return self.trainer.strategy.all_gather_tree(data, group, sync_grads)

    # Weights

    def freeze(self) -> LightningModule:
        """Stop all gradients and go to evaluation mode. Returns self."""
        self.requires_grad_(False)
        return self.eval()

    def unfreeze(self) -> LightningModule:
        """Undo `freeze`. Returns self."""
        self.requires_grad_(True)
        return self.train()

    @OnlyOnClass
    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> LightningModule:
        """Make a module from a checkpoint: its saved hyper-parameters are the arguments of `__init__`.

        Args:
            checkpoint_path: a path, URL or open file.
            map_location: as in `torch.load`. Default: where the tensors were saved, the CPU if that is missing here.
            hparams_file: a .yaml or .csv file that takes the place of the saved hyper-parameters.
            strict: whether the keys must fit exactly; default `strict_loading`.
            weights_only: as in `torch.load`; default True for local files.
            **kwargs: arguments of `__init__`, before the saved ones.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: the file is damaged or no checkpoint.
            TypeError: `__init__` lacks arguments that the file does not hold; they are named.
        """
        checkpoint = files.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
        args, kwargs = init_arguments(cls, checkpoint, kwargs, hparams_file)
        module = cls(*args, **kwargs)
        if strict is not None and module._strict_loading is not None and strict != module._strict_loading:
            raise ValueError(
                f"The parameter `strict={strict}` was passed to `.load_from_checkpoint()`, but the module sets "
                f"`strict_loading = {module._strict_loading}`. Choose one."
            )
        strict = module.strict_loading if strict is None else strict
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        state = files.weights_of(checkpoint, checkpoint_path)
        keys = module.load_state_dict(state, strict=strict)
        if not strict and keys is not None:
            if keys.missing_keys:
                rank_zero_warn(
                    f"The checkpoint has no values for {keys.missing_keys}: they stay as the constructor made them."
                )
            if keys.unexpected_keys:
                rank_zero_warn(f"The module has no place for these values of the checkpoint: {keys.unexpected_keys}.")
        first = next((value for value in state.values() if isinstance(value, Tensor)), None)
        return module if first is None else module.to(first.device)

    # Export

    @torch.no_grad()
    def to_onnx(self, file_path: Any = None, input_sample: Any | None = None, **kwargs: Any) -> Any:
        """Export `forward` as ONNX.

        Args:
            file_path: where to write; None with `dynamo=True` writes nothing.
            input_sample: arguments of `forward`; default `example_input_array`.
            **kwargs: for `torch.onnx.export`.

        Returns:
            The `ONNXProgram` with `dynamo=True`, else None.

        Raises:
            ValueError: there is no input.
            ModuleNotFoundError: the package onnx is not installed.
        """
        if find_spec("onnx") is None:
            raise ModuleNotFoundError("`to_onnx` needs the package onnx: pip install inazuma[onnx]")
        with evaluating(self):
            sample = self._sample(input_sample, "to_onnx")
            kwargs.setdefault("dynamo", False)
            return torch.onnx.export(self, sample, file_path, **kwargs)

    @torch.no_grad()
    def to_torchscript(
        self,
        file_path: str | Path | None = None,
        method: Literal["script", "trace"] = "script",
        example_inputs: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        """Compile the module with TorchScript (which torch itself is phasing out).

        Args:
            file_path: where to save the result; None saves nothing.
            method: "script" or "trace".
            example_inputs: for tracing; default `example_input_array`.
            **kwargs: for `torch.jit.script` or `torch.jit.trace`.

        Raises:
            ValueError: another method, or no input to trace with.
        """
        rank_zero_deprecation("`LightningModule.to_torchscript` is deprecated, as TorchScript is. Use `torch.export`.")
        if method not in ("script", "trace"):
            raise ValueError(f"to_torchscript(method={method!r}) is neither 'script' nor 'trace'. Use one of the two.")
        with evaluating(self), self._exporting():
            if method == "script":
                compiled: Any = torch.jit.script(self, **kwargs)
            else:
                sample = self._sample(example_inputs, "to_torchscript")
                compiled = torch.jit.trace(self, example_inputs=sample, **kwargs)  # type: ignore[no-untyped-call]
        if file_path is not None:
            torch.jit.save(compiled, str(file_path))
        return compiled

    @contextmanager
    def _exporting(self) -> Generator[None]:
        self.__dict__["_is_exporting"] = True
        try:
            yield
        finally:
            del self.__dict__["_is_exporting"]

    def _sample(self, sample: Any | None, method: str) -> Any:
        if sample is None:
            if self.example_input_array is None:
                raise ValueError(
                    f"Could not export with `{method}`: it needs an example input. Set "
                    "`self.example_input_array` in the module, or pass one."
                )
            sample = self.example_input_array
        sample = self.on_before_batch_transfer(sample, 0)
        sample = self.transfer_batch_to_device(sample, self.device, 0)
        return self.on_after_batch_transfer(sample, 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_logbook": None}  # type: ignore[no-untyped-call]


def _raw(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
