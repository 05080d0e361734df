"""What callbacks that watch a metric share: its direction, when to look at it, and what to say when it is missing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from inazuma.errors import MisconfigurationException

if TYPE_CHECKING:
    from inazuma.trainer import Trainer


def check_mode(callback: str, mode: str) -> None:
    """Refuse a `mode` that is neither "min" (lower is better) nor "max".

    Raises:
        MisconfigurationException: any other value.
    """
    if mode not in ("min", "max"):
        raise MisconfigurationException(
            f"{callback}(mode={mode!r}): `mode` can be 'min' (a lower value is better) or 'max' (a higher one is)."
        )


def check_monitor(callback: str, monitor: object) -> None:
    """Refuse a `monitor` that cannot be the name of a metric.

    Raises:
        MisconfigurationException: no text.
    """
    if not isinstance(monitor, str) or not monitor:
        raise MisconfigurationException(
            f"{callback}(monitor={monitor!r}) should be the name of a metric, as in `self.log(name, value)`."
        )


def missing_metric(callback: str, monitor: str, known: Iterable[str]) -> str:
    """The sentences that say that `monitor` was not logged, and what was: names like it first."""
    names = sorted(known)
    close = difflib.get_close_matches(monitor, names)
    listed = ", ".join(repr(name) for name in [*close, *(name for name in names if name not in close)])
    return (
        f"{callback}(monitor={monitor!r}) found no metric of this name. "
        f"Known are: {listed or 'none'}. "
        f"{f'Did you mean {close[0]!r}? ' if close else ''}"
        f"Log it with `self.log({monitor!r}, value)` in the module, or monitor one of the known names."
    )


def epoch_end_sees_all(trainer: Trainer) -> bool:
    """Whether each training epoch ends with all metrics fresh: validation runs once, at its end, or not at all."""
    batches = trainer.num_val_batches  # empty until the loaders are asked for
    if not trainer.enable_validation or (batches and sum(batches) == 0):
        return True
    return trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0
