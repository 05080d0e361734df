"""TensorBoardLogger: metrics, hyperparameters and the graph as TensorBoard event files."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.nn import Module

from inazuma import files
from inazuma.files import PathLike
from inazuma.loggers.logger import rank_zero_experiment
from inazuma.loggers.utilities import HPARAMS_FILE, DirectoryLogger, as_dict, flatten, plain, save_hparams_to_yaml
from inazuma.ranks import rank_zero_only, rank_zero_warn
from inazuma.seed import isolate_rng

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def is_available() -> bool:
    """Whether tensorboard or tensorboardX is installed; neither is imported."""
    return any(importlib.util.find_spec(package) is not None for package in ("tensorboard", "tensorboardX"))


def _import(part: str) -> Any:
    """torch's package for tensorboard if that is installed, else tensorboardX; the two have the same parts."""
    package = "tensorboardX" if importlib.util.find_spec("tensorboard") is None else "torch.utils.tensorboard"
    return importlib.import_module(package + part)


class TensorBoardLogger(DirectoryLogger):
    """Write event files and `hparams.yaml` to `<save_dir>/<name>/version_<n>[/<sub_dir>]`.

    Needs tensorboard or tensorboardX (`pip install inazuma[tensorboard]`), which is imported when something is logged.

    Args:
        save_dir: the directory above all experiments; `~` and `$VARIABLES` are replaced.
        name: the directory of the experiment; empty or None leaves this level out.
        version: a number, or a string that is the directory's name; None takes the next free number. With the version
            of an earlier run TensorBoard shows both as one series; `purge_step=n` hides what the first one logged from
            step n on, and a resumed run does so from the step where it goes on.
        log_graph: draw the graph of the module, traced with its `example_input_array`.
        default_hp_metric: log `hp_metric` = -1 with hyperparameters that come without metrics, because TensorBoard
            shows no hyperparameters without a metric. False: such hyperparameters only go to `hparams.yaml`.
        prefix: put before the name of every metric, with "-" between.
        sub_dir: one level more below the version.
        **kwargs: for the `SummaryWriter`, as `max_queue`, `flush_secs` (seconds) or `purge_step`.

    Raises:
        ModuleNotFoundError: neither package is installed.
    """

    NAME_HPARAMS_FILE = HPARAMS_FILE

    def __init__(
        self,
        save_dir: PathLike,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: PathLike | None = None,
        **kwargs: Any,
    ) -> None:
        if not is_available():
            raise ModuleNotFoundError(
                "TensorBoardLogger needs the package tensorboard or tensorboardX, and neither is installed. "
                "Run `pip install inazuma[tensorboard]`, or log to files with CSVLogger."
            )
        super().__init__(save_dir, name, version, prefix)
        self._sub_dir = None if sub_dir is None else str(sub_dir)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._kwargs = kwargs
        self._experiment: SummaryWriter | None = None
        self.hparams: dict[str, Any] = {}
        self._hparams_are_saved = False
        self._owns_hparams_file = False  # one that an earlier run of this version wrote is left as it is

    @property
    def sub_dir(self) -> str | None:
        """The directory below the version, if one was asked for."""
        return self._sub_dir

    @property
    def log_dir(self) -> str:
        """The directory of this version's event files."""
        return super().log_dir if self._sub_dir is None else files.join(super().log_dir, self._sub_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The `SummaryWriter`; created, with its directory and an event file, when it is first asked for."""
        if self._experiment is None:
            files.makedirs(self.root_dir)
            self._experiment = _import("").SummaryWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write each value as a scalar, and each dict of values as several curves in one chart.

        Raises:
            ValueError: a value is neither a number, a tensor with one element, nor a dict of these.
        """
        for name, value in self.add_prefix(metrics).items():
            if isinstance(value, Mapping):
                self.experiment.add_scalars(name, dict(value), step)
                continue
            number = plain(value)  # waits for the device of a tensor
            if not isinstance(number, (int, float)):
                raise ValueError(
                    f"TensorBoardLogger cannot log {name!r}: {value!r} is a {type(value).__name__} and not one number. "
                    "Log a number, a tensor with one element, or a dict of these."
                )
            self.experiment.add_scalar(name, number, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace | None,
        metrics: Mapping[str, Any] | float | None = None,
        step: int | None = None,
    ) -> None:
        """Write hyperparameters to TensorBoard's page of them and, at the next `save`, to `hparams.yaml`.

        Nested parameters appear as "outer/inner", and what is no number, bool or string as its text.

        Args:
            params: are added to those logged before.
            metrics: values to compare runs by; a lone number is called "hp_metric".
            step: the step of these metrics.
        """
        params = as_dict(params)
        self.hparams.update(params)
        self._hparams_are_saved = False
        if metrics is None:
            if not self._default_hp_metric:
                return
            metrics = -1.0
        values = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
        self.log_metrics(values, 0 if step is None else step)
        self._write_hparams_summary(flatten(plain(params)), list(self.add_prefix(values)))

    def _write_hparams_summary(self, params: dict[str, Any], metrics: list[str]) -> None:
        shown = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in params.items()
        }
        writer = cast(
            Any, self.experiment
        )._get_file_writer()  # add_hparams would open a run of its own, one level below
        for summary in _import(".summary").hparams(shown, dict.fromkeys(metrics, 0.0)):
            writer.add_summary(summary)

    @rank_zero_only
    def log_graph(self, model: Module, input_array: Tensor | tuple[Any, ...] | None = None) -> None:
        """Draw the graph of `model`, if `log_graph=True` was asked for. Random numbers and modes stay as they were.

        Args:
            model: a LightningModule; its batch transfer hooks move the example to its device.
            input_array: an example for `forward`, a tuple for several arguments; None: `model.example_input_array`.
        """
        if not self._log_graph:
            return
        example: Any = getattr(model, "example_input_array", None) if input_array is None else input_array
        if not isinstance(example, (Tensor, tuple)):
            found = "is not set" if example is None else f"is a {type(example).__name__}, which cannot be traced"
            rank_zero_warn(
                f"TensorBoardLogger(log_graph=True) logs no graph: the `example_input_array` of the module {found}. "
                "Set it to a tensor, or to a tuple of the arguments of `forward`."
            )
            return
        modes = [(module, module.training) for module in model.modules()]
        with isolate_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.trace", category=DeprecationWarning)  # add_graph's
            self.experiment.add_graph(model, _transferred(model, example))
        for module, training in modes:  # add_graph leaves all of them in the mode of the outermost
            module.training = training

    @rank_zero_only
    def resume(self, position: Any, step: int) -> None:
        """Hide what earlier runs of this version logged from `step` on; `purge_step=...` of yours is kept instead."""
        if "purge_step" not in self._kwargs:
            if self._experiment is not None:
                self._experiment.close()
            self._experiment = None
            self._kwargs["purge_step"] = step  # told to TensorBoard at the head of the next event file

    @rank_zero_only
    def save(self) -> None:
        """Hand waiting events to the operating system, and write `hparams.yaml` if hyperparameters are new."""
        self.experiment.flush()
        if self._hparams_are_saved:
            return
        path = files.join(self.log_dir, self.NAME_HPARAMS_FILE)
        if self._owns_hparams_file or not files.exists(path):
            save_hparams_to_yaml(path, self.hparams)
            self._owns_hparams_file = True
        self._hparams_are_saved = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Save and close the event file; logging more opens another. Where nothing was logged, nothing is created."""
        if self._experiment is not None or self.hparams:
            self.save()
            self.experiment.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_experiment": None}  # it holds a thread and an open file


def _transferred(model: Any, batch: Any) -> Any:
    """`batch` as the hooks of `model` hand it to a step."""
    batch = model.on_before_batch_transfer(batch, 0)
    batch = model.transfer_batch_to_device(batch, model.device, 0)
    return model.on_after_batch_transfer(batch, 0)
