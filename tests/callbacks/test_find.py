"""Which file `ckpt_path` means: "last", "best", "auto", a path, or the environment variable."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from inazuma.checkpoint_io import CheckpointIO
from inazuma.errors import CheckpointError


class Model(inazuma.LightningModule):
    """Logs `m` at the end of each epoch of two steps."""

    def __init__(self, metrics: tuple[float, ...] = (3.0, 1.0, 2.0), crash_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.metrics, self.crash_at = metrics, crash_at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.crash_at:
            raise ValueError("crash")
        return self.layer(batch).sum()

    def on_train_epoch_end(self) -> None:
        self.log("m", self.metrics[self.current_epoch % len(self.metrics)])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Begin(Callback):
    """Remembers the step at which training began."""

    step = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.step = trainer.global_step


def make_trainer(*callbacks: Any, max_epochs: int = 3, **arguments: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return inazuma.Trainer(max_epochs=max_epochs, accelerator="cpu", callbacks=list(callbacks), **quiet, **arguments)


def loader() -> Any:
    return DataLoader(torch.ones(2, 1))


def keeping(directory: Path, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(directory, **{"monitor": "m", "save_top_k": -1, "save_last": True, **arguments})


def train(directory: Path, model: Any = None, **arguments: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(keeping(directory, **arguments)).fit(model or Model(), loader())


def resume(directory: Path, ckpt_path: Any, **arguments: Any) -> tuple[int, list[str]]:
    """The step from which a new process-like trainer goes on, and the warnings on the way."""
    begin = Begin()
    trainer = make_trainer(keeping(directory), begin, max_epochs=4, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Model(), loader(), ckpt_path=ckpt_path)
    return begin.step, [str(w.message) for w in caught]


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("ckpt_path", ["last", "auto"])
def test_a_damaged_file_is_passed_over_by_name(ckpt_path: str, tmp_path: Path) -> None:
    train(tmp_path)
    flip(tmp_path / "last.ckpt")
    flip(tmp_path / "epoch=2-step=6.ckpt")
    step, said = resume(tmp_path, ckpt_path)
    assert step == 4
    skipped = [text for text in said if "is skipped" in text]
    assert [text.split()[0] for text in skipped] == [str(tmp_path / n) for n in ("last.ckpt", "epoch=2-step=6.ckpt")]
    assert all("is damaged: its checksum is" in text for text in skipped)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_a_path_or_best_that_is_damaged_is_refused(damage: Any, tmp_path: Path) -> None:
    train(tmp_path)
    damage(tmp_path / "epoch=1-step=4.ckpt")
    with pytest.raises(CheckpointError, match=r"epoch=1-step=4.ckpt (is damaged|cannot be read)"):
        resume(tmp_path, tmp_path / "epoch=1-step=4.ckpt")
    checkpoint = keeping(tmp_path)
    checkpoint.best_model_path = str(tmp_path / "epoch=1-step=4.ckpt")
    with pytest.raises(CheckpointError, match=r"epoch=1-step=4.ckpt (is damaged|cannot be read)"):
        make_trainer(checkpoint).test(Model(), loader(), ckpt_path="best")


def test_when_all_are_damaged_last_fails_and_auto_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tmp_path, save_top_k=1)
    for path in tmp_path.iterdir():
        flip(path)
    with pytest.raises(CheckpointError, match=r'ckpt_path="last"\)` finds no file that can be used: .*last.ckpt'):
        resume(tmp_path, "last")
    with caplog.at_level("INFO", logger="inazuma"):
        assert resume(tmp_path, "auto")[0] == 0
    assert f'`.fit(ckpt_path="auto")` starts anew: there is no checkpoint to go on from in {tmp_path}.' in caplog.text


def test_auto_takes_the_newest_of_any_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "mine.ckpt")
                trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
                raise ValueError("crash")

    begin = Begin()
    with caplog.at_level("INFO", logger="inazuma"), pytest.raises(ValueError, match="crash"):
        make_trainer(keeping(tmp_path), Save()).fit(Model(), loader(), ckpt_path="auto")
    assert "starts anew" in caplog.text
    with caplog.at_level("INFO", logger="inazuma"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(keeping(tmp_path), begin).fit(Model(), loader(), ckpt_path="auto")
    assert begin.step == 5
    assert [w for w in caught if "weights.ckpt is skipped: it holds weights only" in str(w.message)]
    assert f'`.fit(ckpt_path="auto")` goes on from {tmp_path / "mine.ckpt"} (global step 5).' in caplog.text


@pytest.mark.parametrize("ckpt_path", ["auto", "last"])
def test_what_an_exception_left_is_known(ckpt_path: str, tmp_path: Path) -> None:
    def run(model: Model, *callbacks: Any) -> None:
        kept = keeping(tmp_path / "run", save_last=None)
        trainer = make_trainer(kept, OnExceptionCheckpoint(tmp_path / "crash"), *callbacks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the directory is not empty
            trainer.fit(model, loader(), ckpt_path=ckpt_path if callbacks else "auto")

    begin = Begin()
    with pytest.raises(ValueError, match="crash"):
        run(Model(crash_at=5))
    run(Model(), begin)
    assert begin.step == 5


def test_last_knows_what_a_model_checkpoint_left_on_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crash"):
        train(tmp_path, Model(crash_at=5), save_on_exception=True, save_last=None)
    assert resume(tmp_path, "last")[0] == 5


def test_of_two_runs_in_a_directory_the_one_that_wrote_last_goes_on(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(ValueError, match="crash"):
        train(tmp_path, Model(crash_at=3))
    assert (tmp_path / "last-v1.ckpt").exists()
    assert resume(tmp_path, "auto")[0] == 2
    assert (
        torch.load(tmp_path / "last.ckpt")["global_step"],
        torch.load(tmp_path / "last-v1.ckpt")["global_step"],
    ) == (
        6,
        8,
    )


def test_auto_finds_the_earlier_start_of_a_program_that_has_all_defaults(tmp_path: Path) -> None:
    for epochs, first in ((2, 0), (3, 4), (4, 6)):
        begin = Begin()
        trainer = inazuma.Trainer(
            default_root_dir=tmp_path,
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[begin],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Model(), loader(), loader(), ckpt_path="auto")
        assert begin.step == first


def test_auto_is_for_fit_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'`.test\(ckpt_path="auto"\)`: "auto" is for `fit`'):
        make_trainer(keeping(tmp_path)).test(Model(), loader(), ckpt_path="auto")


@pytest.mark.parametrize(("mode", "best"), [("min", "epoch=1-step=4.ckpt"), ("max", "epoch=0-step=2.ckpt")])
def test_best_is_known_without_the_state_of_the_callback(mode: str, best: str, tmp_path: Path) -> None:
    train(tmp_path, mode=mode)
    trainer = make_trainer(keeping(tmp_path, mode=mode))
    trainer.test(Model(), loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(tmp_path / best)


def test_best_without_a_monitor_is_the_newest(tmp_path: Path) -> None:
    train(tmp_path, monitor=None)
    trainer = make_trainer(keeping(tmp_path, monitor=None))
    trainer.test(Model(), loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(tmp_path / "epoch=2-step=6.ckpt")


def test_best_is_found_in_the_directory_where_the_run_began_and_after_both_have_moved(tmp_path: Path) -> None:
    train(tmp_path / "old" / "a")
    source = tmp_path / "old" / "a" / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(keeping(tmp_path / "old" / "b"), max_epochs=5).fit(Model((5.0,)), loader(), ckpt_path=source)
    (tmp_path / "old").rename(tmp_path / "new")
    trainer = make_trainer(keeping(tmp_path / "new" / "b"))
    with pytest.warns(UserWarning, match="was saved by a ModelCheckpoint in"):
        trainer.test(Model(), loader(), ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(tmp_path / "new" / "a" / "epoch=1-step=4.ckpt")


def test_a_run_whose_directory_has_moved_goes_on_ranking_there(tmp_path: Path) -> None:
    train(tmp_path / "old", save_top_k=1)
    (tmp_path / "old").rename(tmp_path / "new")
    checkpoint = keeping(tmp_path / "new", save_top_k=1)
    with pytest.warns(UserWarning, match="are ranked among themselves"):
        make_trainer(checkpoint, max_epochs=5).fit(Model((0.5,)), loader(), ckpt_path="last")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["epoch=3-step=8.ckpt", "last.ckpt"]


def test_the_environment_tells_a_job_that_is_started_again_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INAZUMA_CKPT_PATH", "auto")
    with pytest.raises(ValueError, match="crash"):
        train(tmp_path, Model(crash_at=5))
    with caplog.at_level("INFO", logger="inazuma"):
        assert resume(tmp_path, None)[0] == 4
    assert "INAZUMA_CKPT_PATH=auto is used as the `ckpt_path` of `fit`." in caplog.text
    assert resume(tmp_path, tmp_path / "epoch=0-step=2.ckpt")[0] == 2  # what the script says counts
    monkeypatch.setenv("INAZUMA_CKPT_PATH", str(tmp_path / "epoch=1-step=4.ckpt"))
    assert resume(tmp_path, None)[0] == 4
    make_trainer(keeping(tmp_path)).test(Model(), loader(), verbose=False)  # fit alone looks at it
    monkeypatch.setenv("INAZUMA_CKPT_PATH", "")
    assert resume(tmp_path / "other", None)[0] == 0


class PickleIO(CheckpointIO):
    """A user's, with Lightning's signatures and a format of its own."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert storage_options is None
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_bytes(pickle.dumps(checkpoint))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return pickle.loads(Path(path).read_bytes())

    def remove_checkpoint(self, path: Any) -> None:
        os.remove(path)


@pytest.mark.parametrize("ckpt_path", ["last", "auto", "best"])
def test_a_checkpoint_io_of_the_users_works_as_in_lightning(ckpt_path: str, tmp_path: Path) -> None:
    arguments = {"save_top_k": 1, "monitor": "step", "mode": "max"}
    checkpoint = keeping(tmp_path, **arguments)
    make_trainer(checkpoint, plugins=PickleIO()).fit(Model(), loader())
    assert sorted(os.listdir(tmp_path)) == ["epoch=2-step=6.ckpt", "last.ckpt"]
    source = checkpoint.best_model_path if ckpt_path == "best" else ckpt_path
    resumed, begin = keeping(tmp_path, **arguments), Begin()
    make_trainer(resumed, begin, plugins=PickleIO(), max_epochs=5).fit(Model(), loader(), ckpt_path=source)
    assert begin.step == 6
    stays = ["epoch=2-step=6.ckpt"] if ckpt_path == "best" else []  # what a run was resumed from
    assert sorted(os.listdir(tmp_path)) == [*stays, "epoch=4-step=10.ckpt", "last.ckpt"]
