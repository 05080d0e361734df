"""Measures the contenders, which take turns, and writes what it finds to benchmarks/results/<size>.json.

    python benchmarks/run.py --size full     every contender, measure and model (`make bench-full`)
    python benchmarks/run.py --size short    a hand-written loop, inazuma and Lightning on the smallest model, minutes
    python benchmarks/run.py --size tiny     seconds: whether it all runs

Each contender has a process of its own, with one thread; only one of them works at a time. Where a fresh process is
part of the measure, each reading has a new one. Every reading is kept; the least counts, since what disturbs a
measurement only ever adds to it.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import save
from contenders import CONTENDERS, MODULES, Job, can_compile
from measures import WARM
from report import tables

FRESH = ("first_step", "peak_memory")  # measures that need a new process for each reading
WITH_TRAINER = ("inazuma", "lightning")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    contenders: tuple[str, ...]
    steps: dict[str, int]  # after the warm ones, for each model; multiples of 50, as values are logged every 50 steps
    logs: tuple[int, ...]  # how many values are logged, in configurations of the perceptron besides that without
    measures: tuple[str, ...]
    verbs: tuple[str, ...]  # besides fit
    turns: int  # what takes long is read in every third only


THREE = ("hand-written", *WITH_TRAINER)
SIZES = {
    "full": Size(
        tuple(CONTENDERS),
        {"perceptron": 400, "convolutions": 100, "transformer": 100},
        logs=(1, 2, 10),
        measures=("step", "epoch_gap", "drift", "first_step", "peak_memory", "import"),
        verbs=("validate", "test", "predict"),
        turns=12,
    ),
    "short": Size(THREE, {"perceptron": 400}, logs=(2,), measures=("step", "import"), verbs=(), turns=6),
    "tiny": Size(THREE[:2], {"perceptron": 50}, logs=(2,), measures=("step",), verbs=("predict",), turns=1),
}


@dataclass(frozen=True)
class Case:
    """Something to read in each turn."""

    measure: str  # one of measures.MEASURES, or "import"
    contender: str
    job: Job

    @property
    def takes_long(self) -> bool:
        is_other = self.contender not in ("hand-written", "inazuma")
        return is_other or self.job.settings == "compiled" or self.measure in ("epoch_gap", "peak_memory")


def plan(size: Size) -> Iterator[tuple[int, list[Case]]]:
    """What is compared with each other, in groups, and in how many turns."""
    trainers = [name for name in size.contenders if name in WITH_TRAINER]
    compared = ["hand-written", *trainers]
    for model, steps in size.steps.items():
        for data in ("memory", "own"):
            job = Job(model=model, data=data, batches=steps + WARM + 1)
            cases = [Case("step", name, job) for name in size.contenders]
            for name in trainers:
                for logs in (0, *size.logs) if model == "perceptron" else (0,):
                    cases.append(Case("step", name, replace(job, settings="default", logs=logs)))
            if can_compile() and model == "perceptron":
                cases.append(Case("step", "inazuma", replace(job, settings="compiled")))
            yield size.turns, cases
    for verb in size.verbs:
        for data in ("memory", "own"):
            job = Job(verb=verb, data=data, batches=size.steps["perceptron"] + WARM + 1)
            yield size.turns, [Case("step", name, job) for name in compared]
    for persistent in (False, True):
        job = Job(data="own", batches=10, epochs=6, workers=4, persistent=persistent)
        cases = [Case("epoch_gap", "hand-written", job)]
        for name in trainers:
            cases += [Case("epoch_gap", name, replace(job, settings=settings)) for settings in ("bare", "default")]
        yield size.turns, cases
    job = Job(settings="csv", logs=1, batches=50_500)
    yield 3, [Case("drift", name, job) for name in ("hand-written", "inazuma")]
    job = Job(settings="default", batches=1_000)
    yield size.turns, [Case("first_step", name, job) for name in compared]
    kinds = [(name, settings) for settings in ("bare", "default") for name in compared]
    yield size.turns, [Case("peak_memory", name, replace(job, settings=settings)) for name, settings in kinds]
    yield size.turns, [Case("import", name, Job()) for name in compared]


class Worker:
    """A process of measures.py; what it prints goes to a terminal that nobody sees."""

    def __init__(self) -> None:
        self._terminal, end = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("measures.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(end)
        threading.Thread(target=self._swallow, daemon=True).start()

    def _swallow(self) -> None:
        try:
            while os.read(self._terminal, 65_536):
                pass
        except OSError:  # the process has ended
            pass
        os.close(self._terminal)

    def ask(self, case: Case) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(case)), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            sys.exit(f"{case} failed:\n{answer['error']}")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def import_time(contender: str) -> dict[str, float]:
    """CPU time of a fresh interpreter that imports what a user of the contender does."""
    # As installed: with byte code on disk, also of a package that is edited in place. The first turn writes it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["KERAS_BACKEND"] = "torch"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", f"import {MODULES[contender]}"], check=True, capture_output=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(groups: Iterable[tuple[int, list[Case]]]) -> list[dict[str, Any]]:
    """Each case with its readings, as JSON knows them."""
    workers: dict[str, Worker] = {}
    results = []

    def read(case: Case) -> dict[str, float]:
        if case.measure == "import":
            return import_time(case.contender)
        if case.measure in FRESH:
            with Worker() as worker:
                return worker.ask(case)
        if case.contender not in workers:
            workers[case.contender] = stack.enter_context(Worker())
        return workers[case.contender].ask(case)

    with ExitStack() as stack:
        for turns, cases in groups:
            readings: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
            for turn in range(turns):
                for case in cases if turn % 3 == 0 else [case for case in cases if not case.takes_long]:
                    what = f"{case.measure}, {case.contender}, {case.job.verb} {case.job.model} {case.job.data}"
                    say(f"{what}, turn {turn + 1} of {turns}")
                    readings[case].append(read(case))
            load = os.getloadavg()[0]
            results += [asdict(case) | {"readings": found, "load": load} for case, found in readings.items()]
    say("")
    return results


def say(what: str) -> None:
    """Show on the terminal, on one line, what is being measured."""
    if sys.stderr.isatty():
        print(f"\r{what}".ljust(90), end="\r", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="short")
    name = parser.parse_args().size
    began = time.time()
    groups = [(turns, cases) for turns, cases in plan(SIZES[name]) if cases[0].measure in SIZES[name].measures]
    results = measure(groups)
    run = {"size": name, "date": time.strftime("%Y-%m-%d", time.gmtime(began)), "minutes": (time.time() - began) / 60}
    found = {"run": run, "results": results}
    print("\n\n".join(tables(found)))
    print(f"\n{save(name, found)}")


if __name__ == "__main__":
    main()
