"""Where metrics and hyperparameters go: the base of all loggers, and one file per logger."""

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
