"""What a checkpoint file says about itself: a checksum and a small note, in the comment of the zip file it is.

`torch.save` writes a zip file, and nobody who reads one minds the comment at its end: not torch, not Lightning, not
`unzip -z`, which prints it. The comment is one line of ASCII:

    inazuma-checkpoint 1 <sha256, 64 hex digits> <note, JSON>

The checksum covers the file as it was before the comment (its last two bytes, the length of the comment, are zero
there), followed by the note. So a byte that changes anywhere, in the note too, is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any

from inazuma.errors import CheckpointError

_NAME = b"inazuma-checkpoint 1 "
_DIGEST_BYTES = 64
_END = b"PK\x05\x06"  # starts the last record of a zip file, which is 22 bytes and the comment
_END_BYTES = 22
_COMMENT_BYTES = 65_535  # two bytes hold the length
_CHUNK_BYTES = 1 << 20


class SealedWriter:
    """Takes the bytes of a zip file and passes them on, checksum and note added: `torch.save(obj, writer)`, `seal()`.

    It never goes back in the file, so that what it writes to may be an upload. The last record is held back instead.

    Args:
        file: where the bytes go.
        note: see `encode`.
    """

    def __init__(self, file: IO[bytes], note: bytes) -> None:
        self.size_bytes = 0  # passed on
        self.failure: Exception | None = None  # of `file`; torch hides it behind a RuntimeError of its own
        self._file = file
        self._note = note
        self._hash = hashlib.sha256()
        self._held = b""

    def write(self, data: Any) -> int:
        """Take the next bytes; any object with a buffer."""
        data = memoryview(data).cast("B")
        self._hash.update(data)
        if len(data) >= _END_BYTES:
            self._pass_on(self._held)
            self._pass_on(data[:-_END_BYTES])
            self._held = bytes(data[-_END_BYTES:])
        else:
            held = self._held + bytes(data)
            self._pass_on(held[:-_END_BYTES])
            self._held = held[-_END_BYTES:]
        return len(data)

    def flush(self) -> None:
        """Called by torch; the owner of the file flushes it."""

    def seal(self) -> str:
        """Write the end of the file, and return its checksum."""
        if not (self._held.startswith(_END) and self._held.endswith(b"\0\0")):
            raise RuntimeError(f"This version of torch ends a file with {self._held!r}, which is no end of a zip file.")
        self._hash.update(self._note)
        digest = self._hash.hexdigest()
        comment = _NAME + digest.encode() + b" " + self._note
        self._pass_on(self._held[:-2] + len(comment).to_bytes(2, "little") + comment)
        return digest

    def _pass_on(self, data: bytes | memoryview) -> None:
        if len(data) == 0:
            return
        try:
            self._file.write(data)
        except Exception as error:
            self.failure = error
            raise
        self.size_bytes += len(data)


def encode(note: Mapping[str, Any] | None) -> bytes:
    """A note as the JSON that goes into a file.

    A comment has room for 65,535 bytes. From a longer note the oldest (first) entries of its longest list are left
    out, as many as it takes; an entry "dropped" then says how many of which list.

    Args:
        note: what JSON can hold; None is an empty one.

    Raises:
        TypeError, ValueError: it holds something else, or is too long without any list.
    """
    kept = dict(note or {})
    room = _COMMENT_BYTES - len(_NAME) - _DIGEST_BYTES - 1
    while len(text := json.dumps(kept, separators=(",", ":")).encode()) > room:
        lists = {key: value for key, value in kept.items() if isinstance(value, list) and value}
        if not lists:
            raise ValueError(
                f"The note of a checkpoint has room for {room} bytes of JSON, and this one is {len(text)}."
            )
        key = max(lists, key=lambda name: len(json.dumps(lists[name])))
        count = -(-len(lists[key]) // 16)
        dropped = kept.get("dropped", {})
        kept |= {key: lists[key][count:], "dropped": {**dropped, key: dropped.get(key, 0) + count}}
    return text


def read_note(file: IO[bytes]) -> dict[str, Any] | None:
    """The note of a file, from its last bytes; None if there is none. Nothing is checked: see `check`."""
    comment = _comment(file)[1]
    if not comment.startswith(_NAME):
        return None
    try:
        note = json.loads(comment[len(_NAME) + _DIGEST_BYTES + 1 :])
    except (ValueError, RecursionError):  # a damaged one; `check` says so
        return None
    return note if isinstance(note, dict) else None


def check(file: IO[bytes], name: str) -> None:
    """Read all of a zip file and compare it with its checksum; with those of its records if it has no other.

    Args:
        file: seekable.
        name: for the message.

    Raises:
        CheckpointError: what is wrong.
    """
    end, comment = _comment(file)
    if end is None:
        raise _broken(name, "its end is missing: it was cut short")
    if comment == b"":
        _check_records(file, name)
        return
    digest, note = comment[len(_NAME) :][:_DIGEST_BYTES], comment[len(_NAME) + _DIGEST_BYTES :]
    if not comment.startswith(_NAME) or not note.startswith(b" "):
        raise _broken(name, "what stands behind its end was not written by torch or inazuma")
    found = hashlib.sha256()
    file.seek(0)
    left = end + _END_BYTES - 2
    while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
        found.update(data)
        left -= len(data)
    found.update(b"\0\0" + note[1:])
    if found.hexdigest().encode() != digest:
        raise _broken(name, f"its checksum is {found.hexdigest()[:16]}…, not {digest[:16].decode('ascii', 'replace')}…")


def _check_records(file: IO[bytes], name: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # each part of zipfile meets wrong bytes with an exception of its own
        raise _broken(name, str(error) or type(error).__name__) from error
    if damaged is not None:
        raise _broken(name, f"the checksum of its record {damaged} is wrong")


def _comment(file: IO[bytes]) -> tuple[int | None, bytes]:
    """Where the last record of a zip file starts, and the comment behind it. None: there is no such record."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _END_BYTES - _COMMENT_BYTES)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    comment = tail[at + _END_BYTES :]
    if at < 0 or len(tail) < at + _END_BYTES or int.from_bytes(tail[at + 20 : at + 22], "little") != len(comment):
        return None, b""
    return start + at, comment


def _broken(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is damaged: {reason}. Use an earlier checkpoint, or copy the file again from where it came."
    )
