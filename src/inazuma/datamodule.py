"""LightningDataModule: the data of an experiment, apart from the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sized
from functools import partial
from typing import IO, TYPE_CHECKING, Any, ClassVar

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from inazuma import files
from inazuma.datahooks import DataHooks
from inazuma.errors import MisconfigurationException
from inazuma.hparams import HyperparametersMixin, OnlyOnClass, init_arguments
from inazuma.weak import Weak

if TYPE_CHECKING:
    from typing_extensions import Self

    from inazuma.trainer import Trainer


class LightningDataModule(DataHooks, HyperparametersMixin):
    """Download, split and load data in one object that can be shared. Override the methods you need.

    A run calls `prepare_data` in one process, then in every process `setup(stage)`, the methods that return loaders,
    and `teardown(stage)`.

    Attributes:
        name: free to use.
        trainer: the Trainer whose run this takes part in; None before, and when nobody holds the Trainer any more.
    """

    name: str | None = None
    trainer: Weak[Trainer] = Weak()

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "datamodule_hparams_type"
    CHECKPOINT_HYPER_PARAMS_NOTES: ClassVar[str] = "datamodule_hparams_notes"

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Make a datamodule that loads from datasets with plain `DataLoader`s, into pinned memory if there is a GPU.

        Args:
            train_dataset: a dataset, or a list or dictionary of datasets. Shuffled, unless an IterableDataset. The
                method of a stage whose dataset is None is left as the class defines it.
            val_dataset: as `train_dataset`; this one and the following are not shuffled.
            test_dataset: as `val_dataset`.
            predict_dataset: as `val_dataset`.
            batch_size: samples per batch.
            num_workers: processes that load, for each loader; 0 loads in this process.
            datamodule_kwargs: for `cls(...)`, which gets `batch_size` and `num_workers` too if it takes them.
        """
        parameters = inspect.signature(cls.__init__).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in {"batch_size": batch_size, "num_workers": num_workers}.items():
            if takes_all or name in parameters:
                datamodule_kwargs[name] = value
        datamodule = cls(**datamodule_kwargs)
        datasets = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for stage, dataset in datasets.items():
            if dataset is not None:
                loaders = partial(_loaders, dataset, stage == "train", batch_size, num_workers)
                setattr(datamodule, f"{stage}_dataloader", loaders)
        return datamodule

    @OnlyOnClass
    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: files.PathLike | IO[bytes],
        map_location: files.MapLocation = None,
        hparams_file: files.PathLike | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build the datamodule again from the hyper-parameters and the state that a checkpoint holds of it.

        Args:
            checkpoint_path: a path, an address or an open file; see `files.load`.
            map_location: where to put tensors; see `torch.load`.
            hparams_file: a `.yaml`, `.yml` or `.csv` file, used instead of the stored hyper-parameters.
            weights_only: refuse files with more than plain data and tensors; see `files.load`.
            kwargs: for `__init__`; they win over the stored hyper-parameters.

        Raises:
            TypeError: called on an instance, or `__init__` requires what is neither stored nor passed.
        """
        checkpoint = files.load(checkpoint_path, map_location=map_location, weights_only=weights_only)
        args, init_kwargs = init_arguments(cls, checkpoint, kwargs, hparams_file)
        datamodule = cls(*args, **init_kwargs)
        if cls.__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[cls.__qualname__])
        return datamodule

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint shall hold of this datamodule; an empty dictionary leaves no trace."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned; called before the loaders are asked for."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when a run ends with an exception, after the callbacks."""

    def __str__(self) -> str:
        """A line per stage with the sizes of its datasets; makes the loaders."""
        stages = {"Train": "train", "Validation": "val", "Test": "test", "Predict": "predict"}
        return "\n".join(f"{{{title} dataloader: {self._sizes(stage)}}}" for title, stage in stages.items())

    def _sizes(self, stage: str) -> str:
        try:
            loaders = getattr(self, f"{stage}_dataloader")()
        except MisconfigurationException:
            return "None"
        if isinstance(loaders, Mapping):
            return " ; ".join(f"{name}. {_size(loader)}" for name, loader in loaders.items())
        if isinstance(loaders, (list, tuple)):
            return " ; ".join(f"{i}. {_size(loader)}" for i, loader in enumerate(loaders))
        return _size(loaders)


def _loaders(dataset: Any, shuffle: bool, batch_size: int, num_workers: int) -> Any:
    """A loader for a dataset; a list or dictionary of them for a list or dictionary of datasets."""
    if isinstance(dataset, Mapping):
        return {name: _loaders(inner, shuffle, batch_size, num_workers) for name, inner in dataset.items()}
    if isinstance(dataset, (list, tuple)):
        return [_loaders(inner, shuffle, batch_size, num_workers) for inner in dataset]
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle and not isinstance(dataset, IterableDataset),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),  # torch warns without a GPU
    )


def _size(loader: Any) -> str:
    dataset = getattr(loader, "dataset", loader)
    return f"size={len(dataset)}" if isinstance(dataset, Sized) else "size=NA"
