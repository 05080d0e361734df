"""The base of all profilers: how long the named actions of a run take, and where the report goes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from inazuma import files
from inazuma.files import PathLike
from inazuma.ranks import rank_zero_info
from inazuma.weak import Weak

if TYPE_CHECKING:
    from inazuma.module import LightningModule


class Profiler(ABC):
    """Measures actions between `start` and `stop`. Subclass it to measure in a way of your own.

    With a profiler the Trainer wraps every hook, step and loader in `profile(action)`; without one this costs nothing.
    The names of actions say who acts: `[LightningModule]Net.training_step`, `[Callback]<state key>.on_train_start`,
    `[Strategy]DDPStrategy.backward`, `[LightningDataModule]Data.setup`, `run_training_epoch`, `save_checkpoint`, ...

    Args:
        dirpath: where the report goes; None: the Trainer's `log_dir`.
        filename: the report is appended to `<stage>-<filename>[-<rank>].txt` in `dirpath`. None: it is logged at level
            INFO, by rank 0 only.
    """

    lightning_module: Weak[LightningModule] = Weak()  # the Trainer sets it before `setup`

    _stage: str | None = None
    _local_rank: int | None = None

    def __init__(self, dirpath: PathLike | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename

    @abstractmethod
    def start(self, action_name: str) -> None:
        """The action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """The action is over."""

    def summary(self) -> str:
        """The report; empty: there is nothing to say."""
        return ""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what runs inside the `with` block, also when it raises."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def describe(self) -> None:
        """Write the report, then tear down. Called when a run ends; works without a Trainer too."""
        if report := self.summary():
            if self.filename and self.dirpath:
                with self.open(self.file_name(), "a") as file:
                    file.write(report)
            else:
                rank_zero_info(report)
        self.teardown(self._stage)

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: "fit", "validate", "test" or "predict".
            local_rank: the rank of this process on its machine; None in a run of one process.
            log_dir: where files go if the profiler was given no `dirpath`.
        """
        self._stage = stage
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir

    def teardown(self, stage: str | None) -> None:
        """A run ends. Called after the report is written, and again when the run broke off."""

    @property
    def local_rank(self) -> int:
        """The rank of this process on its machine."""
        return self._local_rank or 0

    def file_name(self, action_name: str | None = None, extension: str = ".txt") -> str:
        """`<stage>-<filename>-<rank>-<action><extension>`, less what is not known; fit for every file system."""
        parts = [self._stage, self.filename, self._local_rank, action_name]
        name = "-".join(str(part) for part in parts if part is not None and part != "")
        name = re.sub(r'[\\/:*?"<>|\n\r\t_]+', "_", name).strip() or "profile"
        if len(name) > 200:  # a file system takes 255; the end tells the hook
            name = f"{name[:90]}_{name[-109:]}"
        return name + extension

    def open(self, name: str, mode: str) -> IO[Any]:
        """Open the file `name` in `dirpath`, which may be an address for fsspec, and is created if missing."""
        if self.dirpath is None:
            raise ValueError(f"{type(self).__name__} has no directory for {name}: give it a dirpath=.")
        files.makedirs(self.dirpath)
        path = files.join(self.dirpath, name)
        if files.is_local(path):
            return open(path, mode, encoding=None if "b" in mode else "utf-8")
        import fsspec

        file: IO[Any] = fsspec.open(path, mode).open()
        return file

    def report_of(self, sections: dict[str, str]) -> str:
        """A report with one section for each action."""
        stage = f"{self._stage.upper()} " if self._stage else ""
        rank = "" if self._local_rank is None else f" rank: {self._local_rank}"
        lines = [f"{stage}Profiler Report"]
        for action, text in sections.items():
            lines += [f"Profile stats for: {action}{rank}", text]
        return "\n".join(lines)
