"""What checkpoint files say of themselves. No index file lies beside them: their notes are the index of a run.

The note of each file (`files.read_note`; the entry "note" of the checkpoint's own key "inazuma") holds:

    run, time                         the run, the same for all its resumes; when it was written, in seconds since 1970
    epoch, global_step, weights_only  where training stood; whether it can only be loaded, not resumed
    kind                              "best", "last", "exception", "signal" or "manual": why it was written

and, where a `ModelCheckpoint` wrote it:

    name                              the file, seen from `dirpath`: a copy under another name is the user's
    callback, monitor, mode, score    who ranks it, and by what
    best                              the best file of the run, which may be in another directory, and its score
    kept                              the other files this callback keeps: name, global_step, score, kind, sha256
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inazuma import container, files


@dataclass(frozen=True)
class Saved:
    """A checkpoint file.

    Args:
        path: where it is.
        note: what it says of itself; empty for a file of others, or of a `CheckpointIO` that keeps no notes.
        time_s: when it was written, in seconds since 1970.
        sha256: its checksum; None where it has none, or is not whole yet.
    """

    path: str
    note: Mapping[str, Any]
    time_s: float
    sha256: str | None = None

    @property
    def run(self) -> str:
        return str(self.note.get("run", ""))

    @property
    def kind(self) -> str:
        return str(self.note.get("kind", ""))

    @property
    def step(self) -> int:
        """The global step, 0 if the file does not say."""
        return int(self.note.get("global_step", 0))

    @property
    def score(self) -> int | float | None:
        return as_number(self.note.get("score"))


def read(path: str) -> Saved | None:
    """A file with its note, from its last bytes; None if there is no file, or none that can be read in parts."""
    if path.startswith(("http://", "https://")):
        return None
    try:
        with files.open_for_reading(path) as file:
            note, digest = container.read_note(file) or {}, container.read_digest(file)
        return Saved(path, note, float(note["time"]) if "time" in note else files.modified_at(path), digest)
    except OSError:  # gone, a directory, or not for us to read
        return None


def newest_first(found: Iterable[Saved]) -> list[Saved]:
    """The order in which to resume: the run that wrote last, and in it the highest step, and of those the last."""
    found = list(found)
    wrote_at: dict[str, float] = {}
    for saved in found:
        wrote_at[saved.run] = max(saved.time_s, wrote_at.get(saved.run, 0.0))
    return sorted(found, key=lambda saved: (wrote_at[saved.run], saved.run, saved.step, saved.time_s), reverse=True)


def as_json(score: int | float | None) -> int | float | str | None:
    """A score for a note: JSON has no infinity and no NaN."""
    return score if score is None or abs(score) < float("inf") else str(score)


def as_number(score: int | float | str | None) -> int | float | None:
    """A score out of a note."""
    return float(score) if isinstance(score, str) else score
