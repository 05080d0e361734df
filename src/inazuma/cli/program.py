"""The user's program, run as Python would run it, with tools beside every Trainer that it makes."""

from __future__ import annotations

import os
import runpy
import sys
from dataclasses import dataclass

from inazuma.callbacks.defaults import TOOLS, Tool


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

    def check(self) -> None:
        """Find out whether there is such a script.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self.is_module and not os.path.isfile(self.name):
            raise FileNotFoundError(
                f"{self.name} is no file. Give the script that trains, and behind it its arguments."
            )

    def run(self, tool: Tool) -> None:
        """Run it in this process, as `__main__`, with a tool that looks at a `fit` of it.

        Raises:
            FileNotFoundError: there is no such script.
        """
        self.check()
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
