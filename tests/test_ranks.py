"""Speaking from the first rank only."""

from __future__ import annotations

import importlib
import inspect
import warnings
from typing import Any

import pytest


@pytest.mark.parametrize("package", ["lightning.pytorch", "inazuma"])
def test_a_warning_points_at_the_line_that_gives_it(package: str) -> None:
    speak: Any = importlib.import_module(f"{package}.utilities.rank_zero")
    cache = speak.WarningCache()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        speak.rank_zero_warn("one")
        speak.rank_zero_deprecation("two")
        cache.warn("three")
        cache.deprecation("four")
        line = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    assert [warning.lineno for warning in caught] == [line - 4, line - 3, line - 2, line - 1]
