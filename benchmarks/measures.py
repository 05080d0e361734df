"""What is measured, each a function `(contender, job) -> figures`; and the process that does it when asked.

    python benchmarks/measures.py

reads one request as JSON from each line of its input and answers it with a line of JSON. What else it prints goes to
its error output, which `run.py` makes a terminal, so that bars are drawn.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, Contender, Job
from meter import Meter, instruction_counter

Figures = dict[str, float]
count_instructions = instruction_counter()
WARM = 50  # steps before the cost of one is measured
WINDOW = 100  # steps over which the cost of one is averaged in a long run: what happens every so often is in each


def step(contender: Contender, job: Job) -> Figures:
    """What a step costs after the first fifty: CPU time of all threads, and instructions where they are counted."""

    def read() -> tuple[float, int]:
        return time.process_time(), count_instructions() if count_instructions is not None else 0

    meter = Meter(read, at=(WARM, job.batches - 1))
    contender(job, meter)
    (seconds, instructions), (seconds_after, instructions_after) = meter.readings
    steps = job.batches - 1 - WARM
    figures = {"cpu_us": 1e6 * (seconds_after - seconds) / steps}
    if count_instructions is not None:
        figures["instructions"] = (instructions_after - instructions) / steps
    return figures


def epoch_gap(contender: Contender, job: Job) -> Figures:
    """From the last step of an epoch to the first of the next, both at their beginning: median of a run's epochs."""
    meter = Meter(time.perf_counter, at=range(job.batches * job.epochs))
    contender(job, meter)
    firsts = meter.readings[job.batches :: job.batches]
    lasts = meter.readings[job.batches - 1 :: job.batches]
    return {"ms": 1e3 * statistics.median(b - a for a, b in zip(lasts, firsts, strict=False))}


def first_step(contender: Contender, job: Job) -> Figures:
    """From the call of `fit` to the first step, in the first run of this process and in the second."""
    torch.optim.SGD([torch.zeros(1)])  # torch imports its compiler, seconds, with the first optimizer of a process
    meters = [Meter(time.perf_counter, at=(0,)) for _ in range(2)]
    for meter in meters:
        contender(job, meter)
    first, second = (1e3 * (meter.readings[0] - meter.began) for meter in meters)
    return {"first_ms": first, "second_ms": second}


def peak_memory(contender: Contender, job: Job) -> Figures:
    """The most memory that this process ever had."""
    contender(job, Meter(time.perf_counter, at=()))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"mb": int(peak.split()[1]) / 1000}


def drift(contender: Contender, job: Job) -> Figures:
    """What a step costs around step 1,000 and in the last 1,000 of a run: the least of ten windows each."""
    meter = Meter(time.process_time, at=range(0, job.batches, WINDOW))
    contender(job, meter)
    windows = [1e6 * (b - a) / WINDOW for a, b in zip(meter.readings, meter.readings[1:], strict=False)]
    return {"early_us": min(windows[5:15]), "late_us": min(windows[-10:])}


MEASURES: dict[str, Callable[[Contender, Job], Figures]] = {
    measure.__name__: measure for measure in (step, epoch_gap, first_step, peak_memory, drift)
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        torch.manual_seed(0)
        gc.collect()
        answer: dict[str, Any]
        try:
            answer = MEASURES[request["measure"]](CONTENDERS[request["contender"]], Job(**request["job"]))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
