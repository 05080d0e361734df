"""The benchmarks run, in their smallest form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_driver_compares_the_hand_written_loop_with_inazuma() -> None:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--size", "tiny"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "inazuma, default settings, 2 values logged" in done.stdout
    results = json.loads(Path(done.stdout.splitlines()[-1]).read_text())["results"]
    steps = [result for result in results if result["measure"] == "step"]
    assert {result["contender"] for result in steps} == {"hand-written", "inazuma"}
    assert all(reading["cpu_us"] > 0 for result in steps for reading in result["readings"])
