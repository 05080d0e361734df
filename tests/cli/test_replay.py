"""`inazuma replay` brings a recorded run to a step again, says whether it is the same run, and shows that step."""

from __future__ import annotations

import io
import re
import runpy
import shutil
from pathlib import Path

import pytest
from tests.cli.commands import script

from inazuma.callbacks.defaults import TOOLS
from inazuma.callbacks.digest_file import Digest, pack_record
from inazuma.cli.main import main
from inazuma.cli.replay import begins_at, last_step


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a checkpoint at every second step, trained in the working directory."""
    path = script(tmp_path)
    monkeypatch.setattr("sys.argv", [str(path), "digest"])
    runpy.run_path(str(path), run_name="__main__")
    return tmp_path / "run"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "checkpoint", "replayed"), [(1, None, 4), (3, "2.ckpt", 4), (5, "4.ckpt", 4)])
def test_a_step_is_reached_from_the_nearest_checkpoint(
    step: int, checkpoint: str | None, replayed: int, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(recorded.parent)
    assert main(["replay", str(recorded), "--step", str(step)]) == 0
    out = capsys.readouterr().out
    assert (f"from {recorded / checkpoint} " if checkpoint else "from the start") in out
    assert f"faithful: {replayed} replayed batches are as recorded" in out
    shown = out[out.index("\nstep ") :]
    assert shown.startswith(
        f"\nstep {step}\nepoch {step // 3}, batch {step * 2 % 6}:\n    batch['x']: float32 [4, 4] on cpu"
    )
    assert "batch['name']: ['point " in shown
    assert len(re.findall(r"^loss: [\d.]+$", shown, re.MULTILINE)) == 2  # the window has two batches
    assert re.search(r"head\.weight +[\d.e-]+ +[\d.e-]+ +[\d.e-]+ +0\n", shown)
    assert "the program ends" not in out
    assert contents(recorded.parent) == before
    assert not TOOLS


def test_a_replay_that_is_another_run_says_so(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded.parent / "train.py"
    path.write_text(path.read_text().replace("lr=0.01", "lr=0.02"))
    assert main(["replay", str(recorded), "--step", "1"]) == 1
    out = capsys.readouterr().out
    assert "The replay is NOT faithful" in out
    assert "the runs part at epoch 0, batch 1, step 0: weights" in out


def test_the_debugger_stops_in_the_step(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("p 'at', self.global_step, batch_idx\nc\nc\n"))
    assert main(["replay", str(recorded), "--step", "1", "--pdb"]) == 0
    assert "('at', 1, 2)" in capsys.readouterr().out


def test_an_exception_in_the_step_is_shown_and_debugged(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recorded.parent / "train.py"
    path.write_text(path.read_text().replace('"fails" in sys.argv', "True"))
    assert main(["replay", str(recorded), "--step", "4"]) == 1
    captured = capsys.readouterr()
    assert "ValueError: the step fails here" in captured.err
    assert "No batch was replayed to the end" in captured.out  # it began with the batch that fails
    monkeypatch.setattr("sys.stdin", io.StringIO("c\np 'in', self.global_step\nq\n"))
    assert main(["replay", str(recorded), "--step", "4", "--pdb"]) == 1
    assert "('in', 4)" in capsys.readouterr().out


def test_checkpoints_of_another_run_are_left_alone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(recorded / "2.ckpt", recorded / "own.ckpt")
    (recorded / "4.ckpt").write_bytes(b"damaged")
    digest = recorded / "digest.bin"
    digest.write_bytes(digest.read_bytes()[:-36] + b"\0" * 36)  # the last batch is of another run
    assert main(["replay", str(recorded), "--step", "5"]) == 1
    out = capsys.readouterr().out
    assert f"not used: {recorded / '4.ckpt'}" in out
    assert f"from {recorded}" in out


def test_what_cannot_be_replayed_ends_with_2(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        (["--step", "-1"], "before the record"),
        (["--step", "60"], "--step 60 is behind the end of the run"),
    ):
        assert main(["replay", str(recorded), *argv]) == 2
        assert message in capsys.readouterr().err
    (recorded.parent / "train.py").unlink()
    assert main(["replay", str(recorded), "--step", "1"]) == 2
    assert "is no file here" in capsys.readouterr().err
    assert main(["replay", str(recorded.parent), "--step", "1"]) == 2
    assert "does not exist" in capsys.readouterr().err


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize("code", ["0", "'no data'"])
def test_a_program_that_ends_before_the_step_is_no_good_answer(
    code: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(recorded / "run.json", ("finished: ", "running: "))  # as of a run that was killed
    edit(recorded.parent / "train.py", ('print("the program ends")', f"sys.exit({code})"))
    assert main(["replay", str(recorded), "--step", "60"]) == 2
    err = capsys.readouterr().err
    assert err.endswith("inazuma replay: the program ended before step 60.\n")
    assert ("The program exits: no data" in err) == (code != "0")


def test_a_program_that_says_what_it_resumes_from_is_replayed(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(recorded.parent / "train.py", ('"auto" if "auto" in sys.argv else None', '"auto"'))
    for step, start in ((1, "the start"), (3, str(recorded / "2.ckpt"))):
        assert main(["replay", str(recorded), "--step", str(step)]) == 0
        out = capsys.readouterr().out
        assert f"from {start}" in out
        assert "faithful: 4 replayed batches" in out


def test_a_step_in_a_later_fit_is_refused_in_one_sentence(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(recorded / "run.json", ("finished: ", "running: "))
    edit(recorded.parent / "train.py", ('2 if "two-fits" in sys.argv else 1', "2"))
    assert main(["replay", str(recorded), "--step", "60"]) == 2
    err = capsys.readouterr().err
    assert "inazuma replay: the first `fit` of the program ended before step 60." in err
    assert "Traceback" not in err


def test_a_run_that_was_not_seeded_is_told_to_be(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded / "run.json"
    record.write_text(re.sub(r'"global": "\d+"', '"global": null', record.read_text()))
    edit(recorded.parent / "train.py", ("pl.seed_everything(5,", "pl.seed_everything(6,"))
    assert main(["replay", str(recorded), "--step", "1"]) == 1
    assert "The run was not seeded" in capsys.readouterr().out


def test_a_step_of_the_second_optimizer_is_in_the_batch_of_the_first() -> None:
    two = Digest(Path(), b"".join(pack_record(0, i, 2 * i, 0, 0, 0.0, 0, 0) for i in range(5)))
    assert [begins_at(two, step) for step in (0, 1, 2, 7, 8, 9, 10)] == [0, 0, 2, 6, 8, 8, 10]
    assert last_step(two) == 9
    window = Digest(Path(), b"".join(pack_record(0, i, i // 2, 0, 0, 0.0, 0, 0) for i in range(6)))
    assert [begins_at(window, step) for step in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert last_step(window) == 2
