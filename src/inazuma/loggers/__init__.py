"""Where metrics and hyperparameters go: the base of all loggers, and one file per logger."""

import os
from collections.abc import Iterable

from inazuma.files import PathLike
from inazuma.loggers.csv_logs import CSVLogger, ExperimentWriter
from inazuma.loggers.logger import DummyLogger, Logger, merge_dicts, rank_zero_experiment
from inazuma.loggers.tensorboard import TensorBoardLogger, is_available
from inazuma.ranks import rank_zero_warn

__all__ = [
    "CSVLogger",
    "DummyLogger",
    "ExperimentWriter",
    "Logger",
    "TensorBoardLogger",
    "default_logger",
    "merge_dicts",
    "rank_zero_experiment",
    "select",
]


def default_logger(save_dir: PathLike, version: int | str | None = None) -> Logger:
    """The logger of `Trainer(logger=True)`: TensorBoard if one of its packages is installed, else CSV with a warning.

    Nothing is imported and nothing created on disk before the logger is used.
    """
    if is_available():
        return TensorBoardLogger(save_dir, version=version)
    rank_zero_warn(
        "Trainer(logger=True) logs to CSV files, because neither tensorboard nor tensorboardX is installed. "
        "Run `pip install inazuma[tensorboard]`, or pass logger=CSVLogger(...) to choose this and silence the warning."
    )
    return CSVLogger(save_dir, version=version)


def select(logger: Logger | Iterable[Logger] | bool | None, save_dir: PathLike, fast_dev_run: bool) -> list[Logger]:
    """The loggers that `Trainer(logger=...)` asks for; in a `fast_dev_run` one that writes nothing in their place.

    Raises:
        TypeError: no logger, or something in the list is none.
    """
    if isinstance(logger, (str, type)) or not isinstance(logger, (Logger, Iterable, bool, type(None))):
        raise TypeError(
            f"Trainer(logger={logger!r}) is no `inazuma.loggers.Logger`. Give an instance such as `CSVLogger('logs')`, "
            "several in a list, True for the default one or False for none."
        )
    if logger is None or logger is True:
        made = [default_logger(save_dir, version=os.environ.get("SLURM_JOB_ID"))]
    elif logger is False:
        made = []
    else:
        made = [logger] if isinstance(logger, Logger) else list(logger)
    for each in made:
        if not isinstance(each, Logger):
            raise TypeError(
                f"Trainer(logger=...): {each!r} is no `inazuma.loggers.Logger`. Give instances, such as "
                "`CSVLogger('logs')`."
            )
    return [DummyLogger()] if made and fast_dev_run else made
