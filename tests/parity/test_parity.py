"""One program on Lightning and on inazuma: the same hooks in the same order, the same numbers, files and weights.

A scenario may deviate only in a way that docs/differences.md lists. A listed deviation that no longer shows is an error
too, so that the list stays true.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.parity.recorder import SCENARIOS, Record, Scenario, broken, differences, run
from tests.parity.scenarios import checkpoints, data, helpers, interruptions, logs, loop, optimization

from inazuma import callbacks

ROOMS = (checkpoints, data, helpers, interruptions, logs, loop, optimization)  # imported: they enter their scenarios
DIFFERENCES = Path(__file__).parents[2] / "docs" / "differences.md"


@pytest.mark.parametrize("program", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_a_program_runs_alike_on_lightning_and_on_inazuma(
    program: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program.needs and not hasattr(callbacks, program.needs):
        pytest.skip(f"inazuma has no {program.needs} yet")
    if program.draws:
        monkeypatch.setenv("PL_TRAINER_EXACT_RESUME", "False")
    expected = run("lightning.pytorch", program, tmp_path / "lightning")
    got = run("inazuma", program, tmp_path / "inazuma")
    for record in (expected, got):
        assert not broken(record), f"the recorder failed in {program.name}: {record.error!r}"
    found = differences(expected, got)
    surprising = {part: where for part, where in found.items() if part not in program.deviates}
    assert not surprising, _report(program, surprising, expected, got)
    gone = [part for part in program.deviates if part not in found]
    assert not gone, f"{program.name} no longer deviates in {gone}: take it out of the scenario and docs/differences.md"
    unexpected = [f"{w.category.__name__}: {w.message}" for w in got.warnings if not _is_named(str(w.message), program)]
    assert not unexpected, f"warnings of inazuma that {program.name} does not name:\n" + "\n".join(unexpected)


def test_every_deviation_is_listed() -> None:
    listed = " ".join(DIFFERENCES.read_text().split())
    missing = {words for program in SCENARIOS.values() for words in program.deviates.values() if words not in listed}
    assert not missing, f"docs/differences.md does not say: {sorted(missing)}"


def _is_named(message: str, program: Scenario) -> bool:
    return any(re.search(pattern, message) for pattern in program.warns)


def _report(program: Scenario, found: dict[str, str], expected: Record, got: Record) -> str:
    lines = [f"{program.name} differs (expected: Lightning, got: inazuma)"]
    lines += [f"[{part}] {where}" for part, where in found.items()]
    for who, record in (("Lightning", expected), ("inazuma", got)):
        if record.error is not None:
            lines.append(f"{who} raised {record.raised}: {record.error}")
    return "\n".join(lines)
