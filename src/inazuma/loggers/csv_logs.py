"""CSVLogger: metrics as rows of a CSV file, hyperparameters as YAML; needs no package besides torch."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor

from inazuma import files
from inazuma.files import PathLike
from inazuma.loggers.logger import rank_zero_experiment
from inazuma.loggers.utilities import HPARAMS_FILE, DirectoryLogger, as_dict, move, open_text, save_hparams_to_yaml
from inazuma.ranks import rank_zero_only, rank_zero_warn


class CSVLogger(DirectoryLogger):
    """Write metrics to `<save_dir>/<name>/version_<n>/metrics.csv` and hyperparameters to `hparams.yaml` beside it.

    The columns are the sorted names of all metrics so far and `step`. A row costs the same however long the run is;
    only when a new name appears the file is written anew, row by row.

    Args:
        save_dir: the directory above all experiments; a local path, or an address for fsspec (`inazuma[remote]`).
        name: the directory of the experiment; empty or None leaves this level out.
        version: a number, or a string that is the directory's name; None takes the next free number.
        prefix: put before the name of every metric, with "-" between.
        flush_logs_every_n_steps: `log_metrics` itself saves in every step whose number plus one is a multiple of this.
            The Trainer saves after every call anyway.
        append: what to do with a `metrics.csv` that is there already: True continues it, False deletes it with a
            warning. A run that is resumed with the same `version` continues it in either case, from the row where its
            checkpoint was saved: it ends with the rows of the straight run.
    """

    def __init__(
        self,
        save_dir: PathLike,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        *,
        append: bool = False,
    ) -> None:
        super().__init__(save_dir, name, version, prefix)
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._append = append
        self._experiment: ExperimentWriter | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of this version's files; the directory is created when it is first asked for."""
        if self._experiment is None:
            self._experiment = ExperimentWriter(self.log_dir, append=self._append)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None = None) -> None:
        """Add hyperparameters to those logged before and write all of them."""
        self.experiment.log_hparams(as_dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Add a row. Without a `step` it is the number of rows that wait to be saved."""
        step = len(self.experiment.metrics) if step is None else step
        self.experiment.log_metrics(self.add_prefix(metrics), step)
        if (step + 1) % self._flush_logs_every_n_steps == 0:
            self.save()

    def position(self) -> dict[str, Any] | None:
        """The file, and how many rows it has, those that wait included."""
        writer = self._experiment
        return None if writer is None else {"path": writer.metrics_file_path, "rows": writer.num_rows}

    @rank_zero_only
    def resume(self, position: Any, step: int) -> None:
        """Continue the file where the checkpoint left it. Without a position: without the rows of `step` and later."""
        writer = self.experiment
        if position is None or position["path"] == writer.metrics_file_path:
            writer.rewind(None if position is None else position["rows"], step)

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that wait."""
        self.experiment.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that wait; where nothing was ever logged, nothing is created."""
        if self._experiment is not None:
            self.save()


class ExperimentWriter:
    """Writes the files of one version of a `CSVLogger`.

    Args:
        log_dir: the directory of the files; created if it is missing.
        append: continue a `metrics.csv` that is there, instead of deleting it with a warning.

    `metrics` are the rows not yet saved, `metrics_keys` the columns of the file, `hparams` all that was logged.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = HPARAMS_FILE

    def __init__(self, log_dir: str, *, append: bool = False) -> None:
        self.log_dir = log_dir
        self.metrics_file_path = files.join(log_dir, self.NAME_METRICS_FILE)
        self.hparams: dict[str, Any] = {}
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        files.makedirs(log_dir)
        self._saved_rows = 0
        self._is_old = files.exists(self.metrics_file_path)  # it is to be deleted, unless a run is resumed
        if append and self._is_old:
            self.rewind(None, None)

    @property
    def num_rows(self) -> int:
        """Rows logged so far, in the file and waiting."""
        return self._saved_rows + len(self.metrics)

    def rewind(self, rows: int | None, step: int | None) -> None:
        """Continue the file that is there: its first `rows` rows, or those before `step`, or all of it."""
        if not files.exists(self.metrics_file_path):
            return
        with open_text(self.metrics_file_path, "r") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            kept = total = 0
            for row in reader:
                total += 1
                is_early = step is None or int(row[columns.index("step")]) < step
                kept += (total <= rows) if rows is not None else is_early
        if rows is not None and kept < rows:
            return  # another file than the one that the checkpoint knows
        self.metrics, self.metrics_keys, self._saved_rows, self._is_old = [], columns, kept, False
        if kept < total:
            self._rewrite(columns, kept)

    def log_hparams(self, params: Mapping[str, Any]) -> None:
        """Add hyperparameters and write all of them to `hparams.yaml`."""
        self.hparams.update(params)
        save_hparams_to_yaml(files.join(self.log_dir, self.NAME_HPARAMS_FILE), self.hparams)

    def log_metrics(self, metrics_dict: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Add a row; a tensor gives its only element, which waits for its device."""
        if self._is_old:
            rank_zero_warn(
                f"The log directory {self.log_dir} exists and is not empty: its {self.NAME_METRICS_FILE} is deleted "
                "now. To keep such a file give the logger another version, or append=True to continue it."
            )
            files.remove(self.metrics_file_path)
            self._is_old = False
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics_dict.items()}
        row["step"] = len(self.metrics) if step is None else step
        self.metrics.append(row)

    def save(self) -> None:
        """Append the waiting rows to the file and hand it to the operating system."""
        if not self.metrics:
            return
        is_new = not files.exists(self.metrics_file_path)
        if new_keys := {name for row in self.metrics for name in row}.difference(self.metrics_keys):
            columns = sorted([*self.metrics_keys, *new_keys])
            if not is_new:
                self._rewrite(columns)
            self.metrics_keys = columns
        with open_text(self.metrics_file_path, "a") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(self.metrics_keys)
            writer.writerows([row.get(name, "") for name in self.metrics_keys] for row in self.metrics)
        self._saved_rows += len(self.metrics)
        self.metrics = []

    def _rewrite(self, columns: list[str], rows: int | None = None) -> None:
        """Give the file these columns, with empty cells in new ones, and only its first `rows` rows. Only one row at a
        time is in memory."""
        rewritten = f"{self.metrics_file_path}.new"
        with open_text(self.metrics_file_path, "r") as source, open_text(rewritten, "w") as target:
            writer = csv.DictWriter(target, columns)
            writer.writeheader()
            writer.writerows(islice(csv.DictReader(source), rows))
        move(rewritten, self.metrics_file_path)
