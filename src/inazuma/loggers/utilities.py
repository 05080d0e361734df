"""What the loggers share: directories with versions, hyperparameters as plain data, and files, local or remote."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import os
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from enum import Enum
from typing import IO, Any

import torch

from inazuma import files
from inazuma.files import PathLike
from inazuma.loggers.logger import Logger

HPARAMS_FILE = "hparams.yaml"


class DirectoryLogger(Logger):
    """The base of loggers that keep every run in a directory of its own: `<save_dir>/<name>/version_<n>`.

    Args:
        save_dir: the directory above all experiments; a local path (`~` and `$VARIABLES` are replaced) or an address.
        name: the directory of the experiment. Empty or None: versions stand in `save_dir` itself.
        version: a number, or a string that is the directory's name. None takes the number after the highest there is;
            the directory is looked at when the version is first asked for, and the answer kept.
        prefix: put before the name of every metric, with "-" between.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(self, save_dir: PathLike, name: str | None, version: int | str | None, prefix: str) -> None:
        self._save_dir = os.path.expanduser(os.path.expandvars(os.fspath(save_dir)))
        self._name = name or ""
        self._version = version
        self._prefix = prefix

    @property
    def save_dir(self) -> str:
        """The directory above all experiments."""
        return self._save_dir

    @property
    def name(self) -> str:
        """The name of the experiment; may be empty."""
        return self._name

    @property
    def root_dir(self) -> str:
        """The directory that holds all versions of the experiment."""
        return files.join(self.save_dir, self.name) if self.name else self.save_dir

    @property
    def version(self) -> int | str:
        """The version given, or the number after the highest one in `root_dir`."""
        if self._version is None:
            self._version = next_version(self.root_dir)
        return self._version

    @property
    def log_dir(self) -> str:
        """The directory of this version."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return files.join(self.root_dir, version)

    def add_prefix(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """The metrics under the names that are written."""
        if not self._prefix:
            return metrics
        return {f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}": value for name, value in metrics.items()}


def next_version(root_dir: str) -> int:
    """The number after the highest N of the directories `version_N` in `root_dir`; 0 if there is none."""
    names = [os.path.basename(path) for path in files.listdir(root_dir) if files.isdir(path)]
    taken = [int(match[1]) for name in names if (match := re.fullmatch(r"version_(\d+)", name))]
    return max(taken, default=-1) + 1


# ------------------------------------------------------------------------------------------ hyperparameters


def as_dict(params: Mapping[str, Any] | Namespace | None) -> dict[str, Any]:
    """Hyperparameters as a dict, from what a user may hand in."""
    return dict(vars(params) if isinstance(params, Namespace) else params or {})


def plain(value: Any) -> Any:
    """`value` as numbers, strings, None, and lists and dicts of these; anything else becomes a word that names it.

    An enum becomes its name; namespaces, dataclasses and OmegaConf containers (resolved) become dicts; tuples and sets
    become lists; numbers of numpy and tensors with one element become Python numbers; classes and functions become
    their dotted path. Reading a tensor on a GPU waits for it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if (omegaconf := sys.modules.get("omegaconf")) is not None and omegaconf.OmegaConf.is_config(value):
        value = omegaconf.OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Namespace):
        value = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, (int, float)) else str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(inner) for inner in value), key=str)
    if isinstance(value, torch.Tensor) or (type(value).__module__ == "numpy" and hasattr(value, "shape")):
        return plain(value.item()) if math.prod(value.shape) == 1 else _describe(value)
    return _describe(value)


def _describe(value: Any) -> str:
    """A word for an object: the dotted path of a class or function, else its text if short, else its class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}.{named.__qualname__}"
    if named is value:
        return path
    text = str(value)
    return path if "\n" in text or " at 0x" in text or len(text) > 200 else text


def flatten(params: Mapping[Any, Any], parent: str = "") -> dict[str, Any]:
    """Nested dicts and lists of dicts in one: `{"a": {"b": 1}, "c": [{"d": 2}]}` is `{"a/b": 1, "c/0/d": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{parent}{key}"
        if isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        else:
            flat[name] = value
    return flat


def save_hparams_to_yaml(config_yaml: PathLike, hparams: Mapping[str, Any] | Namespace) -> None:
    """Write hyperparameters as YAML, in the order given, as `plain` data: every YAML reader can read the file safely.

    Without PyYAML the file is written in YAML's JSON form.

    Raises:
        RuntimeError: the directory of `config_yaml` does not exist.
        TypeError: `hparams` is neither a mapping nor a namespace.
    """
    path = os.fspath(config_yaml)
    if not files.isdir(os.path.dirname(path) or "."):
        raise RuntimeError(f"Missing folder: {os.path.dirname(path)}. Create it before {path} is written.")
    if not isinstance(hparams, (Mapping, Namespace)):
        raise TypeError(f"hparams must be a dictionary or a Namespace, but is a {type(hparams).__name__}.")
    params = plain(hparams)
    try:
        import yaml
    except ImportError:
        lines = ",\n".join(f"  {_flow(key)}: {_flow(value)}" for key, value in params.items())
        text = f"{{\n{lines}\n}}\n" if lines else "{}\n"
    else:
        text = yaml.safe_dump(params, sort_keys=False, allow_unicode=True)
    with open_text(path, "w") as file:
        file.write(text)


def _flow(value: Any) -> str:
    """Plain data in YAML's flow style: JSON, except for the numbers that the two spell differently."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        digits, exponent, power = repr(value).partition("e")
        return digits + ".0" * (exponent != "" and "." not in digits) + exponent + power  # 1e-05 would be a string
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------------------------------------------- files


def open_text(path: PathLike, mode: str) -> IO[str]:
    """Open a text file, local or remote, in `mode` "r", "w" or "a"; line ends are kept as they are written."""
    if files.is_local(path):
        return open(files.join(path), mode, encoding="utf-8", newline="")
    import fsspec

    file: IO[str] = fsspec.open(os.fspath(path), mode, encoding="utf-8", newline="").open()
    return file


def move(source: PathLike, target: PathLike) -> None:
    """Rename a file, replacing `target`."""
    if files.is_local(source):
        os.replace(files.join(source), files.join(target))
        return
    import fsspec

    fs, old = fsspec.core.url_to_fs(os.fspath(source))
    _, new = fsspec.core.url_to_fs(os.fspath(target))
    fs.mv(old, new)
