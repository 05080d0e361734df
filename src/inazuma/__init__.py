"""inazuma: a training framework for PyTorch with Lightning's API."""

from inazuma.bad_steps import BadSteps
from inazuma.callbacks.callback import Callback
from inazuma.datamodule import LightningDataModule
from inazuma.module import LightningModule
from inazuma.seed import seed_everything
from inazuma.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "BadSteps",
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "__version__",
    "seed_everything",
]
