"""Arguments of the Trainer that are checked and taken apart before they go to their owners."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from inazuma.checkpoint_io import CheckpointIO
from inazuma.errors import MisconfigurationException
from inazuma.optim import GradClipAlgorithmType
from inazuma.precision.precision import Precision
from inazuma.ranks import rank_zero_warn

F = TypeVar("F", bound=Callable[..., None])


def with_environment(init: F) -> F:
    """Let `PL_TRAINER_<ARGUMENT>` give defaults, accept arguments by position, and name the nearest for a wrong one."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def from_environment(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names):
            raise TypeError(f"Trainer() takes at most {len(names)} arguments, {len(args)} were given.")
        given = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"Trainer() got an unexpected keyword argument {name!r}.{hint}")
            if name in given:
                raise TypeError(f"Trainer() got multiple values for argument {name!r}")
            given[name] = value
        for name in names:
            text = os.environ.get(f"PL_TRAINER_{name.upper()}")
            if text and name not in given:
                try:
                    given[name] = ast.literal_eval(text)
                except (ValueError, SyntaxError):
                    given[name] = text
        init(self, **given)

    return from_environment  # type: ignore[return-value]


def check_barebones(arguments: dict[str, Any]) -> None:
    """Refuse what `Trainer(barebones=True)` switches off (`ValueError`)."""
    for name in (
        "enable_checkpointing",
        "logger",
        "enable_progress_bar",
        "enable_model_summary",
        "log_every_n_steps",
        "num_sanity_val_steps",
        "fast_dev_run",
        "detect_anomaly",
        "profiler",
    ):
        if arguments[name]:
            raise ValueError(
                f"`Trainer(barebones=True, {name}={arguments[name]!r})` was passed. Barebones switches {name} off: "
                "remove one of the two."
            )


def check_kinds(arguments: dict[str, Any]) -> None:
    """Refuse switches that are neither on nor off (a text such as "no" would count as on), and a folder that is none.

    Raises:
        TypeError: such a value.
        NotADirectoryError: the folder is a file.
    """
    hints = {
        "enable_checkpointing": "; callbacks go to `Trainer(callbacks=...)`",
        "enable_progress_bar": "; callbacks go to `Trainer(callbacks=...)`",
    }
    for name in (
        "enable_checkpointing",
        "enable_progress_bar",
        "enable_model_summary",
        "benchmark",
        "inference_mode",
        "use_distributed_sampler",
        "detect_anomaly",
        "barebones",
        "sync_batchnorm",
        "enable_autolog_hparams",
        "async_checkpointing",
    ):
        value = arguments[name]
        if value is not None and not isinstance(value, int):
            raise TypeError(f"Trainer({name}={value!r}) should be True or False{hints.get(name, '')}.")
    if arguments["deterministic"] not in (None, True, False, "warn"):
        raise TypeError(f"Trainer(deterministic={arguments['deterministic']!r}) should be True, False or 'warn'.")
    folder = arguments["default_root_dir"]
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"Trainer(default_root_dir={folder!r}) should be a path: a str or a `pathlib.Path`.")
    if folder is not None and os.path.isfile(folder):
        raise NotADirectoryError(f"Trainer(default_root_dir={folder!r}) is a file. Give a directory.")


def clipping(value: Any, algorithm: Any) -> tuple[Any, str | None]:
    """The checked arguments of gradient clipping."""
    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"Trainer(gradient_clip_val={value!r}) is no number. Give an int or a float.")
    if value is not None and value < 0:
        raise MisconfigurationException(
            f"Trainer(gradient_clip_val={value!r}): gradients cannot be clipped to a negative norm or value. "
            "Give a positive number, or None to not clip."
        )
    if value is not None and math.isnan(value):
        raise MisconfigurationException(
            "Trainer(gradient_clip_val=nan) would make every gradient NaN. Give a number, or None not to clip."
        )
    return value, None if algorithm is None else GradClipAlgorithmType.parse(algorithm).value


def set_determinism(deterministic: bool | str | None, benchmark: bool | None) -> None:
    """Set torch's global switches."""
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # the only setting under which cuBLAS is deterministic
        if benchmark:
            rank_zero_warn(
                "Trainer(deterministic=True, benchmark=True): while torch.backends.cudnn.benchmark is on, PyTorch does "
                "not heed torch.backends.cudnn.deterministic. Use benchmark=False for runs that repeat.",
            )
        elif benchmark is None:
            benchmark = False
    if benchmark is not None:
        torch.backends.cudnn.benchmark = benchmark


def split_plugins(plugins: Any) -> tuple[Precision | None, CheckpointIO | None]:
    """The one precision and the one CheckpointIO among the plugins."""
    found: dict[type[Any], Any] = {}
    given = [] if plugins is None else list(plugins) if isinstance(plugins, (list, tuple)) else [plugins]
    for plugin in given:
        kind = next((kind for kind in (Precision, CheckpointIO) if isinstance(plugin, kind)), None)
        if kind is None:
            raise MisconfigurationException(
                f"Found invalid type for plugin {plugin!r}. Trainer(plugins=...) takes a Precision and a CheckpointIO."
            )
        if kind in found:
            raise MisconfigurationException(
                f"Received multiple values for {kind.__name__} in Trainer(plugins=...): {found[kind]!r}, {plugin!r}. "
                "Only one can be in charge: leave the other out."
            )
        found[kind] = plugin
    return found.get(Precision), found.get(CheckpointIO)
