"""SIGTERM, taken as a wish to end: a flag that the loop reads at one place, between batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from inazuma.errors import SIGTERMException
from inazuma.ranks import rank_zero_info


class Signals:
    """Listens to SIGTERM for the length of a `with` block; a handler that was there before is called too.

    Outside of the main thread, where Python cannot listen, the block does nothing.
    """

    def __init__(self) -> None:
        self.received_sigterm = False
        self._before: Any = None

    def __enter__(self) -> Signals:
        self.received_sigterm = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received_sigterm = True
        if callable(self._before):
            self._before(number, frame)

    def check(self) -> None:
        """End the run if SIGTERM came.

        Raises:
            SIGTERMException: it did; the process ends with the exit code 143 (128 + SIGTERM) if nobody catches it.
        """
        if self.received_sigterm:
            rank_zero_info("SIGTERM received: the run ends here.")
            raise SIGTERMException(128 + signal.SIGTERM)
