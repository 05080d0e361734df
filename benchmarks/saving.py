"""What a checkpoint costs: how long training waits, beside a copy of the state, and how much memory a save takes.

python benchmarks/saving.py [--mb 200] [--saves 5]

"Copy" clones each tensor of the state into memory that is there already: what a consistent snapshot cannot do without.
Each save is divided by a copy made right before it; medians of these ratios. The first save in the background has to
ask for its memory. Between two saves in the background the last one is given time to end, as it has in a run. The
memory is the peak of a process above what it held before the save.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import in_subprocess, save, table

from inazuma.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO


def state_of(megabytes: int) -> dict[str, Any]:
    """As of a model with Adam: 40 weights, and two moments of each."""
    numbers = megabytes * 1_000_000 // 4 // 120

    def tensors() -> dict[str, torch.Tensor]:
        return {f"layer.{index}.weight": torch.randn(numbers) for index in range(40)}

    state = {"epoch": 1, "global_step": 1, "state_dict": tensors()}
    return {**state, "optimizer_states": [{"exp_avg": tensors(), "exp_avg_sq": tensors()}]}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def copy_into(state: Any, target: Any) -> None:
    if isinstance(state, torch.Tensor):
        target.copy_(state)
    elif isinstance(state, dict):
        for key in state:
            copy_into(state[key], target[key])
    elif isinstance(state, list):
        for one, other in zip(state, target, strict=True):
            copy_into(one, other)


def pauses(megabytes: int, saves: int) -> dict[str, float]:
    state = state_of(megabytes)
    target = copy.deepcopy(state)
    copies: list[float] = []

    def ratio(call: Callable[[], object], times: int, between: Callable[[], object] = lambda: None) -> float:
        ratios = []
        for _ in range(times):
            copies.append(seconds(lambda: copy_into(state, target)))
            ratios.append(seconds(call) / copies[-1])
            between()
        return statistics.median(ratios)

    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = os.path.join(folder, "a.ckpt")
        background, waits = AsyncCheckpointIO(), TorchCheckpointIO()
        small = os.path.join(folder, "small.ckpt")
        waits.save_checkpoint({}, small)

        def loaded() -> object:
            return background.load_checkpoint(small)  # waits for the save

        results = {
            "pause, in the background, first save": ratio(lambda: background.save_checkpoint(state, path), 1, loaded),
            "pause, in the background": ratio(lambda: background.save_checkpoint(state, path), saves, loaded),
            "pause, waiting": ratio(lambda: waits.save_checkpoint(state, path), saves),
            "torch.save, neither flushed nor whole": ratio(lambda: torch.save(state, path), saves),
        }
        background.teardown()
    return {"copy_ms": statistics.median(copies) * 1e3, **results}


def memory_mb(what: str) -> float:
    """A figure of Linux about this process: VmHWM, its peak, or VmRSS, what it holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1e3


def memory(megabytes: int) -> float:
    """MB of memory that a save needs."""
    state = state_of(megabytes)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        TorchCheckpointIO().save_checkpoint({"epoch": 1}, os.path.join(folder, "small.ckpt"))  # what is imported late
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        before = memory_mb("VmRSS")
        TorchCheckpointIO().save_checkpoint(state, os.path.join(folder, "a.ckpt"))
    return memory_mb("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--child", choices=["pauses", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "pauses":
        print(json.dumps(pauses(arguments.mb, arguments.saves)))
    elif arguments.child == "memory":
        print(json.dumps(memory(arguments.mb)))
    else:
        sizes = "--mb", str(arguments.mb), "--saves", str(arguments.saves)
        results = in_subprocess(__file__, "--child", "pauses", *sizes)
        copied = results.pop("copy_ms")
        print(f"A state of {arguments.mb} MB, copied in {copied:.0f} ms. In units of that:\n")
        print(table(["", "ratio"], [[name, f"{ratio:.2f}"] for name, ratio in results.items()]))
        extra = None
        if sys.platform == "linux":
            extra = in_subprocess(__file__, "--child", "memory", *sizes)
            print(f"\nMemory of a save that waits, beside the state: {extra:.1f} MB")
        save("saving", {"state_mb": arguments.mb, "copy_ms": copied, "ratios": results, "extra_mb": extra})


if __name__ == "__main__":
    main()
