"""Signals end a run at its next step, with a checkpoint from which it goes on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from inazuma import Callback, Trainer
from inazuma.callbacks import ModelCheckpoint
from inazuma.checkpoint_io import TorchCheckpointIO
from inazuma.errors import MisconfigurationException, SignalException, SIGTERMException
from inazuma.plugins.environments import SLURMEnvironment
from inazuma.testing import BoringModel, RandomDataset

ROOT = Path(__file__).parents[1]
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}

# In processes of their own


@dataclass
class Ended:
    """What is left of a run."""

    pid: int
    said: list[str]
    log: str
    status: int
    seconds: float  # from the last signal, or from the beginning without one
    folder: Path

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()} - {"log"}

    @property
    def saved(self) -> Path:
        """The file that the run says it ends with."""
        found = re.search(r": the run is saved in (.*)\.$", self.log, re.MULTILINE)
        assert found, self.log
        return Path(found[1])

    @property
    def weights(self) -> str:
        return self.said[-1]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where a shell started the tests in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Runs:
    """Starts runs, one after the other, and sends signals to all their processes."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.runs_to_end"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, send: int = 0, when: str = "ready", after_s: float = 0.0, again: str = "", **job: Any) -> Ended:
        """Run a job. Once it says `when`, wait `after_s`, send a signal to its group, and another after `again`."""
        assert self.server.stdin
        self.count += 1
        folder = Path(job.setdefault("folder", str(self.folder / str(self.count))))
        folder.mkdir(exist_ok=True)
        log = folder / "log"
        log.unlink(missing_ok=True)
        self.server.stdin.write(json.dumps({**job, "log": str(log)}) + "\n")
        self.server.stdin.flush()
        pid, said, began_s = int(self.line().split()[1]), list[str](), time.monotonic()
        while not (line := self.line()).startswith("status"):
            said.append(line)
            if send and line == when:
                time.sleep(after_s)
                began_s = time.monotonic()
                with suppress(ProcessLookupError):  # it was done before
                    os.killpg(pid, send)
                if again:
                    while again not in log.read_text():
                        time.sleep(0.01)
                    began_s = time.monotonic()
                    os.killpg(pid, send)
        return Ended(pid, said, log.read_text(), int(line.split()[1]), time.monotonic() - began_s, folder)

    def line(self) -> str:
        assert self.server.stdout
        line = self.server.stdout.readline()
        assert line, "the server of runs ended"
        return line.strip()

    def at_random(self, send: int, within_s: float, **job: Any) -> Ended:
        """End a run by a signal at a random time; a run that had made its last step before is run again."""
        while True:
            ended = self(send, after_s=random.SystemRandom().uniform(0, within_s), **job)
            if "`Trainer.fit` stopped: " not in ended.log:
                return ended
            within_s /= 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.server.communicate("")


@pytest.fixture(scope="module")
def straight(runs: Runs) -> Ended:
    return runs()


def check_end(ended: Ended, sent: int, straight: Ended, runs: Runs, **job: Any) -> None:
    """A run that a signal ended: its code, its one new file, and that a resumed run ends like the straight one."""
    heard = {signal.SIGTERM: "SIGTERMException True", signal.SIGINT: "KeyboardInterrupt False"}
    assert ended.status == CODES[signal.Signals(sent)], ended
    assert ended.said[-1] == f"heard {heard.get(signal.Signals(sent), 'SignalException False')} True"
    assert {line for line in ended.said if line.startswith("saves")} <= {f"saves in {ended.pid}"}
    assert "Traceback" not in ended.log, ended.log
    assert torch.load(ended.saved, weights_only=True)["state_dict"]
    names = {re.sub(r"\d+", "N", name) for name in ended.files}  # of the newest validation, and of the end
    assert names <= {"kept/epoch=N-step=N.ckpt", "kept/last.ckpt", "hpc_ckpt_N.ckpt"}
    resumed = runs(ckpt_path=str(ended.saved), folder=str(ended.folder), **job)
    assert resumed.status == 0, resumed
    assert resumed.weights == straight.weights


@pytest.mark.parametrize("sent", CODES, ids=lambda sent: sent.name)
def test_a_signal_to_all_processes_ends_a_run_that_resumes_exactly(runs: Runs, straight: Ended, sent: int) -> None:
    check_end(runs.at_random(sent, 0.5 * straight.seconds), sent, straight, runs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
@pytest.mark.parametrize("sent", CODES, ids=lambda sent: sent.name)
def test_a_signal_at_any_time(runs: Runs, straight: Ended, sent: int, persistent: bool) -> None:
    reference = runs(persistent=True) if persistent else straight
    for _ in range(20):
        ended = runs.at_random(sent, 0.8 * straight.seconds, persistent=persistent)
        check_end(ended, sent, reference, runs, persistent=persistent)


@pytest.mark.parametrize(("job", "when"), [({"sleeps_at": 3}, "sleeps"), ({"hangs_at": 9}, "hangs")])
def test_the_second_ctrl_c_ends_a_run_at_once(runs: Runs, job: dict[str, Any], when: str) -> None:
    ended = runs(signal.SIGINT, when, again="press again", **job)
    assert ended.status == 130
    assert "Ctrl-C: saving at the next step; press again to end at once." in ended.log
    assert "saved in" not in ended.log
    assert "Traceback" not in ended.log, ended.log
    assert ended.said[-1] == "heard KeyboardInterrupt False True"
    assert ended.seconds < 4  # two seconds, and what a busy machine makes of them; torch alone waits five per worker


SLURM = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train"}


def scontrol(folder: Path, code: int = 0) -> dict[str, str]:
    """The environment of a job under SLURM, with a `scontrol` that notes how it is called."""
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho no such job >&2\nexit {code}\n')
    program.chmod(0o755)
    return {**SLURM, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_slurm_runs_a_job_again_from_where_it_was(runs: Runs, straight: Ended, tmp_path: Path) -> None:
    env = scontrol(tmp_path / "bin")
    ended = runs.at_random(signal.SIGUSR1, 0.5 * straight.seconds, env=env)
    check_end(ended, signal.SIGUSR1, straight, runs)
    assert (tmp_path / "bin/calls").read_text() == "requeue 77\n"


def test_slurm_finds_the_file_of_the_job_before_without_ckpt_path(runs: Runs, straight: Ended, tmp_path: Path) -> None:
    """Twice, and without a ModelCheckpoint: Lightning's name, and one number more each time."""
    env = scontrol(tmp_path / "bin") | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "5"}
    for count in (1, 2):
        ended = runs(signal.SIGUSR2, after_s=0.1, env=env, folder=str(tmp_path), keeps=False)
        assert ended.status == 140
        assert ended.saved == tmp_path / f"hpc_ckpt_{count}.ckpt"
    assert (tmp_path / "bin/calls").read_text() == "requeue 70_5\n" * 2
    assert runs(env=env, folder=str(tmp_path), keeps=False).weights == straight.weights


def test_in_an_interactive_session_ctrl_c_gives_control_back(runs: Runs) -> None:
    ended = runs(signal.SIGINT, after_s=0.2, prompt=True, fits=2)
    assert ended.status == 0
    assert "heard KeyboardInterrupt False True" in ended.said
    states = [line for line in ended.said if " at " in line]
    assert states[0].startswith("interrupted at ")
    assert states[1].startswith("finished at ")


@pytest.mark.slow
def test_in_an_interactive_session_sigterm_still_ends_the_program(runs: Runs) -> None:
    assert runs(signal.SIGTERM, after_s=0.2, prompt=True, fits=2).status == 143


def test_a_run_in_the_background_goes_on_where_ctrl_c_is_ignored(runs: Runs, straight: Ended) -> None:
    ended = runs(signal.SIGINT, after_s=0.2, ignores=signal.SIGINT)
    assert ended.status == 0
    assert ended.weights == straight.weights


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_are_spawned_outlive_signals_too(runs: Runs, straight: Ended) -> None:
    for sent in CODES:
        check_end(runs(sent, after_s=0.1, context="spawn"), sent, straight, runs)


# In this process


class Do(Callback):
    """Does something in a hook, once training has come to a step."""

    def __init__(self, what: Callable[[], Any], at: int = 3, hook: str = "on_train_batch_end") -> None:
        def act(trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == at:
                what()

        setattr(self, hook, act)


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def trainer_of(*callbacks: Callback, **arguments: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", max_steps=6, callbacks=list(callbacks), **{**quiet, **arguments})


@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end"])
def test_one_file_is_written_where_the_run_ends(tmp_path: Path, moment: str) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=9)
    limits = {"limit_train_batches": 3, "limit_val_batches": 3, "num_sanity_val_steps": 0}
    trainer = trainer_of(Do(kill(signal.SIGTERM), hook=moment), keep, **limits)
    with pytest.raises(SIGTERMException) as ended:
        trainer.fit(BoringModel())
    assert ended.value.code == 143
    assert trainer.received_sigterm
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("in_background", [False, True])
def test_a_save_that_fails_is_reported_and_changes_no_exit_code(
    in_background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(TorchCheckpointIO):
        def save_checkpoint(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    trainer = trainer_of(Do(kill(signal.SIGTERM)), plugins=[Full()], async_checkpointing=in_background)
    caplog.set_level(logging.INFO)
    with pytest.raises(SIGTERMException) as ended, pytest.warns(UserWarning, match="No space left on device"):
        trainer.fit(BoringModel())
    assert ended.value.code == 143
    assert "SIGTERM: nothing is saved (see above, or no step was made yet)." in caplog.text


def test_a_job_that_saves_in_the_background_is_run_again_from_its_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(0.1)
            super().save_checkpoint(*args, **kwargs)

    for name, value in scontrol(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True, every_n_train_steps=2)
    plugins = {"plugins": [Slow()], "async_checkpointing": True, "default_root_dir": tmp_path}
    with pytest.raises(SignalException):
        trainer_of(Do(kill(signal.SIGUSR1)), keep, **plugins).fit(BoringModel())
    for path in ("hpc_ckpt_1.ckpt", "kept/last.ckpt"):
        assert torch.load(tmp_path / path, weights_only=True)["global_step"] == 3


def test_a_file_that_is_damaged_on_its_way_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            answer = super().save_checkpoint(checkpoint, path, *args, **kwargs)
            content = bytearray(Path(path).read_bytes())
            content[len(content) // 2] ^= 1
            Path(path).write_bytes(content)
            return answer

    with pytest.raises(SIGTERMException) as ended:
        trainer_of(Do(kill(signal.SIGTERM)), plugins=[Flaky()]).fit(BoringModel())
    assert ended.value.code == 143
    assert "SIGTERM: the checkpoint could not be written (CheckpointError: " in caplog.text


def test_without_a_model_checkpoint_nothing_is_saved_and_that_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    trainer = trainer_of(Do(kill(signal.SIGUSR2)), enable_checkpointing=False)
    with caplog.at_level(logging.INFO), pytest.raises(SignalException) as ended:
        trainer.fit(BoringModel())
    assert ended.value.code == 140
    assert "SIGUSR2: nothing is saved (the Trainer has no `ModelCheckpoint`)." in caplog.text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_an_evaluation_ends_between_its_batches(fn: str, tmp_path: Path) -> None:
    seen: list[int] = []

    class Stop(Callback):
        def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
            seen.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

        on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    trainer = trainer_of(Stop())
    with pytest.raises(SIGTERMException):
        getattr(trainer, fn)(BoringModel(), DataLoader(RandomDataset(32, 8)))
    assert seen == [1]
    assert not any(tmp_path.iterdir())


def test_at_a_prompt_an_evaluation_that_ctrl_c_ended_gives_no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    class Stop(Callback):
        def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        on_predict_batch_start = on_validation_batch_start

    data = DataLoader(RandomDataset(32, 8))
    trainer = trainer_of(Stop())
    assert trainer.validate(BoringModel(), data) == []
    assert trainer.interrupted
    assert trainer.predict(BoringModel(), data) is None


def test_a_signal_after_the_last_step_ends_the_program_once_the_run_is_done() -> None:
    trainer = trainer_of(Do(kill(signal.SIGTERM), at=6, hook="on_train_end"))
    with pytest.raises(SIGTERMException):
        trainer.fit(BoringModel())
    assert trainer.state.status == "finished"


def test_handlers_from_before_are_called_and_put_back() -> None:
    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: heard.append(number))
    before = {number: signal.getsignal(number) for number in (*CODES, signal.SIGUSR2)}
    quiet = {"enable_checkpointing": False}
    trainer_of(Do(kill(signal.SIGUSR1)), **quiet).fit(BoringModel())  # one of the user's own is left in charge
    assert heard == [signal.SIGUSR1]
    with pytest.raises(SIGTERMException):
        trainer_of(Do(kill(signal.SIGTERM)), **quiet).fit(BoringModel())
    assert heard == [signal.SIGUSR1, signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_only_the_signals_asked_for_are_listened_to() -> None:
    inside: list[Any] = []
    numbers = (*CODES, signal.SIGUSR2, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    look = Do(lambda: inside.append([signal.getsignal(number) for number in numbers]), at=1)
    trainer_of(look, stop_signals=[], enable_checkpointing=False).fit(BoringModel())
    assert inside == [before]
    with pytest.raises(SignalException) as ended:
        trainer_of(Do(kill(signal.SIGHUP)), stop_signals=[signal.SIGHUP]).fit(BoringModel())
    assert ended.value.code == 129


@pytest.mark.parametrize("given", [[0], ["SIGTERM"], "SIGTERM", [True], [signal.SIGKILL], 15, [None]])
def test_what_is_no_signal_is_refused(given: Any) -> None:
    with pytest.raises(MisconfigurationException, match=r"Trainer\(stop_signals=.* is no signal that a process can"):
        trainer_of(stop_signals=given)


def test_outside_of_the_main_thread_nothing_is_listened_to() -> None:
    before, inside = [signal.getsignal(number) for number in CODES], list[Any]()
    look = Do(lambda: inside.append([signal.getsignal(number) for number in CODES]), at=1)
    trainer = trainer_of(look)
    thread = threading.Thread(target=trainer.fit, args=[BoringModel()])
    thread.start()
    thread.join()
    assert inside == [before]
    assert trainer.state.status == "finished"


def test_a_system_without_sigusr1_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGKILL", "SIGSTOP"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert SLURMEnvironment().requeue_signals == ()
    with pytest.raises(SIGTERMException):
        trainer_of(Do(kill(signal.SIGTERM))).fit(BoringModel())


def test_a_process_that_the_user_forked_in_a_run_dies_of_signals_as_ever() -> None:
    ended: list[int] = []

    def fork() -> None:
        if (pid := os.fork()) == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(100)
            finally:
                os._exit(0)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    trainer = trainer_of(Do(fork))
    trainer.fit(BoringModel())
    assert ended == [-signal.SIGTERM]
    assert not trainer.received_sigterm


def test_loaders_are_the_users_again_after_a_run() -> None:
    loader = DataLoader(RandomDataset(32, 8), num_workers=1, multiprocessing_context="fork")
    context = loader.multiprocessing_context
    copies: list[Any] = []
    trainer_of(Do(lambda: copies.append(copy.deepcopy(loader)), at=1), max_epochs=1).fit(BoringModel(), loader)
    assert len(copies) == 1
    assert loader.worker_init_fn is None
    assert loader.multiprocessing_context is context


# SLURM


def test_a_job_that_cannot_be_put_back_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in scontrol(tmp_path / "bin", code=1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SignalException) as ended:
        trainer_of(Do(kill(signal.SIGUSR1))).fit(BoringModel())
    assert ended.value.code == 138
    assert "`scontrol requeue 77` failed (exit code 1: no such job). Submit the job again" in caplog.text
    monkeypatch.setenv("PATH", "")
    SLURMEnvironment().requeue()
    assert "No such file or directory: 'scontrol'" in caplog.text


@pytest.mark.parametrize(
    ("environment", "sent", "requeues"),
    [
        ({"auto_requeue": False}, signal.SIGUSR1, False),
        ({"requeue_signal": signal.SIGHUP}, signal.SIGHUP, True),
        ({"requeue_signal": signal.SIGHUP}, signal.SIGUSR1, False),
        ({}, signal.SIGTERM, False),
    ],
)
def test_the_plugin_says_which_signal_puts_a_job_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, Any], sent: int, requeues: bool
) -> None:
    for name, value in scontrol(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SignalException) as ended:
        trainer_of(Do(kill(sent)), plugins=[SLURMEnvironment(**environment)]).fit(BoringModel())
    assert ended.value.code == 128 + sent
    assert (tmp_path / "bin/calls").exists() == requeues
    assert (tmp_path / "hpc_ckpt_1.ckpt").exists() == requeues


def test_interactive_jobs_of_slurm_are_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect()
    assert SLURMEnvironment.job_id() == 77
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not SLURMEnvironment.detect()
    assert SLURMEnvironment().requeue_signals == ()


def test_the_file_of_slurm_is_named_when_it_is_not_there() -> None:
    with pytest.raises(ValueError, match=r'ckpt_path="hpc".* finds no `hpc_ckpt_<n>.ckpt`'):
        trainer_of().fit(BoringModel(), ckpt_path="hpc")
