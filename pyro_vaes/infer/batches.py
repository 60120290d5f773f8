"""Where the batches of a training loop come from: tensors in memory, data sets, loaders.

A *source* has a length, ``batch(index, generator)`` that returns the model's positional arguments for those rows (with
fresh preprocessing noise from the generator, or fixed noise without one), and ``to(device)``.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["LoaderBatches", "Source", "TensorSource", "as_batches", "train_and_valid"]

Batch = tuple[object, ...]


@runtime_checkable
class Source(Protocol):
    """Rows of data in memory, on a device."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> Batch: ...

    def to(self, device: torch.device | str) -> "Source": ...


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
        return tuple(t.index_select(0, index) for t in self.tensors)

    def suspects(self) -> Tensor:
        """Rows worth a look before training: the first ones, and those that hold extreme or non-finite values."""
        rows = [torch.arange(min(8, len(self)))]
        for tensor in self.tensors:
            flat = tensor.flatten()
            width = flat.numel() // len(self)
            rows += [(f(flat) // width).cpu().reshape(1) for f in (torch.argmin, torch.argmax) if flat.dtype != torch.bool]
        return torch.cat(rows).unique()

    def to(self, device: torch.device | str) -> "TensorSource":
        return TensorSource(*(t.to(device) for t in self.tensors))


def _tensor(value: object) -> Tensor | None:
    """A tensor from a tensor or a numeric array; floating arrays take torch's default dtype."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(torch.get_default_dtype()) if value.dtype.kind == "f" else tensor
    return None


class SourceBatches:
    """Seeded mini-batches of a source by index selection; an epoch's order depends only on the seed and the epoch."""

    def __init__(self, source: Source, batch_size: int, *, shuffle: bool, rank: int = 0, world_size: int = 1) -> None:
        if len(source) == 0:
            raise ValueError("The data set is empty: it has 0 rows. Is the path, the split or the filter right?")
        self.source, self.batch_size, self.shuffle = source, batch_size, shuffle
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    @property
    def num_data(self) -> int:
        return len(self.source)

    def to(self, device: torch.device) -> "SourceBatches":
        source = self.source.to(device)
        return SourceBatches(
            source, self.batch_size, shuffle=self.shuffle, rank=self.rank, world_size=self.world_size
        )

    def epoch(self, seed: int, epoch: int, device: torch.device) -> Iterator[Batch]:
        """The batches of one epoch; every rank gets its own rows of each batch."""
        if not self.shuffle:
            for start in range(0, len(self.source), self.batch_size):
                stop = min(start + self.batch_size, len(self.source))
                yield self.source.batch(slice(start + self.rank, stop, self.world_size))
            return
        order = torch.randperm(len(self.source), generator=_generator("cpu", seed, epoch, 0)).to(device)
        noise = _generator(device, seed, epoch, 1 + self.rank)
        for index in order.split(self.batch_size):
            yield self.source.batch(index[self.rank :: self.world_size], noise)


def _generator(device: torch.device | str, seed: int, epoch: int, stream: int) -> torch.Generator:
    """A generator of its own for every (seed, epoch, stream), so that resuming needs no generator state."""
    mixed = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(mixed))


class LoaderBatches:
    """Batches of a user's DataLoader, Dataset (through one) or iterable, moved to the device one by one."""

    def __init__(self, loader: Iterable[object], *, shuffle: bool) -> None:
        self.loader, self.shuffle = loader, shuffle
        length = getattr(loader, "__len__", None)
        self._length = length() if length is not None else None
        if self._length == 0:
            raise ValueError("The data set is empty: the loader has no batches. Is the path or the filter right?")
        if isinstance(loader, Iterator):
            raise ValueError(
                f"The data is a one-shot iterator ({type(loader).__name__}), which is exhausted after one epoch. Pass a "
                "DataLoader, a list of batches, or an object whose __iter__ starts afresh."
            )

    def __len__(self) -> int:
        return self._length or 0

    @property
    def num_data(self) -> int | None:
        dataset = getattr(self.loader, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else None

    def to(self, device: torch.device) -> "LoaderBatches":
        return self

    def epoch(self, seed: int, epoch: int, device: torch.device) -> Iterator[Batch]:
        for batch in self.loader:
            items = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            tensors = [_tensor(item) for item in items]
            yield tuple(t.to(device, non_blocking=True) if t is not None else i for t, i in zip(tensors, items, strict=True))


Batches = SourceBatches | LoaderBatches


def as_batches(data: object, batch_size: int, *, shuffle: bool, rank: int = 0, world_size: int = 1) -> Batches:
    """Batches from whatever a user has.

    Arguments:
        data: A tensor, an array, a tuple of these (the model's positional arguments), a :class:`Source`, a torch
            Dataset or DataLoader, or an iterable of batches that can be started again.
        batch_size: Rows per batch; a DataLoader and an iterable keep their own.
        shuffle: Whether rows are shuffled (with fresh preprocessing noise), as for training.
        rank: This process's number among ``world_size``.
        world_size: Number of processes that share a batch.

    Raises:
        ValueError: The data is empty, a one-shot iterator, or nothing of this kind; or the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, but got {batch_size}.")
    items = data if isinstance(data, tuple | list) else (data,)
    tensors = [_tensor(item) for item in items]
    shares_rows = isinstance(data, tuple) or len(items) == 1  # a list of tensors is an iterable of batches
    if items and shares_rows and all(t is not None for t in tensors):
        source: Source = TensorSource(*cast(Sequence[Tensor], tensors))
        return SourceBatches(source, batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
    if isinstance(data, Source):
        return SourceBatches(data, batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        if len(cast(list[object], data)) == 0:
            raise ValueError("The data set is empty: it has 0 rows. Is the path, the split or the filter right?")
        return LoaderBatches(DataLoader(data, batch_size=batch_size, shuffle=shuffle), shuffle=shuffle)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | dict):
        return LoaderBatches(data, shuffle=shuffle)
    raise ValueError(
        f"data is a {type(data).__name__}; a tensor, an array, a tuple of these, a data set from pyro_vaes.data.load, a "
        "torch Dataset or DataLoader, or an iterable of batches is wanted."
    )


def train_and_valid(data: object, valid: object | None) -> tuple[object, object | None]:
    """Split a data set with ``train`` and ``valid`` parts, unless a validation set is given."""
    if isinstance(getattr(data, "train", None), Source):
        part = getattr(data, "valid", None)
        part = part if part is not None and len(part) else None
        return data.train, part if valid is None else valid  # type: ignore[attr-defined]
    return data, valid
