"""The file of a digest: what was written is read, and two of them are compared batch by batch."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inazuma.callbacks.digest_file import COMPONENTS, HEADER, Digest, Record, compare, pack_record, read_digest


def records(count: int = 20, batches: int = 7) -> list[Record]:
    """An epoch has so many batches, a window two."""
    rng = random.Random(count)
    numbers = [[rng.getrandbits(32) for _ in range(4)] for _ in range(count)]
    return [Record(i // batches, i % batches, i // 2, a, b, a / 7, c, d) for i, (a, b, c, d) in enumerate(numbers)]


def digest(of: list[Record]) -> Digest:
    return Digest(Path("run"), b"".join(pack_record(*record) for record in of))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = records()
    path = tmp_path / "digest.bin"
    path.write_bytes(HEADER + digest(written).data + b"cut off")
    for name in (path, tmp_path, str(tmp_path)):
        read = read_digest(name)
        assert list(read) == written
        assert (len(read), read[0], read[-1], read[3:5]) == (20, written[0], written[-1], written[3:5])
    with pytest.raises(IndexError, match="20 records"):
        read[20]


def test_what_is_no_digest_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no digest"):
        read_digest(tmp_path)
    path = tmp_path / "digest.bin"
    path.write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(ValueError, match="is not the digest of a run"):
        read_digest(path)
    path.write_bytes(HEADER.replace(b"\x01\0\0\0", b"\x09\0\0\0"))
    with pytest.raises(ValueError, match="digest of format 9"):
        read_digest(path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_first_difference_is_found_in_runs_that_begin_and_end_anywhere(data: st.DataObject) -> None:
    one = records(50)
    index = data.draw(st.integers(0, 49), label="record that differs")
    component = data.draw(st.sampled_from(COMPONENTS))
    begin, end = data.draw(st.integers(0, 49), label="begin"), data.draw(st.integers(0, 50), label="end")
    other = list(one)
    for i in range(index, 50):  # once apart, runs stay apart
        other[i] = other[i]._replace(
            **{name: getattr(other[i], name) + 1 for name in COMPONENTS[COMPONENTS.index(component) :]}
        )
    found = compare(digest(one), digest(other[begin:end]))
    if end <= begin:
        assert found.start is None
    elif index >= end:
        assert (found.batches, found.difference, found.left) == (end - begin, None, (50 - end, 0))
    else:
        first = max(index, begin)
        assert found.difference is not None
        assert found.start == one[begin].position
        assert (found.batches, found.difference.component) == (first - begin, component)
        assert (found.difference.one, found.difference.other) == (one[first], other[first])


def test_runs_whose_epochs_have_other_lengths_part_in_their_position() -> None:
    found = compare(digest(records(20, batches=7)), digest(records(20, batches=8)))
    assert found.difference is not None
    assert (found.batches, found.difference.component) == (7, "position")


def test_a_loss_that_is_nan_in_both_is_no_difference() -> None:
    one = [record._replace(loss=math.nan) for record in records()]
    assert compare(digest(one), digest(list(one))).difference is None


def test_runs_without_a_batch_in_common_are_not_called_identical() -> None:
    assert compare(digest(records()[:5]), digest(records()[10:])).start is None
    assert compare(digest([]), digest(records())).start is None
