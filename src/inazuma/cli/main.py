"""The command `inazuma`: each of its commands is a file beside this one."""

from __future__ import annotations

import argparse
import os
import pickle
import signal
import sys
from collections.abc import Sequence

from inazuma.cli import ckpt, diff, replay, verify_resume
from inazuma.errors import CheckpointError

# Each has `add_to(subparsers)`, which sets `run`: arguments in, exit code out.
COMMANDS = (ckpt, diff, verify_resume, replay)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the words behind the name of the program; those of this process by default.

    Returns:
        The exit code: 0 for a good answer, 1 for a bad one (a damaged file, a difference), 2 if there is none.
    """
    parser = argparse.ArgumentParser(
        "inazuma", description="Look at checkpoints, compare runs, prove that a script resumes exactly, replay a step."
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(subparsers)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("inazuma: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (CheckpointError, OSError, ImportError, pickle.UnpicklingError) as error:
        print(f"inazuma: {error}", file=sys.stderr)
        return 2
    return code
