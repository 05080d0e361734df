"""Loads the files of tests/hostile.py through every public door and prints what happened, as JSON lines.

Run in a process of its own, since audit hooks cannot be taken away: `python hostile_run.py FOLDER`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import hostile
import torch
from torch.utils.data import DataLoader

import inazuma as pl
from inazuma import files
from inazuma.testing import RandomDataset

HARMFUL = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.putenv", "os.kill"),
    *(
        "subprocess.",
        "shutil.",
        "socket.",
        "urllib.",
        "webbrowser.",
        "ctypes.dlopen",
        "tempfile.",
        "builtins.breakpoint",
    ),
)
seen: list[str] = []  # harmful events since the last look
is_watching = False


def audit(event: str, args: tuple[Any, ...]) -> None:
    if not is_watching:
        return
    if event.startswith(HARMFUL):
        seen.append(f"{event} {args!r}"[:200])
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append(f"open for writing {args!r}"[:200])
    elif event == "import" and str(args[0]).startswith("hostile_canary"):
        seen.append(f"import {args[0]}")


class Counter(pl.Callback):
    def __init__(self) -> None:
        self.n = 0

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n = dict(state_dict).get("n", 0) if isinstance(state_dict, dict) else 0


class Net(pl.LightningModule):
    def __init__(self, width: int = 4, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).sum()
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.layer(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


class Data(pl.LightningDataModule):
    def __init__(self, rows: int = 4, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.n = 0

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(4, 4))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.n = dict(state_dict).get("n", 0) if isinstance(state_dict, dict) else 0


def trainer(**arguments: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    limits = {f"limit_{stage}_batches": 1 for stage in ("train", "val", "test", "predict")}
    return pl.Trainer(**quiet, **limits, num_sanity_val_steps=0, max_epochs=2, callbacks=[Counter()], **arguments)


DOORS: dict[str, Any] = {
    "files.load": lambda path: files.load(path),
    "load_from_checkpoint": lambda path: Net.load_from_checkpoint(path),
    "datamodule": lambda path: Data.load_from_checkpoint(path),
    "fit": lambda path: trainer().fit(Net(), datamodule=Data(), ckpt_path=path),
    "validate": lambda path: trainer().validate(Net(), datamodule=Data(), ckpt_path=path, verbose=False),
    "test": lambda path: trainer().test(Net(), datamodule=Data(), ckpt_path=path, verbose=False),
    "predict": lambda path: trainer().predict(Net(), datamodule=Data(), ckpt_path=path),
}


def main(folder: Path) -> None:
    global is_watching
    warnings.simplefilter("ignore")
    logging.disable()
    os.chdir(folder)
    writer = trainer()
    writer.fit(Net(), datamodule=Data())
    writer.save_checkpoint("good.ckpt")
    good = torch.load("good.ckpt", weights_only=True)
    for door in DOORS.values():  # what is imported when it is first needed is there from here on
        door("good.ckpt")
    paths = hostile.craft(folder, folder / "trap", good)
    sys.path.insert(0, str(folder / "trap"))  # so that an import of the canary would work
    before = sorted(os.listdir(folder / "trap"))
    sys.addaudithook(audit)
    for name, path in paths.items():
        for door, call in DOORS.items():
            seen.clear()
            answer = {"file": name, "door": door, "error": None, "text": ""}
            is_watching = True
            try:
                with redirect_stdout(io.StringIO()):
                    call(path)
            except BaseException as error:
                answer.update(error=type(error).__name__, text=str(error)[:600])
            finally:
                is_watching = False
            changed = sorted(os.listdir(folder / "trap")) != before
            print(json.dumps({**answer, "events": list(seen), "changed": changed, "path": str(path)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
