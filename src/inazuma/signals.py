"""Signals, taken as a wish to end: a flag that the loop reads at its step boundaries, where a run can be saved.

The run is saved there by its first `ModelCheckpoint`, and the process ends with 128 + the signal's number:

    SIGTERM             143
    Ctrl-C (SIGINT)     130         a second one ends the run at once; at a prompt control returns instead
    SIGUSR1, SIGUSR2    138, 140    (on Linux) under SLURM the job is put back into the queue first
"""

from __future__ import annotations

import builtins
import copy
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, context, current_process, resource_tracker
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any

from inazuma.errors import MisconfigurationException, SignalException, SIGTERMException
from inazuma.ranks import rank_zero_info, rank_zero_only

_listening: tuple[int, ...] = ()  # the signals that a run of this process listens to
_is_running: Any = None  # the same as one shared byte, which workers of loaders read; made when first needed


def default_signals() -> tuple[int, ...]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGUSR2, as far as this system has them (Windows lacks the last two)."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
    return tuple(int(getattr(signal, name)) for name in names if hasattr(signal, name))


def name_of(number: int) -> str:
    return signal.Signals(number).name


def is_interactive() -> bool:
    """Whether somebody sits at a prompt (Python's, IPython's, a notebook's) to which control can return."""
    return hasattr(sys, "ps1") or hasattr(builtins, "get_ipython")


class Signals:
    """Listens to signals from `listen` to `leave`, for the length of a run.

    A signal that comes is only noted. At the next step boundary `check` calls `save` and ends the run. After the first
    Ctrl-C Python's own handler is back, so that a second one raises `KeyboardInterrupt` at once.

    What was there before is heeded: a handler for SIGTERM or SIGINT is called too, one for any other signal is left in
    charge, and a signal that is ignored stays ignored. Outside of the main thread, where Python cannot listen, nothing
    is done.

    Args:
        save: a method, called at the boundary with the signal's number, before the run ends.
        numbers: the signals to listen to. Default: `default_signals()`.

    Raises:
        MisconfigurationException: something that is no signal, or one that cannot be handled.
    """

    def __init__(self, save: Callable[[int], None], numbers: Iterable[int] | None = None) -> None:
        self.numbers = default_signals() if numbers is None else _checked(numbers)
        self.received: int | None = None  # the signal that ends the run: the first that came
        self.received_sigterm = False
        self.is_at_boundary = False  # the run ends where it can be saved, not by a second Ctrl-C
        self._save = weakref.WeakMethod(save)  # the Trainer's, which has this object
        self._before: dict[int, Any] = {}
        self._process = 0
        self._children: set[Any] = set()

    def listen(self, then: str, also: Iterable[int] = ()) -> None:
        """Begin to listen.

        Args:
            then: what happens at the next step boundary, for the message at Ctrl-C: "saving".
            also: signals that only this run listens to.
        """
        global _listening
        self.received, self.received_sigterm, self.is_at_boundary = None, False, False
        self._then, self._process, self._children = then, os.getpid(), set(active_children())
        if threading.current_thread() is not threading.main_thread():
            return
        for number in dict.fromkeys((*self.numbers, *also)):
            before = signal.getsignal(number)
            is_theirs = callable(before) and number not in (signal.SIGINT, signal.SIGTERM)
            if number in self._before or is_theirs or before in (signal.SIG_IGN, None):
                continue
            self._before[number] = before
            signal.signal(number, self._handle)
        _listening = tuple(self._before)
        _tell_workers(bool(_listening))

    def leave(self) -> None:
        """Put back the handlers that were there before."""
        global _listening
        self.is_at_boundary = False
        if self._before:
            _listening = ()
            _tell_workers(False)
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number, signal.SIG_DFL)
        if os.getpid() != self._process:  # a process that was forked while the run listened
            if not _is_loader_worker():
                signal.signal(number, before)
                os.kill(os.getpid(), number)
            return
        self.received = number if self.received is None else self.received
        self.received_sigterm = self.received_sigterm or number == signal.SIGTERM
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            _say(f"Ctrl-C: {self._then} at the next step; press again to end at once.")
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def check(self) -> None:
        """End the run if a signal came. Called at step boundaries only.

        Raises:
            SIGTERMException, SignalException: SIGTERM or another signal came. The process ends with the exit code
                128 + its number if nobody catches it.
            KeyboardInterrupt: it was Ctrl-C.
        """
        if self.received is not None:
            if (save := self._save()) is not None:
                save(self.received)
            self.is_at_boundary = True
            self.end_program()

    def end_program(self) -> None:
        """Raise what belongs to the signal that came, as `check` does."""
        assert self.received is not None
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        rank_zero_info(f"{name_of(self.received)} received: the run ends here.")
        raise (SIGTERMException if self.received == signal.SIGTERM else SignalException)(128 + self.received)

    @property
    def is_cut_short(self) -> bool:
        """Whether Ctrl-C was pressed, and the run has not reached a boundary since."""
        return bool(self._before) and self.received == signal.SIGINT and not self.is_at_boundary

    def kill_workers(self) -> None:
        """End the daemon processes that were started during the run: the workers of its loaders, whatever they do.

        They outlive Ctrl-C, which comes to the whole process group, and torch waits for each of them for seconds.
        """
        workers = [process for process in active_children() if process.daemon and process not in self._children]
        if not workers:
            return
        before = None
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise for each of them
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _checked(numbers: Iterable[int]) -> tuple[int, ...]:
    given = list(numbers) if isinstance(numbers, Iterable) else [None]
    cannot = {getattr(signal, name, None) for name in ("SIGKILL", "SIGSTOP")}
    for number in given:
        if not isinstance(number, int) or isinstance(number, bool) or number not in signal.valid_signals() - cannot:
            raise MisconfigurationException(
                f"Trainer(stop_signals={numbers!r}): {number!r} is no signal that a process can listen to here. Give a "
                "list, as in `stop_signals=[signal.SIGTERM, signal.SIGINT]`, or [] to listen to none."
            )
    return tuple(int(number) for number in given)


def _say(text: str) -> None:
    """Tell the user, from inside of a signal handler: it may have come in the middle of a print."""
    if rank_zero_only.rank != 0:
        return
    if is_interactive():  # a notebook shows what goes through sys.stderr
        print(text, file=sys.stderr, flush=True)
    else:
        with suppress(OSError):
            os.write(2, f"\n{text}\n".encode())


# Workers of loaders


def _is_loader_worker() -> bool:
    target = getattr(current_process(), "_target", None)
    return getattr(target, "__name__", "") == "_worker_loop"


def _tell_workers(is_running: bool) -> None:
    if _is_running is not None:
        _is_running.value = is_running


def shielding(theirs: Any) -> Any:
    """A multiprocessing context like a loader's, whose processes start while the signals of the run wait.

    They start with them waiting too: a spawned one needs seconds until its `WorkerInit` is called.

    Args:
        theirs: the loader's; None for the default one.
    """
    original = multiprocessing.get_context() if theirs is None else theirs
    if not hasattr(signal, "pthread_sigmask") or original.get_start_method() == "forkserver":
        return theirs  # a server of processes would go on with them waiting for all that others ask it for

    if original.get_start_method() == "spawn":
        with _waiting(default_signals()):
            resource_tracker.ensure_running()  # Python's helper, which SIGUSR1 would end

    def process(*args: Any, **kwargs: Any) -> Any:
        made: Any = original.Process(*args, **kwargs)

        def start() -> None:
            del made.start  # back to the class's: a spawned process gets a copy of this object
            with _waiting(_listening):
                made.start()

        made.start = start
        return made

    view: Any = copy.copy(original)
    view.Process = process
    return view


@contextmanager
def _waiting(numbers: Iterable[int]) -> Iterator[None]:
    """Let these signals wait, in this thread and in what it starts."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class WorkerInit:
    """A loader's `worker_init_fn` with which its workers outlive the signals that the run listens to.

    Ctrl-C, and what schedulers send, comes to all processes of a job. The main process still needs its workers until it
    reaches a step boundary, and ends them itself. SIGTERM ends a worker again once the run is over.

    Args:
        then: the user's `worker_init_fn`.
        listening: the signals, where a new process is told of them; None where it is forked and knows.
        is_running: likewise, the shared byte that says whether the run goes on.
    """

    def __init__(
        self, then: Callable[[int], Any] | None, listening: tuple[int, ...] | None = None, is_running: Any = None
    ) -> None:
        global _is_running
        self.then, self.listening, self.is_running = then, listening, is_running
        if _is_running is None and listening is None:
            _is_running = RawValue("b", bool(_listening))

    def __reduce__(self) -> tuple[Any, ...]:
        is_for_a_worker = context.get_spawning_popen() is not None  # what is shared travels nowhere else
        return WorkerInit, (self.then, _listening, _is_running) if is_for_a_worker else (self.then,)

    def __call__(self, worker_id: int) -> None:
        running = _is_running if self.is_running is None else self.is_running
        listening = _listening if self.listening is None else self.listening
        for number in listening:
            if number == signal.SIGTERM:  # after torch's own, which ends the worker whoever the sender is
                signal.signal(number, lambda *_: None if running.value else os._exit(0))
            else:
                signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):  # what came while this process started
            signal.pthread_sigmask(signal.SIG_UNBLOCK, listening)
        if self.then is not None:
            self.then(worker_id)
