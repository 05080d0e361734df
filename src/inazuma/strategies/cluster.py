"""What a cluster's scheduler tells a job, and how to ask it for something."""

from __future__ import annotations

import os
import re
import signal
import subprocess

from inazuma import files
from inazuma.ranks import log, rank_zero_info

_HPC = re.compile(r"hpc_ckpt_(\d+)\.ckpt")  # Lightning's name


class SLURMEnvironment:
    """A job under SLURM. Without one in `Trainer(plugins=...)` it is found by itself.

    Ask for a signal ahead of the time limit with `#SBATCH --signal=SIGUSR1@90` (90 seconds before).

    Args:
        auto_requeue: put the job back into the queue when it ends by the requeue signal.
        requeue_signal: the one that does this. Default: SIGUSR1 and SIGUSR2.
    """

    def __init__(self, auto_requeue: bool = True, requeue_signal: int | None = None) -> None:
        self.auto_requeue = auto_requeue
        self.requeue_signal = requeue_signal

    @staticmethod
    def detect() -> bool:
        """Whether this process is a task of a SLURM job, and not of an interactive one."""
        return "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_name() not in ("bash", "interactive")

    @staticmethod
    def job_name() -> str | None:
        return os.environ.get("SLURM_JOB_NAME")

    @staticmethod
    def job_id() -> int | None:
        """The number of the job; None in an interactive one, or outside of SLURM."""
        job = os.environ.get("SLURM_JOB_ID", "")
        return int(job) if job.isdecimal() and SLURMEnvironment.job_name() not in ("bash", "interactive") else None

    @property
    def requeue_signals(self) -> tuple[int, ...]:
        """The signals that put the job back into the queue; none if it cannot be."""
        if not self.auto_requeue or self.job_id() is None:
            return ()
        if self.requeue_signal is not None:
            return (int(self.requeue_signal),)
        return tuple(int(getattr(signal, name)) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))

    def requeue(self) -> None:
        """Put the job, or this task of an array, back into the queue. A failure is reported and ends nothing."""
        job, array, task = (os.environ.get(f"SLURM_{name}") for name in ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID"))
        if array is not None and task is not None:
            job = f"{array}_{task}"
        command = ["scontrol", "requeue", str(job)]
        try:  # in a session of its own, where signals to the job's processes do not end it
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60, start_new_session=True
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        else:
            if done.returncode == 0:
                rank_zero_info(f"SLURM puts job {job} back into the queue.")
                return
            problem = f"exit code {done.returncode}: {done.stderr.strip()}"
        log.error(f"`{' '.join(command)}` failed ({problem}). Submit the job again to go on with it.")


def hpc_checkpoint(folder: str) -> str | None:
    """The newest checkpoint `hpc_ckpt_<n>.ckpt` that a job left in a folder: the one with the largest n."""
    return max(_numbered(folder).items(), default=(0, None))[1]


def next_hpc_checkpoint(folder: str) -> str:
    """The path for the next one."""
    return files.join(folder, f"hpc_ckpt_{max(_numbered(folder), default=0) + 1}.ckpt")


def _numbered(folder: str) -> dict[int, str]:
    names = ((_HPC.fullmatch(os.path.basename(path)), path) for path in files.listdir(folder))
    return {int(found[1]): path for found, path in names if found}
