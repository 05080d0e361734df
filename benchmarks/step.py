"""What a training step costs: a hand-written loop, inazuma and Lightning, on the same small model, in one run.

    python benchmarks/step.py           about five minutes
    python benchmarks/step.py --short   a bit more than one

The cost of a step is a slope: process CPU time of a long run minus that of a short one, divided by the difference in
steps, so that setting up and tearing down cancel out. The contenders take turns, each in a process of its own, and the
minimum over all rounds counts: what disturbs a measurement only ever adds to it. Where the kernel lets a process count
its user-space instructions (`perf_event_open`), they are given too; they hardly vary from run to run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from common import BARE, FRAMEWORKS, classifier, framework, in_subprocess, loader, network, save, table
from torch import Tensor
from torch.nn import functional as F

CONFIGURATIONS = ("bare", "default", "default, 2 values logged")
GOALS = {"inazuma, bare": 1.10, "inazuma, default, 2 values logged": 1.20}  # times the hand-written loop
IMPORT_GOAL = 1.15  # times `import torch`


def open_instruction_counter() -> int | None:
    """A file descriptor that counts this process's user-space instructions from now on; None where there is none."""
    number = {"x86_64": 298, "aarch64": 241}.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return None
    inherit, exclude_kernel, exclude_hypervisor = 1 << 1, 1 << 5, 1 << 6
    size = 112  # of struct perf_event_attr, version 5
    hardware, instructions = 0, 1
    head = struct.pack("IIQQQQQ", hardware, size, instructions, 0, 0, 0, inherit | exclude_kernel | exclude_hypervisor)
    attributes = ctypes.create_string_buffer(head.ljust(size, b"\0"), size)
    descriptor = ctypes.CDLL(None).syscall(number, attributes, 0, -1, -1, 0)
    return descriptor if descriptor >= 0 else None


def hand_written(steps: int) -> None:
    """The loop to compare with: what one would write with torch alone."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    for images, labels in loader(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def with_trainer(pl: Any, configuration: str) -> Callable[[int], None]:
    """A function that trains for so many steps, one epoch, in a directory of its own."""

    def log_two(module: Any, loss: Tensor) -> None:
        module.log("loss", loss, on_step=True, on_epoch=True)
        module.log("again", loss, on_step=True, on_epoch=True)

    def train(steps: int) -> None:
        options = BARE if configuration == "bare" else {}
        module = classifier(pl, log_two if configuration.endswith("logged") else None)
        with tempfile.TemporaryDirectory() as directory:
            trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=directory, **options)
            trainer.fit(module, loader(steps))

    return train


def measure(runs: dict[str, Callable[[int], None]], short: int, long: int, turns: int) -> dict[str, Any]:
    """The least CPU time (s) and instructions of a short and a long run of each contender, which take turns."""
    counter = open_instruction_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for run in runs.values():
        run(short)  # what happens once only, imports included, is not a step's cost
    best: dict[str, Any] = {}
    for _ in range(turns):
        for name, run in runs.items():
            for length, steps in (("short", short), ("long", long)):
                gc.collect()
                before = struct.unpack("Q", os.read(counter, 8))[0] if counter is not None else 0
                start = time.process_time()
                run(steps)
                seconds = time.process_time() - start
                after = struct.unpack("Q", os.read(counter, 8))[0] if counter is not None else None
                now = {"seconds": seconds, "instructions": None if after is None else after - before}
                best[name] = best.get(name, {}) | {length: least(best.get(name, {}).get(length), now)}
    return best


def least(a: dict[str, Any] | None, b: dict[str, Any]) -> dict[str, Any]:
    """The smaller of two measurements, each figure for itself; None stands for "not counted"."""
    if a is None:
        return b
    return {key: None if a[key] is None or b[key] is None else min(a[key], b[key]) for key in b}


def slope(of: dict[str, Any], key: str, short: int, long: int) -> float | None:
    """The part of a figure that each further step adds."""
    if of["short"][key] is None:
        return None
    return float(of["long"][key] - of["short"][key]) / (long - short)


def say(what: str) -> None:
    """Show on the terminal, on one line, what is being measured."""
    if sys.stderr.isatty():
        print(f"\rmeasuring: {what}".ljust(60), end="\r", file=sys.stderr, flush=True)


def step_costs(short: int, long: int, turns: int, rounds: int) -> dict[str, dict[str, float | None]]:
    """Microseconds and instructions per step of each contender, and both relative to the hand-written loop."""
    best: dict[str, Any] = {}
    for number in range(rounds):
        for contender in ("hand", *FRAMEWORKS):
            say(f"round {number + 1} of {rounds}, {contender}")
            for name, measured in in_subprocess(
                __file__, "--measure", contender, *map(str, (short, long, turns))
            ).items():
                old = best.get(name, {})
                best[name] = {length: least(old.get(length), measured[length]) for length in ("short", "long")}
    costs: dict[str, dict[str, float | None]] = {}
    for name, of in best.items():
        seconds = slope(of, "seconds", short, long)
        assert seconds is not None
        costs[name] = {"us_per_step": seconds * 1e6, "instructions_per_step": slope(of, "instructions", short, long)}
    hand = costs["hand-written loop"]
    for cost in costs.values():
        for key in ("us_per_step", "instructions_per_step"):
            value, base = cost[key], hand[key]
            cost[f"{key}_ratio"] = None if value is None or base is None else value / base
    return costs


def measure_one(contender: str, short: int, long: int, turns: int) -> dict[str, Any]:
    """What the subprocess does: one framework in its three configurations, or the hand-written loop."""
    if contender == "hand":
        return measure({"hand-written loop": hand_written}, short, long, turns)
    pl = framework(contender)
    runs = {f"{contender}, {configuration}": with_trainer(pl, configuration) for configuration in CONFIGURATIONS}
    return measure(runs, short, long, turns)


def import_costs(rounds: int) -> dict[str, float]:
    """The least CPU time (s) of a fresh interpreter that imports torch, inazuma or Lightning; they take turns."""
    best: dict[str, float] = {}
    # As installed: with byte code on disk, also of a package that is edited in place. The first round writes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(rounds + 1):
        for module in ("torch", *FRAMEWORKS.values()):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [sys.executable, "-c", f"import {module}"]
            subprocess.run(command, check=True, capture_output=True, env=environment)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best[module] = min(best.get(module, seconds), seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs beside a hand-written loop and Lightning.")
    parser.add_argument("--short", action="store_true", help="fewer and shorter rounds: a bit more than a minute")
    parser.add_argument("--measure", nargs=4, metavar=("CONTENDER", "SHORT", "LONG", "TURNS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        contender, *numbers = args.measure
        print("\n" + json.dumps(measure_one(contender, *map(int, numbers))))
        return

    short, long, turns, rounds, import_rounds = (50, 250, 2, 2, 2) if args.short else (100, 600, 4, 7, 7)
    costs = step_costs(short, long, turns, rounds)
    say("imports")
    imports = import_costs(import_rounds)
    say("done")

    def figure(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    rows = [
        [
            name,
            figure(cost["us_per_step"], ".1f"),
            figure(cost["us_per_step_ratio"], ".2f"),
            figure(cost["instructions_per_step"], ",.0f"),
            figure(cost["instructions_per_step_ratio"], ".2f"),
            figure(GOALS.get(name), ".2f"),
        ]
        for name, cost in costs.items()
    ]
    print(table(["training step (CPU time)", "µs", "× hand", "instructions", "× hand", "goal"], rows))
    print()
    rows = [
        [f"import {module}", f"{seconds:.2f}", f"{seconds / imports['torch']:.2f}", figure(goal, ".2f")]
        for module, seconds in imports.items()
        for goal in [IMPORT_GOAL if module == "inazuma" else None]
    ]
    print(table(["import (CPU time)", "s", "× torch", "goal"], rows))
    settings = {"short": short, "long": long, "turns": turns, "rounds": rounds, "import_rounds": import_rounds}
    print(f"\n{save('step', {'settings': settings, 'steps': costs, 'import_seconds': imports})}")


if __name__ == "__main__":
    main()
