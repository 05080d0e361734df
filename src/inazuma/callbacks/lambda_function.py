"""A callback written in place, from functions."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from inazuma.callbacks.callback import Callback

HOOKS = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]


class LambdaCallback(Callback):
    """A callback made of functions: `LambdaCallback(on_fit_end=lambda trainer, module: print(trainer.global_step))`.

    Args:
        hooks: a function for each hook of `Callback` to be heard, called with that hook's arguments. None: not heard.

    Raises:
        TypeError: no hook has this name, or what was given cannot be called.
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        super().__init__()
        for name, function in hooks.items():
            if name not in HOOKS:
                raise TypeError(
                    f"LambdaCallback({name}=...): no hook has this name. "
                    f"Did you mean {difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.0)[0]!r}?"
                )
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"LambdaCallback({name}={function!r}): give a function; this cannot be called.")
            setattr(self, name, function)
