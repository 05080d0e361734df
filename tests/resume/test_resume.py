"""A run resumed from a checkpoint taken at any hook continues like the straight run and ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.resume.harness import (
    HOOKS,
    Recipe,
    Run,
    Saved,
    Stream,
    first_difference,
    loader,
    resume,
    since_training_began,
    straight,
    suffix,
)
from torch.utils.data import DataLoader

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
    assert saved, f"no checkpoint was saved in {hook}"
    for each in _some(saved):
        _assert_continues(recipe, run, each, root)


def _some(saved: list[Saved]) -> list[Saved]:
    """Every third, and the last: all kinds of positions, in a third of the time."""
    return [each for i, each in enumerate(saved) if i % 3 == 0 or i == len(saved) - 1]


def _assert_continues(recipe: Recipe, run: Run, saved: Saved, root: Path) -> None:
    resumed = resume(recipe, root, saved)
    name = saved.path.name
    assert (where := first_difference(suffix(run, saved), since_training_began(resumed))) is None, f"{name}: {where}"
    expected_ids = run.ids[len(run.ids) - len(resumed.ids) :]
    assert resumed.ids == expected_ids, f"{name}: trained on other batches"
    assert (where := first_difference(run.end, resumed.end)) is None, f"{name}: {where}"
    expected_rows = run.rows[len(run.rows) - len(resumed.rows) :]
    # A row has a cell for each name its file knows, and the file of the straight run knows all.
    filled = [[{k: v for k, v in row.items() if v} for row in rows] for rows in (expected_rows, resumed.rows)]
    assert (where := first_difference(*filled)) is None, f"{name}: metrics.csv {where}"
