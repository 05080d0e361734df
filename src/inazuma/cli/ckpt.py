"""`inazuma ckpt info|verify|slim|diff`: checkpoint files of inazuma and Lightning, read with `weights_only=True`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inazuma import files
from inazuma.errors import CheckpointError
from inazuma.tree import size_bytes, tensors

_ENDINGS = (".ckpt", ".pt", ".pth")  # the files that `verify` looks at in a directory


def add_to(subparsers: Any) -> None:
    """Add the command `ckpt` to the subparsers of an `argparse.ArgumentParser`."""
    parser = subparsers.add_parser("ckpt", help="look at checkpoint files, check, slim and compare them")
    commands = parser.add_subparsers(required=True, metavar="info|verify|slim|diff")

    info = commands.add_parser("info", help="what a file holds, and whether it is whole")
    info.add_argument("file")
    info.set_defaults(run=_info)

    verify = commands.add_parser("verify", help="whether files are whole; exit code 1 if one is not")
    verify.add_argument("paths", nargs="+", metavar="file_or_directory")
    verify.set_defaults(run=_verify)

    slim = commands.add_parser("slim", help="write a file with the weights alone, which torch.load opens")
    slim.add_argument("file")
    slim.add_argument("-o", "--output", required=True)
    slim.add_argument("--prefix", default="", help="take the weights under this prefix only, and leave it out")
    slim.set_defaults(run=_slim)

    diff = commands.add_parser("diff", help="where two files differ; exit code 1 if they do")
    diff.add_argument("files", nargs=2, metavar="file")
    diff.add_argument("--lines", type=int, default=20, help="how many differences to print; default 20")
    diff.set_defaults(run=_diff)


def _load(path: str, location: str = "cpu") -> dict[str, Any]:
    return files.load(path, map_location=location, weights_only=True)


# ---------------------------------------------------------------------------------------------------- info


def _info(arguments: argparse.Namespace) -> int:
    path, verdict, code = arguments.file, "whole", 0
    if files.isdir(path):
        raise IsADirectoryError(
            f"{path} is a directory. Name a file in it; `inazuma ckpt verify` looks at all of them."
        )
    try:
        files.verify(path)
    except CheckpointError as error:
        verdict, code = str(error), 1
    note = files.read_note(path)
    rows = [("file", path), ("verified", verdict)]
    if note is not None:
        rows += [(f"note: {key}", str(value)) for key, value in note.items()]
    if code == 0:
        rows += _contents(_load(path, "meta"))  # without the numbers, which may not fit in memory
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return code


def _contents(checkpoint: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if all(isinstance(value, Tensor) for value in checkpoint.values()):
        checkpoint = {"state_dict": checkpoint}  # bare weights
    for key in ("epoch", "global_step"):
        if key in checkpoint:
            yield key, str(checkpoint[key])
    own, layout = checkpoint.get("inazuma"), checkpoint.get("pytorch-lightning_version")
    if own is not None:
        number = own.get("format") if isinstance(own, Mapping) else "unknown"
        yield "written by", f"inazuma, format {number}, in the layout of Lightning {layout}"
    elif layout is not None:
        yield "written by", f"Lightning {layout}, or inazuma as weights only"
    yield "keys", ", ".join(map(str, checkpoint))
    yield "size of tensors", _size(size_bytes(checkpoint))
    weights = checkpoint.get("state_dict")
    if isinstance(weights, Mapping):
        yield "weights", _described(weights)
    for index, optimizer in enumerate(_in(checkpoint, "optimizer_states", list)):
        groups = [group for group in _in(optimizer, "param_groups", list) if isinstance(group, Mapping)]
        rates = ", ".join(str(group.get("lr")) for group in groups)
        yield f"optimizer {index}", f"lr {rates}; {_described(_in(optimizer, 'state', dict))}"
    for index, schedule in enumerate(_in(checkpoint, "lr_schedulers", list)):
        state = schedule if isinstance(schedule, Mapping) else {}
        yield f"schedule {index}", f"last_epoch {state.get('last_epoch')}, last_lr {state.get('_last_lr')}"
    for key in _in(checkpoint, "callbacks", dict):
        yield "callback", str(key)
    if names := _in(checkpoint, "hyper_parameters", dict):
        yield "hyper-parameters", ", ".join(map(str, names))


def _in(tree: Any, key: str, kind: type[list[Any]] | type[dict[Any, Any]]) -> Any:
    """What a file has at a key; an empty one of the kind where it has something else."""
    found = tree.get(key) if isinstance(tree, Mapping) else None
    return found if isinstance(found, Mapping if kind is dict else kind) else kind()


def _described(tree: Any) -> str:
    found = list(tensors(tree))
    kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found}))
    numbers = sum(tensor.numel() for tensor in found)
    return f"{len(found):,} tensors, {numbers:,} numbers, {_size(size_bytes(tree))}" + (f", {kinds}" if kinds else "")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"


# ---------------------------------------------------------------------------------------------------- verify


def _verify(arguments: argparse.Namespace) -> int:
    damaged = 0
    paths = [found for given in arguments.paths for found in _checkpoints_in(given)]
    if not paths:
        raise FileNotFoundError(f"There are no files ending with {' '.join(_ENDINGS)} in {' '.join(arguments.paths)}.")
    for path in paths:
        try:
            files.verify(path)
        except FileNotFoundError:
            damaged += 1
            print(f"MISSING  {path}")
        except CheckpointError as error:
            damaged += 1
            print(f"DAMAGED  {path}\n         {error}")
        else:
            print(f"whole    {path}")
    return min(damaged, 1)


def _checkpoints_in(path: str) -> list[str]:
    """The path itself, or the checkpoint files of a directory and those below it."""
    if not files.isdir(path):
        return [path]
    found: list[str] = []
    for entry in files.listdir(path):
        if not os.path.basename(entry).startswith(".") and (files.isdir(entry) or entry.endswith(_ENDINGS)):
            found += _checkpoints_in(entry)
    return found


# ---------------------------------------------------------------------------------------------------- slim


def _slim(arguments: argparse.Namespace) -> int:
    path, output, prefix = arguments.file, arguments.output, arguments.prefix
    if files.exists(output):
        raise FileExistsError(f"{output} is there already. Give another name, or remove it first.")
    checkpoint = _load(path)
    weights = files.weights_of(checkpoint, path)
    chosen = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not chosen:
        raise CheckpointError(f"{path} has no weights under {prefix!r}, but {list(weights)[:8]}.")
    about: dict[str, Any] = {key: checkpoint[key] for key in ("epoch", "global_step") if key in checkpoint}
    files.atomic_save(_compact(chosen), output, {**about, "kind": "weights"})
    print(f"{output}: {_described(chosen)}")
    return 0


def _compact(weights: dict[str, Any]) -> dict[str, Any]:
    """The same weights without the rest of the memory that some are a part of: `torch.save` writes all of that."""
    copies: dict[tuple[Any, ...], Tensor] = {}

    def compact(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() <= tensor.numel() * tensor.element_size():
            return tensor
        place = (storage._cdata, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride())
        if place not in copies:
            copies[place] = tensor.clone()
        return copies[place]  # one for all that are tied

    return {key: compact(tensor) for key, tensor in weights.items()}


# ---------------------------------------------------------------------------------------------------- diff


def _diff(arguments: argparse.Namespace) -> int:
    first, second = (dict(_leaves(_load(path))) for path in arguments.files)
    lines = []
    for key in [*first, *(key for key in second if key not in first)]:
        if key not in second:
            lines.append(f"{key}: only in {arguments.files[0]}")
        elif key not in first:
            lines.append(f"{key}: only in {arguments.files[1]}")
        elif difference := _difference(first[key], second[key]):
            lines.append(f"{key}: {difference}")
    for line in lines[: arguments.lines]:
        print(line)
    if len(lines) > arguments.lines:
        print(f"... and {len(lines) - arguments.lines} more")
    if not lines:
        print("equal")
    return min(len(lines), 1)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Tensors and plain values with the way to each: "optimizer_states.0.state.1.exp_avg"."""
    items: list[tuple[Any, Any]] = []
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)) and not _is_numbers(tree):
        items = list(enumerate(tree))
    if not items:
        yield name, tree
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _is_numbers(values: Sequence[Any]) -> bool:
    """Whether they are long and of plain numbers, as the state of a random generator: one thing to a reader."""
    return len(values) > 16 and all(isinstance(value, (int, float)) for value in values)


def _difference(a: Any, b: Any) -> str | None:
    """How two leaves differ; None if they do not. Equal bits are equal, NaN too."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return None if type(a) is type(b) and (a == b or repr(a) == repr(b)) else f"{_short(a)} and {_short(b)}"
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return f"{_short(a)} and {_short(b)}"
    a, b = (tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach() for tensor in (a, b))
    if torch.equal(_bits(a), _bits(b)):
        return None
    wide = torch.complex128 if a.is_complex() else torch.float64
    gaps = (a.to(wide) - b.to(wide)).abs()
    count = int((_bits(a) != _bits(b)).reshape(a.numel(), -1).any(dim=1).sum())
    return f"{_short(a)}: {count:,} of {a.numel():,} numbers differ, by {gaps.max().item():.3g} at most"


def _bits(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
