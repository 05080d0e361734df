"""Every exception and warning class of inazuma.

Exception
├── MisconfigurationException   the program asks for something that cannot work; says what to change
├── BadStepError                a step cannot be made: NaN, infinite, or out of memory
└── CheckpointError             a checkpoint cannot be read, or does not fit this run
    └── CheckpointNotSaved      the disk or the store did not take it (an OSError, too)
SystemExit
└── SignalException             the process was asked to end by a signal
    └── SIGTERMException        by SIGTERM
UserWarning
└── PossibleUserWarning         likely, but not surely, a mistake in the user's program
"""

from __future__ import annotations

from typing import Any


class MisconfigurationException(Exception):
    """The program asks for something that cannot work. The message says what, where and what to change."""


class BadStepError(Exception):
    """A training step is bad: a loss or gradient is not finite, or memory ran out. `Trainer(bad_steps=...)` raises it.

    Args:
        message: where, what is bad, and what to do.
        path: the file with the state before the step and its batches; None if it could not be written.
        indices: for each batch of the step, what the sampler gave for it; None where that is not known.
    """

    def __init__(self, message: str, path: str | None, indices: list[Any]) -> None:
        super().__init__(message)
        self.path, self.indices = path, indices


class CheckpointError(Exception):
    """A checkpoint cannot be written or read, or does not fit the run that loads it. The message names the place."""


class CheckpointNotSaved(CheckpointError, OSError):
    """The disk or the store did not take a checkpoint. The message says where, how large it is and how much is free."""


class SignalException(SystemExit):
    """The process received a signal and the run ended at the next step boundary; its code is 128 + the number."""


class SIGTERMException(SignalException):
    """The process received SIGTERM and the run ended at the next step boundary."""


class PossibleUserWarning(UserWarning):
    """Something that is likely, but not surely, a mistake in the user's program."""


class LightningDeprecationWarning(DeprecationWarning):
    """A name or argument that will go away. The name is Lightning's, so that filters written for it work."""
