"""WeightAveraging: the same program runs on Lightning and on inazuma, and must end with the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint, WeightAveraging
from inazuma.errors import MisconfigurationException

BATCHES = 4
Make = Callable[[Any], Any]  # an averaging callback, from the module `callbacks` of a framework


def make_model(pl: Any, batch_norm: bool = False, manual: bool = False) -> Any:
    class Model(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.automatic_optimization = not manual
            self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if batch_norm else nn.Tanh())
            self.head = nn.Linear(4, 2)
            self.validated: list[Tensor] = []  # the weights of each validation
            self.trained: list[Tensor] = []  # the weights after each batch

        def forward(self, batch: Any) -> Any:
            return self.head(self.body(batch))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self(batch).square().mean()
            if not manual:
                return loss
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()

        def on_train_batch_end(self, *args: Any) -> None:
            self.trained.append(weights(self))

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", self(batch).square().mean())
            self.validated.append(weights(self))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test", self(batch).square().mean())

        def configure_optimizers(self) -> Any:
            parts = [self.body, self.head] if manual else [self]
            return [torch.optim.SGD(part.parameters(), lr=0.2, momentum=0.9) for part in parts]

    return Model()


def weights(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def loader() -> Any:
    return DataLoader(torch.randn(BATCHES * 2, 3, generator=torch.Generator().manual_seed(2)), batch_size=2)


def fit(
    pl: Any, callbacks: Sequence[Any], model: Any = None, ckpt_path: Path | None = None, **arguments: Any
) -> tuple[Any, Any]:
    model = make_model(pl) if model is None else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            **{
                "max_epochs": 3,
                "logger": False,
                "callbacks": list(callbacks),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 1,
                "num_sanity_val_steps": 0,
                "accelerator": "cpu",
                **arguments,
            }
        )
        trainer.fit(model, loader(), loader(), ckpt_path=ckpt_path)
    return trainer, model


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def flat(state: dict[str, Tensor], model: Any) -> Tensor:
    """The weights in a state dict, as `weights` gives them."""
    return torch.cat([state[name].flatten() for name, _ in model.named_parameters()])


PROGRAMS: dict[str, tuple[Make, dict[str, Any]]] = {
    "mean": (lambda c: c.WeightAveraging(), {}),
    "mean, without buffers": (lambda c: c.WeightAveraging(use_buffers=False), {}),
    "own function": (lambda c: c.WeightAveraging(avg_fn=lambda old, new, n: (3 * old + new) / 4), {}),
    "own function of lists": (
        # without buffers: Lightning hands it the counter of batch norm, which has no mean of its kind
        lambda c: c.WeightAveraging(
            use_buffers=False, multi_avg_fn=lambda old, new, n: torch._foreach_lerp_(old, new, 0.3)
        ),
        {},
    ),
    "exponential": (lambda c: c.EMAWeightAveraging(decay=0.8), {}),
    "exponential, accumulation": (lambda c: c.EMAWeightAveraging(decay=0.8), {"accumulate_grad_batches": 3}),
    "every third step": (lambda c: c.EMAWeightAveraging(decay=0.8, update_every_n_steps=3), {}),
    "from a step on": (lambda c: c.EMAWeightAveraging(decay=0.8, update_starting_at_step=2), {}),
    "steps, and epochs from the second on": (
        lambda c: c.EMAWeightAveraging(decay=0.8, update_every_n_steps=5, update_starting_at_epoch=1),
        {},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_and_checkpoints_are_those_of_lightning(name: str, batch_norm: bool, tmp_path: Path) -> None:
    make, arguments = PROGRAMS[name]
    ends = {}
    for pl in (lightning.pytorch, inazuma):
        keep = pl.callbacks.ModelCheckpoint(tmp_path / pl.__name__, filename="{epoch}", save_top_k=-1)
        _, model = fit(pl, [make(pl.callbacks), keep], make_model(pl, batch_norm), **arguments)
        ends[pl] = weights(model), model.validated, load(tmp_path / pl.__name__ / "epoch=1.ckpt")
    (expected, expected_val, expected_file), (got, got_val, got_file) = ends.values()
    assert torch.equal(got, expected)
    assert torch.equal(torch.stack(got_val), torch.stack(expected_val))
    assert got_file["averaging_state"] == expected_file["averaging_state"]
    state_key = next(key for key in expected_file["callbacks"] if "ModelCheckpoint" not in key)
    assert got_file["callbacks"][state_key] == expected_file["callbacks"][state_key]
    for key in ("state_dict", "current_model_state"):
        assert got_file[key].keys() == expected_file[key].keys()
        for tensor, value in expected_file[key].items():
            if not tensor.endswith("num_batches_tracked"):  # Lightning rounds its average down; ours is a count
                assert torch.equal(got_file[key][tensor], value), f"{key} {tensor}"


def test_averaging_does_not_change_the_training() -> None:
    _, plain = fit(inazuma, [])
    _, averaged = fit(inazuma, [WeightAveraging()])
    assert torch.equal(torch.stack(averaged.trained), torch.stack(plain.trained))


def test_the_exponential_average_is_that_of_a_loop_by_hand() -> None:
    trainer, model = fit(inazuma, [EMAWeightAveraging(decay=0.7)])
    average = model.trained[0]
    for current in model.trained[1:]:
        average = 0.7 * average + 0.3 * current
    assert torch.allclose(weights(model), average, atol=1e-6)
    assert trainer.global_step == len(model.trained)


def test_the_mean_is_that_of_the_weights_after_each_step() -> None:
    _, model = fit(inazuma, [WeightAveraging()])
    assert torch.allclose(weights(model), torch.stack(model.trained).mean(0), atol=1e-6)


def test_validation_sees_the_average_in_all_its_hooks_and_training_the_raw_weights() -> None:
    seen: dict[str, Tensor] = {}

    class Model(type(make_model(inazuma))):  # type: ignore[misc]
        def on_validation_epoch_end(self) -> None:
            seen["module, on_validation_epoch_end"] = weights(self)

    class Watch(Callback):
        def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            seen["callback, on_validation_epoch_start"] = weights(pl_module)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen["training"] = weights(pl_module)

    _, model = fit(inazuma, [WeightAveraging(), Watch()], Model(), max_epochs=1)
    training = seen.pop("training")
    assert torch.equal(training, model.trained[-1])
    assert not torch.equal(training, weights(model))
    for where, value in seen.items():
        assert torch.equal(value, weights(model)), where


def test_the_raw_weights_stand_in_until_the_first_update() -> None:
    _, model = fit(inazuma, [EMAWeightAveraging(update_starting_at_step=BATCHES + 1)], max_epochs=2)
    assert torch.equal(model.validated[0], model.trained[BATCHES - 1])
    _, never = fit(inazuma, [EMAWeightAveraging(update_starting_at_step=1000)])
    assert torch.equal(weights(never), never.trained[-1])


def test_every_second_step_of_two_optimizers_is_averaged() -> None:
    """Each batch makes two steps, so that the last one always has an odd index."""
    averaging = EMAWeightAveraging(decay=0.5, update_every_n_steps=2)
    trainer, model = fit(inazuma, [averaging], make_model(inazuma, manual=True), max_epochs=1)
    assert trainer.global_step == 2 * BATCHES
    average = model.trained[0]
    for current in model.trained[1:]:
        average = (average + current) / 2
    assert torch.allclose(weights(model), average, atol=1e-6)


def test_counters_and_masks_follow_the_module() -> None:
    class Model(type(make_model(inazuma))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.tensor(0))
            self.register_buffer("mask", torch.tensor([False, False]))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.count += 1
            self.mask[batch_idx % 2] = True
            return super().training_step(batch, batch_idx)

    _, model = fit(inazuma, [WeightAveraging()], Model())
    assert model.count == 3 * BATCHES
    assert model.mask.all()


class SaveIn(Callback):
    """Saves a checkpoint at each call of a hook."""

    def __init__(self, hook: str, folder: Path) -> None:
        self.paths: list[Path] = []

        def save(trainer: Any, pl_module: Any, *args: Any) -> None:
            if not trainer.sanity_checking:
                self.paths.append(folder / f"{hook}-{len(self.paths)}.ckpt")
                trainer.save_checkpoint(self.paths[-1])

        setattr(self, hook, save)


@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end", "on_train_end"],
)
@pytest.mark.parametrize("comes_first", [False, True])
def test_a_checkpoint_always_holds_the_average_as_state_dict_and_the_raw_weights(
    hook: str, comes_first: bool, tmp_path: Path
) -> None:
    save, averaging = SaveIn(hook, tmp_path), WeightAveraging()
    callbacks = [save, averaging] if comes_first else [averaging, save]
    _, model = fit(inazuma, callbacks, max_epochs=1)
    checkpoint = load(save.paths[-1])
    assert torch.equal(flat(checkpoint["current_model_state"], model), model.trained[-1])
    if hook != "on_train_batch_end" or not comes_first:  # else it is the average without the last step
        assert torch.equal(flat(checkpoint["state_dict"], model), weights(model))


@pytest.mark.parametrize(
    "hook",
    [
        "on_train_start",
        "on_train_epoch_start",
        "on_train_batch_end",
        "on_validation_start",
        "on_validation_batch_end",
        "on_validation_end",
        "on_train_epoch_end",
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_ends_like_the_straight_run(hook: str, accumulate: int, tmp_path: Path) -> None:
    def average() -> Any:
        return EMAWeightAveraging(decay=0.8, update_every_n_steps=2, update_starting_at_epoch=1)

    arguments = {"accumulate_grad_batches": accumulate, "val_check_interval": 2}
    save = SaveIn(hook, tmp_path)
    _, straight = fit(inazuma, [average(), save], make_model(inazuma, batch_norm=True), **arguments)
    for path in save.paths:
        _, resumed = fit(inazuma, [average()], make_model(inazuma, batch_norm=True), ckpt_path=path, **arguments)
        for name, value in straight.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), f"{path.name}: {name}"


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_step_that_was_saved_before_it_was_averaged_is_averaged_after_the_resume(every: int, tmp_path: Path) -> None:
    def average() -> Any:
        return EMAWeightAveraging(decay=0.8, update_every_n_steps=every)

    save = SaveIn("on_train_batch_end", tmp_path)
    _, straight = fit(inazuma, [save, average()])
    for path in save.paths[:6]:
        _, resumed = fit(inazuma, [average()], ckpt_path=path)
        assert torch.equal(weights(resumed), weights(straight)), path.name


def test_a_run_of_lightning_can_be_continued(tmp_path: Path) -> None:
    _, straight = fit(inazuma, [EMAWeightAveraging(decay=0.8)], max_epochs=4)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(lightning.pytorch, [lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.8), keep], max_epochs=2)
    _, resumed = fit(inazuma, [EMAWeightAveraging(decay=0.8)], ckpt_path=tmp_path / "epoch=1.ckpt", max_epochs=4)
    assert torch.equal(weights(resumed), weights(straight))


def test_a_run_without_an_average_can_be_continued_with_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save = SaveIn("on_train_epoch_end", tmp_path)
    fit(inazuma, [save], max_epochs=1)
    with caplog.at_level("INFO", logger="inazuma"):
        _, resumed = fit(inazuma, [WeightAveraging()], ckpt_path=save.paths[0], max_epochs=2)
    assert "The checkpoint holds no averaged weights: `WeightAveraging` begins to average where it" in caplog.text
    assert torch.allclose(weights(resumed), torch.stack(resumed.trained).mean(0), atol=1e-6)


def test_testing_a_checkpoint_uses_the_average(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="val")
    trainer, model = fit(inazuma, [WeightAveraging(), keep])
    best = load(Path(keep.best_model_path))
    trainer.test(model, loader(), ckpt_path="best", verbose=False)
    assert torch.equal(weights(model), flat(best["state_dict"], model))
    trainer.save_checkpoint(tmp_path / "tested.ckpt")
    assert "current_model_state" not in load(tmp_path / "tested.ckpt")  # what was averaged is another run's now


def test_validating_after_the_fit_leaves_the_average_in_the_module() -> None:
    trainer, model = fit(inazuma, [WeightAveraging()])
    average = weights(model)
    trainer.validate(model, loader(), verbose=False)
    assert torch.equal(model.validated[-1], average)
    assert torch.equal(weights(model), average)


def test_an_exception_in_validation_leaves_the_raw_weights_and_saves_both(tmp_path: Path) -> None:
    class Model(type(make_model(inazuma))):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise ValueError("crash")

    model = Model()
    with pytest.raises(ValueError, match="crash"):
        fit(inazuma, [WeightAveraging(), OnExceptionCheckpoint(tmp_path)], model)
    assert torch.equal(weights(model), model.trained[-1])
    checkpoint = load(tmp_path / "on_exception.ckpt")
    assert torch.equal(flat(checkpoint["current_model_state"], model), model.trained[-1])
    mean = torch.stack(model.trained).mean(0)
    assert torch.allclose(flat(checkpoint["state_dict"], model), mean, atol=1e-6)


def test_a_callback_begins_anew_in_each_fit() -> None:
    averaging = WeightAveraging()
    _, first = fit(inazuma, [averaging])
    _, second = fit(inazuma, [averaging])
    assert torch.equal(weights(first), weights(second))


def test_the_average_is_kept_on_the_device_asked_for_and_checkpoints_know_only_the_module() -> None:
    trainer, model = fit(inazuma, [WeightAveraging(device="cpu")])
    assert all(parameter.device == torch.device("cpu") for parameter in model.parameters())
    assert trainer.callbacks[0].state_dict() == {"latest_update_step": 3 * BATCHES}


def test_two_functions_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="both say how to average. Give one of the two"):
        WeightAveraging(avg_fn=lambda old, new, n: new, multi_avg_fn=lambda old, new, n: None)


def test_a_negative_distance_of_updates_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"EMAWeightAveraging\(update_every_n_steps=-1\)"):
        EMAWeightAveraging(update_every_n_steps=-1)


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_a_decay_that_is_no_share_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"{decay}"):
        EMAWeightAveraging(decay=decay)


@pytest.mark.parametrize(
    ("arguments", "steps", "epochs"),
    [
        ({}, [0, 1, 2, 3, 4, 5], []),
        ({"update_every_n_steps": 2}, [0, 2, 4], []),
        ({"update_every_n_steps": 2, "update_starting_at_step": 3}, [4], []),
        ({"update_every_n_steps": 0, "update_starting_at_epoch": 1}, [], [1, 2, 3, 4, 5]),
        ({"update_every_n_steps": 5, "update_starting_at_epoch": 4}, [0, 5], [4, 5]),
    ],
)
def test_the_moments_of_updates_are_those_of_lightning(
    arguments: dict[str, Any], steps: list[int], epochs: list[int]
) -> None:
    for callbacks in (lightning.pytorch.callbacks, inazuma.callbacks):
        averaging = callbacks.EMAWeightAveraging(**arguments)
        assert [i for i in range(6) if averaging.should_update(step_idx=i)] == steps
        assert [i for i in range(6) if averaging.should_update(epoch_idx=i)] == epochs
