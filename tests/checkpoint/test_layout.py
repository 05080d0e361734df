"""What stands under "inazuma" in a checkpoint is looked at as a whole: what is missing or wrong is named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.test_batches import SavesAfter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from inazuma import LightningModule, Trainer
from inazuma.checkpoint.layout import problem
from inazuma.errors import CheckpointError

# May be missing: files of before are without them, or nothing depends on them.
OPTIONAL = {"format", "note", "dropped_steps", "dropped_in_a_row", "last_dropped_step", "drops_window", "loggers"}
OPTIONAL |= {"batch_size", "length", "numpy"}
OPAQUE = {"numpy", "note", "gradients", "flags", "moment", "key"}  # what stands in them is looked at where it is used


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weight * batch.sum()
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(ckpt_path: Path | None = None, callbacks: Any = ()) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        accumulate_grad_batches=2,
    )
    trainer.fit(Net(), DataLoader(torch.arange(12.0), 2, shuffle=True), ckpt_path=ckpt_path)  # type: ignore[arg-type]


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every entry of every dictionary that is looked at."""
    if OPAQUE & {*place[-1:]} or place[-2:-1] == ("shown",):
        return
    if isinstance(tree, dict):
        yield from ((*place, key) for key in tree if key not in OPTIONAL)
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*place, key))


def without(tree: Any, place: tuple[Any, ...]) -> Any:
    """A copy that lacks one entry."""
    tree = holder = copy.deepcopy(tree)
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    return tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint from inside an epoch and an accumulation window."""
    path = tmp_path_factory.mktemp("whole") / "whole.ckpt"
    fit(callbacks=[SavesAfter(3, path)])
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def test_each_entry_that_is_missing_is_named(whole: dict[str, Any]) -> None:
    own = whole["inazuma"]
    assert problem(own) is None
    found = list(places(own))
    assert ("batches", "parts", 0, "start", "own_of_first") in found
    for place in found:
        assert problem(without(own, place)) == f"`{'.'.join(map(str, ('inazuma', *place)))}` is missing"


@pytest.mark.parametrize("place", [("progress", "step"), ("rng", "torch"), ("batches", "parts", 0, "seed")])
def test_a_file_that_lacks_an_entry_is_refused_before_the_run(
    place: tuple[Any, ...], whole: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "damaged.ckpt"
    torch.save(without(whole, ("inazuma", *place)), path)
    with pytest.raises(CheckpointError) as raised:
        fit(path)
    name = ".".join(map(str, ("inazuma", *place)))
    assert str(raised.value).startswith(f"The training state in checkpoint {path} cannot be read: `{name}` is missing")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("progress", "epoch"), None, "`inazuma.progress.epoch` is None, not a count"),
        (("progress", "batch"), -1, "`inazuma.progress.batch` is -1, not a count"),
        (("batches", "parts"), {}, "`inazuma.batches.parts` is a dict, not a list"),
        (("batches", "parts", 0), "text", "`inazuma.batches.parts.0` is 'text', not a dict"),
        (("batches", "parts", 0, "start", "rng", "torch"), 3, "start.rng.torch` is 3, not the state of a generator"),
        (("gradients",), {"weight": 1.0}, "`inazuma.gradients.weight` is 1.0, not a Tensor"),
    ],
)
def test_an_entry_of_another_kind_is_named(
    place: tuple[Any, ...], value: Any, says: str, whole: dict[str, Any]
) -> None:
    own = copy.deepcopy(whole["inazuma"])
    holder = own
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    assert says in str(problem(own))
