"""Bad steps: raised with what is needed to see them again, left out as by a hand-written loop, or gone back from."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from inazuma import BadSteps, Callback, LightningModule, Trainer
from inazuma.callbacks import EarlyStopping
from inazuma.errors import BadStepError, CheckpointError, MisconfigurationException
from inazuma.precision.amp import MixedPrecision
from inazuma.testing import ManualOptimBoringModel, replay_bad_step

GOOD, NAN_LOSS, INF_LOSS, NAN_GRADIENT = 0.0, 1.0, 2.0, 3.0
OOM_FORWARD, OOM_BACKWARD, OOM_ON_CPU, OOM_IN_PYTHON, OTHER_ERROR = 4.0, 5.0, 6.0, 7.0, 8.0
BATCHES, SIZE = 8, 4


class OutOfMemoryInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Net(LightningModule):
    """Noise, batch norm and dropout; the fault that a batch names happens in it."""

    def __init__(self, optimizer: str = "adam", schedules: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
        self.optimizer, self.schedules = optimizer, schedules
        self.seen: list[int] = []
        self.outputs: list[Any] = []
        self.told: list[str] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, fault = batch
        self.seen.append(batch_idx)
        kind = fault.max().item()
        if kind == OOM_FORWARD:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if kind == OOM_ON_CPU:
            torch.empty(2**60, dtype=torch.uint8)
        if kind == OOM_IN_PYTHON:
            raise MemoryError("no room")
        if kind == OTHER_ERROR:
            raise RuntimeError("a bug")
        loss = F.mse_loss(self.body(x), y)
        if kind == NAN_LOSS:
            loss = loss * float("nan")
        if kind == INF_LOSS:
            loss = loss + float("inf")
        if kind == NAN_GRADIENT:
            loss = loss + (self.body[3].bias * 0).abs().sqrt().sum()
        if kind == OOM_BACKWARD:
            loss = OutOfMemoryInBackward.apply(loss)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.optimizer, self.parameters())
        if not self.schedules:
            return optimizer
        steps, epochs = make_schedules(optimizer)
        return [optimizer], [{"scheduler": steps, "interval": "step"}, {"scheduler": epochs, "interval": "epoch"}]


def make_optimizer(name: str, parameters: Any) -> Optimizer:
    if name == "lbfgs":
        return LBFGS(parameters, lr=0.1, max_iter=3)
    return Adam(parameters, lr=0.05) if name == "adam" else SGD(parameters, lr=0.05, momentum=0.9)


def make_schedules(optimizer: Optimizer) -> tuple[Any, Any]:
    return ExponentialLR(optimizer, 0.9), StepLR(optimizer, 1, 0.5)


def data(faults: dict[int, float], batches: int = BATCHES) -> DataLoader[Any]:
    """Batches of 4; `faults` says what happens in which."""
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(batches * SIZE, 3, generator=generator), torch.randn(batches * SIZE, 1, generator=generator)
    fault = torch.zeros(batches * SIZE)
    for batch, kind in faults.items():
        fault[batch * SIZE + 1] = kind
    return DataLoader(TensorDataset(x, y, fault), batch_size=SIZE)


class Batches:
    """A loader that is no DataLoader."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = list(batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def make_trainer(**arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**quiet, "max_epochs": 2, **arguments})


def fit(net: Net, faults: dict[int, float], loader: Any = None, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    """Train; `net.told` is what was said of bad steps."""
    trainer = make_trainer(**arguments)
    torch.manual_seed(3)
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", "Bad step")
        try:
            trainer.fit(net, data(faults) if loader is None else loader, ckpt_path=ckpt_path)
        finally:
            net.told = [str(warning.message) for warning in told]
    return trainer


def by_hand(
    net: Net,
    faults: dict[int, float],
    window: int = 1,
    clip: float | None = None,
    epochs: int = 2,
    bad: Callable[[float], bool] = bool,
) -> Net:
    """The loop that one would write: a window with a bad batch makes no step. Batch norm keeps no bad batch either."""
    optimizer = make_optimizer(net.optimizer, net.parameters())
    per_step, per_epoch = make_schedules(optimizer)
    torch.manual_seed(3)
    loader = data(faults)
    for _ in range(epochs):
        batches = list(loader)
        for first in range(0, len(batches), window):
            group = batches[first : first + window]
            buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
            optimizer.zero_grad()
            is_bad = False
            for x, y, fault in group:
                kind = fault.max().item()
                is_bad = is_bad or bad(kind)
                if kind >= OOM_FORWARD and kind != OOM_BACKWARD:
                    break  # nothing of the rest is computed
                loss = F.mse_loss(net.body(x), y)
                if kind == OOM_BACKWARD:
                    break
                (loss / window).backward()
            if is_bad:
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])
                continue
            if clip is not None:
                clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            per_step.step()
        per_epoch.step()
    return net


def pair(optimizer: str = "adam", schedules: bool = True) -> tuple[Net, Net]:
    torch.manual_seed(0)
    net = Net(optimizer, schedules)
    return net, copy.deepcopy(net)


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    different = [name for name in mine if not torch.equal(mine[name], other[name])]
    assert not different


# --- skip ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NAN_LOSS, INF_LOSS, NAN_GRADIENT, OOM_FORWARD, OOM_BACKWARD, OOM_ON_CPU])
@pytest.mark.parametrize(("window", "clip"), [(1, None), (1, 0.5), (3, None), (2, 0.5)])
def test_a_run_with_skipped_steps_is_the_hand_written_loop_that_skips_them(
    kind: float, window: int, clip: float | None
) -> None:
    faults = {0: kind, 1: kind, 7: kind}
    net, other = pair()
    trainer = fit(net, faults, bad_steps="skip", accumulate_grad_batches=window, gradient_clip_val=clip)
    assert_same(net, by_hand(other, faults, window, clip))
    windows = len({batch // window for batch in faults})
    assert trainer.progress.dropped_steps == 2 * windows
    assert trainer.global_step == 2 * (-(-BATCHES // window) - windows)
    assert trainer.progress.total_batches == 2 * BATCHES


def test_without_a_policy_nothing_is_looked_at() -> None:
    net, _ = pair()
    trainer = fit(net, {3: NAN_LOSS})
    assert net.body[0].weight.isnan().all()
    assert trainer.progress.dropped_steps == 0
    with pytest.raises(torch.OutOfMemoryError):
        fit(net, {3: OOM_FORWARD})


def test_a_policy_changes_nothing_in_a_run_without_bad_steps() -> None:
    for policy in ("raise", "skip", "rewind"):
        net, other = pair()
        fit(net, {}, bad_steps=policy)
        assert net.told == []
        assert_same(net, by_hand(other, {}))


def test_each_skipped_step_is_told_once_with_its_place_and_cause() -> None:
    net, _ = pair()
    fit(net, {2: NAN_LOSS, 5: NAN_GRADIENT}, bad_steps="skip", max_epochs=1)
    first, second = net.told
    assert "epoch 0, batch 2, global step 2: the loss is nan" in first
    assert "batch 5, global step 4: not finite are the gradients of body.3.bias." in second
    assert "number 2, 1 in a row" in second
    assert net.outputs[2] == {}
    assert "loss" in net.outputs[3]


def test_the_step_that_fills_a_window_names_the_batch_whose_loss_is_bad() -> None:
    net, _ = pair()
    fit(net, {4: INF_LOSS}, bad_steps="skip", accumulate_grad_batches=4, max_epochs=1)
    assert "the loss is inf (batch 4)" in net.told[0]


def test_means_of_an_epoch_are_those_of_the_steps_that_were_made() -> None:
    net, _ = pair()
    stop = EarlyStopping("loss_epoch", check_finite=True, patience=9)
    trainer = fit(net, {0: NAN_LOSS, 3: INF_LOSS}, bad_steps="skip", callbacks=[stop])
    assert len(net.told) == 4
    assert trainer.current_epoch == 2  # a mean of NaN would have stopped it
    assert trainer.callback_metrics["loss_epoch"].isfinite()
    losses = [o["loss"] for o in net.outputs[BATCHES:] if o]
    assert trainer.callback_metrics["loss_epoch"] == pytest.approx(torch.stack(losses).mean().item())


def test_a_plateau_schedule_per_step_waits_for_steps_that_are_made() -> None:
    class Plateau(Net):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            self.schedule = ReduceLROnPlateau(optimizer)
            return [optimizer], [{"scheduler": self.schedule, "interval": "step", "monitor": "loss"}]

    net = Plateau()
    fit(net, {1: NAN_LOSS, 7: NAN_GRADIENT}, bad_steps="skip", max_epochs=1)
    assert len(net.told) == 2
    assert net.schedule.last_epoch == BATCHES - 2


def test_so_many_bad_steps_in_a_row_end_the_run() -> None:
    net, _ = pair()
    faults = {0: NAN_LOSS, 2: NAN_LOSS, 3: OOM_FORWARD, 4: NAN_LOSS}
    with pytest.raises(BadStepError, match=r"bad step 3 in a row, and BadSteps\(limit=3\)") as error:
        fit(net, faults, bad_steps=BadSteps(nan="skip", oom="skip", limit=3))
    assert "batch 4" in str(error.value)
    assert error.value.path is not None
    assert Path(error.value.path).is_file()


@pytest.mark.parametrize("window", [1, 3])
def test_a_run_resumed_from_any_batch_skips_like_the_straight_run(window: int, tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")

    faults = {1: NAN_LOSS, 4: OOM_FORWARD, 5: NAN_GRADIENT}
    net, _ = pair()
    arguments: dict[str, Any] = {"bad_steps": "skip", "accumulate_grad_batches": window}
    straight = fit(net, faults, callbacks=[Saves()], **arguments)
    for batch in range(BATCHES):
        resumed_net = Net()
        resumed = fit(resumed_net, faults, ckpt_path=tmp_path / f"{batch}.ckpt", **arguments)
        assert_same(resumed_net, net)
        assert resumed.progress == straight.progress
        assert torch.equal(resumed.callback_metrics["loss_epoch"], straight.callback_metrics["loss_epoch"])


def test_lbfgs_is_put_back_to_before_the_step_when_a_later_run_of_its_closure_is_bad() -> None:
    class Late(Net):
        """The second forward pass on batch 3 is bad."""

        runs = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.runs = self.runs + 1 if batch_idx == 3 else 0
            return loss * float("nan") if self.runs == 2 else loss

    torch.manual_seed(0)
    net = Late("lbfgs", schedules=False)
    net.body[2].p = 0.0
    other = copy.deepcopy(net)
    trainer = fit(net, {}, bad_steps="skip", max_epochs=1)
    assert len(net.told) == 1
    assert trainer.global_step == BATCHES - 1

    optimizer = make_optimizer("lbfgs", other.parameters())
    for index, (x, y, _) in enumerate(data({})):

        def closure(x: Tensor = x, y: Tensor = y) -> Any:
            optimizer.zero_grad()
            loss = F.mse_loss(other.body(x), y)
            loss.backward()
            return loss

        if index != 3:
            optimizer.step(closure)
    assert_same(net, other)

    torch.manual_seed(0)
    again = Late("lbfgs", schedules=False)
    with pytest.raises(BadStepError, match="the loss is nan") as error:
        fit(again, {}, bad_steps="raise", max_epochs=1)
    dump = torch.load(str(error.value.path), weights_only=True)
    fresh = Net("lbfgs", schedules=False)
    loss = replay_bad_step(str(error.value.path), fresh)[0]
    assert loss.isfinite()  # the fault is not in the data; the forward pass begins with the weights of then
    assert torch.equal(fresh.body[0].weight, dump["bad_step"]["again"]["body.0.weight"])
    assert not torch.equal(fresh.body[0].weight, dump["state_dict"]["body.0.weight"])


class Twice(SGD):
    """An optimizer of the user's that changes weights between two runs of its closure."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure()
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.add_(0.01)
        return super().step(closure)


@pytest.mark.parametrize(("bad_step", "is_skipped"), [(0, False), (1, True)])
def test_an_optimizer_that_runs_its_closure_twice_is_known_from_its_first_step_on(
    bad_step: int, is_skipped: bool
) -> None:
    class Moves(Net):
        runs = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.runs += 1
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.runs == 2 * bad_step + 2 else loss

        def configure_optimizers(self) -> Any:
            return Twice(self.parameters(), lr=0.1)

    net = Moves()
    weights: list[Tensor] = []
    note = _At("on_train_batch_end", lambda *_: weights.append(net.body[0].weight.detach().clone()))
    if is_skipped:
        fit(net, {}, bad_steps="skip", callbacks=[note], max_epochs=1)
        assert len(net.told) == 1
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])
    else:
        with pytest.raises(BadStepError, match="weights may have changed in part"):
            fit(net, {}, bad_steps="skip")


class _At(Callback):
    def __init__(self, hook: str, do: Callable[..., Any]) -> None:
        setattr(self, hook, do)


# --- raise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NAN_LOSS, INF_LOSS, NAN_GRADIENT])
@pytest.mark.parametrize("window", [1, 3])
def test_an_error_names_what_is_bad_and_its_file_replays_it(kind: float, window: int, tmp_path: Path) -> None:
    net, _ = pair()
    before: dict[int, Any] = {}
    note = _At("on_train_batch_start", lambda *a: before.setdefault(a[-1], copy.deepcopy(net.state_dict())))
    with pytest.raises(BadStepError, match="epoch 0, batch 5, global step") as error:
        fit(
            net,
            {5: kind},
            bad_steps="raise",
            accumulate_grad_batches=window,
            callbacks=[note],
            default_root_dir=tmp_path,
        )
    path = error.value.path
    assert path == str(tmp_path / "bad_steps" / f"bad-step-epoch=0-batch=5-step={5 if window == 1 else 1}.ckpt")
    assert path in str(error.value)
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    dump = torch.load(path, weights_only=True)
    assert dump["state_dict"].keys() == before[0].keys()
    for name, value in dump["state_dict"].items():
        assert torch.equal(value, before[5 if window == 1 else 3][name])
    assert len(dump["optimizer_states"]) == 1
    stored = dump["bad_step"]["batches"]
    assert [one["batch_idx"] for one in stored] == ([5] if window == 1 else [3, 4, 5])
    x, _, _ = list(data({5: kind}))[5]
    assert torch.equal(stored[-1]["batch"][0], x)

    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    fresh = Net()
    torch.manual_seed(99)
    losses = replay_bad_step(path, fresh)
    assert torch.equal(torch.rand(1), expected)  # the caller's generators are as they were
    assert all(
        torch.equal(loss, one["loss"]) or loss.isnan() for loss, one in zip(losses, stored, strict=True)
    )  # dropout and all
    for name, parameter in fresh.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.nan_to_num(7.0), gradients[name].nan_to_num(7.0))


def test_a_run_continues_from_the_file_of_a_bad_step_with_that_step() -> None:
    faults = {4: NAN_LOSS}
    net, other = pair()
    with pytest.raises(BadStepError) as error:
        fit(net, faults, bad_steps="raise", accumulate_grad_batches=2)
    resumed = Net()
    fit(resumed, faults, bad_steps="skip", accumulate_grad_batches=2, ckpt_path=error.value.path)
    assert len(resumed.told) == 2
    assert_same(resumed, by_hand(other, faults, window=2))
    again = Net()
    with pytest.raises(BadStepError) as second:
        fit(again, faults, bad_steps="raise", accumulate_grad_batches=2, ckpt_path=error.value.path)
    assert second.value.path == str(error.value.path).replace(".ckpt", "-v1.ckpt")


@pytest.mark.parametrize("kind", [OOM_FORWARD, OOM_BACKWARD, OOM_ON_CPU, OOM_IN_PYTHON])
def test_an_error_for_a_lack_of_memory_has_the_same_report(kind: float) -> None:
    net, _ = pair()
    with pytest.raises(BadStepError, match=r"batch 2, global step 2: out of memory \(\w+Error: .+\)") as error:
        fit(net, {2: kind}, bad_steps="raise")
    assert error.value.__cause__ is not None
    dump = torch.load(str(error.value.path), weights_only=True)
    assert dump["bad_step"]["batches"][0]["batch"][0].shape == (SIZE, 3)


def test_the_error_is_raised_even_if_its_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    net, _ = pair()
    with pytest.raises(BadStepError, match="could not be saved") as error:
        fit(net, {2: NAN_LOSS}, bad_steps=BadSteps(dirpath=tmp_path / "file"))
    assert error.value.path is None


def test_a_batch_of_objects_is_described_and_can_be_replayed_when_it_is_given() -> None:
    class Box:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    class Boxed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch[0].x, *batch[1:]), batch_idx)

    batches = [(Box(x), y, fault) for x, y, fault in data({2: NAN_GRADIENT})]
    with pytest.raises(BadStepError, match=r"cannot hold .*Box: give `batches=`") as error:
        fit(Boxed(), {}, loader=Batches(batches), bad_steps="raise")
    path = str(error.value.path)
    stored = torch.load(path, weights_only=True)["bad_step"]["batches"][0]
    assert torch.equal(replay_bad_step(path, Boxed(), batches=[batches[2]])[0], stored["loss"])


def test_a_file_holds_a_batch_and_not_all_that_it_is_a_part_of() -> None:
    everything = torch.randn(4_000_000)
    fault = torch.full((4,), NAN_LOSS)
    batches = [(everything[i : i + 12].view(4, 3), torch.zeros(4, 1), fault) for i in range(2)]
    with pytest.raises(BadStepError) as error:
        fit(Net(), {}, loader=Batches(batches), bad_steps="raise")
    assert Path(str(error.value.path)).stat().st_size < 200_000


def test_a_checkpoint_of_no_bad_step_is_not_replayed(tmp_path: Path) -> None:
    net, _ = pair()
    fit(net, {}, max_epochs=1).save_checkpoint(tmp_path / "good.ckpt")
    with pytest.raises(CheckpointError, match="not of a bad step"):
        replay_bad_step(tmp_path / "good.ckpt", net)


def test_other_errors_pass_as_they_are() -> None:
    net, _ = pair()
    with pytest.raises(RuntimeError, match="a bug") as error:
        fit(net, {2: OTHER_ERROR}, bad_steps="skip")
    assert "In `training_step` at epoch 0, batch 2" in error.value.__notes__[0]
    with pytest.raises(torch.OutOfMemoryError):
        fit(net, {2: OOM_FORWARD}, bad_steps=BadSteps(nan="skip", oom=None))
    fit(net, {2: NAN_LOSS}, bad_steps=BadSteps(nan=None, oom="skip"))
    assert len(net.told) == 0
    assert net.body[0].weight.isnan().all()


# --- rewind ----------------------------------------------------------------------------------------------------------


def rewound_by_hand(net: Net, faults: dict[int, float], back: int, factor: float = 1.0, every: int = 1) -> Net:
    """Keep the state before each step; after a bad one, take the one `back` steps old, or the oldest."""
    optimizer = make_optimizer(net.optimizer, net.parameters())
    per_step, per_epoch = make_schedules(optimizer)
    states: list[tuple[int, Any]] = []
    step = 0

    def state() -> Any:
        parts = (net, optimizer, per_step, per_epoch)
        return [copy.deepcopy(part.state_dict()) for part in parts]

    torch.manual_seed(3)
    loader = data(faults)
    for _ in range(2):
        for x, y, fault in list(loader):
            now = state()
            optimizer.zero_grad()
            F.mse_loss(net.body(x), y).backward()
            if fault.max().item() == GOOD:
                if step % every == 0:
                    states.append((step, now))
                optimizer.step()
                per_step.step()
                step += 1
                continue
            net.load_state_dict(now[0])  # batch norm
            if states:
                old = [one for one in states if one[0] <= step - back]
                number, chosen = old[-1] if old else states[0]
                for part, saved in zip((net, optimizer, per_step, per_epoch), chosen, strict=True):
                    part.load_state_dict(copy.deepcopy(saved))  # type: ignore[attr-defined]
                for group in optimizer.param_groups:
                    group["lr"] *= factor
                    group["initial_lr"] *= factor
                for schedule in (per_step, per_epoch):
                    schedule.base_lrs = [lr * factor for lr in schedule.base_lrs]
                    schedule._last_lr = [lr * factor for lr in schedule._last_lr]
                states = [(number, state())]
        per_epoch.step()
    return net


@pytest.mark.parametrize(("back", "every"), [(1, 1), (3, 1), (3, 2), (20, 1), (1, 4)])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_rewound_run_is_the_hand_written_loop_that_goes_back(back: int, every: int, factor: float) -> None:
    faults = {0: NAN_LOSS, 4: NAN_GRADIENT, 5: INF_LOSS, 7: NAN_LOSS}
    net, other = pair()
    policy = BadSteps("rewind", "skip", 20, rewind_steps=back, snapshot_every_n_steps=every, lr_factor=factor)
    copies: list[int] = []
    note = _At("on_train_batch_end", lambda trainer, *_: copies.append(len(trainer._run.guard.states)))
    trainer = fit(net, faults, bad_steps=policy, callbacks=[note])
    assert len(net.told) == 8
    assert_same(net, rewound_by_hand(other, faults, back, factor, every))
    assert max(copies) <= back
    assert trainer.global_step == 2 * BATCHES - 8  # counters go on
    assert trainer.progress.dropped_steps == 8


def test_a_rewind_says_where_it_went() -> None:
    net, _ = pair()
    policy = BadSteps("rewind", rewind_steps=2, lr_factor=0.1)
    fit(net, {0: NAN_LOSS, 4: NAN_LOSS}, bad_steps=policy, max_epochs=1)
    first, second = net.told
    assert "no earlier state to go back to, so the step was only skipped" in first
    assert "went back to those before step 1, and learning rates are multiplied by 0.1" in second


def test_rewinds_are_limited_even_if_a_few_steps_are_good_in_between() -> None:
    net, _ = pair()
    with pytest.raises(BadStepError, match="bad step 3 in a row"):
        fit(net, {1: NAN_LOSS, 3: NAN_LOSS, 5: NAN_LOSS}, bad_steps=BadSteps("rewind", rewind_steps=3, limit=3))
    net, _ = pair()
    fit(net, {1: NAN_LOSS, 5: NAN_LOSS}, bad_steps=BadSteps("rewind", rewind_steps=2, limit=2))
    assert len(net.told) == 4


# --- out of memory ---------------------------------------------------------------------------------------------------


def test_the_graph_of_a_step_without_memory_is_freed_before_the_next_batch() -> None:
    class Holds(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            big = torch.ones(1000, requires_grad=True) * 2
            if batch[2].max() == OOM_FORWARD:
                held.append(weakref.ref(big))
            return super().training_step(batch, batch_idx) + big.sum() * 0

    held: list[Any] = []
    alive: list[Any] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", "Bad step")
        warnings.showwarning = lambda *_, **__: alive.append([one() for one in held])
        make_trainer(bad_steps="skip", max_epochs=1).fit(Holds(), data({2: OOM_FORWARD}))
    assert alive == [[None]]  # when it is told of, which is before the handler ends


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_out_of_memory_while_weights_change_is_skipped_only_where_a_copy_is_there(policy: str) -> None:
    class Short(SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            loss = closure()
            self.steps += 1
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            if self.steps == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loss

    class Shortly(Net):
        def configure_optimizers(self) -> Any:
            return Short(self.parameters(), lr=0.1)

    net = Shortly()
    start = net.body[0].weight.detach().clone()
    if policy == "skip":
        with pytest.raises(BadStepError, match="cannot be left out, as weights may have changed in part"):
            fit(net, {}, bad_steps=policy, max_epochs=1)
    else:
        fit(net, {}, bad_steps=policy, max_epochs=1)
        assert len(net.told) == 1
        assert torch.allclose(net.body[0].weight, start + BATCHES - 1)


# --- precision, refusals, freeing ------------------------------------------------------------------------------------


def test_infinite_gradients_that_a_loss_scaler_looks_after_do_not_count() -> None:
    net, _ = pair("sgd", schedules=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = fit(net, {5: NAN_LOSS}, bad_steps="skip", plugins=precision)
    assert len(net.told) == 2
    assert trainer.progress.dropped_steps == 2  # the two with a bad loss
    assert scaler.get_scale() < 2.0**120  # steps were left out by the scaler
    assert net.body[0].weight.isfinite().all()


def test_a_step_given_up_leaves_a_scaler_ready_for_the_next() -> None:
    weights = []
    for faults in ({3: NAN_LOSS}, {3: OOM_FORWARD}):
        net, _ = pair("sgd")
        net.body[2].p = 0.0  # the one draws numbers, the other does not come so far
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
        fit(net, faults, bad_steps="skip", plugins=precision)
        assert len(net.told) == 2
        weights.append(net.body[0].weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nan": "ignore"}, r"nan='ignore'.*known answer"),
        ({"oom": "rewind"}, r"oom='rewind'.*known answer"),
        ({"nan": None, "oom": None}, "does nothing"),
        ({"nan": "skip", "limit": 0}, "limit=0"),
        ({"nan": "rewind", "rewind_steps": 1.5}, "rewind_steps=1.5"),
        ({"nan": "rewind", "snapshot_every_n_steps": True}, "snapshot_every_n_steps=True"),
        ({"nan": "rewind", "lr_factor": 0}, "lr_factor=0"),
        ({"nan": "rewind", "lr_factor": 2.0}, "lr_factor=2.0"),
        ({"dirpath": 3}, "dirpath=3"),
        ({"nan": "skip", "rewind_steps": 3}, "rewind_steps=3.*does nothing"),
        ({"nan": "skip", "lr_factor": 0.5}, "lr_factor=0.5.*does nothing"),
        ({"limit": 3}, "limit=3.*does nothing"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        BadSteps(**arguments)


@pytest.mark.parametrize("value", ["Skip", True, 3, ["skip"]])
def test_an_argument_that_is_no_policy_is_refused(value: Any) -> None:
    with pytest.raises(MisconfigurationException, match="no known policy"):
        make_trainer(bad_steps=value)


def test_manual_optimization_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="not supported for manual optimization"):
        make_trainer(bad_steps="skip").fit(ManualOptimBoringModel())


def test_copies_and_batches_are_let_go_when_a_run_ends() -> None:
    kept: list[Any] = []
    note = _At("on_train_batch_end", lambda trainer, net, outputs, batch, _: kept.append(weakref.ref(batch[0])))
    net, _ = pair()
    trainer = fit(net, {}, bad_steps="rewind", callbacks=[note])
    assert [one() for one in kept] == [None] * len(kept)
    assert trainer._run is not None
    assert trainer._run.guard is not None
    assert not trainer._run.guard.states


# --- samples ---------------------------------------------------------------------------------------------------------


class Rows(Dataset[Tensor]):
    """Each sample is its index; sample 13 is bad."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, float("nan") if index == 13 else 1.0])


class Reads(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.batches: list[list[int]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.batches.append(batch[:, 0].int().tolist())
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(("workers", "window"), [(0, 1), (0, 2), (2, 2)])
def test_samples_are_those_of_all_batches_of_the_step(workers: int, window: int) -> None:
    loader = DataLoader(Rows(), batch_size=3, shuffle=True, num_workers=workers)
    net = Reads()
    with pytest.raises(BadStepError) as error:
        make_trainer(bad_steps="raise", accumulate_grad_batches=window).fit(net, loader)
    expected = net.batches[-window:]
    samples = [index for batch in expected for index in batch]
    assert 13 in samples
    assert error.value.indices == expected
    assert f"Samples: {samples}." in str(error.value)
    assert torch.load(str(error.value.path), weights_only=True)["bad_step"]["indices"] == expected


def test_samples_that_no_sampler_names_are_said_to_be_unknown() -> None:
    net, _ = pair()
    fit(net, {}, loader=Batches(data({2: NAN_LOSS})), bad_steps="skip", max_epochs=1)
    assert "Samples: unknown" in net.told[0]
