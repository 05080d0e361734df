"""How a run was started and how it ended, as JSON: enough to start it again.

    {"format": 1, "sessions": [...]}       one entry for each process: the first start, then every resume

The arguments of the program stand here and in no checkpoint, since checkpoints are passed on to others.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from inazuma.trainer import Trainer

RECORD_NAME = "run.json"
FORMAT = 1
RUNNING = "running"  # the exit reason until there is one: of a run that goes on, or was killed
_GIT_TIMEOUT_S = 5.0


def new_session(trainer: Trainer) -> dict[str, Any]:
    """What is to be known of a process that begins to train."""
    program = program_of(sys.modules["__main__"])
    at = trainer.progress
    checkpoint_dirs = {getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks}
    return {
        **program,
        "cwd": os.getcwd(),
        "git": git_state(program["script"]),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "inazuma": sys.modules["inazuma"].__version__,
        },
        "machine": {
            "platform": platform.platform(),
            "device": str(trainer.strategy.root_device),
            "devices": trainer.num_devices,
            "threads": torch.get_num_threads(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        },
        "seed": {"global": os.environ.get("PL_GLOBAL_SEED"), "torch": torch.initial_seed()},
        "trainer": settings_of(trainer),
        "data": data_of(trainer.train_dataloader),
        "ckpt_path": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        "checkpoint_dirs": sorted(str(folder) for folder in checkpoint_dirs if folder is not None),
        "position": {"epoch": at.epoch, "batch": at.batch, "step": at.step},
        "start": now(),
        "end": None,
        "exit": RUNNING,
    }


def program_of(main: Any) -> dict[str, Any]:
    """The program that runs: the path of its script, or its module for `python -m`, and the arguments."""
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return {
        "script": None if path is None else os.path.abspath(path),
        "module": None if spec is None else spec.name.removesuffix(".__main__"),
        "argv": sys.argv[1:],
    }


def settings_of(trainer: Trainer) -> dict[str, Any]:
    """The Trainer's settings that are plain values."""
    limits = {each.name: getattr(trainer.limits, each.name) for each in fields(trainer.limits) if each.init}
    others = {
        "precision": trainer.precision,
        "accelerator": trainer.accelerator,
        "detect_anomaly": trainer.detect_anomaly,
        "inference_mode": trainer.inference_mode,
        "default_root_dir": str(trainer.default_root_dir),
        "callbacks": [type(callback).__name__ for callback in trainer.callbacks],
        "loggers": [type(logger).__name__ for logger in trainer.loggers],
    }
    return {**{name: _plain(value) for name, value in limits.items()}, **others}


def data_of(loader: Any) -> dict[str, Any] | None:
    """What the train data are; None where they are not one `DataLoader`."""
    if not isinstance(loader, torch.utils.data.DataLoader):
        return None
    dataset = loader.dataset
    return {
        "dataset": f"{type(dataset).__module__}.{type(dataset).__qualname__}",
        "length": len(dataset) if hasattr(dataset, "__len__") else None,
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
        "sampler": type(loader.sampler).__name__,
    }


def git_state(script: str | None) -> dict[str, Any] | None:
    """Commit and whether tracked files were changed, of the repository that the script is in; None without one."""
    folder = os.getcwd() if script is None else os.path.dirname(script)
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(folder: str, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value: Any) -> Any:
    is_plain = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and abs(value) < 1e308)
    return value if is_plain else str(value)  # JSON has no infinity


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_sessions(folder: str | Path) -> list[dict[str, Any]]:
    """The sessions of a run, oldest first.

    Raises:
        FileNotFoundError: the folder has no record.
        ValueError: the file is none.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. A run keeps it with `Trainer(callbacks=[RunDigest()])`, from inazuma.callbacks."
        )
    try:
        content = json.loads(path.read_text())
        sessions, version = content["sessions"], content["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run ({error!r}).") from error
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}; this inazuma reads format {FORMAT}.")
    return list(sessions)


def write_sessions(folder: Path, sessions: list[dict[str, Any]]) -> None:
    """Write the record, whole or not at all."""
    path = folder / RECORD_NAME
    new = path.with_name(f"{RECORD_NAME}.new")
    new.write_text(json.dumps({"format": FORMAT, "sessions": sessions}, indent=2) + "\n")
    os.replace(new, path)
