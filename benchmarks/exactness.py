"""What exact resume and the digest of a run cost per step, on a perceptron of 1,386 parameters, beside a step of 1 ms.

    python benchmarks/exactness.py           a few minutes
    python benchmarks/exactness.py --short   a fourth of that

Two data sets: one in memory, which draws nothing, and one written in Python that adds noise to each sample, so that its
generator has to be seeded for each batch. Measured like all steps: CPU time, in turns, the least of the readings.
"""

from __future__ import annotations

import argparse

from common import save, table
from contenders import Job
from run import Case, measure

STEP_US = 1_000  # the step to compare with
GOAL = 1.02  # times that step, exactness and digest together
RUNS = {
    "in memory, exact_resume=False": Job(data="memory", settings="not exact", batches=251),
    "in memory": Job(data="memory", batches=251),
    "in memory, RunDigest": Job(data="memory", settings="digest", batches=251),
    "noisy, exact_resume=False": Job(data="noisy", settings="not exact", batches=251),
    "noisy": Job(data="noisy", batches=251),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="fewer turns")
    turns = 20 if parser.parse_args().short else 80
    results = measure([(turns, [Case("step", "inazuma", job) for job in RUNS.values()])])
    least = [min(reading["cpu_us"] for reading in result["readings"]) for result in results]
    us_per_step = dict(zip(RUNS, least, strict=True))
    costs_us = {
        "exact resume, data in memory": us_per_step["in memory"] - us_per_step["in memory, exact_resume=False"],
        "exact resume, data that draws": us_per_step["noisy"] - us_per_step["noisy, exact_resume=False"],
        "exact resume and digest": us_per_step["in memory, RunDigest"] - us_per_step["in memory, exact_resume=False"],
    }
    print(table(["", "µs per step"], [[name, f"{value:.1f}"] for name, value in us_per_step.items()]))
    rows = [[name, f"{cost:.1f}", f"{1 + cost / STEP_US:.3f}"] for name, cost in costs_us.items()]
    print(table(["cost of", "µs per step", f"beside a step of 1 ms (goal {GOAL})"], rows))
    save("exactness", {"us_per_step": us_per_step, "costs_us": costs_us})


if __name__ == "__main__":
    main()
