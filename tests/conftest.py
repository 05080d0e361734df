"""What every test starts from: an empty working directory, and a process it cannot change for the tests after it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Trainer without default_root_dir writes into the working directory, so that each test gets its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _environment_and_global_state_are_put_back() -> Iterator[None]:
    """`seed_everything` and launchers write environment variables; Trainer arguments set switches of torch."""
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    random.seed(0)
    torch.manual_seed(0)
    yield
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    torch.backends.cudnn.benchmark = benchmark
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
