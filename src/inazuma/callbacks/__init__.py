"""Callbacks: code that runs beside the module at chosen moments of a run."""

from __future__ import annotations

from inazuma.callbacks.callback import Callback
from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from inazuma.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from inazuma.callbacks.lambda_function import LambdaCallback
from inazuma.callbacks.lr_monitor import LearningRateMonitor
from inazuma.callbacks.model_checkpoint import ModelCheckpoint
from inazuma.callbacks.model_summary import ModelSummary
from inazuma.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from inazuma.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
from inazuma.callbacks.rich_model_summary import RichModelSummary
from inazuma.callbacks.run_digest import RunDigest
from inazuma.callbacks.stochastic_weight_avg import StochasticWeightAveraging
from inazuma.callbacks.timer import Timer
from inazuma.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "Callback",
    "Checkpoint",
    "EMAWeightAveraging",
    "EarlyStopping",
    "EarlyStoppingReason",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "RunDigest",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "Timer",
    "WeightAveraging",
]
