"""Lengths of time as users write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from inazuma.duration import parse_duration
from inazuma.errors import MisconfigurationException


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("00:00:00:00", timedelta(0)),
        ("00:12:00:00", timedelta(hours=12)),
        ("01:02:03:04", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("365:00:00:00", timedelta(days=365)),
        (" 00:00:01:30 ", timedelta(seconds=90)),
        (timedelta(minutes=5), timedelta(minutes=5)),
        ({"minutes": 1, "seconds": 30}, timedelta(seconds=90)),
        ({}, timedelta(0)),
    ],
)
def test_a_duration_is_read_as_it_is_meant(written: Any, meant: timedelta) -> None:
    assert parse_duration(written) == meant


@given(some.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9999)))
def test_every_whole_number_of_seconds_can_be_written_as_text(duration: timedelta) -> None:
    whole = timedelta(days=duration.days, seconds=duration.seconds)
    hours, rest = divmod(whole.seconds, 3600)
    assert parse_duration(f"{whole.days:02}:{hours:02}:{rest // 60:02}:{rest % 60:02}") == whole


@pytest.mark.parametrize(
    "written", ["12:00:00", "1h", "", "00:00:00:1", "-1:00:00:00", 3600, 1.5, None, ["00:00:00:01"]]
)
def test_what_is_no_duration_is_refused_with_the_form_to_write(written: Any) -> None:
    with pytest.raises(MisconfigurationException, match="is not a valid duration. Write it as 'DD:HH:MM:SS'") as raised:
        parse_duration(written)
    assert repr(written) in str(raised.value)


@pytest.mark.parametrize("written", [{"fortnights": 1}, {"minutes": "5"}])
def test_a_dict_must_hold_arguments_of_timedelta(written: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match="is no length of time: .*Its keys are arguments of `datetime"):
        parse_duration(written)
