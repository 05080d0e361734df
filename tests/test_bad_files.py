"""Damaged, hostile and unfitting checkpoints, and data that fails: what the user reads, and that nothing runs."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset

from inazuma import Trainer
from inazuma.errors import CheckpointError, MisconfigurationException
from inazuma.testing import BoringDataModule, BoringModel, RandomDataset

SOURCE = Path(__file__).parents[1] / "src"


class Counting(BoringModel):
    """Four training batches and two validation batches; counts the training batches that began."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.begun += 1

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 4))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, 2))


class WithHead(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)


class Wide(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 4)


class TwoOptimizers(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return [SGD(self.parameters(), lr=0.1), SGD(self.parameters(), lr=0.1)]


class TwoGroups(Counting):
    def configure_optimizers(self) -> Any:
        return SGD([{"params": [self.layer.weight]}, {"params": [self.layer.bias]}], lr=0.1)


class WithSchedule(Counting):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, 1)]


def trainer(**arguments: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(**{"max_epochs": 1, "accelerator": "cpu", **quiet, **arguments})


def saved(module: BoringModel | None = None, **arguments: Any) -> Path:
    """A checkpoint of a finished run."""
    wrote = trainer(**arguments)
    wrote.fit(module or Counting())
    wrote.save_checkpoint("good.ckpt")
    return Path("good.ckpt")


def edited(**changes: Any) -> Path:
    """A checkpoint with these entries in place of its own; `...` leaves one out."""
    path = saved()
    content = {**torch.load(path), **changes}
    torch.save({key: value for key, value in content.items() if value is not ...}, path)
    return path


def refuses(
    path: Any, error: type[Exception] | tuple[type[Exception], ...], says: str, module: Counting | None = None
) -> str:
    """Resuming from `path` fails before the first batch, with an error that contains `says`; returns its text."""
    module = module or Counting()
    with pytest.raises(error, match=re.escape(says)) as raised:
        trainer(max_epochs=5).fit(module, ckpt_path=path)
    assert module.begun == 0
    return str(raised.value)


# --- files that are no checkpoints ---


def test_a_missing_file_is_named() -> None:
    refuses("nowhere.ckpt", FileNotFoundError, "Checkpoint file not found: nowhere.ckpt")


def test_a_truncated_file_is_named() -> None:
    path = saved()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(path, CheckpointError, "good.ckpt is damaged: its end is missing: it was cut short.")


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "(it is empty)"), (b"epoch,loss\n0,1.5\n", "it starts with the bytes b'epoc'")]
)
def test_an_empty_file_and_a_text_are_told_apart(content: bytes, says: str) -> None:
    Path("bad.ckpt").write_bytes(content)
    text = refuses("bad.ckpt", CheckpointError, says)
    assert text.startswith("bad.ckpt cannot be read")
    assert "Use an earlier checkpoint" in text


def test_a_directory_is_named() -> None:
    Path("runs").mkdir()
    refuses("runs", CheckpointError, "runs is a directory, not a checkpoint file. Name a file in it.")


def test_something_that_is_no_path_is_refused() -> None:
    refuses(3, TypeError, "A checkpoint is a path, an address or an open binary file, not 3.")


class Hostile:
    """Unpickled without care it creates the file `hacked`."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def hostile_entry() -> None:
    path = saved()
    torch.save({**torch.load(path), "extra": Hostile()}, "evil.ckpt")


def hostile_state() -> None:
    torch.save({"state_dict": Hostile()}, "evil.ckpt")


def hostile_pickle() -> None:
    Path("evil.ckpt").write_bytes(pickle.dumps({"state_dict": Hostile()}, protocol=2))


@pytest.mark.parametrize("write", [hostile_entry, hostile_state, hostile_pickle])
@pytest.mark.parametrize("how", ["fit", "test", "load_from_checkpoint"])
def test_a_hostile_file_is_named_with_what_it_would_call_and_runs_nothing(write: Callable[[], None], how: str) -> None:
    write()
    says = r"evil.ckpt holds (posix|nt).system, which is neither a tensor nor plain data"
    with pytest.raises(pickle.UnpicklingError, match=says) as raised:
        if how == "load_from_checkpoint":
            Counting.load_from_checkpoint("evil.ckpt")
        else:
            getattr(trainer(), how)(Counting(), ckpt_path="evil.ckpt")
    assert "only if, you trust the author" in str(raised.value)
    assert not Path("hacked").exists()


def test_a_hostile_pickle_of_another_protocol_runs_nothing() -> None:
    Path("evil.ckpt").write_bytes(pickle.dumps({"state_dict": Hostile()}, protocol=4))
    refuses("evil.ckpt", CheckpointError, "evil.ckpt cannot be read")
    assert not Path("hacked").exists()


# --- checkpoints of something else ---


def test_a_file_that_holds_no_dictionary_says_what_it_holds() -> None:
    torch.save([1, 2], "list.ckpt")
    refuses("list.ckpt", CheckpointError, "list.ckpt is not a checkpoint: it holds a list, not a dictionary.")


@pytest.mark.parametrize("how", ["fit", "load_from_checkpoint"])
def test_a_bare_state_dict_says_how_to_load_it(how: str) -> None:
    torch.save(Counting().state_dict(), "weights.pt")
    with pytest.raises(CheckpointError, match=re.escape("weights.pt is not a checkpoint of a module")) as raised:
        if how == "fit":
            trainer().fit(Counting(), ckpt_path="weights.pt")
        else:
            Counting.load_from_checkpoint("weights.pt")
    assert "['layer.weight', 'layer.bias']" in str(raised.value)
    assert "`module.load_state_dict(torch.load(path))` loads it" in str(raised.value)


def test_a_checkpoint_of_weights_only_cannot_be_resumed_from() -> None:
    wrote = trainer()
    wrote.fit(Counting())
    wrote.save_checkpoint("weights.ckpt", weights_only=True)
    refuses("weights.ckpt", KeyError, "checkpoint weights.ckpt contains only the model: it has no 'optimizer_states'")


@pytest.mark.parametrize(
    ("writer", "reader", "says"),
    [
        (Counting, WithHead, 'Missing key(s) in state_dict: "head.weight", "head.bias"'),
        (WithHead, Counting, 'Unexpected key(s) in state_dict: "head.weight", "head.bias"'),
        (Wide, Counting, "size mismatch for layer.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named_with_the_file(
    writer: type[Counting], reader: type[Counting], says: str
) -> None:
    text = refuses(saved(writer()), RuntimeError, says, reader())
    assert text.startswith(f"The weights in checkpoint good.ckpt do not fit `{reader.__name__}`")
    assert "`self.strict_loading = False`" in text


@pytest.mark.parametrize(
    ("writer", "error", "says"),
    [
        (TwoOptimizers, CheckpointError, "optimizers: checkpoint good.ckpt has 2, this run has 1."),
        (WithSchedule, CheckpointError, "lr_schedulers: checkpoint good.ckpt has 1, this run has 0."),
        (TwoGroups, ValueError, "optimizers[0] of checkpoint good.ckpt does not fit this run: "),
    ],
)
def test_optimizers_of_another_run_are_counted(writer: type[Counting], error: type[Exception], says: str) -> None:
    refuses(saved(writer()), error, says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state_dict": 3}, "good.ckpt is not a checkpoint of a module"),
        ({"state_dict": ...}, "good.ckpt is not a checkpoint of a module"),
        (
            {"inazuma": {"format": 1}},
            "The training state in checkpoint good.ckpt cannot be read: `inazuma.progress` is missing.",
        ),
        ({"inazuma": {"format": 99}}, "good.ckpt was written by a newer inazuma (format 99; this one knows"),
        ({"inazuma": ..., "loops": {}}, "The position in checkpoint good.ckpt cannot be read (KeyError('fit_loop'))"),
        ({"optimizer_states": 3}, "optimizers: checkpoint good.ckpt has no list of them, this run has 1."),
        (
            {"optimizer_states": [{}]},
            "optimizers[0] of checkpoint good.ckpt cannot be loaded: KeyError('param_groups')",
        ),
    ],
)
def test_a_damaged_entry_is_named_with_the_file(changes: dict[str, Any], says: str) -> None:
    refuses(edited(**changes), CheckpointError, says)


def test_a_checkpoint_beyond_max_epochs_says_how_to_go_on() -> None:
    path = saved(max_epochs=7)
    refuses(path, MisconfigurationException, "current_epoch=7, which is beyond Trainer(max_epochs=5).")


def test_best_without_a_callback_that_knows_it_is_refused() -> None:
    refuses("best", ValueError, '`.fit(ckpt_path="best")` is set but the Trainer has no `ModelCheckpoint`')


def test_saving_before_there_is_a_module_is_refused() -> None:
    with pytest.raises(AttributeError, match="has nothing to save before a model came to the Trainer"):
        trainer().save_checkpoint("early.ckpt")


def test_loading_from_a_checkpoint_on_an_instance_or_without_arguments_is_refused() -> None:
    class Sized(Counting):
        def __init__(self, width: int) -> None:
            super().__init__()

    path = saved()
    with pytest.raises(TypeError, match=r"`Counting.load_from_checkpoint` makes an object and cannot be called on"):
        Counting().load_from_checkpoint(path)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'width'.*\(\.\.\., width=\.\.\.\)"):
        Sized.load_from_checkpoint(path)


# --- loaders ---


@pytest.mark.parametrize("slot", ["train_dataloaders", "val_dataloaders"])
@pytest.mark.parametrize(
    ("given", "says"),
    [
        (5, "5 cannot be iterated"),
        ("data/train", "'data/train' is a text, not data"),
        (DataLoader, "is a class, not an instance of it"),
        (lambda: None, "cannot be iterated"),
    ],
)
def test_what_is_no_loader_is_named_with_its_argument(slot: str, given: Any, says: str) -> None:
    module = Counting()
    with pytest.raises(TypeError, match=re.escape(f"given by `Trainer.fit({slot}=...)`")) as raised:
        trainer(num_sanity_val_steps=0).fit(module, **{slot: given})
    assert says in str(raised.value)
    assert "Give a DataLoader" in str(raised.value)
    assert module.begun == 0


def test_a_hook_that_forgets_to_return_its_loader_is_named() -> None:
    module = type("Model", (Counting,), {"train_dataloader": lambda self: None})()
    with pytest.raises(TypeError, match=r"An invalid dataloader was given by `Model.train_dataloader\(\)`: None"):
        trainer().fit(module)


def test_an_empty_loader_is_named() -> None:
    module = Counting()
    with pytest.warns(UserWarning, match=re.escape("`Trainer.fit(train_dataloaders=...)` has no batches")):
        trainer().fit(module, DataLoader(RandomDataset(32, 0)))
    assert module.begun == 0


def test_no_loader_at_all_is_refused() -> None:
    class Model(BoringModel):
        train_dataloader = None  # type: ignore[assignment]

    with pytest.raises(MisconfigurationException, match="No training data: `train_dataloader` must be implemented"):
        trainer().fit(Model())


def test_a_mean_over_batches_of_unknown_size_is_refused() -> None:
    class Model(Counting):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(torch.ones(1, 32)).sum()
            self.log("loss", loss, on_epoch=True)
            return loss

    with pytest.raises(MisconfigurationException, match=re.escape("`self.log(..., batch_size=batch_size)`")) as raised:
        trainer().fit(Model(), [["a text", "another"]])
    assert "the batch of type list" in str(raised.value)


# --- data that fails while it is read ---


class BadImage(Exception):
    """An exception of the user."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is no image")


class Images(Dataset[Tensor]):
    """Six samples; the fourth cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        if index == 3:
            raise self.error
        return torch.randn(32)


def cannot_stack(samples: list[Tensor]) -> Tensor:
    raise ValueError("cannot stack images")


def failing_stream() -> Iterator[Tensor]:
    yield torch.randn(1, 32)
    yield torch.randn(1, 32)
    raise OSError("the disk is gone")


WHERE = "Between hooks, where batches are fetched, at epoch 0, "


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [KeyError, ValueError, BadImage])
def test_the_exception_of_a_dataset_arrives_with_its_place(kind: type[Exception], workers: int) -> None:
    module = Counting()
    with pytest.raises(kind) as raised:
        trainer().fit(module, DataLoader(Images(kind("img_7.png")), num_workers=workers))
    text = str(raised.value)
    assert text.splitlines()[0].strip("'").startswith("img_7.png")
    assert ("Original Traceback" in text) == bool(workers)
    assert module.begun == 3
    assert raised.value.__notes__ == [f"{WHERE}batch 3, global step 3, rank 0 (train)."]  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_exception_of_a_collate_function_arrives_with_its_place(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^cannot stack images") as raised:
        trainer().fit(Counting(), DataLoader(RandomDataset(32, 4), collate_fn=cannot_stack, num_workers=workers))
    assert raised.value.__notes__ == [f"{WHERE}batch 0, global step 0, rank 0 (train)."]  # type: ignore[attr-defined]


def test_the_exception_of_an_iterable_arrives_with_its_place() -> None:
    with pytest.raises(OSError, match=r"^the disk is gone") as raised:
        trainer().fit(Counting(), failing_stream())
    assert raised.value.__notes__[0].startswith(f"{WHERE}batch 1")  # type: ignore[attr-defined]  # it looks one ahead


def test_the_exception_of_validation_data_arrives_with_its_place() -> None:
    module = Counting()
    with pytest.raises(OSError, match=r"^the disk is gone") as raised:
        trainer(num_sanity_val_steps=-1).fit(module, val_dataloaders=failing_stream())
    place = f"{WHERE}after 0 training batches, global step 0, rank 0 (sanity_check)."
    assert raised.value.__notes__ == [place]  # type: ignore[attr-defined]
    assert module.begun == 0


def test_the_exception_of_a_datamodule_arrives_with_its_place() -> None:
    class Broken(BoringDataModule):
        def setup(self, stage: str) -> None:
            raise FileNotFoundError("data/train.csv")

    with pytest.raises(FileNotFoundError, match=r"^data/train.csv") as raised:
        trainer().fit(Counting(), datamodule=Broken())
    assert raised.value.__notes__[0].startswith("In `setup` at epoch 0")  # type: ignore[attr-defined]


# --- what a plain script prints ---


def printed(script: str) -> list[str]:
    """The traceback that a script ends with, line by line."""
    Path("script.py").write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    return lines[lines.index("Traceback (most recent call last):") :]


@pytest.mark.parametrize("arguments", ["", "logger=False, enable_progress_bar=False"])
@pytest.mark.parametrize("optimization", ["automatic", "manual"])
def test_the_traceback_of_an_error_in_training_step_is_short(arguments: str, optimization: str) -> None:
    lines = printed(
        f"""
        from inazuma import Trainer
        from inazuma.testing import BoringModel

        class Model(BoringModel):
            def training_step(self, batch, batch_idx):
                raise ValueError("labels and images differ in number")

        model = Model()
        model.automatic_optimization = {optimization == "automatic"}
        Trainer(max_epochs=1, {arguments}).fit(model)
        """
    )
    assert len(lines) < 40, "\n".join(lines)
    assert lines.count("Traceback (most recent call last):") == 1
    assert lines[-2:] == [
        "ValueError: labels and images differ in number",
        "In `training_step` at epoch 0, batch 0, global step 0, rank 0 (train).",
    ]


@pytest.mark.parametrize("slot", ["train_dataloaders", "val_dataloaders"])
def test_a_worker_that_is_killed_ends_the_run_with_one_clear_error(slot: str) -> None:
    lines = printed(
        f"""
        import os
        import torch
        from torch.utils.data import DataLoader, Dataset
        from inazuma import Callback, Trainer
        from inazuma.testing import BoringModel

        class Killed(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                if index == 3:
                    os.kill(os.getpid(), {int(signal.SIGKILL)})
                return torch.randn(32)

        class Told(Callback):
            def on_exception(self, trainer, pl_module, exception):
                open("told", "w").write(str(exception))

        if __name__ == "__main__":
            trainer = Trainer(max_epochs=1, num_sanity_val_steps=-1, callbacks=Told())
            trainer.fit(BoringModel(), {slot}=DataLoader(Killed(), num_workers=1))
        """
    )
    assert lines.count("Traceback (most recent call last):") == 1
    assert re.match(r"RuntimeError: DataLoader worker .*num_workers=0 shows where", lines[-2])
    assert lines[-1].startswith(WHERE)
    assert "num_workers=0 shows where" in Path("told").read_text()
