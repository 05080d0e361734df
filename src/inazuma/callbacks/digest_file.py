"""The file of a run's digest: 16 bytes of header, then 36 bytes per training batch, oldest first.

header      8 bytes "inazuma\\0", format (uint32), bytes per record (uint32); all little-endian
record      epoch, batch, step (uint32), data, noise (uint32), loss (float64), gradient, weights (uint32)
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

DIGEST_NAME = "digest.bin"
FORMAT = 1
COMPONENTS = ("data", "noise", "loss", "gradient", "weights")  # in the order in which one causes the next
_MAGIC = b"inazuma\0"
_HEADER = struct.Struct("<8sII")
_RECORD = struct.Struct("<3I2Id2I")
_BITS = struct.Struct("<3I2IQ2I")  # the same, with the loss as its bits: a NaN equals itself
HEADER = _HEADER.pack(_MAGIC, FORMAT, _RECORD.size)
RECORD_BYTES = _RECORD.size
pack_record = _RECORD.pack
_CHUNK = 4096 * RECORD_BYTES


class Record(NamedTuple):
    """One training batch: its position, and what it was computed with, as hashes of 32 bits."""

    epoch: int
    batch: int  # index in the epoch
    step: int  # optimizer steps before this batch
    data: int  # the batch as it reaches `training_step`
    noise: int  # the random generators before the forward pass
    loss: float  # as it goes backward, all of its bits; NaN where there is none
    gradient: int  # before the optimizer step and clipping, or as it stands where the batch makes no step
    weights: int  # parameters and buffers, behind the batch

    @property
    def position(self) -> tuple[int, int]:
        return self.epoch, self.batch

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}, step {self.step}"


@dataclass(frozen=True)
class Digest(Sequence[Record]):
    """The whole records of a digest file. A record that was cut off at the end does not count."""

    path: Path
    data: bytes

    def __len__(self) -> int:
        return len(self.data) // RECORD_BYTES

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} records; there is none at {index}.")
        return Record._make(_RECORD.unpack_from(self.data, index % len(self) * RECORD_BYTES))

    def __iter__(self) -> Iterator[Record]:
        return map(Record._make, _RECORD.iter_unpack(self.data))

    def index_of(self, position: tuple[int, int]) -> int:
        """How many records lie before `(epoch, batch)`."""
        return bisect.bisect_left(self, position, key=lambda record: record.position)


def digest_path(run: str | Path) -> Path:
    """The digest file that `run`, a folder or the file itself, names."""
    path = Path(run)
    return path / DIGEST_NAME if path.is_dir() else path


def read_digest(run: str | Path) -> Digest:
    """Read the digest of a run.

    Args:
        run: its folder, or the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no digest, or of another format.
    """
    path = digest_path(run)
    if not path.is_file():
        below = sorted(
            str(each.parent) for depth in ("*", "*/*", "*/*/*") for each in Path(run).glob(f"{depth}/{DIGEST_NAME}")
        )
        if below:
            raise FileNotFoundError(f"{run} has no digest itself. There are some below it: {', '.join(below[:5])}.")
        raise FileNotFoundError(
            f"{run} has no digest ({path} does not exist). A run keeps one with `Trainer(callbacks=[RunDigest()])`, "
            "from inazuma.callbacks; the file lies in the log directory, or in RunDigest(dirpath=...)."
        )
    content = path.read_bytes()
    if not content.startswith(_MAGIC) or len(content) < len(HEADER):
        hint = " `inazuma ckpt diff` compares checkpoints." if content.startswith(b"PK") else ""
        raise ValueError(f"{path} is not the digest of a run: it starts with {content[:8]!r}.{hint}")
    _, version, size = _HEADER.unpack_from(content)
    if (version, size) != (FORMAT, RECORD_BYTES):
        raise ValueError(
            f"{path} is a digest of format {version}; this inazuma reads format {FORMAT}. "
            "Use the version that wrote it."
        )
    data = content[len(HEADER) :]
    return Digest(path, data[: len(data) // RECORD_BYTES * RECORD_BYTES])


@dataclass(frozen=True)
class Difference:
    """The first batch in which two runs part."""

    component: str  # one of COMPONENTS, or "position": the runs do not even train the same batch of an epoch
    one: Record
    other: Record


@dataclass(frozen=True)
class Comparison:
    """What two digests have in common: `batches` equal ones from `start` on, and then perhaps a difference."""

    batches: int
    start: tuple[int, int] | None  # epoch and batch of the first in common; None: there is none
    difference: Difference | None
    left: tuple[int, int]  # how many batches each run goes on alone, behind its equal ones


def compare(one: Digest, other: Digest) -> Comparison:
    """Find the first batch in which two runs part, from the first position that both have."""
    if not one or not other:
        return Comparison(0, None, None, (len(one), len(other)))
    start = max(one[0].position, other[0].position)
    i, j = one.index_of(start), other.index_of(start)
    length = min(len(one) - i, len(other) - j)
    if not length:
        return Comparison(0, None, None, (len(one) - i, len(other) - j))
    a, b = one.data[i * RECORD_BYTES :], other.data[j * RECORD_BYTES :]
    equal = _equal_records(a, b, length)
    difference = None
    if equal < length:
        difference = Difference(_component(a, b, equal), one[i + equal], other[j + equal])
    return Comparison(equal, start, difference, (len(one) - i - equal, len(other) - j - equal))


def _equal_records(a: bytes, b: bytes, length: int) -> int:
    """How many of the first `length` records are equal: chunk by chunk, and in the chunk that differs one by one."""
    end = length * RECORD_BYTES
    at = 0
    while at < end and a[at : min(at + _CHUNK, end)] == b[at : min(at + _CHUNK, end)]:
        at = min(at + _CHUNK, end)
    while at < end and a[at : at + RECORD_BYTES] == b[at : at + RECORD_BYTES]:
        at += RECORD_BYTES
    return at // RECORD_BYTES


def _component(a: bytes, b: bytes, index: int) -> str:
    names = ("position", "position", "position", *COMPONENTS)
    ones, others = (_BITS.unpack_from(data, index * RECORD_BYTES) for data in (a, b))
    return next(name for name, one, other in zip(names, ones, others, strict=True) if one != other)
