"""Every exception and warning class of inazuma.

Exception
├── MisconfigurationException   the program asks for something that cannot work; says what to change
└── CheckpointError             a checkpoint cannot be read, or does not fit this run
    └── CheckpointNotSaved      the disk or the store did not take it (an OSError, too)
SystemExit
└── SIGTERMException            the process was asked to end
UserWarning
└── PossibleUserWarning         likely, but not surely, a mistake in the user's program
"""

from __future__ import annotations


class MisconfigurationException(Exception):
    """The program asks for something that cannot work. The message says what, where and what to change."""


class CheckpointError(Exception):
    """A checkpoint cannot be read, or does not fit the run that loads it. The message names the file."""


class CheckpointNotSaved(CheckpointError, OSError):
    """The disk or the store did not take a checkpoint. The message says where, how large it is and how much is free."""


class SIGTERMException(SystemExit):
    """The process received SIGTERM and the run ended at the next safe point."""


class PossibleUserWarning(UserWarning):
    """Something that is likely, but not surely, a mistake in the user's program."""


class LightningDeprecationWarning(DeprecationWarning):
    """A name or argument that will go away. The name is Lightning's, so that filters written for it work."""
