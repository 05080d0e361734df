"""A run that is killed at any batch and resumed in a new process is, bit by bit, the run that was never stopped."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.resume.killed import BATCHES_PER_EPOCH, EPOCHS, Case

HERE = Path(__file__).parent
LAST = BATCHES_PER_EPOCH * EPOCHS - 1
ORDERS = (
    *("in order", "shuffle", "generator", "weighted"),
    *("draws as it goes", "own generator", "batch sampler", "eager batches", "by epoch"),
)

# One of each kind, killed in an accumulation window, at the end of an epoch, beside a validation.
SOME = [
    Case(1),
    Case(8, accumulate=3, val_check_interval=3),
    Case(13, workers=2, given_by="datamodule"),
    Case(14, workers=2, workers_then=0),
    Case(21, workers=0, workers_then=2, accumulate=3),
    Case(19, workers=2, workers_then=1, persistent=True, given_by="module"),
    Case(16, workers=2, persistent=True),
    *(Case(9 + i, order=order) for i, order in enumerate(ORDERS)),
    Case(13, order="draws as it goes", workers=2, workers_then=0),
    Case(12, order="own generator", workers=2),
    Case(18, order="eager batches", workers=2),
    Case(13, data="stream"),
    Case(13, data="stream", workers=2, persistent=True),
    Case(15, data="two loaders", workers=2, workers_then=0),
    Case(22, data="two loaders"),
    Case(11, data="shared generator"),
    Case(11, order="own generator", given_by="module", reload_every=2),
    Case(8, order="own generator", given_by="module", reload_every=1),
    Case(11, two_optimizers=True, val_check_interval=0.25),
]


def matrix() -> Iterator[Case]:
    """Every combination that means something, each killed at every batch."""
    for order, workers, persistent, accumulate, given_by in itertools.product(
        ("in order", "shuffle", "weighted", "batch sampler"),
        (0, 2),
        (False, True),
        (1, 3),
        ("argument", "module", "datamodule"),
    ):
        if persistent and not workers:
            continue
        interval = 3 if accumulate == 3 else 0.5
        yield Case(
            0, workers, None, persistent, order, accumulate=accumulate, given_by=given_by, val_check_interval=interval
        )
    for data, workers, then in itertools.product(("map", "stream", "two loaders"), (0, 2), (0, 1, 2)):
        if data != "stream" or workers == then:  # a stream is dealt out to the workers that there are
            yield Case(0, workers, then, data=data, order="draws as it goes" if data == "map" else "shuffle")
    for workers in (0, 2):
        yield Case(0, workers, two_optimizers=True, val_check_interval=3)


def differences(cases: Sequence[Case]) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "killed.py")],
        input="".join(json.dumps(asdict(case)) + "\n" for case in cases),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr[-3000:]
    return [f"{case}: {answer}" for case, answer in zip(cases, answers, strict=True) if answer is not None]


def test_a_run_that_was_killed_goes_on_like_the_straight_run() -> None:
    found = differences(SOME)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(4))
def test_a_run_that_was_killed_at_any_batch_goes_on_like_the_straight_run(share: int) -> None:
    cells = list(matrix())[share::4]
    cases = [replace(cell, kill_after=k) for cell in cells for k in range(1, LAST + 1)]
    random.Random(0).shuffle(cases)
    found = differences(cases)
    assert not found, "\n".join(found[:20])
