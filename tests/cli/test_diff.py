"""`inazuma diff` names the first batch and component in which two runs part."""

from __future__ import annotations

from pathlib import Path

import pytest

from inazuma.callbacks.digest_file import HEADER, Record, pack_record
from inazuma.cli.main import main


def write(folder: Path, records: list[Record]) -> str:
    folder.mkdir()
    (folder / "digest.bin").write_bytes(HEADER + b"".join(pack_record(*record) for record in records))
    return str(folder)


RECORDS = [Record(i // 5, i % 5, i, i, i + 1, i / 3, i + 2, i + 3) for i in range(10)]


def test_equal_runs_are_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (write(tmp_path / name, RECORDS) for name in "ab")
    assert main(["diff", one, f"{other}/digest.bin"]) == 0
    assert capsys.readouterr().out == "identical: 10 batches\n"


def test_a_part_of_a_run_is_compared_where_both_have_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write(tmp_path / "a", RECORDS), write(tmp_path / "b", RECORDS[4:8])
    assert main(["diff", one, other]) == 0
    out = capsys.readouterr().out
    assert out == f"identical: 4 batches, from epoch 0, batch 4 on\n{one} goes on for 2 batches more\n"


def test_the_first_difference_is_shown_with_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = [*RECORDS[:7], *(record._replace(loss=9.5, weights=0xABC) for record in RECORDS[7:])]
    assert main(["diff", write(tmp_path / "a", RECORDS), write(tmp_path / "b", changed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the runs part at epoch 1, batch 2, step 7: loss"
    assert lines[-1] == "7 batches before it are identical."
    (loss,) = (line.split() for line in lines if line.startswith("loss"))
    assert loss == ["loss", "2.33333333", "9.5", "<"]
    (weights,) = (line.split() for line in lines if line.startswith("weights"))
    assert weights == ["weights", "0000000a", "00000abc"]


def test_runs_of_other_epochs_part_in_their_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [*RECORDS[:4], *(record._replace(epoch=record.epoch + 1) for record in RECORDS[5:])]
    assert main(["diff", write(tmp_path / "a", RECORDS), write(tmp_path / "b", other)]) == 1
    assert "the runs part at epoch 0, batch 4, step 4: position" in capsys.readouterr().out


def test_what_cannot_be_compared_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, late = write(tmp_path / "a", RECORDS[:3]), write(tmp_path / "b", RECORDS[6:])
    assert main(["diff", one, late]) == 2
    assert "no batch in common" in capsys.readouterr().err
    assert main(["diff", one, str(tmp_path / "nowhere")]) == 2
    assert "has no digest" in capsys.readouterr().err


def test_where_digests_are_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("logs", "logs/version_0"):
        (tmp_path / name).mkdir()
    one = write(tmp_path / "logs/version_0/run", RECORDS)
    assert main(["diff", str(tmp_path), one]) == 2
    assert f"has no digest itself. There are some below it: {one}." in capsys.readouterr().err
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    assert main(["diff", one, str(tmp_path / "a.ckpt")]) == 2
    assert "`inazuma ckpt diff` compares checkpoints" in capsys.readouterr().err
