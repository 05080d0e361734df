"""Lengths of time as users write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from inazuma.errors import MisconfigurationException

Duration = str | timedelta | dict[str, Any]


def parse_duration(value: Duration, argument: str = "") -> timedelta:
    """A length of time.

    Args:
        value: "DD:HH:MM:SS" (of days to seconds), a `timedelta`, or a dict of its arguments, such as
            `{"minutes": 30}`.
        argument: where it was given, for messages: "Trainer(max_time=...)".

    Raises:
        MisconfigurationException: none of these.
    """
    where = f"{argument}: " if argument else ""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, dict):
        try:
            return timedelta(**value)
        except TypeError as error:
            raise MisconfigurationException(
                f"{where}{value!r} is no length of time: {error}. Its keys are arguments of `datetime.timedelta`: "
                "days, hours, minutes, seconds, ..."
            ) from None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip())):
        days, hours, minutes, seconds = map(int, match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    raise MisconfigurationException(
        f"{where}{value!r} is not a valid duration. Write it as 'DD:HH:MM:SS' ('00:12:00:00' is twelve hours), as a "
        "`datetime.timedelta`, or as a dict of its arguments."
    )
