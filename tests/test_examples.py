"""Every example runs as a user would start it, in its short form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(name: str, output: str) -> str:
    """What stands behind `name` in the closing lines of an example."""
    found = re.search(rf"^{name} +(.+)$", output, re.MULTILINE)
    assert found, output
    return found.group(1)


def test_digits_trains_tests_and_draws_what_it_read() -> None:
    output = run(str(EXAMPLES / "digits" / "train.py"), "--epochs", "2")
    assert re.match(r"\d+\.\d\d%  \(\d+ of 270 misread\)", said("test accuracy", output))
    best = Path(said("checkpoint", output))
    assert list(best.parent.iterdir()) == [best]  # the best of two epochs, and only that
    assert (Path(said("logs", output)) / "metrics.csv").read_text().count("\n") > 5
    assert output.count("read as") == 5


@pytest.mark.slow
def test_digits_reads_97_percent_of_the_test_images() -> None:
    accuracy = said("test accuracy", run(str(EXAMPLES / "digits" / "train.py")))
    assert float(accuracy.partition("%")[0]) >= 97


def test_the_example_of_the_readme_finds_the_line() -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert code in (ROOT / "README.ja.md").read_text().replace("# 3 と 1 に近い値", "# close to 3 and 1")
    slope, intercept = run("-c", code).split()[-2:]
    assert float(slope) == pytest.approx(3, abs=0.3)
    assert float(intercept) == pytest.approx(1, abs=0.2)
