"""Hyper-parameters: the arguments a module or datamodule was built with. Kept, stored in checkpoints, and used to
build the object again.

A checkpoint holds plain data only, so that it opens with `torch.load(weights_only=True)` and without inazuma:

    as is                numbers, texts, bytes, None, tensors, dtypes, devices; lists, tuples, sets, dictionaries
    in a plain form      paths, enums, namespaces, dataclasses, numpy's scalars and arrays, OmegaConf's containers,
                         dates and times
    as a description     modules, functions, instances of other classes: a text of what was there, for readers; named in
                         a warning, and to be passed when loading

Next to the hyper-parameters lie notes: what had to change its form, and what is missing and why. Nothing that a file
names is imported or called; the classes to build come from the signature of the class that loads.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import dataclasses
import datetime
import enum
import inspect
import io
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from inazuma.errors import CheckpointError
from inazuma.files import PathLike, open_for_reading
from inazuma.ranks import WarningCache, rank_zero_warn

Place: TypeAlias = tuple[Any, ...]  # the keys that lead to a value: ("optimizer", "lr")
Missing: TypeAlias = dict[Place, str]  # what a checkpoint could not store, and what it was

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_TIMES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
_BY_CLI = ("_instantiator", "_class_path")  # written by Lightning's CLI

T = TypeVar("T")

_warned = WarningCache()


class AttributeDict(dict[str, Any]):
    """A dictionary whose entries can be read and written as attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Missing attribute {name!r}: there are {list(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"Missing attribute {name!r}: there are {list(self)}") from None

    def __repr__(self) -> str:
        labels = [f'"{name}":' for name in self]
        width = max(map(len, labels), default=0)
        return "\n".join(f"{label:<{width}} {value}" for label, value in zip(labels, self.values(), strict=True))


class OnlyOnClass(Generic[T]):
    """A classmethod that refuses to be called on an instance, where its result would be thrown away by mistake."""

    def __init__(self, method: Callable[..., T]) -> None:
        self.method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: object | None, owner: type) -> Callable[..., T]:
        bound = cast("Callable[..., T]", self.method.__get__(None, owner))
        # Scripting a module reads all its attributes.
        if instance is None or torch.jit.is_scripting():  # type: ignore[attr-defined]
            return bound

        def refuse(*_: Any, **__: Any) -> T:
            raise TypeError(
                f"`{owner.__name__}.{bound.__name__}` makes an object and cannot be called on an instance. "
                "Call it on the class, and use what it returns."
            )

        return refuse


class HyperparametersMixin:
    """`save_hyperparameters()` and `hparams`, for modules and datamodules."""

    # The keys in a checkpoint.
    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "hparams_type"
    CHECKPOINT_HYPER_PARAMS_NOTES: ClassVar[str] = "hparams_notes"

    __jit_unused_properties__: ClassVar[list[str]] = ["hparams", "hparams_initial"]

    # On the class, so that saving before `super().__init__()` works.
    _log_hyperparams: bool = False
    _hparams_name: str | None = None
    _hparams: AttributeDict
    _hparams_initial: AttributeDict

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: types.FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of `__init__` in `hparams`, and with it in every checkpoint. To be called in `__init__`.

        Args:
            args: nothing: all arguments of this `__init__` and of those of subclasses that are running; what a
                subclass received wins. Names: only these arguments. One dictionary, namespace, dataclass or OmegaConf
                container: its entries, instead of arguments.
            ignore: names to leave out, also if a base class saved them already.
            frame: of the `__init__`, if it is not the caller.
            logger: hand the hyper-parameters to the loggers when a run starts.

        Raises:
            ValueError: an object that has no named entries, or several objects.
            KeyError: a name that is no argument of `__init__`.
        """
        self._log_hyperparams = logger
        if len(args) == 1 and (args[0] is None or (isinstance(args[0], Mapping) and not args[0])):
            return
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        given = _init_arguments(self, frame or sys._getframe(1))
        given = {name: value for name, value in given.items() if name not in ignored}
        if not args:
            self._hparams_name = "kwargs" if given else None
            chosen = AttributeDict(given)
        elif all(isinstance(arg, str) for arg in args):
            self._hparams_name = "kwargs"
            chosen = AttributeDict((name, _lookup(given, name, self)) for name in args)
        elif len(args) == 1:
            self._hparams_name = next((name for name, value in given.items() if _is_same(value, args[0])), None)
            chosen = _as_entries(args[0])
        else:
            raise ValueError(
                f"save_hyperparameters() got {len(args)} arguments that are not all names. "
                'Pass names, as in save_hyperparameters("lr", "depth"), or one dictionary.'
            )
        if isinstance(chosen, dict) and isinstance(self.hparams, dict):
            self.hparams.update(chosen)
        else:  # an OmegaConf container stays one
            self._hparams = chosen
        for name in ignored:
            self.hparams.pop(name, None)
        _warn_of_modules(self.hparams)
        self._hparams_initial = _snapshot(self.hparams)

    @property
    def hparams(self) -> AttributeDict:
        """The saved hyper-parameters, by name or as attributes. May be changed; checkpoints hold the changed ones."""
        if "_hparams" not in self.__dict__:
            self._hparams = AttributeDict()
        return self._hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyper-parameters as they were when they were saved; loggers get these."""
        if "_hparams_initial" not in self.__dict__:
            return AttributeDict()
        initial: AttributeDict = _snapshot(self._hparams_initial)
        return initial


# ---------------------------------------------------------------------------------------------------- collect


def _init_arguments(obj: object, frame: types.FrameType | None) -> dict[str, Any]:
    """The arguments of every running `__init__` of `obj`, from `frame` outwards; the outermost, a subclass's, wins."""
    arguments: dict[str, Any] = {}
    while frame is not None:
        if frame.f_code.co_name == "__init__":
            names, _, keywords, values = inspect.getargvalues(frame)
            if names and values.get(names[0]) is obj:
                arguments.update({name: values[name] for name in names[1:] if name in values})
                arguments.update(values[keywords] if keywords else {})
        frame = frame.f_back
    if dataclasses.is_dataclass(obj):  # its generated `__init__` has placeholders for defaults
        arguments.update(_dataclass_arguments(obj))
    return arguments


def _dataclass_arguments(instance: Any) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(instance) if field.init]
    return {name: getattr(instance, name) for name in names if hasattr(instance, name)}


def _lookup(given: dict[str, Any], name: str, obj: object) -> Any:
    if name not in given:
        raise KeyError(
            f"save_hyperparameters({name!r}): {type(obj).__name__}.__init__ has no argument of this name. "
            f"It has: {', '.join(given) or 'none'}"
        )
    return given[name]


def _is_same(argument: Any, saved: Any) -> bool:
    """Whether `saved` is the argument, or a copy of it as in `save_hyperparameters(dict(conf))`."""
    if argument is saved:
        return True
    if type(argument) is not type(saved) or not isinstance(saved, (dict, argparse.Namespace)):
        return False
    try:
        return bool(argument == saved)
    except (ValueError, RuntimeError):  # arrays and tensors in it have no single truth
        return False


def _as_entries(config: Any) -> Any:
    """A configuration object as an AttributeDict; an OmegaConf container as it is."""
    if _is_omegaconf(config) and isinstance(config, Mapping):
        return config
    if isinstance(config, argparse.Namespace):
        return AttributeDict(vars(config))
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return AttributeDict((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    if isinstance(config, Mapping):
        return AttributeDict(config)
    raise ValueError(
        f"save_hyperparameters({config!r}): a {type(config).__name__} has no names for its values. "
        'Pass the names of arguments, as in save_hyperparameters("lr"), or a dictionary, namespace or dataclass.'
    )


def _warn_of_modules(hparams: Mapping[str, Any]) -> None:
    if not isinstance(hparams, dict):
        return
    for name, value in hparams.items():
        if isinstance(value, nn.Module):
            rank_zero_warn(
                f"{name!r} is an instance of `nn.Module`, which a checkpoint holds anyway, as part of the "
                f"weights. Leave it out: self.save_hyperparameters(ignore=[{name!r}])",
                stacklevel=7,
            )


def _snapshot(value: Any) -> Any:
    """A copy down to the leaves. The leaves, which may be large, are shared."""
    if isinstance(value, argparse.Namespace):
        return type(value)(**{name: _snapshot(item) for name, item in vars(value).items()})
    if _is_omegaconf(value):
        return copy.deepcopy(value)
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update({key: _snapshot(item) for key, item in value.items()})
        return result
    if type(value) in (list, tuple, set):
        return type(value)(_snapshot(item) for item in value)
    return value


def _is_omegaconf(value: Any) -> bool:
    omegaconf = sys.modules.get("omegaconf")  # whoever holds such a container has imported it
    return omegaconf is not None and bool(omegaconf.OmegaConf.is_config(value))


# ---------------------------------------------------------------------------------------------------- store


class _NotPlainError(Exception):
    """A value that a checkpoint does not hold; the text says what it is."""


def dump_hparams(obj: HyperparametersMixin, checkpoint: dict[str, Any]) -> None:
    """Put the hyper-parameters of a module or datamodule into a checkpoint; nothing if it has none.

    Warns, once, of those that are no plain data and thus are left out.

    Args:
        obj: its attributes `CHECKPOINT_HYPER_PARAMS_*` name the keys.
        checkpoint: gets the hyper-parameters, the name of the argument that they came in, and notes about their form.
    """
    if not obj.hparams:
        return
    forms: dict[Place, str] = {}
    missing: Missing = {}
    plain = _to_plain(obj.hparams, (), forms, missing)
    checkpoint[obj.CHECKPOINT_HYPER_PARAMS_NAME] = obj._hparams_name
    checkpoint[obj.CHECKPOINT_HYPER_PARAMS_KEY] = plain
    if forms.pop((), None) == "OmegaConf":
        checkpoint[obj.CHECKPOINT_HYPER_PARAMS_TYPE] = "omegaconf.DictConfig"
    if forms or missing:
        checkpoint[obj.CHECKPOINT_HYPER_PARAMS_NOTES] = {"forms": forms, "missing": missing}
    if missing:
        _warned.warn(
            f"{type(obj).__name__}: checkpoints hold plain data only, so these hyper-parameters are not stored: "
            f"{_listed(missing)}. "
            f"Pass them to {type(obj).__name__}.load_from_checkpoint(...), "
            f"or leave them out: self.save_hyperparameters(ignore={_names(missing)})"
        )


def _to_plain(value: Any, place: Place, forms: dict[Place, str], missing: Missing) -> Any:
    """`value` as plain data. Writes into `forms` what it was, and into `missing` what dictionaries lose.

    Raises:
        _NotPlainError: there is no plain form, or a list, tuple or set holds something that has none.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if type(value) in (Tensor, nn.Parameter):
        return value.detach()
    if isinstance(value, enum.Enum) and type(value.value) in _PLAIN:
        # A number or a text is as good as the member in most uses.
        forms[place] = "PlainEnum" if isinstance(value, (int, float, str)) else "Enum"
        return value.value
    if isinstance(value, pathlib.PurePath):
        forms[place] = "Path"
        return str(value)
    if type(value) in _TIMES:
        forms[place] = type(value).__name__
        return (value.days, value.seconds, value.microseconds) if type(value) is _TIMES[-1] else value.isoformat()
    if _is_omegaconf(value):
        forms[place] = "OmegaConf"
        container = sys.modules["omegaconf"].OmegaConf.to_container(value, resolve=False, enum_to_str=True)
        return _to_plain(container, place, forms, missing)
    if _is_numpy(value):
        return _numpy_to_plain(value, place, forms)
    if isinstance(value, (int, float, str)):  # subclasses, which a reader would have to import
        return _without_subclass(value)
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item, (*place, i), forms, missing) for i, item in enumerate(value))
    if type(value) in (set, frozenset) and all(type(item) in _PLAIN for item in value):
        if isinstance(value, frozenset):
            forms[place] = "frozenset"
        return set(value)
    if (entries := _entries(value, place, forms)) is not None:
        return dict(_plain_entries(entries, place, forms, missing))
    raise _NotPlainError(_describe(value))


def _without_subclass(value: int | float | str) -> int | float | str:
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str.__str__(value)


def _entries(value: Any, place: Place, forms: dict[Place, str]) -> Any:
    """What a dictionary, or something like one, holds; None for anything else."""
    if isinstance(value, argparse.Namespace):
        forms[place] = "Namespace"
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        forms[place] = "AttributeDict"
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if isinstance(value, AttributeDict):
        forms[place] = "AttributeDict"
    return value if isinstance(value, Mapping) else None


def _plain_entries(
    entries: Mapping[Any, Any], place: Place, forms: dict[Place, str], missing: Missing
) -> Iterator[tuple[Any, Any]]:
    for key, value in entries.items():
        inner = (*place, key)
        if key is not None and type(key) not in _PLAIN:
            raise _NotPlainError(f"a dictionary with a {_describe(key)} as key")
        try:
            yield key, _to_plain(value, inner, forms, missing)
        except _NotPlainError as error:
            missing[inner] = str(error)


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def _numpy_to_plain(value: Any, place: Place, forms: dict[Place, str]) -> Any:
    if value.dtype.kind not in "biufc":  # neither truth values nor numbers
        raise _NotPlainError(f"{_describe(value)} of {value.dtype}")
    if value.ndim == 0:
        return value.item()
    forms[place] = "ndarray"
    return torch.from_numpy(value.copy())  # torch warns of arrays that are read-only


def _describe(value: Any) -> str:
    """What a person needs to make the object again: "torch.nn.modules.linear.Linear(in_features=3, out_features=1)".

    No code of the object is called: what stands in it under public names, as far as it is short and plain.
    """
    if hasattr(value, "__qualname__"):  # a class or function
        return f"{value.__module__}.{value.__qualname__}"
    kind, entries = type(value), getattr(value, "__dict__", {})
    plain = {
        name: entry
        for name, entry in entries.items()
        if not name.startswith("_") and name != "training" and type(entry) in (bool, int, float, str)
    }
    shown = ", ".join(f"{name}={entry!r:.60}" for name, entry in list(plain.items())[:8])
    return f"{kind.__module__}.{kind.__qualname__}" + (f"({shown})" if shown else "")


# ---------------------------------------------------------------------------------------------------- load


def init_arguments(
    cls: type[HyperparametersMixin],
    checkpoint: Mapping[str, Any],
    overrides: Mapping[str, Any],
    hparams_file: PathLike | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments to build `cls` with: those that a checkpoint holds, overridden by those that the user passed.

    Args:
        cls: its attributes `CHECKPOINT_HYPER_PARAMS_*` name the keys, its `__init__` which arguments it takes; others
            are dropped unless it takes `**kwargs`.
        checkpoint: as `files.load` returned it; written by inazuma or Lightning.
        overrides: what the user passed to `load_from_checkpoint`.
        hparams_file: a `.yaml`, `.yml` or `.csv` file whose content replaces what the checkpoint holds.

    Returns:
        `args, kwargs` for `cls(*args, **kwargs)`; `args` are the parameters that are declared positional-only.

    Raises:
        TypeError: `__init__` requires an argument that is in neither. The message says why and what to pass.
        ValueError: `hparams_file` has another ending.
        CheckpointError: what the file holds as hyper-parameters are none.
    """
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    by_name = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    stored, missing = _stored_arguments(cls, checkpoint, hparams_file)
    name = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    missing = {place: what for place, what in missing.items() if place[0] not in overrides}
    if isinstance(name, str) and name in by_name:  # all of them came in one dictionary
        is_omegaconf = "DictConfig" in str(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_TYPE))
        stored = {name: _REBUILD["OmegaConf" if is_omegaconf else "AttributeDict"]({**stored, **overrides})}
        missing = {(name, *place): what for place, what in missing.items() if name not in overrides}
    arguments = {**stored, **overrides}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        arguments = {name: value for name, value in arguments.items() if name in by_name}
        missing = {place: what for place, what in missing.items() if place[0] in by_name}
    _require_all(cls, by_name, arguments, missing)
    if missing:
        rank_zero_warn(
            f"{cls.__name__}.load_from_checkpoint: the checkpoint does not hold {_listed(missing)}. Arguments that are "
            f"missing take their default. If that is not right, pass {_to_pass(_names(missing))}",
            stacklevel=7,
        )
    return tuple(
        arguments.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY and p.name in arguments
    ), arguments


def _stored_arguments(
    cls: type[HyperparametersMixin], checkpoint: Mapping[str, Any], hparams_file: PathLike | None
) -> tuple[dict[str, Any], Missing]:
    """The hyper-parameters of a checkpoint, in their own form, or of the file that replaces them; what is missing."""
    if hparams_file is not None:
        return read_hparams_file(hparams_file), {}
    try:
        return _read_stored(cls, checkpoint)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{cls.__name__}.load_from_checkpoint: the hyper-parameters under {cls.CHECKPOINT_HYPER_PARAMS_KEY!r} "
            f"cannot be read ({error!r}): the file is damaged, or something else wrote it. "
            "`hparams_file=...` gives them from another file."
        ) from error


def _read_stored(cls: type[HyperparametersMixin], checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], Missing]:
    stored = _as_dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {})
    notes = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NOTES) or {"forms": {}, "missing": {}}
    missing = dict(notes["missing"])
    if wrong := [name for name in stored if not isinstance(name, str) or name == "self"]:
        raise TypeError(f"{wrong} cannot be names of arguments")
    if not all(isinstance(place, tuple) and place for place in (*missing, *notes["forms"])):
        raise TypeError("the notes about them name no places")
    _drop_cli_keys(cls, stored)
    values = {name: _from_plain(value, (name,), notes["forms"]) for name, value in stored.items()}
    _restore_enums(cls, values, notes["forms"], missing)
    return values, missing


def _as_dict(stored: Any) -> dict[str, Any]:
    """Hyper-parameters of a file as a new dictionary; old files hold namespaces."""
    return dict(vars(stored)) if isinstance(stored, argparse.Namespace) else dict(stored.items())


def _listed(missing: Missing) -> str:
    return ", ".join(f"{'.'.join(map(str, place))} ({what})" for place, what in missing.items())


def _names(missing: Missing) -> list[str]:
    return list(dict.fromkeys(place[0] for place in missing))


def _to_pass(names: Iterable[str]) -> str:
    return ", ".join(f"{name}=..." for name in names)


def _drop_cli_keys(cls: type, stored: dict[str, Any]) -> None:
    named = {key: stored.pop(key) for key in _BY_CLI if key in stored}
    if named:
        rank_zero_warn(
            f"{cls.__name__}.load_from_checkpoint: the checkpoint was written by Lightning's CLI and asks to build the "
            f"object by {named}. inazuma does not import or call what a file names, and passes the stored "
            f"hyper-parameters to {cls.__name__} as they are. Pass arguments that are objects yourself.",
            stacklevel=8,
        )


def _from_plain(value: Any, place: Place, forms: dict[Place, str]) -> Any:
    """The reverse of `_to_plain`, from the inside out; enums stay values."""
    if type(value) is dict:
        value = {key: _from_plain(item, (*place, key), forms) for key, item in value.items()}
    elif type(value) in (list, tuple):
        value = type(value)(_from_plain(item, (*place, i), forms) for i, item in enumerate(value))
    rebuild = _REBUILD.get(forms.get(place, ""))
    return value if rebuild is None else rebuild(value)


def _omegaconf(value: Any) -> Any:
    """An OmegaConf container, or the value with attributes where OmegaConf is not installed."""
    try:
        import omegaconf
    except ImportError:
        return AttributeDict(value) if isinstance(value, dict) else value
    return omegaconf.OmegaConf.create(value)


_REBUILD: dict[str, Any] = {
    "Path": pathlib.Path,
    "Namespace": lambda entries: argparse.Namespace(**entries),
    "AttributeDict": AttributeDict,
    "OmegaConf": _omegaconf,
    "frozenset": frozenset,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": lambda parts: datetime.timedelta(*parts),
    "ndarray": lambda tensor: tensor.cpu().numpy(),
}


def _restore_enums(cls: type, values: dict[str, Any], forms: dict[Place, str], missing: Missing) -> None:
    """Make members of the enums that the signature of `cls` names; the others count as missing."""
    for place, form in forms.items():
        if form not in ("Enum", "PlainEnum"):
            continue
        kind = _enum_of(cls, place[0]) if len(place) == 1 else None
        if kind is not None:
            values[place[0]] = kind(values[place[0]])
        elif form == "Enum" and len(place) > 1:
            missing[place] = "the member of an enum; its value is in its place"
        elif form == "Enum":
            missing[place] = f"the member of an enum with the value {values.pop(place[0])!r}"


def _enum_of(cls: type, name: str) -> type[enum.Enum] | None:
    """The enum that the parameter `name` takes, by its default or its annotation, in `cls` or a base."""
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if not isinstance(init, types.FunctionType) or name not in (found := inspect.signature(init).parameters):
            continue
        if isinstance(found[name].default, enum.Enum):
            return type(found[name].default)
        try:
            hint = typing.get_type_hints(init).get(name)
        except (NameError, AttributeError, TypeError):  # as for names that exist for type checkers only
            return None
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, enum.Enum):
                return kind
    return None


def _require_all(
    cls: type, by_name: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], missing: Missing
) -> None:
    absent = [name for name, p in by_name.items() if p.default is p.empty and name not in arguments]
    if not absent:
        return
    reasons = [
        f"{name!r} was not stored, as it is no plain data ({missing[(name,)]})"
        if (name,) in missing
        else f"{name!r} is not among the hyper-parameters in the checkpoint (self.save_hyperparameters() keeps them)"
        for name in absent
    ]
    count = f"{len(absent)} required positional argument{'s' if len(absent) > 1 else ''}"
    raise TypeError(
        f"{cls.__name__}.__init__() missing {count}: {' and '.join(map(repr, absent))}. {'; '.join(reasons)}. "
        f"Pass what is missing: {cls.__name__}.load_from_checkpoint(..., {_to_pass(absent)})"
    )


def read_hparams_file(path: PathLike) -> dict[str, Any]:
    """Hyper-parameters from a file: `.yaml` or `.yml` with plain data, or `.csv` with the columns `key` and `value`.

    Raises:
        ValueError: another ending, or no dictionary in it.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in (".csv", ".yaml", ".yml"):
        raise ValueError(f"`hparams_file` is {os.fspath(path)!r}, but its ending has to be .csv, .yml or .yaml")
    with open_for_reading(path) as file:
        text = file.read().decode("utf-8")
    content = _parse_csv(text) if ending == ".csv" else _parse_yaml(text)
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)!r} holds a {type(content).__name__}, not names with values")
    return content


def _parse_csv(text: str) -> dict[str, Any]:
    return {row["key"]: _literal(row["value"]) for row in csv.DictReader(io.StringIO(text, newline=""))}


def _literal(text: str) -> Any:
    """A Python literal as its value, anything else as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("Reading `hparams_file` needs the package pyyaml: pip install inazuma[yaml]") from error

    class Loader(yaml.SafeLoader):
        """Plain data, and tuples as Lightning's loggers write them."""

    def construct_tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", construct_tuple)
    return yaml.load(text, Loader) or {}
