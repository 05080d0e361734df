"""The user's program, run as Python would run it, with tools beside every Trainer that it makes."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass

from inazuma.callbacks.defaults import TOOLS
from inazuma.trainer import Trainer


@dataclass(frozen=True)
class Program:
    """What stands behind `python`.

    Args:
        name: the path of a script, or, for `python -m`, the name of a module.
        argv: its arguments.
        is_module: which of the two.
    """

    name: str
    argv: list[str]
    is_module: bool = False

    def run(self, tool: Callable[[Trainer], None]) -> None:
        """Run it in this process, as `__main__`, and call `tool` with each Trainer that is made.

        Raises:
            FileNotFoundError: there is no such script.
        """
        if not self.is_module and not os.path.isfile(self.name):
            raise FileNotFoundError(
                f"{self.name} is no file. Give the script that trains, and behind it its arguments."
            )
        argv, folder = sys.argv, sys.path[0]
        sys.argv = [self.name, *self.argv]
        sys.path[0] = os.getcwd() if self.is_module else os.path.dirname(os.path.realpath(self.name))
        TOOLS.append(tool)
        try:
            if self.is_module:
                runpy.run_module(self.name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(self.name, run_name="__main__")
        finally:
            TOOLS.remove(tool)
            sys.argv, sys.path[0] = argv, folder

    def __str__(self) -> str:
        return " ".join(["python", *(["-m"] if self.is_module else []), self.name, *self.argv])
