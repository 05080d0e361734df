"""Clocks and counters, read at chosen steps of a run."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Container
from typing import Any


class Meter:
    """Reads a clock when a run begins and at the steps in `at`, which count from 0."""

    def __init__(self, read: Callable[[], Any], at: Container[int]) -> None:
        self.began: Any = None
        self.readings: list[Any] = []
        self._read, self._at, self._step = read, at, 0

    def start(self) -> None:
        self.began = self._read()

    def tick(self) -> None:
        if self._step in self._at:
            self.readings.append(self._read())
        self._step += 1


def instruction_counter() -> Callable[[], int] | None:
    """Counts the user-space instructions of this process; None where the kernel does not let it."""
    number = {"x86_64": 298, "aarch64": 241}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return None
    inherit, exclude_kernel, exclude_hypervisor = 1 << 1, 1 << 5, 1 << 6
    size = 112  # of struct perf_event_attr, version 5
    hardware, instructions = 0, 1
    head = struct.pack("IIQQQQQ", hardware, size, instructions, 0, 0, 0, inherit | exclude_kernel | exclude_hypervisor)
    attributes = ctypes.create_string_buffer(head.ljust(size, b"\0"), size)
    descriptor = ctypes.CDLL(None).syscall(number, attributes, 0, -1, -1, 0)
    if descriptor < 0:
        return None
    return lambda: int(struct.unpack("Q", os.read(descriptor, 8))[0])
