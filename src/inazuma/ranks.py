"""Which process of the job this is, and speaking from the first one only."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from inazuma.errors import LightningDeprecationWarning

P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")

log = logging.getLogger("inazuma")
log.setLevel(logging.INFO)
if not logging.getLogger().hasHandlers():  # nobody has set up logging: show what we have to say
    log.addHandler(logging.StreamHandler())


def rank_from_environment() -> int:
    """The rank that a launcher gave this process: torchrun, SLURM or LSF; 0 when none did."""
    for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        if (value := os.environ.get(key)) is not None:
            return int(value)
    return 0


class _RankZeroOnly:
    """Decorator: run the function on rank 0 and return `default` (None) on every other rank.

    The attribute `rank` is the rank of this process; a strategy overwrites it once it knows better.
    """

    def __init__(self) -> None:
        self.rank: int = rank_from_environment()

    @overload
    def __call__(self, fn: Callable[P, T], default: None = None) -> Callable[P, T | None]: ...

    @overload
    def __call__(self, fn: Callable[P, T], default: D) -> Callable[P, T | D]: ...

    def __call__(self, fn: Callable[P, T], default: Any = None) -> Callable[P, Any]:
        @functools.wraps(fn)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> Any:
            return fn(*args, **kwargs) if self.rank == 0 else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


def rank_zero_debug(message: str, *args: object) -> None:
    """`logging.debug` on the logger "inazuma", on rank 0 only."""
    if rank_zero_only.rank == 0:
        log.debug(message, *args)


def rank_zero_info(message: str, *args: object) -> None:
    """`logging.info` on the logger "inazuma", on rank 0 only."""
    if rank_zero_only.rank == 0:
        log.info(message, *args)


def rank_zero_warn(message: str | Warning, category: type[Warning] = UserWarning, stacklevel: int = 4) -> None:
    """`warnings.warn` on rank 0 only. `stacklevel` counts as Lightning counts, where 4 is the line that calls this."""
    if rank_zero_only.rank == 0:
        warnings.warn(message, category=category, stacklevel=stacklevel - 2)


def rank_zero_deprecation(message: str, stacklevel: int = 5) -> None:
    """Warn, on rank 0 only, of a name or argument that will go away."""
    rank_zero_warn(message, category=LightningDeprecationWarning, stacklevel=stacklevel)


class WarningCache(set[str]):
    """Remembers what was said, so that each message is said once."""

    def warn(self, message: str, category: type[Warning] = UserWarning, stacklevel: int = 5) -> None:
        if message not in self:
            self.add(message)
            rank_zero_warn(message, category=category, stacklevel=stacklevel)

    def deprecation(self, message: str, stacklevel: int = 6) -> None:
        self.warn(message, category=LightningDeprecationWarning, stacklevel=stacklevel)

    def info(self, message: str, stacklevel: int = 5) -> None:
        if message not in self:
            self.add(message)
            rank_zero_info(message)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """`message` with "[rank: n] " in front when the rank is known."""
    return message if rank is None else f"[rank: {rank}] {message}"
