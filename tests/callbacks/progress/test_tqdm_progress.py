"""The bar drawn with tqdm: its public surface, and a real terminal."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from tests.callbacks.progress.terminal import LoggingModel, Terminal, run_in_terminal, screen, trainer
from tests.callbacks.progress.test_plain_progress import PROGRAM

from inazuma.callbacks.progress import TQDMProgressBar, tqdm_progress
from inazuma.callbacks.progress.tqdm_progress import Tqdm, convert_inf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning.pytorch.callbacks import TQDMProgressBar as Reference
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm as ReferenceTqdm


def test_a_real_terminal_has_one_line_for_each_stage() -> None:
    output = run_in_terminal(
        PROGRAM
        + """
run = trainer(TQDMProgressBar(), max_epochs=5, val_check_interval=20, enable_model_summary=False)
run.fit(Model(), loader(100), loader(50))
run.test(Model(), loader(9), verbose=False)
print("done")
"""
    )
    lines = screen(output)
    assert [line for line in lines if "`Trainer.fit` stopped: `max_epochs=5` reached." in line]
    lines = [line for line in lines if "stopped" not in line and " took " not in line]
    assert len(lines) == 3
    assert lines[0].startswith("Epoch 4: 100%|")
    assert "| 100/100 [" in lines[0]
    assert "loss=" in lines[0]
    assert lines[1].startswith("Testing DataLoader 0: 100%|")
    assert lines[2] == "done"


def test_an_error_in_a_real_terminal_stands_below_the_bars() -> None:
    output = run_in_terminal(
        PROGRAM
        + """
class Failing(Model):
    def validation_step(self, batch, batch_idx):
        1 / 0
run = trainer(TQDMProgressBar(), max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False)
run.fit(Failing(), loader(3), loader(2))
"""
    )
    lines = screen(output)
    assert lines[0].startswith("Epoch 0:")
    assert lines[1].startswith("Traceback")
    assert "ZeroDivisionError: division by zero" in lines


def test_the_bars_are_there_to_be_read_and_changed(terminal: Terminal) -> None:
    class Reading(LoggingModel):
        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            descriptions.add(bar.val_progress_bar.desc)

    descriptions: set[str] = set()
    bar = TQDMProgressBar()
    with pytest.raises(TypeError, match="The train bar of `TQDMProgressBar` has not been set yet"):
        _ = bar.train_progress_bar
    run = trainer(bar)
    run.fit(Reading())
    assert descriptions == {"Sanity Checking DataLoader 0: ", "Validation DataLoader 0: "}
    assert (bar.train_progress_bar.n, bar.train_progress_bar.total) == (3, 3)
    assert (bar.val_progress_bar.n, bar.val_progress_bar.total) == (2, 2)
    run.test(LoggingModel(), verbose=False)
    run.predict(LoggingModel())
    for stage in (bar.test_progress_bar, bar.predict_progress_bar):
        assert isinstance(stage, Tqdm)
        assert (stage.n, stage.total) == (2, 2)


def test_overridden_makers_make_the_bars(terminal: Terminal) -> None:
    class Custom(TQDMProgressBar):
        def init_train_tqdm(self) -> Any:
            bar = super().init_train_tqdm()
            bar.unit = "sample"
            made.append("train")
            return bar

        def init_sanity_tqdm(self) -> Any:
            made.append("sanity")
            return super().init_sanity_tqdm()

        def init_validation_tqdm(self) -> Any:
            made.append("validation")
            return super().init_validation_tqdm()

        def init_test_tqdm(self) -> Any:
            made.append("test")
            return super().init_test_tqdm()

        def init_predict_tqdm(self) -> Any:
            made.append("predict")
            return super().init_predict_tqdm()

    made: list[str] = []
    bar = Custom()
    run = trainer(bar)
    run.fit(LoggingModel())
    run.validate(LoggingModel(), verbose=False)
    run.test(LoggingModel(), verbose=False)
    run.predict(LoggingModel())
    assert made == ["sanity", "train", "validation", "validation", "validation", "test", "predict"]
    assert bar.train_progress_bar.unit == "sample"


def test_code_for_the_bars_runs_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    class Describing(TQDMProgressBar):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_start(trainer, pl_module)
            self.train_progress_bar.set_description("mine")

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.val_progress_bar.set_postfix({"a": 1})
            super().on_validation_end(trainer, pl_module)

    trainer(Describing()).fit(LoggingModel())
    assert "\r" not in capsys.readouterr().out


def test_leave_keeps_the_bar_of_each_epoch(terminal: Terminal) -> None:
    trainer(TQDMProgressBar(leave=True), max_epochs=3).fit(LoggingModel())
    assert [line[:8] for line in terminal.lines] == ["Epoch 0:", "Epoch 1:", "Epoch 2:"]


def test_process_position_leaves_lines_above(terminal: Terminal) -> None:
    class Looking(LoggingModel):
        def on_train_epoch_end(self) -> None:
            lines.append([line[:8] for line in terminal.lines])

    lines: list[list[str]] = []
    bar = TQDMProgressBar(process_position=1)
    assert bar.process_position == 1
    trainer(bar, max_epochs=1).fit(Looking())
    assert lines == [["", "", "Epoch 0:"]]


def test_frames_are_drawn_at_multiples_of_the_refresh_rate(terminal: Terminal) -> None:
    class Watching(TQDMProgressBar):
        def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
            shown.append(self.trainer.fit_loop.epoch_loop.batch_idx + 1)
            return {"seen": torch.tensor(0.25)}

    shown: list[int] = []
    bar = Watching(refresh_rate=7)
    assert bar.refresh_rate == 7
    trainer(bar, limit_train_batches=60, max_epochs=1).fit(LoggingModel())
    assert all(batch % 7 == 0 for batch in shown[:-1])
    assert shown[-1] == 60
    assert "seen=0.250" in terminal.lines[0]


@pytest.mark.parametrize("refresh_rate", [0, 1, 3, 10])
def test_tqdm_miniters_raises_the_refresh_rate_as_in_lightning(
    refresh_rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_MINITERS", "5")
    assert TQDMProgressBar(refresh_rate).refresh_rate == Reference(refresh_rate).refresh_rate


def test_the_format_is_that_of_lightning() -> None:
    assert TQDMProgressBar.BAR_FORMAT == Reference.BAR_FORMAT


@pytest.mark.parametrize("number", [1, 1.0, 0.5, 0.00001, 123456.7, 12, 0.1234, 100.0, "abc", "text.5e"])
def test_numbers_keep_their_width_as_in_lightning(number: Any) -> None:
    assert Tqdm.format_num(number) == ReferenceTqdm.format_num(number)


def test_numbers_that_are_none_stay_as_they_are() -> None:
    assert Tqdm.format_num(float("nan")) == "nan"
    assert Tqdm.format_num(float("inf")) == "inf"


def test_an_endless_total_is_none_for_tqdm() -> None:
    assert [convert_inf(total) for total in (None, float("inf"), 3, 3.0)] == [None, None, 3, 3.0]


def test_without_tqdm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=r"`TQDMProgressBar` needs tqdm.*`pip install inazuma\[tqdm\]`"):
        TQDMProgressBar()


def test_the_module_has_no_other_lazy_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Tqmd'"):
        _ = tqdm_progress.Tqmd  # type: ignore[attr-defined]
