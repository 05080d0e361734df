"""The summary of a module: the same numbers and columns as Lightning's, and no trace of it in training."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from inazuma.module import LightningModule
from inazuma.summary import (
    LayerSummary,
    ModelSummary,
    get_formatted_model_size,
    get_human_readable_count,
    parse_batch_shape,
    summarize,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    import lightning.pytorch.utilities.model_summary as reference


def build_mixed(self: Any) -> None:
    self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5))
    self.norm = nn.BatchNorm1d(16).eval()
    self.decoder = nn.Linear(16, 2)
    self.unused = nn.Linear(3, 3, bias=False)
    self.unused.weight.requires_grad = False
    self.loose = nn.Parameter(torch.zeros(5))


def forward_mixed(self: Any, x: Tensor) -> Any:
    return self.decoder(self.norm(self.encoder(x)))


def build_convolutional(self: Any) -> None:
    self.convolution = nn.Conv2d(3, 8, 3)
    self.pool = nn.AdaptiveAvgPool2d(1)
    self.head = nn.Linear(8, 1000)


def forward_convolutional(self: Any, x: Tensor) -> Any:
    return self.head(self.pool(self.convolution(x)).flatten(1))


def build_recurrent(self: Any) -> None:
    self.recurrent = nn.LSTM(4, 6)
    self.attention = nn.MultiheadAttention(6, 2)


def forward_recurrent(self: Any, x: Tensor, scale: float) -> Any:
    y, _ = self.recurrent(x)
    return self.attention(y, y, y)[0] * scale


MODELS: dict[str, tuple[Any, Any, Any]] = {
    "mixed": (build_mixed, forward_mixed, torch.ones(4, 8)),
    "convolutional": (build_convolutional, forward_convolutional, torch.ones(2, 3, 9, 9)),
    "recurrent": (build_recurrent, forward_recurrent, {"x": torch.ones(5, 2, 4), "scale": 2.0}),
}


NUMBERS = [
    "layer_names",
    "layer_types",
    "in_sizes",
    "out_sizes",
    "param_nums",
    "training_modes",
    "total_training_modes",
    "total_parameters",
    "trainable_parameters",
    "total_flops",
    "flop_counts",
]


def make(base: type[Any], name: str, with_example: bool) -> Any:
    """The model `name` as a subclass of `base`: inazuma's LightningModule or Lightning's."""
    build, forward, example = MODELS[name]

    class Model(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            build(self)
            if with_example:
                self.example_input_array = example

    Model.forward = forward  # type: ignore[method-assign]
    return Model()


@pytest.mark.parametrize("max_depth", [0, 1, -1])
@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_numbers_and_columns_are_those_of_lightning(name: str, with_example: bool, max_depth: int) -> None:
    ours = summarize(make(LightningModule, name, with_example), max_depth)
    theirs = reference.summarize(make(pl.LightningModule, name, with_example), max_depth)
    for attribute in NUMBERS:
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.model_size == pytest.approx(theirs.model_size)
    if max_depth != -1:  # where layers are nested, Lightning loses the row of the other parameters
        assert ours.columns() == theirs._get_summary_data()


def test_the_text_is_that_of_lightning() -> None:
    ours = str(summarize(make(LightningModule, "mixed", with_example=True)))
    theirs = str(reference.summarize(make(pl.LightningModule, "mixed", with_example=True)))

    def without_rules(text: str) -> list[str]:
        return [line for line in text.splitlines() if set(line) != {"-"}]

    assert without_rules(ours.replace("Total FLOPs", "Total Flops")) == without_rules(theirs)


def test_parameters_in_no_layer_have_a_row_at_every_depth() -> None:
    for max_depth in (1, 2, -1):
        names = dict(summarize(make(LightningModule, "mixed", with_example=False), max_depth).columns())["Name"]
        assert names[-1] == "other params"


def test_depth_two_lists_grandchildren_and_no_deeper() -> None:
    class Deep(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Sequential(nn.Linear(1, 1)))

    assert summarize(Deep(), 2).layer_names == ["a", "a.0"]
    assert summarize(Deep(), 3).layer_names == ["a", "a.0", "a.0.0"]


def test_a_summary_leaves_no_trace_in_the_module_or_the_random_numbers() -> None:
    class Noisy(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.frozen = nn.Dropout().eval()
            self.example_input_array = torch.ones(4, 3)
            self.gradients: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            self.gradients.append(torch.is_grad_enabled())
            random.random()
            return self.frozen(self.norm(x + torch.randn(3)))

    model = Noisy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), random.getstate()
    summarize(model, -1)
    assert model.gradients == [False]
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert not any(module._forward_hooks for module in model.modules())


def test_modes_come_back_when_the_forward_fails() -> None:
    model = make(LightningModule, "mixed", with_example=False)
    model.example_input_array = torch.ones(4, 9)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        summarize(model)
    assert model.training
    assert not model.norm.training
    assert not any(module._forward_hooks for module in model.modules())


def test_the_example_goes_through_the_transfer_hooks() -> None:
    class FromNumbers(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)
            self.example_input_array = [1.0, 2.0]

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return torch.tensor(batch)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    assert summarize(FromNumbers()).in_sizes == [[2]]


def test_a_module_in_half_precision_takes_a_float_example() -> None:
    model = make(LightningModule, "convolutional", with_example=True).to(torch.bfloat16)
    assert summarize(model).out_sizes == [[2, 8, 7, 7], [2, 8, 1, 1], [2, 1000]]


def test_the_size_counts_the_bytes_there_are() -> None:
    model = make(LightningModule, "convolutional", with_example=False)
    assert summarize(model.half()).model_size == pytest.approx((3 * 8 * 9 + 8 + 8 * 1000 + 1000) * 2 / 1e6)


def test_shared_layers_and_parameters_count_once() -> None:
    class Tied(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.again = self.a

    summary = summarize(Tied())
    assert summary.layer_names == ["a", "b"]
    assert summary.total_parameters == summary.total_layer_params == 16
    assert "other params" not in str(summary)


@pytest.mark.parametrize("max_depth", [1, 2])
def test_a_layer_that_two_parents_share_has_the_rows_of_lightning(max_depth: int) -> None:
    names = []
    for base, summary in ((LightningModule, summarize), (pl.LightningModule, reference.summarize)):
        model = base()
        model.body = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        model.first = model.body[0]
        names.append(summary(model, max_depth).layer_names)
    assert names[0] == names[1]


def test_lazy_parameters_count_zero_with_a_warning_until_an_example_shapes_them() -> None:
    class Lazy(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(4)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    with pytest.warns(UserWarning, match="Lazy counts lazy parameters as 0.*Set `self.example_input_array`"):
        summary = summarize(Lazy())
    assert (summary.param_nums, summary.model_size) == ([0], 0.0)
    assert "LazyLinear" in str(summary)
    model = Lazy()
    model.example_input_array = torch.ones(1, 3)
    assert summarize(model).param_nums == [16]


def test_keyword_arguments_of_a_layer_are_in_its_input_sizes() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Outer(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.example_input_array = torch.ones(1, 2)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x, y=x)

    assert summarize(Outer()).in_sizes == [[[1, 2], [1, 2]]]


def test_compiled_layers_are_listed_without_being_compiled() -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the summary compiled the layer")

    class Compiled(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.compile(nn.Linear(2, 3), backend=refuse)
            self.example_input_array = torch.ones(1, 2)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x)

    summary = summarize(Compiled())
    assert summary.out_sizes == [[1, 3]]
    assert summary.total_flops == 12


def test_a_plain_torch_module_has_a_summary_too() -> None:
    assert ModelSummary(nn.Sequential(nn.Linear(2, 3), nn.ReLU())).param_nums == [9, 0]


def test_a_layer_summary_watches_one_forward() -> None:
    layer = nn.Linear(2, 3)
    summary = LayerSummary(layer)
    assert (summary.layer_type, summary.num_parameters, summary.training) == ("Linear", 9, True)
    assert (summary.in_size, summary.out_size) == ("?", "?")
    layer(torch.ones(5, 2))
    layer(torch.ones(7, 2))
    assert (summary.in_size, summary.out_size) == ([5, 2], [5, 3])


def test_a_depth_below_minus_one_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_depth` can be -1 .* got -2"):
        summarize(nn.Linear(1, 1), max_depth=-2)


@given(st.integers(0, 10**17))
@example(5350)
def test_counts_are_abbreviated_as_lightning_does(number: int) -> None:
    assert get_human_readable_count(number) == reference.get_human_readable_count(number)


def test_shapes_and_sizes_are_written_as_lightning_does() -> None:
    batch = [torch.zeros(1, 2), "text", (torch.zeros(2), 3)]
    assert parse_batch_shape(batch) == reference.parse_batch_shape(batch) == [[1, 2], "?", [[2], "?"]]
    assert get_formatted_model_size(1234.5678) == "1,234.568"
