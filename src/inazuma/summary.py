"""What a module consists of: layers, parameters, sizes and FLOPs, as data and as a table of text."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from inazuma.modes import evaluating
from inazuma.ranks import rank_zero_warn
from inazuma.seed import isolate_rng
from inazuma.tree import apply_to_collection

UNKNOWN_SIZE = "?"
NOT_APPLICABLE = "n/a"
LEFTOVER_PARAMS_NAME = "other params"
UNITS = (" ", "K", "M", "B", "T")

Columns = list[tuple[str, list[str]]]  # head and cells of each column, from left to right


class LayerSummary:
    """One layer: its type, its parameters, and the shapes that went through it in the first forward after this.

    Args:
        module: the layer. It gets a forward hook that goes away with the first forward, or by `detach_hook`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.in_size: Any = UNKNOWN_SIZE
        self.out_size: Any = UNKNOWN_SIZE
        self._handle: RemovableHandle | None = None
        if not isinstance(module, torch.jit.ScriptModule):  # which takes no Python hooks
            self._handle = module.register_forward_hook(self._note_sizes, with_kwargs=True)

    def _note_sizes(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        inputs = [*args, *kwargs.values()]
        self.in_size = parse_batch_shape(inputs[0] if len(inputs) == 1 else inputs)
        self.out_size = parse_batch_shape(out)
        self.detach_hook()

    def detach_hook(self) -> None:
        """Remove the forward hook; it may be gone already."""
        if self._handle is not None:
            self._handle.remove()

    @property
    def layer_type(self) -> str:
        return type(self._module).__name__

    @property
    def num_parameters(self) -> int:
        """Parameters in this layer and below it, each counted once; a lazy one counts 0 until it has a shape."""
        return sum(_numel(parameter) for parameter in self._module.parameters())

    @property
    def training(self) -> bool:
        return self._module.training


class ModelSummary:
    """The layers of a module, with names, types, parameters, modes, FLOPs and sizes; `str` gives a table.

    If the module has an `example_input_array`, it goes through `forward` once, and sizes and FLOPs are known. That has
    no effect on training: all layers are in evaluation mode meanwhile, without gradients, and the random number
    generators are put back.

    Args:
        model: usually a LightningModule; any `nn.Module` will do.
        max_depth: how deep to look: 1 lists the children, 2 their children too, -1 everything, 0 no layers.

    Raises:
        ValueError: `max_depth` is below -1.
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        if max_depth < -1:
            raise ValueError(f"`max_depth` can be -1 (all layers), 0 (none) or a positive depth, got {max_depth}.")
        self._model = model
        self._max_depth = max_depth
        self._flops: dict[str, dict[Any, int]] = {}  # module name → operator → FLOPs; "Global" is the whole
        self._layer_summary = self.summarize()

    def summarize(self) -> dict[str, LayerSummary]:
        """The layers down to `max_depth`, in order of definition, after the example input went through them."""
        layers = {name: LayerSummary(module) for name, module in self.named_modules}
        try:
            self._run_example_input()
        finally:
            for layer in layers.values():
                layer.detach_hook()
        if any(isinstance(parameter, UninitializedParameter) for parameter in self._model.parameters()):
            rank_zero_warn(
                f"The summary of {type(self._model).__name__} counts lazy parameters as 0, because they have no shape "
                "yet. Set `self.example_input_array` in the module to have the true numbers."
            )
        return layers

    @property
    def example_input_array(self) -> Any:
        return getattr(self._model, "example_input_array", None)

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """The layers down to `max_depth` with their dotted names, without the module itself."""
        if self._max_depth == 0:
            return []
        if self._max_depth == 1:  # a child that is part of another one too has a row here
            return list(self._model.named_children())
        layers = list(self._model.named_modules())[1:]
        return [item for item in layers if self._max_depth == -1 or item[0].count(".") < self._max_depth]

    @property
    def layer_names(self) -> list[str]:
        return list(self._layer_summary)

    @property
    def layer_types(self) -> list[str]:
        return [layer.layer_type for layer in self._layer_summary.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """Shapes (lists of int, nested as the arguments are) that went into each layer; "?" if nothing did."""
        return [layer.in_size for layer in self._layer_summary.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """Shapes that came out of each layer, like `in_sizes`."""
        return [layer.out_size for layer in self._layer_summary.values()]

    @property
    def param_nums(self) -> list[int]:
        return [layer.num_parameters for layer in self._layer_summary.values()]

    @property
    def training_modes(self) -> list[bool]:
        return [layer.training for layer in self._layer_summary.values()]

    @property
    def total_training_modes(self) -> dict[str, int]:
        """How many modules at any depth are in mode "train" and how many in "eval"."""
        modes = [module.training for module in list(self._model.modules())[1:]]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        return sum(_numel(parameter) for parameter in self._model.parameters())

    @property
    def trainable_parameters(self) -> int:
        return sum(_numel(parameter) for parameter in self._model.parameters() if parameter.requires_grad)

    @property
    def total_layer_params(self) -> int:
        """Parameters in the layers that are listed, each counted once."""
        parameters = {id(p): p for _, module in self.named_modules for p in module.parameters()}
        return sum(_numel(parameter) for parameter in parameters.values())

    @property
    def model_size(self) -> float:
        """Megabytes (10^6 bytes) of all parameters in the dtypes they have now."""
        # the size of a dtype, and not of an element: a lazy parameter has none
        return sum(_numel(parameter) * parameter.dtype.itemsize for parameter in self._model.parameters()) / 1e6

    @property
    def total_flops(self) -> int:
        """Floating-point operations of the forward of the example input; 0 without one."""
        return sum(self._flops.get("Global", {}).values())

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """Floating-point operations of each layer by operator."""
        root = type(self._model).__name__
        return {name: self._flops.get(f"{root}.{name}", {}) for name in self._layer_summary}

    def columns(self) -> Columns:
        """The table: a column is its head and its cells. The last row holds the parameters that are in no layer."""
        names = self.layer_names
        columns = [
            (" ", [str(index) for index in range(len(names))]),
            ("Name", names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(number) for number in self.param_nums]),
            ("Mode", ["train" if training else "eval" for training in self.training_modes]),
            ("FLOPs", [get_human_readable_count(sum(flops.values())) for flops in self.flop_counts.values()]),
        ]
        if self.example_input_array is not None:
            columns.append(("In sizes", [str(size) for size in self.in_sizes]))
            columns.append(("Out sizes", [str(size) for size in self.out_sizes]))
        leftover = self.total_parameters - self.total_layer_params
        if leftover > 0:
            known = {" ": " ", "Name": LEFTOVER_PARAMS_NAME, "Params": get_human_readable_count(leftover)}
            for head, cells in columns:
                cells.append(known.get(head, NOT_APPLICABLE))
        return columns

    def __str__(self) -> str:
        return format_summary(
            self.columns(),
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
        )

    __repr__ = __str__

    def _run_example_input(self) -> None:
        example = self.example_input_array
        if example is None:
            return
        from torch.utils.flop_counter import FlopCounterMode  # with triton installed it imports that, which is slow

        example = self._prepared(example)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), isolate_rng(), evaluating(self._model), _without_compiling(), counter:
            if isinstance(example, tuple):
                self._model(*example)
            elif isinstance(example, dict):
                self._model(**example)
            else:
                self._model(example)
        self._flops = counter.get_flop_counts()

    def _prepared(self, example: Any) -> Any:
        """The example as the module's steps would get a batch: transferred, and in the precision of the module."""
        model: Any = self._model
        if not hasattr(model, "transfer_batch_to_device"):  # a plain nn.Module
            return example
        example = model.on_before_batch_transfer(example, 0)
        example = model.transfer_batch_to_device(example, model.device, 0)
        example = model.on_after_batch_transfer(example, 0)
        if model.dtype == torch.get_default_dtype():
            return example
        return apply_to_collection(example, Tensor, lambda t: t.to(model.dtype) if t.is_floating_point() else t)


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    """The summary of a module; the arguments are those of `ModelSummary`."""
    return ModelSummary(lightning_module, max_depth=max_depth)


def format_summary(
    columns: Columns,
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: dict[str, int],
    total_flops: int,
) -> str:
    """The table of a summary, and below it one line per total."""
    cells = [[head, *column] for head, column in columns]
    widths = [max(len(cell) for cell in column) for column in cells]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*cells, strict=True)
    ]
    rule = "-" * (sum(widths) + len(" | ") * (len(widths) - 1))
    totals = [
        f"{value:<10}{name}"
        for name, value in summary_totals(
            total_parameters, trainable_parameters, model_size, total_training_modes, total_flops
        ).items()
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *totals])


def summary_totals(
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: dict[str, int],
    total_flops: int,
) -> dict[str, str]:
    """What stands below the table: name and value."""
    return {
        "Trainable params": get_human_readable_count(trainable_parameters),
        "Non-trainable params": get_human_readable_count(total_parameters - trainable_parameters),
        "Total params": get_human_readable_count(total_parameters),
        "Total estimated model params size (MB)": get_formatted_model_size(model_size),
        "Modules in train mode": str(total_training_modes["train"]),
        "Modules in eval mode": str(total_training_modes["eval"]),
        "Total FLOPs": get_human_readable_count(total_flops),
    }


def get_formatted_model_size(total_model_size: float) -> str:
    """Megabytes with three decimals: "1,234.568"."""
    return f"{total_model_size:,.3f}"


def get_human_readable_count(number: int) -> str:
    """A count in thousands, millions, billions or trillions: "123  ", "1.2 K", "100 K", "3.0 B", "5,000 T"."""
    group = min((len(str(int(number))) - 1) // 3, len(UNITS) - 1)
    scaled = number * 10.0 ** (-3 * group)  # a quotient rounds 5350 another way than Lightning
    return f"{int(scaled):,} {UNITS[group]}" if group == 0 or scaled >= 100 else f"{scaled:.1f} {UNITS[group]}"


def parse_batch_shape(batch: Any) -> Any:
    """The shape of a tensor as a list, of a list or tuple as a list of theirs; "?" for anything else."""
    if hasattr(batch, "shape"):
        return list(batch.shape)
    if isinstance(batch, list | tuple):
        return [parse_batch_shape(item) for item in batch]
    return UNKNOWN_SIZE


def _numel(parameter: nn.Parameter) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


@contextlib.contextmanager
def _without_compiling() -> Iterator[None]:
    """Compiled parts run as plain Python inside a `with` block: nobody wants to wait a minute for a table."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and asking would import it: a second
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # The FLOP counter hooks all modules, of which torch warns when one is compiled.
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
        yield
