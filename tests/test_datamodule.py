from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, TensorDataset

from inazuma import files
from inazuma.datahooks import DataHooks
from inazuma.datamodule import LightningDataModule
from inazuma.errors import MisconfigurationException
from inazuma.hparams import dump_hparams

FIVE = TensorDataset(torch.arange(5))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield 1


class Digits(LightningDataModule):
    def __init__(self, folder: Path, batch_size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


def saved(datamodule: LightningDataModule, path: Path) -> Path:
    """A checkpoint with what concerns the datamodule."""
    checkpoint: dict[str, Any] = {"state_dict": {}, type(datamodule).__qualname__: datamodule.state_dict()}
    dump_hparams(datamodule, checkpoint)
    files.atomic_save(checkpoint, path)
    return path


def test_the_defaults() -> None:
    datamodule = LightningDataModule()
    assert datamodule.name is None
    assert datamodule.trainer is None
    assert datamodule.prepare_data_per_node is True
    assert datamodule.allow_zero_length_dataloader_with_multiple_devices is False
    assert datamodule.state_dict() == {}
    assert datamodule.hparams == {}


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_a_loader_that_is_not_defined_says_so(stage: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"`{stage}_dataloader` must be implemented"):
        getattr(LightningDataModule(), f"{stage}_dataloader")()


def test_the_hooks_of_a_batch_move_it_and_leave_it_as_it_is() -> None:
    hooks = DataHooks()
    batch = {"x": torch.zeros(2), "name": "a"}
    assert hooks.on_before_batch_transfer(batch, 0) is batch
    moved = hooks.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["x"].device.type == "meta"
    assert moved["name"] == "a"
    assert hooks.on_after_batch_transfer(batch, 0) is batch


# From datasets


def test_loaders_are_made_from_datasets() -> None:
    datamodule = LightningDataModule.from_datasets(FIVE, [FIVE, FIVE], {"a": FIVE}, FIVE, batch_size=2)
    train = datamodule.train_dataloader()
    assert (train.batch_size, train.num_workers, train.dataset) == (2, 0, FIVE)
    assert isinstance(train.sampler, RandomSampler)
    val = datamodule.val_dataloader()
    assert [type(loader.sampler) for loader in val] == [SequentialSampler, SequentialSampler]
    assert list(datamodule.test_dataloader()) == ["a"]
    assert [batch.tolist() for (batch,) in datamodule.predict_dataloader()] == [[0, 1], [2, 3], [4]]


def test_a_stream_is_not_shuffled() -> None:
    assert list(LightningDataModule.from_datasets(Stream()).train_dataloader()) == [torch.tensor([1])]


def test_a_stage_without_dataset_is_left_to_the_class() -> None:
    class WithTest(LightningDataModule):
        def test_dataloader(self) -> str:
            return "own"

    datamodule = WithTest.from_datasets(FIVE)
    assert datamodule.test_dataloader() == "own"
    with pytest.raises(MisconfigurationException, match="`val_dataloader` must be implemented"):
        datamodule.val_dataloader()


def test_the_class_gets_its_arguments(tmp_path: Path) -> None:
    datamodule = Digits.from_datasets(FIVE, batch_size=3, folder=tmp_path)
    assert isinstance(datamodule, Digits)
    assert datamodule.hparams == {"folder": tmp_path, "batch_size": 3}
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'folder'"):
        Digits.from_datasets(FIVE)


def test_a_class_that_takes_all_gets_all() -> None:
    class Greedy(LightningDataModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()
            self.save_hyperparameters()

    datamodule = Greedy.from_datasets(FIVE, num_workers=1, x=1)
    assert datamodule.hparams == {"x": 1, "batch_size": 1, "num_workers": 1}


# As text


def test_the_text_lists_the_datasets() -> None:
    class Several(LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(FIVE)

        def val_dataloader(self) -> Any:
            return [DataLoader(FIVE), DataLoader(Stream())]

        def test_dataloader(self) -> Any:
            return {"a": DataLoader(FIVE), "b": [1, 2]}

    assert str(Several()) == (
        "{Train dataloader: size=5}\n"
        "{Validation dataloader: 0. size=5 ; 1. size=NA}\n"
        "{Test dataloader: a. size=5 ; b. size=2}\n"
        "{Predict dataloader: None}"
    )


@pytest.mark.parametrize("dataset", [FIVE, Stream(), None], ids=["sized", "stream", "none"])
def test_the_text_is_lightnings(dataset: Any) -> None:
    import lightning.pytorch as pl

    assert str(LightningDataModule.from_datasets(dataset)) == str(pl.LightningDataModule.from_datasets(dataset))


# From a checkpoint


def test_a_datamodule_is_built_again_with_its_state(tmp_path: Path) -> None:
    datamodule = Digits(tmp_path, batch_size=4)
    datamodule.position = 7
    path = saved(datamodule, tmp_path / "a.ckpt")
    again = Digits.load_from_checkpoint(path)
    assert isinstance(again, Digits)
    assert again.hparams == {"folder": tmp_path, "batch_size": 4}
    assert again.position == 7
    assert Digits.load_from_checkpoint(path, batch_size=8).hparams.batch_size == 8


def test_the_hyper_parameters_of_the_module_are_not_mixed_in(tmp_path: Path) -> None:
    path = saved(Digits(tmp_path), tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    assert {key for key in content if "hparams" in key or "hyper" in key} == {
        "datamodule_hparams_name",
        "datamodule_hparams_notes",
        "datamodule_hyper_parameters",
    }


def test_a_file_replaces_the_stored_hyper_parameters(tmp_path: Path) -> None:
    path = saved(Digits(tmp_path), tmp_path / "a.ckpt")
    (tmp_path / "h.yaml").write_text("folder: there\nbatch_size: 16\n")
    again = Digits.load_from_checkpoint(path, hparams_file=tmp_path / "h.yaml")
    assert again.hparams == {"folder": "there", "batch_size": 16}


def test_a_missing_argument_is_explained(tmp_path: Path) -> None:
    files.atomic_save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=r"'folder' is not among .* Digits.load_from_checkpoint\(..., folder=...\)"):
        Digits.load_from_checkpoint(tmp_path / "a.ckpt")


def test_loading_on_an_instance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`Digits.load_from_checkpoint` makes an object and cannot be called on"):
        Digits(tmp_path).load_from_checkpoint(tmp_path / "a.ckpt")


def test_a_real_checkpoint_of_lightning_is_read(tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Theirs(pl.LightningDataModule):
        def __init__(self, folder: str, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.strategy.connect(BoringModel())
    trainer._data_connector.attach_datamodule(BoringModel(), datamodule=Theirs("data", 4))
    trainer.save_checkpoint(tmp_path / "theirs.ckpt", weights_only=True)
    again = Digits.load_from_checkpoint(tmp_path / "theirs.ckpt")
    assert again.hparams == {"folder": "data", "batch_size": 4}
