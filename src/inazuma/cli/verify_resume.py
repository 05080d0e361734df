"""`inazuma verify-resume script.py`: kill and resume the user's own script, and compare it with the straight run."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inazuma.callbacks.digest_file import Digest, compare, digest_path, read_digest
from inazuma.cli.diff import describe
from inazuma.cli.program import Program
from inazuma.cli.watch import CHECKPOINT_NAME, RESULT_NAME, Moment, Plan, Result

ADVICE = {
    "position": "The resumed run trains another batch of the epoch than the one that comes next.",
    "data": (
        "Does the dataset, sampler or transform keep a state of its own, such as a counter, or a random generator in a "
        "list or in a worker process? A checkpoint has the global generators of torch, numpy and Python, and those "
        "that are attributes of a sampler, or of a dataset without workers. Draw from these, or give the loader "
        "`state_dict` and `load_state_dict`."
    ),
    "noise": (
        "Something draws random numbers more often, or less often, in one of the two runs: code that runs at the start "
        "of a process or of an epoch only, or depends on time."
    ),
    "loss": (
        "The module, or a callback, keeps something that the forward pass uses and no checkpoint holds: a plain "
        "attribute, a generator, a cache. Register a tensor as a buffer, or save it in `on_save_checkpoint`."
    ),
    "gradient": "Something that changes gradients keeps a state, or the backward pass is not deterministic.",
    "weights": (
        "The optimizer, a schedule, or a hook that changes gradients before the step, keeps something that no "
        "checkpoint holds."
    ),
    "end": "What ends the run is in no checkpoint, as when a callback had asked to stop just before the save.",
}
NOT_REPEATABLE = (
    "two runs from the start differ, so that no resume can be exact. Seed everything with "
    "inazuma.seed_everything(...), use Trainer(deterministic=True), and look for what depends on time or chance."
)
INEXACT = "The script trains with Trainer(exact_resume=False), which leaves data and random numbers out of a resume."


class CannotVerify(Exception):
    """The script cannot be verified; the message says why."""


class ResumeFails(Exception):
    """A resumed process failed, where the straight one did not; the message says how."""


@dataclass(frozen=True)
class Attempt:
    """One process of the script, and what it left."""

    folder: Path
    result: Result
    digest: Digest
    was_killed: bool


def add_to(subparsers: Any) -> None:
    """Add the command to the parser of `inazuma`."""
    parser = subparsers.add_parser(
        "verify-resume",
        help="kill and resume a script at random, and prove that it ends with the same bits",
        description=(
            "Runs `python SCRIPT ARGS...` in the current directory: once straight, then again and again, killed with "
            "SIGKILL at random moments and resumed, KILLS + 1 processes that together are one run. Compares batch by "
            "batch, and the weights, optimizers and metrics at the end. The script is not changed, and really runs: "
            "what it writes, it writes once for each process. Only where it does not say where logs and checkpoints "
            "go do they go to a temporary folder. The first `fit` counts, and begins at the start also with "
            '`ckpt_path="auto"` or "last"; the others run as they do.'
        ),
        epilog=(
            "Exit codes: 0 identical, 1 something differs or a resumed process fails, 2 the script cannot be verified."
        ),
    )
    parser.add_argument("--kills", type=int, default=4, metavar="N", help="how often to kill (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments (default: 0)")
    parser.add_argument(
        "--timeout", type=float, default=3600.0, metavar="SECONDS", help="for each process (default: 3600)"
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="SCRIPT is a module, as in `python -m`")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("argv", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.kills < 1:
        print(f"inazuma verify-resume: --kills {args.kills} proves nothing; kill at least once.", file=sys.stderr)
        return 2
    program = {"name": args.script, "argv": args.argv, "is_module": args.is_module}
    Program(**program).check()
    try:
        with _ending_orderly(), tempfile.TemporaryDirectory(prefix="inazuma-verify-") as root:
            return Verification(program, Path(root), args.kills, args.seed, args.timeout).run()
    except CannotVerify as error:
        print(f"inazuma verify-resume: {error}", file=sys.stderr)
        return 2


@contextmanager
def _ending_orderly() -> Iterator[None]:
    """Signals that end a process raise an exception here, so that the script's processes and files do not stay."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in (getattr(signal, name) for name in names)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Verification:
    """The straight run, the killed ones, and the comparison.

    Args:
        program: name, argv, is_module of the `Program`.
        root: a folder of its own.
        kills: how often to kill.
        seed: chooses the moments.
        timeout_s: for each process.
    """

    def __init__(self, program: dict[str, Any], root: Path, kills: int, seed: int, timeout_s: float) -> None:
        self.program, self.root, self.kills, self.seed, self.timeout_s = program, root, kills, seed, timeout_s
        self.count = 0  # of processes

    def run(self) -> int:
        """Returns the exit code."""
        straight = self.attempt()
        if not straight.result.end:
            raise CannotVerify("the straight run did not reach the end of its first `fit`.")
        digest, fits = straight.digest, straight.result.fits
        _say(f"straight: {len(digest)} batches, {digest[-1].epoch + 1} epochs")
        if fits > 1:
            _say(f"The script calls `fit` {fits} times. Only the first one is verified.")
        rng = random.Random(self.seed)
        moments = choose(straight.result.moments, self.kills, rng)
        if len(moments) < self.kills:
            _say(f"The run has only {len(moments)} moments to be killed at.")
        ckpt_path, before = None, None
        for moment in [*moments, None]:
            try:
                attempt = self.attempt(ckpt_path, moment, rng.randint(0, 2))
            except ResumeFails as error:
                _say(f"resumed at {before}: FAILS, and the straight run does not: {error}")
                return 1
            component = agrees(straight, attempt, before, moment)
            if component is not None:
                self.explain(straight, component, before)
                return 1
            ckpt_path, before = str(attempt.folder / CHECKPOINT_NAME), moment
        if not ends_alike(straight.result.end, attempt.result.end):
            self.explain(straight, None, before)
            return 1
        parts = "weights, optimizers, schedules, metrics and random generators at the end"
        _say(f"identical: killed {len(moments)} times, {len(digest)} batches; {parts}")
        return 0

    def explain(self, straight: Attempt, component: str | None, before: Moment | None) -> None:
        """Say what may be the cause of a difference in a component (None: at the end); may run the script again."""
        if before is None:
            _say(f"\nThe script was not killed yet: {NOT_REPEATABLE}")
            return
        _say("\nIs it the resume? The script runs from the start once more.")
        again = self.attempt()
        found = compare(straight.digest, again.digest).difference
        if found is not None or straight.result.end != again.result.end:
            where = "at the end" if found is None else f"at {found.one}, in {found.component}"
            _say(f"No, it parts from the straight run too, {where}: {NOT_REPEATABLE}")
            return
        advice = ADVICE.get(component or "", "") if straight.result.is_exact else INEXACT
        _say(f"Yes: from the start it is the same run again. {advice}".rstrip())

    def attempt(self, ckpt_path: str | None = None, kill: Moment | None = None, later: int = 0) -> Attempt:
        """Run the script once, from a checkpoint to the end or to a moment.

        Raises:
            ResumeFails: it failed, and was resumed.
            CannotVerify: it failed from the start, took too long, or does not train.
        """
        folder = self.root / str(self.count)
        folder.mkdir()
        self.count += 1
        # Like processes of another day, the resumed ones begin with other random numbers.
        seed = self.seed if ckpt_path is None else self.seed + self.count
        plan = Plan(self.program, str(folder), seed, ckpt_path, kill, later)
        (folder / "plan.json").write_text(json.dumps(asdict(plan)))
        status, printed = self._process(folder)
        path = folder / RESULT_NAME
        content = json.loads(path.read_text()) if path.exists() else {}
        was_killed = status == -signal.SIGKILL and content.get("was_killed", False)
        if status != 0 and not was_killed:
            raise (CannotVerify if ckpt_path is None else ResumeFails)(f"the script {_ended(status)}. {printed}")
        if not content:
            raise CannotVerify(f"the script never called `Trainer.fit` of inazuma. {printed}")
        content["moments"] = [Moment(*moment) for moment in content["moments"]]
        result = Result(**content)
        if result.start is None and ckpt_path is None:
            raise CannotVerify(f"the script's first `fit` trained nothing. {printed}")
        path = digest_path(folder)
        if path.exists():
            return Attempt(folder, result, read_digest(folder), was_killed)
        if ckpt_path is None:
            raise CannotVerify(f"no digest could be kept: a `fast_dev_run`, or no space? {printed}")
        return Attempt(folder, result, Digest(path, b""), was_killed)  # nothing was left to train

    def _process(self, folder: Path) -> tuple[int, str]:
        """The exit code (a negative signal number), and the last lines of the output, for a message."""
        environment = {"PL_TRAINER_DEFAULT_ROOT_DIR": str(folder / "files"), **os.environ}
        command = [sys.executable, "-c", "from inazuma.cli.watch import main; main()", str(folder / "plan.json")]
        log = folder / "output.txt"
        with log.open("wb") as output:
            # A group of its own: workers that a killed process leaves are ended with it.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                status: int | None = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = log.read_text(errors="replace").splitlines()[-20:]
        printed = "\n".join(["Its last lines:", "", *lines]) if lines else "It printed nothing."
        if status is None:
            raise CannotVerify(
                f"the script took more than {self.timeout_s:g} seconds. Give --timeout, or arguments that make it "
                f"train less. {printed}"
            )
        return status, printed


def _ended(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with exit code {status}"
    name = signal.Signals(-status).name
    reason = ", as the system does it when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{reason}"


def agrees(straight: Attempt, attempt: Attempt, before: Moment | None, kill: Moment | None) -> str | None:
    """Compare one process with the straight run, and say how it went. Returns the component that differs."""
    name = "from the start" if before is None else f"resumed at {before}"
    found = compare(straight.digest, attempt.digest)
    if found.difference is not None:
        names = ("straight", "again" if before is None else "resumed")
        _say(f"{name}: DIFFERS\n" + "\n".join(describe(found.difference, names)))
        return found.difference.component
    if before is not None and _skips(straight.digest, attempt.digest, before):
        _say(f"{name}: DIFFERS: position\nThe next batch of the epoch is left out.")
        return "position"
    left = 0 if kill is not None and attempt.was_killed else _left(straight.digest, attempt.digest, before)
    if found.left[1] or left or attempt.was_killed != (kill is not None):
        says = f"goes on for {found.left[1]} more" if found.left[1] else f"ends {left} before the straight one"
        _say(f"{name}: DIFFERS: end\n{found.batches} batches are identical, but then the run {says}.")
        return "end"
    killed = "to the end" if kill is None else f"killed at {kill}"
    _say(f"{name}, {killed}: {found.batches} batches identical")
    return None


def _left(straight: Digest, resumed: Digest, before: Moment | None) -> int:
    """How many batches of the straight run a process that ended did not come to."""
    if resumed:
        return len(straight) - straight.index_of(resumed[-1].position) - 1
    return len(straight) - (0 if before is None else straight.index_of((before.epoch, before.batches)))


def _skips(straight: Digest, resumed: Digest, before: Moment) -> bool:
    """Whether the resumed run begins behind the batch that comes next."""
    following = straight.index_of((before.epoch, before.batches))
    return bool(resumed) and straight.index_of(resumed[0].position) > following


def choose(moments: Sequence[Moment], kills: int, rng: random.Random) -> list[Moment]:
    """Moments to be killed at, in the order of the run: of each kind in turn, at random among those of one kind."""
    kinds: dict[object, list[Moment]] = {}
    for kind in ("on_train_batch_end", "on_validation_batch_end", "open window", "on_train_epoch_end"):
        kinds[kind] = [m for m in moments if kind == ("open window" if m.window_is_open else m.hook)]
    order = {moment: index for index, moment in enumerate(moments)}
    chosen: list[Moment] = []
    while len(chosen) < min(kills, len(moments)):
        for left in kinds.values():
            if left and len(chosen) < kills:
                chosen.append(left.pop(rng.randrange(len(left))))
    return sorted(chosen, key=order.__getitem__)


def ends_alike(straight: dict[str, Any], resumed: dict[str, Any]) -> bool:
    """Compare what two runs came to, and say what differs first."""
    differing = [part for part in {**straight, **resumed} if straight.get(part) != resumed.get(part)]
    if differing:
        more = f", and {len(differing) - 5} more" if len(differing) > 5 else ""
        _say(f"DIFFERS: all batches are identical, but at the end: {', '.join(differing[:5])}{more}")
    return not differing


def _say(text: str) -> None:
    print(text, flush=True)  # a process of the script takes its time
