"""A terminal that tests can write to."""

from __future__ import annotations

import pytest
from tests.callbacks.progress.terminal import Terminal


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)
