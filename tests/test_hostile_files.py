"""Hostile checkpoints (tests/hostile.py) come through every public door without doing anything.

A process of its own loads them, with an audit hook that hears of files opened for writing, files removed, processes,
sockets, and imports of what a file names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # seconds; 15 on an idle core

Answers = list[dict[str, Any]]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("hostile")
    run = subprocess.run(
        [sys.executable, str(HERE / "hostile_run.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert not (folder / "trap" / "made").exists()
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_two_hundred_files_are_tried_at_seven_doors(answers: Answers) -> None:
    assert len({answer["file"] for answer in answers}) >= 200
    assert len({answer["door"] for answer in answers}) == 7
    assert len(answers) == 7 * len({answer["file"] for answer in answers})


def test_no_file_is_made_no_process_started_nothing_imported(answers: Answers) -> None:
    harmed = [answer for answer in answers if answer["events"] or answer["changed"]]
    assert harmed == []


def test_every_answer_is_a_load_or_an_error_that_says_what_is_wrong(answers: Answers) -> None:
    ours = ("CheckpointError", "UnpicklingError", "MisconfigurationException")
    unclear = [
        f"{answer['door']}: {answer['file']}: {answer['error']}: {answer['text'][:200]}"
        for answer in answers
        if answer["error"] is not None
        and answer["error"] not in ours
        and answer["path"] not in answer["text"]  # says which file
        and "Error(s) in loading state_dict for Net" not in answer["text"]  # torch says which weights
    ]
    assert unclear == [], "\n".join(unclear)


def test_the_watch_hears_what_a_trusted_file_does(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import pathlib, hostile, hostile_run, pickle
hostile_run.is_watching = True
sys.addaudithook(hostile_run.audit)
for call in (hostile.Call("posix.system", "touch made"), hostile.Call("builtins.open", "made", "w")):
    pickle.loads(hostile.dumps(call))
    print(hostile_run.seen.pop())
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "made").exists()
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["os.system", "open"], run.stderr
