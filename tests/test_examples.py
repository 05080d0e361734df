"""Every example runs as a user would start it, in its short form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(name: str, output: str) -> str:
    """What stands behind `name` in the closing lines of an example."""
    found = re.search(rf"^{name} +(.+)$", output, re.MULTILINE)
    assert found, output
    return found.group(1)


def test_digits_trains_tests_and_draws_what_it_read(tmp_path: Path) -> None:
    output = run("digits/train.py", "--epochs", "1", "--out", str(tmp_path))
    assert re.match(r"\d+\.\d\d%  \(\d+ of 270 misread\)", said("test accuracy", output))
    assert Path(said("checkpoint", output)).is_file()
    assert (Path(said("logs", output)) / "metrics.csv").read_text().count("\n") > 5
    assert output.count("read as") == 5


@pytest.mark.slow
def test_digits_reads_97_percent_of_the_test_images(tmp_path: Path) -> None:
    accuracy = said("test accuracy", run("digits/train.py", "--out", str(tmp_path)))
    assert float(accuracy.partition("%")[0]) >= 97
