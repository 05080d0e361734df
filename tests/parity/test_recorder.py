"""The parity suite can fail: its comparison sees what is out of order, missing or off by a bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parity.recorder import SCENARIOS, Event, Lab, Record, Scenario, broken, differences, first_difference, run
from tests.parity.scenarios import helpers, loop, optimization

ROOMS = (helpers, loop, optimization)  # imported: they enter their scenarios


def _event(hook: str, **state: object) -> Event:
    return Event("Net", hook, args={}, state=state, metrics=None)


def test_a_hook_out_of_order_is_shown_with_its_neighbours() -> None:
    expected = [_event(hook) for hook in ("setup", "on_fit_start", "on_train_start", "on_train_end")]
    got = [expected[0], expected[2], expected[1], expected[3]]
    found = differences(Record(events=expected), Record(events=got))
    assert set(found) == {"hooks"}
    assert ">    1 Net.on_fit_start" in found["hooks"]


def test_a_missing_last_hook_is_seen() -> None:
    events = [_event("setup"), _event("teardown")]
    assert set(differences(Record(events=events), Record(events=events[:1]))) == {"hooks"}


def test_a_different_state_at_a_hook_is_seen() -> None:
    expected, got = [_event("setup", global_step=1)], [_event("setup", global_step=2)]
    found = differences(Record(events=expected), Record(events=got))
    assert found["state"].startswith("['global_step']: expected 1, got 2")


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (1.0, 1.00001),
        (1, 1.0),
        (1, True),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (torch.ones(2), torch.ones(2) + 1e-7),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        ("a", None),
    ],
)
def test_different_values_are_seen(expected: object, got: object) -> None:
    assert first_difference(expected, got) is not None


@pytest.mark.parametrize("value", [1.0, float("nan"), torch.tensor([float("nan"), 1.0]), {"a": [1, None]}, "a"])
def test_equal_values_are_equal(value: object) -> None:
    assert first_difference(value, value) is None


@pytest.mark.parametrize("name", ["plain", "shuffle_and_dropout", "gan", "swa_with_batch_norm"])
def test_lightning_is_equal_to_itself(name: str, tmp_path: Path) -> None:
    first, second = (run("lightning.pytorch", SCENARIOS[name], tmp_path / each) for each in ("a", "b"))
    assert differences(first, second) == {}


def test_other_weights_are_seen(tmp_path: Path) -> None:
    def longer(lab: Lab) -> None:
        lab.fit(max_epochs=3)

    first = run("lightning.pytorch", SCENARIOS["plain"], tmp_path / "a")
    second = run("lightning.pytorch", Scenario("longer", longer, {}, (), None), tmp_path / "b")
    assert {"hooks", "csv", "files", "weights"} <= set(differences(first, second))


def test_a_mistake_of_the_recorder_is_told_from_one_of_the_program(tmp_path: Path) -> None:
    def of_the_recorder(lab: Lab) -> None:
        lab.fit(callbacks=3)

    def of_the_program(lab: Lab) -> None:
        raise TypeError("wrong")

    for program, expected in ((of_the_recorder, True), (of_the_program, False)):
        record = run("inazuma", Scenario("", program, {}, (), None), tmp_path / program.__name__)
        assert (record.raised, broken(record)) == ("TypeError", expected)
