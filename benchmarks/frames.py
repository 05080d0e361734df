"""How far a step is from `fit`: own frames, own Python calls per batch, lines of traceback of a user's error.

python benchmarks/frames.py

"Own" is what stands in the framework's package: torch's and the module's frames and calls do not count.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from common import BARE, FRAMEWORKS, classifier, framework, in_subprocess, loader, save, table

MEASURES = {
    "own frames, fit to training_step": "frames",
    "own Python calls per batch": "calls_per_batch",
    "own Python calls per batch, one self.log": "calls_per_batch_one_log",
    "lines of traceback, error in training_step": "traceback_lines",
}
SHORT, LONG = 20, 40  # batches; what is called once a run cancels out


def home_of(name: str) -> str:
    """The folder whose files are the framework's own, with the separator at its end."""
    module = framework(name)
    package = Path(str(module.__file__)).parent
    return str(package if name == "inazuma" else package.parent) + os.sep  # lightning/, for pytorch and fabric


def train(pl: Any, batches: int, **module_options: Any) -> None:
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", **BARE)
    trainer.fit(classifier(pl, **module_options), loader(batches))


def frames(name: str) -> int:
    """Own frames on the stack when training_step begins, `fit` included."""
    home, counts = home_of(name), []

    def count() -> None:
        frame: FrameType | None = sys._getframe()
        own = 0
        while frame is not None:
            own += frame.f_code.co_filename.startswith(home)
            frame = frame.f_back
        counts.append(own)

    train(framework(name), 2, step=count)
    return counts[-1]


def calls(name: str, batches: int, **module_options: Any) -> int:
    """Own Python functions called during a run of so many batches."""
    home, total = home_of(name), 0

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal total
        total += event == "call" and frame.f_code.co_filename.startswith(home)

    sys.setprofile(count)
    try:
        train(framework(name), batches, **module_options)
    finally:
        sys.setprofile(None)
    return total


def calls_per_batch(name: str, **module_options: Any) -> float:
    calls(name, 2, **module_options)  # what is imported or cached on first use
    return (calls(name, LONG, **module_options) - calls(name, SHORT, **module_options)) / (LONG - SHORT)


def traceback_lines(name: str) -> int:
    """Lines that Python prints for an error raised in training_step."""

    def fail() -> None:
        raise ValueError("in user code")

    try:
        train(framework(name), 2, step=fail)
    except ValueError:
        return len(traceback.format_exc().splitlines())
    raise AssertionError("the error of training_step did not come out of fit")


def log_one(module: Any, loss: Any) -> None:
    module.log("loss", loss)


def measure(name: str) -> dict[str, float]:
    return {
        "frames": frames(name),
        "calls_per_batch": calls_per_batch(name),
        "calls_per_batch_one_log": calls_per_batch(name, log=log_one),
        "traceback_lines": traceback_lines(name),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print("\n" + json.dumps(measure(sys.argv[1])))
        return
    measured = {name: in_subprocess(__file__, name) for name in FRAMEWORKS}
    rows = [[label, *(f"{measured[name][key]:g}" for name in FRAMEWORKS)] for label, key in MEASURES.items()]
    print(table(["in one run", *FRAMEWORKS], rows))
    print(f"\n{save('frames', measured)}")


if __name__ == "__main__":
    main()
