"""The batch that belongs to some indices, fetched in this process: what a DataLoader without workers does, directly.

Data that is held in tensors or arrays, and collated as torch collates by default, is indexed a batch at a time. That
gives the same bits as one sample after the other, many times faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

Fetch = Callable[[Any], Any]  # what a sampler gave for one batch -> the batch


def fetcher(loader: DataLoader[Any]) -> Fetch | None:
    """How to fetch the batches of this loader over a map-style data set; None where torch has to do it itself."""
    if loader.pin_memory or loader.timeout or type(loader)._get_iterator is not DataLoader._get_iterator:
        return None
    dataset: Any = loader.dataset
    collate = loader.collate_fn
    if loader.batch_sampler is None:
        return lambda index: collate(dataset[index])
    if callable(getattr(dataset, "__getitems__", None)):
        one_by_one: Fetch = lambda indices: collate(dataset.__getitems__(indices))  # noqa: E731
    else:
        one_by_one = lambda indices: collate([dataset[index] for index in indices])  # noqa: E731
    rows = _rows(dataset) if is_in_memory(loader) else None
    return one_by_one if rows is None else _at_once(rows, one_by_one)


def is_in_memory(loader: DataLoader[Any]) -> bool:
    """Whether all samples are known to lie in tensors or arrays, so that fetching them draws no random number."""
    is_plain = loader.batch_sampler is not None and loader.collate_fn is default_collate
    return is_plain and _rows(loader.dataset) is not None


def _at_once(rows: Fetch, one_by_one: Fetch) -> Fetch:
    def fetch(indices: Any) -> Any:
        try:
            return rows(indices)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return one_by_one(indices)  # negative indices and the like; and torch's own words for an error

    return fetch


def _rows(dataset: Any) -> Fetch | None:
    """How rows of this data are taken, where it is a tensor, an array, a TensorDataset or a Subset of these."""
    if type(dataset) is Subset:
        inner = _rows(dataset.dataset)
        return None if inner is None else lambda indices: inner([dataset.indices[index] for index in indices])
    if type(dataset) is TensorDataset:
        tensors = dataset.tensors
        return _rows_of_tensors(dataset) if tensors and all(map(_has_rows, tensors)) else None
    if _has_rows(dataset):
        return lambda indices: dataset.index_select(0, torch.tensor(indices))
    numpy = sys.modules.get("numpy")
    if numpy is not None and type(dataset) is numpy.ndarray and dataset.ndim > 1 and dataset.dtype.kind in "biuf":
        return lambda indices: torch.from_numpy(numpy.ascontiguousarray(dataset[indices]))
    return None


def _rows_of_tensors(dataset: TensorDataset) -> Fetch:
    known = dataset.tensors

    def rows(indices: Any) -> list[Tensor]:
        if dataset.tensors is not known:
            raise ValueError("the data set was given other tensors")
        where = torch.tensor(indices)
        return [tensor.index_select(0, where) for tensor in known]

    return rows


def _has_rows(data: Any) -> bool:
    is_plain = type(data) is Tensor and data.layout is torch.strided and not data.is_quantized
    return is_plain and data.dim() > 0 and data.device.type == "cpu"
