"""Which files a run keeps, over crashes, resumes, other directories and other people's files.

Random lives of a run are held against `Reference`, which says the rules once more, without files.
"""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import inazuma
from inazuma.callbacks import ModelCheckpoint

NAN = float("nan")
INF = float("inf")


class Crash(Exception):
    pass


class Model(inazuma.LightningModule):
    """Logs the next of `metrics` at the end of each epoch of one step; None is left out. Crashes without any left."""

    def __init__(self, metrics: list[float | None]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.metrics = metrics

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.metrics:
            raise Crash
        return self.layer(batch).sum()

    def on_train_epoch_end(self) -> None:
        if (value := self.metrics.pop(0)) is not None:
            self.log("m", value)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(checkpoint: ModelCheckpoint, metrics: list[float | None], max_epochs: int, ckpt_path: Path | None) -> None:
    """Train until `max_epochs`, or until the metrics run out, which is a crash."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = inazuma.Trainer(max_epochs=max_epochs, accelerator="cpu", callbacks=[checkpoint], **quiet)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Model(metrics), DataLoader(torch.ones(1, 1)), ckpt_path=ckpt_path)


class Reference:
    """Best k of the files in a directory, over all resumes; only a strictly better one takes a place; `last` is newest.

    Names are "directory/name". A step that is run again replaces its file, unless with a worse one. The file a run was
    resumed from stays for that time. Names that others hold get a version.
    """

    def __init__(self, k: int, mode: str, save_last: bool) -> None:
        self.k, self.sign, self.save_last = k, 1 if mode == "min" else -1, save_last
        self.foreign, self.lasts = set[str](), dict[str, str]()  # `lasts` by directory
        self.own: dict[str, tuple[float, int]] = {}  # badness and step of all ranked files there are
        self.best = INF

    def start(self, directory: str, source: str) -> None:
        self.directory, self.source = directory, source
        here = sorted((path for path in self.own if path.startswith(directory)), key=self.own.__getitem__)
        self.kept = here if self.k == -1 else here[: self.k]

    def save(self, step: int, score: float | None) -> list[str]:
        """Returns what is written."""
        written = []
        if score is not None and self.k != 0:
            bad = INF if score != score else self.sign * score
            again = [path for path in self.kept if self.own[path][1] == step]
            worst_first = sorted(self.kept, key=lambda path: (-self.own[path][0], self.own[path][1]))
            leaving = again or worst_first[: 0 if self.k == -1 else max(0, len(self.kept) + 1 - self.k)]
            if not leaving or bad < self.own[leaving[-1]][0] or (again and bad == self.own[again[0]][0]):
                mine = {path for path in self.own if path in leaving or self.own[path][1] == step}
                path = self.free(f"epoch={step - 1}-step={step}", mine)
                self.kept = [other for other in self.kept if other not in leaving] + [path]
                self.own[path], self.best = (bad, step), min(self.best, bad)
                written.append(path)
        if self.save_last:
            self.lasts[self.directory] = self.free("last", {self.lasts.get(self.directory, "")})
            written.append(self.lasts[self.directory])
        if written:
            stay = {*self.kept, self.source}
            self.own = {p: v for p, v in self.own.items() if p in stay or not p.startswith(self.directory)}
        return written

    def free(self, stem: str, mine: set[str]) -> str:
        names = (f"{self.directory}/{stem}{version}.ckpt" for version in ("", "-v1", "-v2", "-v3"))
        return next(n for n in names if n in mine or n not in {*self.foreign, *self.own, *self.lasts.values()})


def live(seed: int, root: Path) -> None:
    """One random life of a run, compared with the reference after each of its parts."""
    draw = random.Random(seed)
    k, mode, save_last = draw.choice([-1, 0, 1, 1, 2, 3]), draw.choice(["min", "max"]), draw.random() < 0.6
    reference = Reference(k, mode, save_last)
    foreign: dict[str, bytes] = {}
    logged: dict[str, tuple[int, float | None]] = {}  # of each file: its step, and the metric known then
    directory, source, is_earlier = "a", "", False
    for part in range(draw.randint(1, 4)):
        if part and draw.random() < 0.25:
            other = draw.choice("abc")
            directory = directory if is_earlier else other  # elsewhere nobody knows what is behind that state
        for _ in range(draw.randint(0, 3)):  # other people's files, some where a file of the run is or will be
            step = draw.randint(1, 8)
            name = draw.choice([f"epoch={step - 1}-step={step}.ckpt", "last.ckpt", f"copy-{step}.ckpt", "notes.txt"])
            path, own = f"{directory}/{name}", sorted({*reference.own, *reference.lasts.values()})
            if (
                path == source
                or path in foreign
                or (path in own and reference.own.get(path, (0,))[0] == reference.best)
            ):
                continue
            (root / directory).mkdir(exist_ok=True)
            if own and "copy" in name:  # a copy of a file of the run is the user's
                shutil.copy(root / draw.choice(own), root / path)
            else:
                (root / path).unlink(missing_ok=True)
                torch.save({"global_step": 99, "seed": seed}, root / path)
            foreign[path] = (root / path).read_bytes()
            reference.own.pop(path, None)
            reference.lasts = {where: last for where, last in reference.lasts.items() if last != path}
        reference.foreign = set(foreign)
        reference.start(directory, source)
        begin, value = logged.get(source, (0, None))
        metrics = [draw.choice([None, NAN, 0.0, 1.0, 2.0, 3.0, 4.0, 0.5]) for _ in range(draw.randint(1, 4))]
        crashes = draw.random() < 0.4
        checkpoint = ModelCheckpoint(root / directory, monitor="m", mode=mode, save_top_k=k, save_last=save_last)
        max_epochs = begin + len(metrics) + crashes
        try:
            fit(checkpoint, list(metrics), max_epochs, root / source if source else None)
            assert not crashes
        except Crash:
            assert crashes
        for step, metric in enumerate(metrics, begin + 1):
            value = value if metric is None else metric
            for path in reference.save(step, value):
                logged[path] = (step, value)

        on_disk = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        assert on_disk == {*reference.own, *reference.lasts.values(), *foreign}
        assert {path: (root / path).read_bytes() for path in foreign} == foreign
        assert {str(Path(path).relative_to(root)) for path in checkpoint.best_k_models} == set(reference.kept)
        if checkpoint.best_model_score is None:
            assert not reference.own
        else:
            assert reference.sign * float(checkpoint.best_model_score) == reference.best
        if save_last:
            last = torch.load(root / reference.lasts[directory], weights_only=True)
            assert last["global_step"] == begin + len(metrics)
        newest = [path for path in logged if path in {*reference.own, *reference.lasts.values()}]
        if not newest:
            return
        source = max(newest, key=lambda path: (logged[path][0], path == reference.lasts.get(directory)))
        is_earlier = not any((root / other).exists() for other in "bc") and draw.random() < 0.4
        if is_earlier:
            source = draw.choice(sorted(newest))  # an earlier state: the files behind it are of this run, too


@pytest.mark.parametrize("tens", [*range(6), *(pytest.param(n, marks=pytest.mark.slow) for n in range(6, 30))])
def test_random_lives_of_a_run_keep_what_the_reference_keeps(tens: int, tmp_path: Path) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        root = tmp_path / str(seed)
        root.mkdir()
        try:
            live(seed, root)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
