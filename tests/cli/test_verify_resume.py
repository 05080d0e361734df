"""`inazuma verify-resume` kills and resumes the user's script, and names what a resume loses."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.commands import script

from inazuma.callbacks.digest_file import Digest, pack_record, read_digest
from inazuma.callbacks.run_record import read_sessions
from inazuma.cli.main import main
from inazuma.cli.verify_resume import Attempt, Verification, agrees, choose, ends_alike
from inazuma.cli.watch import Moment, Plan, Result, Watcher

STRAIGHT = re.compile(r"from the start, killed at .*: \d+ batches identical")


def verify(folder: Path, *argv: str, kills: int = 1) -> int:
    return main(["verify-resume", "--kills", str(kills), str(script(folder)), *argv])


@pytest.mark.timeout(300)  # three processes that import torch
def test_a_dataset_that_hides_a_generator_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, "hidden-generator") == 1
    out = capsys.readouterr().out
    assert STRAIGHT.search(out)  # it is the resume that is at fault
    assert re.search(r"resumed at epoch .*: DIFFERS\nthe runs part at epoch \d, batch \d, step \d: data\n", out)
    assert "Yes: from the start it is the same run again. Does the dataset, sampler or transform keep a state" in out
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]  # what the Trainer wrote lay elsewhere


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("arguments", [(), ("unseeded",), ("two-fits",)])
def test_a_script_that_resumes_exactly_is_proven_so(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, *arguments, kills=5) == 0
    out = capsys.readouterr().out
    assert "straight: 12 batches, 2 epochs" in out
    assert "identical: killed 5 times, 12 batches; weights, optimizers" in out
    for place in ("inside an accumulation window", "of a validation", "the end of epoch"):
        assert f"killed at {'' if place.startswith('the') else 'epoch'}" in out
        assert place in out
    assert ("calls `fit` 2 times" in out) == (arguments == ("two-fits",))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_digest_of_the_script_itself_goes_on_through_all_kills(tmp_path: Path) -> None:
    assert verify(tmp_path, "digest", kills=5) == 0
    killed, straight = read_digest(tmp_path / "run"), read_digest(tmp_path / "run/digest-0.bin")
    assert len(killed) == 12
    assert killed.data == straight.data
    sessions = read_sessions(tmp_path / "run")
    assert [session["exit"] for session in sessions[:-1]] == ["running"] * (len(sessions) - 1)
    assert sessions[-1]["exit"].startswith("finished")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_script_that_does_not_repeat_itself_is_told_from_a_bad_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, "entropy") == 1
    assert "The script was not killed yet: two runs from the start differ" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_script_that_cannot_be_verified_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, "fails") == 2
    assert "ValueError: the step fails here" in capsys.readouterr().err
    (tmp_path / "other.py").write_text("print('nothing to train')")
    assert main(["verify-resume", str(tmp_path / "other.py")]) == 2
    assert "never called `Trainer.fit`" in capsys.readouterr().err
    assert main(["verify-resume", "--timeout", "0.01", str(tmp_path / "other.py")]) == 2
    assert "took more than 0.01 seconds" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resume_that_fails_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, "resume-fails") == 1
    out = capsys.readouterr().out
    assert re.search(
        r"resumed at epoch .*: FAILS, and the straight run does not: the script ended with exit code 1", out
    )
    assert "LookupError: nothing was saved" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_chance_that_comes_late_is_not_taken_for_a_bad_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, "late-entropy") == 1
    out = capsys.readouterr().out
    assert "resumed at epoch" in out
    assert re.search(r"No, it parts from the straight run too, at epoch 1, batch 4, step 5, in \w+: two runs from", out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_script_that_resumes_by_itself_and_validates_another_module_first_is_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verify(tmp_path, "digest", "auto", "validates-first", kills=2) == 0  # "digest" leaves checkpoints
    assert "identical: killed 2 times" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_a_signal_leaves_no_process_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    started = tmp_path / "started"
    path = tmp_path / "waits.py"
    path.write_text(
        f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(100)"
    )

    def end_it() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_it, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        main(["verify-resume", str(path)])
    assert ended.value.code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not list((tmp_path / "temporary").iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_script_that_is_not_there_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", "nowhere.py"]) == 2
    assert capsys.readouterr().err.startswith("inazuma: nowhere.py is no file. Give the script")


def test_ctrl_c_ends_the_command_with_a_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(self: Verification) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Verification, "run", pressed)
    assert main(["verify-resume", __file__]) == 130
    assert capsys.readouterr().err == "inazuma: interrupted\n"


def attempt_of(records: range, was_killed: bool = False) -> Attempt:
    data = b"".join(pack_record(0, i, i, 0, 0, 0.0, 0, 0) for i in records)
    return Attempt(Path(), Result(), Digest(Path(), data), was_killed)


@pytest.mark.parametrize(
    ("resumed", "says"),
    [
        (range(4, 10), "6 batches identical"),
        (range(4, 12), "6 batches are identical, but then the run goes on for 2 more."),
        (range(4, 7), "3 batches are identical, but then the run ends 3 before the straight one."),
        (range(0), "0 batches are identical, but then the run ends 6 before the straight one."),
        (range(5, 10), "The next batch of the epoch is left out."),
    ],
)
def test_a_run_that_is_longer_or_shorter_differs(resumed: range, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = Moment("on_train_batch_end", 0, 4)
    component = agrees(attempt_of(range(10)), attempt_of(resumed), before, None)
    assert (component is None) == says.endswith("identical")
    assert capsys.readouterr().out.rstrip().endswith(says)


def test_the_start_is_the_start_also_where_the_script_looks_for_files() -> None:
    watcher = Watcher(Plan({}, "", 0))
    assert [watcher.resume_from(said) for said in (None, "auto", "last", "own.ckpt")] == [None, None, None, "own.ckpt"]
    assert Watcher(Plan({}, "", 0, "killed.ckpt")).resume_from("auto") == "killed.ckpt"


def test_no_kill_is_no_proof(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", "--kills", "0", "train.py"]) == 2
    assert "proves nothing" in capsys.readouterr().err


HOOKS = ["on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end"]


@settings(max_examples=100, deadline=None)
@given(hooks=st.lists(st.tuples(st.sampled_from(HOOKS), st.booleans()), max_size=30), kills=st.integers(1, 8))
def test_moments_are_chosen_once_each_in_the_order_of_the_run(hooks: list[tuple[str, bool]], kills: int) -> None:
    moments = [Moment(hook, 0, i, 0, 0, hook == HOOKS[0] and is_open) for i, (hook, is_open) in enumerate(hooks)]
    chosen = choose(moments, kills, random.Random(1))
    assert len(chosen) == min(kills, len(moments))
    assert chosen == [moment for moment in moments if moment in chosen]
    if kills >= 4:
        assert {(m.hook, m.window_is_open) for m in chosen} == {(m.hook, m.window_is_open) for m in moments}


def test_what_differs_at_the_end_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    end = {"steps": 3, "weights of head": 5, "metric loss": "0x1p0"}
    assert ends_alike(end, json.loads(json.dumps(end)))
    assert not ends_alike(end, end | {"weights of head": 6})
    assert "at the end: weights of head" in capsys.readouterr().out
