"""RunDigest names where and in what runs part, covers what a checkpoint covers, and records how a run was started."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from inazuma import Callback, LightningModule, Trainer, seed_everything
from inazuma.callbacks import ModelCheckpoint, RunDigest
from inazuma.callbacks.digest_file import Digest, compare, read_digest
from inazuma.callbacks.run_record import read_sessions
from inazuma.errors import MisconfigurationException

BATCHES = 6


class Net(LightningModule):
    """Dropout for noise, batch norm for buffers, an attribute that a checkpoint does not hold."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3))
        self.head = torch.nn.Linear(6, 2)
        self.hidden = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = torch.nn.functional.mse_loss(self.head(self.body(batch[0])), batch[1]) + self.hidden
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        if not self.automatic_optimization:
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.body, self.head)]
        return torch.optim.SGD(self.parameters(), lr=0.1)


@dataclass
class Meddler(Callback):
    """Does something at the batch with the index 4 of the first epoch."""

    hook: str
    meddle: Callable[[Trainer, Any, Any], Any]
    done: bool = field(default=False)

    def __post_init__(self) -> None:
        setattr(self, self.hook, self._called)

    def _called(self, trainer: Trainer, module: Any, *rest: Any) -> None:
        if trainer.progress.batch == 4 and trainer.current_epoch == 0 and not self.done:
            self.done = True
            self.meddle(trainer, module, rest[0] if rest else None)

    def __hash__(self) -> int:
        return id(self)


def fit(
    folder: Path, *callbacks: Callback, make_net: Callable[[], Net] = Net, seed: int = 1, **arguments: Any
) -> Trainer:
    ckpt_path = arguments.pop("ckpt_path", None)
    seed_everything(seed, verbose=False)
    data = TensorDataset(*torch.randn(8 * BATCHES, 6, generator=torch.Generator().manual_seed(3)).split([4, 2], 1))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{"max_epochs": 2, **arguments},
    )
    trainer.fit(make_net(), DataLoader(data, batch_size=8, shuffle=True), ckpt_path=ckpt_path)
    return trainer


def same(one: Digest, other: Digest) -> bool:
    return len(one) > 0 and one.data == other.data


def test_a_run_has_one_record_per_batch_and_a_repeated_run_the_same(tmp_path: Path) -> None:
    fit(tmp_path / "a", RunDigest())
    fit(tmp_path / "b", RunDigest(tmp_path / "c", flush_every_n_batches=5))
    one = read_digest(tmp_path / "a")
    assert [(r.epoch, r.batch, r.step) for r in one] == [(i // 6, i % 6, i) for i in range(12)]
    assert same(one, read_digest(tmp_path / "c"))
    assert not (tmp_path / "b").exists()


def add_to_batch(trainer: Trainer, module: Any, batch: Any) -> None:
    batch[0][3, 1] = torch.nextafter(batch[0][3, 1], torch.tensor(9.0))  # the smallest change there is


def scale_gradients(trainer: Trainer, module: Any, _: Any) -> None:
    module.head.bias.grad *= 1.5


def change_lr(trainer: Trainer, module: Any, optimizer: Any) -> None:
    optimizer.param_groups[0]["lr"] = 0.2


MEDDLERS = {
    "data": ("on_train_batch_start", add_to_batch),
    "noise": ("on_train_batch_start", lambda *_: torch.rand(1)),
    "loss": ("on_train_batch_start", lambda trainer, module, _: setattr(module, "hidden", 0.5)),
    "gradient": ("on_after_backward", scale_gradients),
    "weights": ("on_before_optimizer_step", change_lr),
}


@pytest.mark.parametrize("component", MEDDLERS)
def test_the_component_in_which_runs_part_is_named(component: str, tmp_path: Path) -> None:
    fit(tmp_path / "a", RunDigest())
    fit(tmp_path / "b", Meddler(*MEDDLERS[component]), RunDigest())
    found = compare(read_digest(tmp_path / "a"), read_digest(tmp_path / "b"))
    assert found.difference is not None
    assert (found.difference.component, found.difference.one.position) == (component, (0, 4))
    assert found.batches == 4


def test_a_digest_changes_nothing(tmp_path: Path) -> None:
    with_digest, without = fit(tmp_path, RunDigest()), fit(tmp_path)
    weights = (trainer.lightning_module.state_dict() for trainer in (with_digest, without))
    for one, other in zip(*(state.values() for state in weights), strict=True):
        assert torch.equal(one, other)


def test_batches_of_an_open_window_show_the_gradients_so_far(tmp_path: Path) -> None:
    fit(tmp_path, RunDigest(), accumulate_grad_batches=3)
    digest = read_digest(tmp_path)
    assert [record.step for record in digest[:6]] == [0, 0, 0, 1, 1, 1]
    assert len({record.gradient for record in digest}) == 12


def test_all_steps_of_a_manual_batch_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(tmp_path / name, RunDigest(), make_net=lambda: Net(manual=True))
    digest = read_digest(tmp_path / "a")
    assert same(digest, read_digest(tmp_path / "b"))
    assert [record.step for record in digest[:3]] == [0, 2, 4]


@pytest.mark.filterwarnings("ignore:.*returned None instead of a loss")
def test_a_batch_without_a_loss_is_recorded(tmp_path: Path) -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    fit(tmp_path, RunDigest(), make_net=Skips)
    assert [math.isnan(record.loss) for record in read_digest(tmp_path)[:4]] == [False, False, True, False]


# ---------------------------------------------------------------------------------------------------- resume


def checkpoints(tmp_path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        tmp_path / "saved", "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )


@pytest.mark.parametrize("step", [1, 5, 6, 11, 12])
def test_a_resumed_run_cuts_the_file_back_and_goes_on(step: int, tmp_path: Path) -> None:
    fit(tmp_path, RunDigest(tmp_path), checkpoints(tmp_path))
    straight = read_digest(tmp_path)
    resumed_at = len(straight)

    class Notes(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            nonlocal resumed_at
            resumed_at = min(resumed_at, trainer.global_step)

    digest = RunDigest(tmp_path)
    fit(
        tmp_path,
        Notes(),
        digest,
        checkpoints(tmp_path),
        seed=7,
        max_epochs=3,
        ckpt_path=tmp_path / f"saved/{step}.ckpt",
    )
    longer = read_digest(tmp_path)
    assert resumed_at == step
    assert longer.data.startswith(straight.data)
    assert len(longer) == 18
    sessions = read_sessions(tmp_path)
    assert [session["position"]["step"] for session in sessions] == [0, step]
    assert sessions[1]["ckpt_path"] == str(tmp_path / f"saved/{step}.ckpt")
    assert not list(tmp_path.glob("digest-*"))


def test_a_checkpoint_says_what_it_covers_and_holds_no_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--token", "a-secret-word"])
    fit(tmp_path, RunDigest(tmp_path), checkpoints(tmp_path))
    path = tmp_path / "saved/5.ckpt"
    state = torch.load(path, weights_only=True)["callbacks"]["RunDigest"]
    assert state["batches"] == 5
    assert b"a-secret-word" not in path.read_bytes()
    assert read_sessions(tmp_path)[0]["argv"] == ["--token", "a-secret-word"]


def test_the_file_of_another_run_is_kept_under_another_name(tmp_path: Path) -> None:
    fit(tmp_path / "other", RunDigest(), checkpoints(tmp_path / "other"))
    fit(tmp_path, RunDigest(), seed=2)
    first = read_digest(tmp_path)
    fit(tmp_path, RunDigest(), seed=3)
    second = read_digest(tmp_path)
    assert same(first, read_digest(tmp_path / "digest-0.bin"))
    with pytest.warns(UserWarning, match="saves in"):  # the checkpoint is of the run in the folder "other"
        fit(tmp_path, RunDigest(), checkpoints(tmp_path), ckpt_path=tmp_path / "other/saved/5.ckpt")
    assert same(second, read_digest(tmp_path / "digest-1.bin"))
    assert compare(read_digest(tmp_path / "other"), read_digest(tmp_path)).batches == 7
    assert read_digest(tmp_path)[0].position == (0, 5)
    assert [json.loads(path.read_text())["format"] for path in sorted(tmp_path.glob("run*.json"))] == [1, 1, 1]


def test_a_second_fit_of_one_trainer_goes_on(tmp_path: Path) -> None:
    trainer = fit(tmp_path, RunDigest(), max_epochs=1)
    trainer.limits.max_epochs = 2
    trainer.fit(trainer.lightning_module, trainer.train_dataloader)
    assert [record.epoch for record in read_digest(tmp_path)] == [0] * 6 + [1] * 6
    assert len(read_sessions(tmp_path)) == 2


# ---------------------------------------------------------------------------------------------------- the record


def test_the_record_says_how_the_run_was_started_and_how_it_ended(tmp_path: Path) -> None:
    fit(tmp_path, RunDigest(), seed=11, gradient_clip_val=0.5)
    (session,) = read_sessions(tmp_path)
    assert session["exit"] == "finished: `max_epochs=2` reached"
    assert session["start"] <= session["end"]
    assert session["seed"] == {"global": "11", "torch": 11}
    assert session["versions"]["torch"] == torch.__version__
    assert session["trainer"]["max_epochs"] == 2
    assert session["trainer"]["gradient_clip_val"] == 0.5
    assert session["data"]["length"] == 8 * BATCHES
    assert session["cwd"] == str(tmp_path)
    assert set(session["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}


def test_the_record_says_that_an_exception_ended_the_run(tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no more\nthan this")

    with pytest.raises(ValueError, match="no more"):
        fit(tmp_path, Meddler("on_after_backward", fail), RunDigest())
    assert read_sessions(tmp_path)[0]["exit"] == "ValueError: no more"
    assert len(read_digest(tmp_path)) == 4


def test_while_a_run_goes_on_its_record_says_so(tmp_path: Path) -> None:
    seen = []
    look = Meddler("on_train_batch_start", lambda *_: seen.append(read_sessions(tmp_path)[0]))
    fit(tmp_path, look, RunDigest())
    assert (seen[0]["exit"], seen[0]["end"]) == ("running", None)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="RunDigest"):
        read_sessions(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the record of a run"):
        read_sessions(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 9, "sessions": []}')
    with pytest.raises(ValueError, match="format 9"):
        read_sessions(tmp_path)


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_digest_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    def block(*_: Any) -> None:
        (tmp_path / "digest.bin").unlink()
        (tmp_path / "digest.bin").mkdir()

    with pytest.warns(UserWarning, match="RunDigest cannot write .* Training goes on"):
        trainer = fit(tmp_path, Meddler("on_train_batch_start", block), RunDigest(flush_every_n_batches=1))
    assert trainer.global_step == 12


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="RunDigest cannot write"):
        trainer = fit(tmp_path, RunDigest(tmp_path / "file" / "folder"))
    assert trainer.global_step == 12


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="flush_every_n_batches=0"):
        RunDigest(flush_every_n_batches=0)
    with pytest.raises(MisconfigurationException, match="s3://bucket/run.* on a local disk"):
        RunDigest("s3://bucket/run")


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, RunDigest(tmp_path / "run"), fast_dev_run=True)
    assert not (tmp_path / "run").exists()
