"""A run resumed from a checkpoint taken at any hook continues like the straight run and ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.test_batches import SavesAfter
from tests.resume.harness import (
    HOOKS,
    Net,
    Recipe,
    Run,
    Saved,
    Stream,
    first_difference,
    loader,
    resume,
    resumes_at,
    straight,
)
from torch import Tensor
from torch.utils.data import DataLoader

from inazuma import Trainer
from inazuma.callbacks import EarlyStopping, EMAWeightAveraging

RECIPES = [
    Recipe("plain"),
    Recipe("validation inside an epoch", {"val_check_interval": 0.5}),
    Recipe("accumulation", {"accumulate_grad_batches": 2, "val_check_interval": 0.5}, loaders=lambda: loader(10)),
    Recipe("accumulation over a validation", {"accumulate_grad_batches": 3, "val_check_interval": 2}),
    Recipe("plateau", {"max_epochs": 3}, schedule="plateau"),
    Recipe("schedule by batch", {"val_check_interval": 0.5}, schedule="batch"),
    Recipe("max_steps", {"max_steps": 8, "max_epochs": -1, "gradient_clip_val": 0.1}),
    Recipe("validation across epochs", {"val_check_interval": 4, "check_val_every_n_epoch": None}),
    Recipe("two optimizers", {"val_check_interval": 0.5}, manual=True),
    Recipe("two loaders", loaders=lambda: {"a": loader(12), "b": loader(8)}),
    Recipe("a stream", loaders=lambda: DataLoader(Stream(), batch_size=2)),
    Recipe("callbacks with a state", callbacks=lambda: [EMAWeightAveraging(decay=0.5), EarlyStopping("val_loss")]),
    Recipe("a loader with its own generator", loaders=lambda: loader(generator=torch.Generator().manual_seed(5))),
    Recipe("mixed precision", {"precision": "bf16-mixed"}),
    Recipe("logging every third step", {"log_every_n_steps": 3}),
]


@pytest.fixture(scope="module", params=RECIPES, ids=str)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Run, Path]:
    root = tmp_path_factory.mktemp("run")
    return request.param, straight(request.param, root), root


@pytest.mark.parametrize("hook", HOOKS)
def test_a_run_resumed_from_any_hook_continues_like_the_straight_run(
    hook: str, original: tuple[Recipe, Run, Path]
) -> None:
    recipe, run, root = original
    saved = [each for each in run.saved if each.hook == hook]
    if recipe.manual:
        saved = [each for each in saved if not _is_between_steps(run, each)]
        if hook == "on_before_zero_grad":
            assert not saved  # in manual optimization nobody tells
            return
    assert saved, f"no checkpoint was saved in {hook}"
    for each in _some(saved):
        resumed = resume(recipe, root, each)
        _assert_same_suffix(run.events[resumes_at(recipe, run, each) :], resumed, each)
        _assert_same_end(run, resumed, each)


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_after_backward", "on_validation_start", "on_validation_end"]
)
def test_a_resumed_run_is_resumed_again(hook: str, tmp_path: Path) -> None:
    recipe = Recipe("accumulation", {"accumulate_grad_batches": 3, "val_check_interval": 2})
    run = straight(recipe, tmp_path)
    first = [each for each in run.saved if each.hook == hook][:2][-1]  # inside the first window, or the last of all
    again = resume(recipe, tmp_path, first, save=True)
    assert {each.hook for each in again.saved} == set(HOOKS)
    for second in again.saved[:60:4]:
        _assert_same_end(run, resume(recipe, tmp_path, second), second)


class Accumulating(Net):
    """A module that makes a step with every second batch by itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        optimizer = self.optimizers()
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_gradients_that_a_module_accumulates_by_itself_are_resumed(tmp_path: Path) -> None:
    def end(ckpt_path: str | None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        module = Accumulating(Recipe("accumulates by itself", manual=True))
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[SavesAfter(3, tmp_path / "open.ckpt")] if ckpt_path is None else [],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader(), loader(4, shuffle=False), ckpt_path=ckpt_path)
        return module.state_dict()

    straight_end = end(None)
    resumed_end = end(str(tmp_path / "open.ckpt"))
    assert all(torch.equal(tensor, resumed_end[name]) for name, tensor in straight_end.items())


def _some(saved: list[Saved]) -> list[Saved]:
    """Every third, and the last: all kinds of positions, in a third of the time."""
    return [each for i, each in enumerate(saved) if i % 3 == 0 or i == len(saved) - 1]


def _is_between_steps(run: Run, saved: Saved) -> bool:
    """Whether one optimizer has made its step in the open batch already: such a batch cannot be repeated exactly."""
    names = [event[0] for event in run.events[: saved.position]]
    return saved.hook == "on_before_optimizer_step" and names[-2] == "on_before_optimizer_step"


def _assert_same_suffix(expected: list[tuple[Any, ...]], resumed: Run, saved: Saved) -> None:
    names = [event[0] for event in resumed.events]
    if "on_train_start" in names:
        where = first_difference(expected, resumed.events[names.index("on_train_start") + 1 :])
        assert where is None, f"{saved.path.name}: {where}"
    else:  # nothing was left to train
        left = {event[0] for event in expected}
        assert left <= {"on_train_end", "on_fit_end"}, f"{saved.path.name} did not go on with {sorted(left)}"


def _assert_same_end(run: Run, resumed: Run, saved: Saved) -> None:
    expected_ids = run.ids[len(run.ids) - len(resumed.ids) :]
    assert resumed.ids == expected_ids, f"{saved.path.name}: trained on other batches"
    left_out = set() if resumed.ids else {"torch's random generator", "Python's random generator"}
    ends = ({part: value for part, value in each.end.items() if part not in left_out} for each in (run, resumed))
    where = first_difference(*ends)
    assert where is None, f"{saved.path.name}: {where}"
    # A row has a cell for each name its file knows, and the file of the straight run knows all.
    rows = (run.rows[len(run.rows) - len(resumed.rows) :], resumed.rows)
    expected_rows, resumed_rows = ([{k: v for k, v in row.items() if v} for row in each] for each in rows)
    where = first_difference(expected_rows, resumed_rows)
    assert where is None, f"{saved.path.name}: metrics.csv {where}"
