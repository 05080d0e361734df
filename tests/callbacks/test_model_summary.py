"""The callbacks that print what a module consists of."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
import torch
from tests.callbacks.progress.terminal import Terminal
from torch import Tensor

from inazuma import Trainer
from inazuma.callbacks.model_summary import ModelSummary, RichModelSummary, default_model_summary
from inazuma.callbacks.progress import PlainProgressBar, RichProgressBar, TQDMProgressBar
from inazuma.summary import summarize
from inazuma.testing import BoringModel


def fit(summary: Any, model: BoringModel | None = None, **arguments: Any) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[summary], fast_dev_run=True, **{**settings, **arguments})
    trainer.fit(BoringModel() if model is None else model)
    return trainer


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def test_the_table_is_logged_when_fit_begins(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="inazuma"):
        fit(ModelSummary())
    assert "\n" + str(summarize(BoringModel())) in caplog.messages


def test_the_depth_is_that_of_the_summary(caplog: pytest.LogCaptureFixture) -> None:
    class Nested(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer: Any = torch.nn.Sequential(self.layer)

    with caplog.at_level(logging.INFO, logger="inazuma"):
        fit(ModelSummary(max_depth=1), Nested())
        assert "layer.0" not in caplog.text
        fit(ModelSummary(max_depth=-1), Nested())
        assert "layer.0" in caplog.text


def test_a_depth_of_zero_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="inazuma"):
        fit(ModelSummary(max_depth=0))
    assert "Total params" not in caplog.text


@pytest.mark.parametrize("summary_class", [ModelSummary, RichModelSummary])
def test_a_depth_below_minus_one_is_refused(summary_class: type[ModelSummary]) -> None:
    with pytest.raises(ValueError, match=rf"{summary_class.__name__}\(max_depth=-2\): use -1 .all layers."):
        summary_class(max_depth=-2)


def test_a_subclass_may_show_the_summary_elsewhere() -> None:
    class Keeping(ModelSummary):
        @staticmethod
        def summarize(
            summary_data: Any,
            total_parameters: int,
            trainable_parameters: int,
            model_size: float,
            total_training_modes: dict[str, int],
            total_flops: int,
            **summarize_kwargs: Any,
        ) -> None:
            kept.update(
                summarize_kwargs,
                columns=[head for head, _ in summary_data],
                numbers=(total_parameters, trainable_parameters, total_training_modes, total_flops),
            )

    class Shaped(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.layer.bias.requires_grad = False
            self.example_input_array = torch.ones(1, 32)

    kept: dict[str, Any] = {}
    fit(Keeping(max_depth=1, color="red"), Shaped())
    assert kept["color"] == "red"
    assert kept["columns"] == [" ", "Name", "Type", "Params", "Mode", "FLOPs", "In sizes", "Out sizes"]
    assert kept["numbers"] == (66, 64, {"train": 1, "eval": 0}, 128)


def test_the_example_input_does_not_change_the_training() -> None:
    class Random(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(32)
            self.dropout = torch.nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.dropout(self.norm(torch.cat([x, x + 1]))))

    def weights(with_example: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = Random()
        if with_example:
            model.example_input_array = torch.ones(1, 32)
        fit(ModelSummary(), model)
        return model.state_dict()

    plain, shaped = weights(False), weights(True)
    assert all(torch.equal(plain[name], shaped[name]) for name in plain)


def test_rich_draws_a_table_in_a_terminal(terminal: Terminal) -> None:
    fit(RichModelSummary(header_style="bold red"))
    lines = terminal.lines
    heads = next(line for line in lines if "Name" in line)
    assert [head.strip() for head in heads.split("┃")[1:-1]] == ["", "Name", "Type", "Params", "Mode", "FLOPs"]
    row = next(line for line in lines if "layer" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["0", "layer", "Linear", "66", "train", "0"]
    assert "Total params: 66" in lines


def test_rich_writes_text_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="inazuma"):
        fit(RichModelSummary())
    assert "\n" + str(summarize(BoringModel())) in caplog.messages
    assert "━" not in capsys.readouterr().out


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ModuleNotFoundError, match=r"`RichModelSummary` needs rich.*`pip install inazuma\[rich\]`"):
        RichModelSummary()


def test_the_summary_of_a_trainer_matches_its_bar() -> None:
    assert type(default_model_summary(RichProgressBar())) is RichModelSummary
    for bar in (None, TQDMProgressBar(), PlainProgressBar()):
        assert type(default_model_summary(bar)) is ModelSummary
