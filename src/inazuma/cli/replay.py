"""`inazuma replay RUN --step N`: train up to a step of a recorded run again, and look into that step."""

from __future__ import annotations

import argparse
import bdb
import inspect
import os
import pdb
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from inazuma.callbacks.checkpoint import Checkpoint
from inazuma.callbacks.digest_file import Digest, compare, read_digest
from inazuma.callbacks.progress import ProgressBar
from inazuma.callbacks.run_digest import RunDigest, covered_by
from inazuma.callbacks.run_record import read_sessions
from inazuma.cli.diff import describe
from inazuma.cli.program import Program
from inazuma.errors import SignalException
from inazuma.loggers.logger import DummyLogger
from inazuma.trainer import Trainer

if TYPE_CHECKING:
    from inazuma.module import LightningModule


class CannotReplay(BaseException):
    """The run cannot be replayed; the message says why. No `Exception`, so that the program does not catch it."""


class StepReached(BaseException):
    """The step was looked into: the program ends here. No `Exception`, so that the program does not catch it."""


def add_to(subparsers: Any) -> None:
    """Add the command to the parser of `inazuma`."""
    parser = subparsers.add_parser(
        "replay",
        help="train up to a step of a recorded run again, and look into that step",
        description=(
            "Starts the program of a run again, as its run.json says (script, arguments, working directory), from the "
            "nearest checkpoint at or before step N, or from the start. Says whether the replay is faithful: whether "
            "each batch has the recorded digest. Then runs step N, shows its batches, loss, weights and gradients, and "
            "ends. Nothing is logged or saved by the Trainer; what the program writes itself, it writes. The run must "
            "have been trained with Trainer(callbacks=[RunDigest()])."
        ),
        epilog=(
            "Exit codes: 0 the step was reached and all batches before it are as recorded, 1 they are not, or the "
            "program failed, 2 the run cannot be replayed."
        ),
    )
    parser.add_argument("run_folder", metavar="RUN", help="the folder with run.json and digest.bin")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="optimizer steps before the one to see")
    parser.add_argument(
        "--pdb", action="store_true", help="stop in the debugger at training_step of step N, or where the program fails"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        return replay(Path(args.run_folder).resolve(), args.step, args.pdb)
    except (CannotReplay, OSError, ValueError) as error:
        print(f"inazuma replay: {error}", file=sys.stderr)
        return 2


def replay(folder: Path, step: int, debug: bool) -> int:
    """Replay a run up to a step. Returns the exit code; arguments and errors as in `add_to`."""
    folder = folder if folder.is_dir() else folder.parent
    sessions, digest = read_sessions(folder), read_digest(folder)
    if digest and sessions[-1]["exit"].startswith("finished") and step > last_step(digest):
        steps = f"{digest[0].step} to {last_step(digest)}"
        raise CannotReplay(f"--step {step} is behind the end of the run: {folder} has the steps {steps}.")
    step = begins_at(digest, step)
    session = next((s for s in reversed(sessions) if s["position"]["step"] <= step), None)
    if session is None or step < 0:
        first = sessions[0]["position"]["step"]
        raise CannotReplay(f"--step {step} is before the record of {folder}, which begins with step {first}.")
    checkpoint = nearest_checkpoint(folder, sessions, digest, step)
    if checkpoint is None and digest and digest[0].position > (0, 0):
        raise CannotReplay(
            f"{folder} is the record of a run that was resumed at {digest[0]}, and no checkpoint at or before step "
            f"{step} is left of it."
        )
    program = program_of(session)
    print(f"{program}\nin {session['cwd']}, from {checkpoint or 'the start'}")
    os.chdir(session["cwd"])
    with tempfile.TemporaryDirectory(prefix="inazuma-replay-") as scratch:
        replayer = Replayer(scratch, step, checkpoint, debug)
        os.environ.setdefault("PL_TRAINER_DEFAULT_ROOT_DIR", scratch)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*has the state of callbacks that this Trainer lacks")
                program.run(replayer)
        except (StepReached, bdb.BdbQuit):  # or the user left the debugger
            return report(digest, replayer, session)
        except SignalException:
            raise
        except SystemExit as error:  # the program's own
            if error.code:
                print(f"\nThe program exits: {error.code}", file=sys.stderr)
        except Exception as error:
            traceback.print_exc()
            report(digest, replayer, session)
            if debug:
                pdb.post_mortem(error.__traceback__)
            return 1
        report(digest, replayer, session)
    raise CannotReplay(f"the program ended before step {step}.")


def last_step(digest: Digest) -> int:
    """The last step of a record; with several optimizers a batch makes several."""
    steps = [record.step for record in digest]
    per_batch = max((after - before for before, after in pairwise(steps)), default=1)
    return max(steps) + max(per_batch, 1) - 1


def begins_at(digest: Digest, step: int) -> int:
    """The first step of the batch that makes a step, as far as that is recorded."""
    if not digest or step > last_step(digest):
        return step
    return max((record.step for record in digest if record.step <= step), default=step)


def report(recorded: Digest, replayer: Replayer, session: Mapping[str, Any]) -> int:
    """Say whether the replay is faithful; as an exit code."""
    found = compare(recorded, replayer.digest())
    if found.difference is not None:
        print("\n".join(["", "The replay is NOT faithful:", *describe(found.difference, ("recorded", "replayed"))]))
        if replayer.checkpoint is None and session["seed"]["global"] is None:
            print("\nThe run was not seeded: call inazuma.seed_everything(...), so that it can be started again.")
        return 1
    if not found.batches and not found.left[1]:
        print("\nNo batch was replayed to the end: there is nothing to compare with the record.")
        return 0
    print(f"\nfaithful: {found.batches} replayed batches are as recorded")
    if found.left[1]:
        print(f"{found.left[1]} more are not in the record: it ends before, as that of a process that was killed does")
    return 0


def program_of(session: Mapping[str, Any]) -> Program:
    """The program that a session ran.

    Raises:
        CannotReplay: it was no program in a file.
    """
    if session["module"] is not None:
        return Program(session["module"], session["argv"], is_module=True)
    if session["script"] is None or not os.path.isfile(session["script"]):
        raise CannotReplay(
            f"the run was started by {session['script'] or 'a notebook or an interactive session'}, which is no file "
            "here. Only scripts and modules can be started again."
        )
    return Program(session["script"], session["argv"])


@dataclass(frozen=True)
class Found:
    """A checkpoint of the run."""

    path: Path
    epoch: int
    batch: int  # batches of the epoch that are done
    step: int

    def __str__(self) -> str:
        return f"{self.path} (epoch {self.epoch}, {self.batch} batches done, step {self.step})"


def nearest_checkpoint(folder: Path, sessions: Sequence[Mapping[str, Any]], digest: Digest, step: int) -> Found | None:
    """The newest checkpoint at or before a step, of those in the run's folders that are of this run."""
    folders = {folder, *(Path(path) for session in sessions for path in session["checkpoint_dirs"])}
    paths = {path.resolve() for each in folders if each.is_dir() for path in each.rglob("*.ckpt")}
    found = [each for path in sorted(paths) if (each := _read(path, digest)) is not None and each.step <= step]
    target = next((record.position for record in digest if record.step >= step), None)
    found = [each for each in found if target is None or (each.epoch, each.batch) <= target]
    return max(found, key=lambda each: (each.epoch, each.batch), default=None)


def _read(path: Path, digest: Digest) -> Found | None:
    """The position of a checkpoint of this run; None for one of another run, or without its training state."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        at, state = content["inazuma"]["progress"], content["callbacks"][RunDigest().state_key]
    except Exception as error:  # whatever a damaged or foreign file makes of it
        print(f"not used: {path} ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})")
        return None
    return Found(path, at["epoch"], at["batch"], at["step"]) if covered_by(digest, state) else None


class Replayer(RunDigest):
    """Brings the program's first fit to a step, shows that step, and ends the program."""

    def __init__(self, scratch: str, step: int, checkpoint: Found | None, debug: bool) -> None:
        super().__init__(scratch)
        self.scratch, self.step, self.checkpoint, self.debug = scratch, step, checkpoint, debug
        self.fits = 0
        self.is_there = False

    @property
    def decides(self) -> bool:
        return not self.fits

    def resume_from(self, ckpt_path: Any) -> Any:
        return None if self.checkpoint is None else str(self.checkpoint.path)

    def join(self, trainer: Trainer) -> None:
        """Have a Trainer write nothing."""
        trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        trainer.callbacks = [*_without_writers(trainer.callbacks), self]

    def digest(self) -> Digest:
        """What was replayed so far."""
        self.flush()
        try:
            return read_digest(self.scratch)
        except FileNotFoundError:  # it did not come to training
            return Digest(Path(self.scratch), b"")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        trainer.callbacks = [*_without_writers([c for c in trainer.callbacks if c is not self]), self]
        if stage == "fit":
            self.fits += 1
            if self.fits > 1:
                raise CannotReplay(f"the first `fit` of the program ended before step {self.step}.")

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The file of the replay begins anew."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step >= self.step:
            if not self.is_there:
                print(f"\nstep {trainer.global_step}")
            self.is_there = True
            print(f"epoch {trainer.current_epoch}, batch {batch_idx}:")
            print("\n".join(f"    {line}" for line in summary(batch)))
            if self.debug:
                _stop_in(pl_module.training_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.is_there:
            print("\n".join(gradient_table(pl_module)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.is_there:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        sys.settrace(None)
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        print(f"loss: {loss.item():.9g}" if isinstance(loss, Tensor) and loss.numel() == 1 else f"loss: {loss}")
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step > self.step or trainer.is_last_batch:
            raise StepReached


def _without_writers(callbacks: Sequence[Any]) -> list[Any]:
    return [c for c in callbacks if not isinstance(c, (Checkpoint, RunDigest, ProgressBar))]


def _stop_in(step: Any) -> None:
    """Open the debugger on the first line of `step` when it is called next."""
    code = inspect.unwrap(step).__code__
    debugger = pdb.Pdb(nosigint=True)
    debugger.reset()
    problem = debugger.set_break(code.co_filename, code.co_firstlineno, temporary=True, funcname=code.co_name)
    if problem:
        print(f"The debugger cannot stop in training_step: {problem}")
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:  # so that stepping out of training_step goes on in its callers
        frame.f_trace, debugger.botframe, frame = debugger.trace_dispatch, frame, frame.f_back
    debugger.set_continue()
    sys.settrace(debugger.trace_dispatch)


def summary(batch: Any, name: str = "batch") -> list[str]:
    """One line for each leaf of a batch: where it is, type, shape and range."""
    if isinstance(batch, Tensor):
        return [f"{name}: {_of_tensor(batch)}"]
    if isinstance(batch, Mapping):
        return [line for key, value in batch.items() for line in summary(value, f"{name}[{key!r}]")]
    if isinstance(batch, (list, tuple)) and any(isinstance(item, (Tensor, Mapping, list, tuple)) for item in batch):
        return [line for i, value in enumerate(batch) for line in summary(value, f"{name}[{i}]")]
    text = repr(batch)
    return [f"{name}: {text if len(text) <= 100 else text[:97] + '...'}"]


def _of_tensor(tensor: Tensor) -> str:
    shown = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
    if not tensor.numel() or tensor.is_complex():
        return shown
    values = tensor.detach().double()
    finite = values[values.isfinite()]
    if finite.numel():
        shown += f", from {finite.min().item():.6g} to {finite.max().item():.6g}, mean {finite.mean().item():.6g}"
    if bad := values.numel() - finite.numel():
        shown += f", {bad} not finite"
    return shown


def gradient_table(module: LightningModule) -> list[str]:
    """The norms of each parameter and of its gradient before clipping."""
    rows: list[tuple[str, ...]] = [("parameter", "norm", "gradient", "largest", "not finite")]
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            rows.append((name, f"{parameter.detach().norm().item():.4g}", "none", "", ""))
            continue
        g = (gradient.to_dense() if gradient.layout is not torch.strided else gradient).detach()
        bad = int((~g.isfinite()).sum())
        norms = parameter.detach().norm().item(), g.norm().item(), g.abs().max().item() if g.numel() else 0.0
        rows.append((name, *(f"{value:.4g}" for value in norms), str(bad)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        "    "
        + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
