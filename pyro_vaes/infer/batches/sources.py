"""Rows of data in memory: tensors, or whatever a data set collates.

A *source* has a length, ``batch(index, generator)`` that returns the model's positional arguments for those rows (with
fresh preprocessing noise from the generator, or fixed noise without one), and ``to(device)``.
"""

from collections.abc import Sized
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

Batch = tuple[object, ...]
Device = torch.device | str
EMPTY = "The data set is empty: it has 0 rows. Is the path, the split or the filter right?"


@runtime_checkable
class Source(Protocol):
    """Rows of data in memory, on a device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Batch: ...

    def to(self, device: Device) -> "Source": ...


class TensorSource:
    """Tensors that share their first dimension, as a source."""

    def __init__(self, *tensors: Tensor) -> None:
        lengths = [len(t) for t in tensors]
        if len(set(lengths)) != 1:
            raise ValueError(f"Tensors of one data set need the same number of rows, but got {lengths}.")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Batch:
        if isinstance(index, slice):
            return tuple(t[index] for t in self.tensors)
        return tuple(t.index_select(0, index.to(t.device)) for t in self.tensors)

    def suspects(self) -> Tensor:
        """Rows worth a look before training: those that hold the extreme or non-finite values of a tensor."""
        rows = [torch.arange(1)]
        for tensor in self.tensors:
            if tensor.numel() and tensor.dtype != torch.bool and not tensor.is_complex():
                # first by rows, which is five times as fast; NaN is both extremes
                flat = tensor.reshape(len(tensor), -1)
                extremes = flat.amin(1).argmin(), flat.amax(1).argmax()
                rows += [row.cpu().reshape(1) for row in extremes]
        return torch.cat(rows)

    def to(self, device: Device) -> "TensorSource":
        return TensorSource(*(t.to(device) for t in self.tensors))


def as_tensor(value: object) -> Tensor | None:
    """A tensor from a tensor or a numeric array; floating arrays take torch's default dtype."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        if tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        return tensor
    return None


@dataclass(eq=False)
class DatasetSource:
    """A torch Dataset with a length, as a source; rows are collated one by one."""

    dataset: Dataset[object]
    device: Device = "cpu"

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset)

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Batch:
        rows = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        try:
            batch = default_collate([self.dataset[row] for row in rows])
        except TypeError as error:
            raise ValueError(
                f"The rows of {type(self.dataset).__name__} cannot be put into one batch: {error}. Give the data set a "
                "transform that returns tensors, such as torchvision.transforms.ToTensor()."
            ) from error
        return on_device(batch, self.device)

    def to(self, device: Device) -> "DatasetSource":
        return DatasetSource(self.dataset, device)


def on_device(batch: object, device: Device) -> Batch:
    """A batch as a tuple, its tensors on this device."""
    items = batch if isinstance(batch, tuple | list) else (batch,)
    return tuple(item_on_device(item, device) for item in items)


def item_on_device(item: object, device: Device) -> object:
    """A tensor or an array as a tensor on this device, anything else as it is."""
    tensor = as_tensor(item)
    return item if tensor is None else tensor.to(device, non_blocking=True)
