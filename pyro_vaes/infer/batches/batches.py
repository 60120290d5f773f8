"""Where the batches of a training loop come from: sources of rows, loaders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..whole_numbers import whole_number
from .sources import (
    EMPTY,
    Batch,
    DatasetSource,
    Device,
    Source,
    TensorSource,
    as_tensor,
    item_on_device,
    on_device,
)
from .unusable_data import describe_parts, has_parts, refuse_lists_of_numbers


@dataclass(eq=False)
class SourceBatches:
    """Seeded mini-batches of a source by index selection; an epoch's order depends only on the seed and the epoch.

    With several processes each has its own rows of each batch, equally many while training: the order is filled up
    from its beginning, so that no process waits for another.
    """

    source: Source
    batch_size: int
    _: KW_ONLY
    shuffle: bool
    rank: int = 0
    world_size: int = 1
    keeps_last: bool = True  # also where the last batch is shorter than the others

    def __post_init__(self) -> None:
        self.num_data = len(self.source)
        if self.num_data == 0:
            raise ValueError(EMPTY)
        if self.shuffle and self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared equally by {self.world_size} processes; choose a "
                f"multiple of {self.world_size}."
            )

    def __len__(self) -> int:
        if not self.keeps_last:
            return self.num_data // self.batch_size
        return -(-self.num_data // self.batch_size)

    @property
    def last_size(self) -> int:
        """Rows of an epoch's last batch, over all processes."""
        return (self.num_data % self.batch_size if self.keeps_last else 0) or self.batch_size

    def to(self, device: torch.device) -> "SourceBatches":
        return replace(self, source=self.source.to(device))

    def whole(self) -> "SourceBatches":
        """The same batches without the last one where that is shorter than the others; the only one is kept.

        Which rows that leaves out is new in each epoch, as their order is.
        """
        assert self.shuffle
        return replace(self, keeps_last=self.num_data < self.batch_size)

    def epoch(self, seed: int, epoch: int, device: torch.device) -> Iterator[Batch]:
        """The batches of one epoch; every rank gets its own rows of each batch."""
        if not self.shuffle:
            for start in range(self.rank, self.num_data, self.batch_size):
                stop = min(start - self.rank + self.batch_size, self.num_data)
                yield self.source.batch(slice(start, stop, self.world_size))
            return

        order = torch.randperm(self.num_data, generator=_generator("cpu", seed, epoch, 0))
        filled = len(order) + -len(order) % self.world_size
        order = order[torch.arange(filled) % len(order)]

        noise = _generator(device, seed, epoch, 1 + self.rank)
        for index in order.to(device).split(self.batch_size)[: len(self)]:
            yield self.source.batch(index[self.rank :: self.world_size], noise)

    def suspects(self, rows: int) -> Batch | None:
        """A batch of that many rows with those in front that hold extreme or non-finite values, if they are known."""
        find = getattr(self.source, "suspects", None)
        if find is None:
            return None
        index = dict.fromkeys([*find().tolist(), *range(min(rows, self.num_data))])
        return self.source.batch(torch.tensor(list(index)[:rows]))


def derived_seed(seed: int, *stream: int) -> int:
    """A seed of its own for every stream, such as (epoch, rank), so that resuming needs no generator state."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint32)[0])


def _generator(device: Device, seed: int, epoch: int, stream: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(derived_seed(seed, epoch, stream))


def _length(data: object) -> int | None:
    """How many there are; None for a stream, and for a loader of one."""
    if not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except TypeError:
        return None


class LoaderBatches:
    """Batches of a user's DataLoader, Dataset (through one) or iterable, moved to the device one by one."""

    def __init__(self, loader: Iterable[object]) -> None:
        self.loader = loader
        self._length = _length(loader)
        if self._length == 0:
            raise ValueError("The data set is empty: the loader has no batches. Is the path or the filter right?")
        if isinstance(loader, Iterator):
            raise ValueError(
                f"The data is a one-shot iterator ({type(loader).__name__}), which is exhausted after one epoch. Pass "
                "a DataLoader, a list of batches, or an object whose __iter__ starts afresh."
            )

    def __len__(self) -> int:
        return self._length or 0

    @property
    def num_data(self) -> int | None:
        return _length(getattr(self.loader, "dataset", None))

    def to(self, device: torch.device) -> "LoaderBatches":
        return self

    def epoch(self, seed: int, epoch: int, device: torch.device) -> Iterator[Batch]:
        for batch in self.loader:
            yield on_device(batch, device)

    def _generators(self) -> list[torch.Generator]:
        """The generators that a DataLoader and its samplers own; without any it draws from torch's global one."""
        samplers = (getattr(self.loader, name, None) for name in ("sampler", "batch_sampler"))
        owned = [getattr(part, "generator", None) for part in (self.loader, *samplers)]
        return [g for g in owned if isinstance(g, torch.Generator)]

    def state(self) -> list[Tensor]:
        """Where the loader's own generators stand."""
        return [g.get_state() for g in self._generators()]

    def load_state(self, state: Sequence[Tensor]) -> None:
        for generator, value in zip(self._generators(), state, strict=False):
            generator.set_state(value)


Batches = SourceBatches | LoaderBatches


def as_batches(data: object, batch_size: int, *, shuffle: bool, rank: int = 0, world_size: int = 1) -> Batches:
    """Batches from whatever a user has.

    Arguments:
        data: A tensor, an array, a tuple of these (the model's positional arguments), a :class:`Source`, a torch
            Dataset or DataLoader, or an iterable of batches that can be started again.
        batch_size: Rows per batch; a DataLoader and an iterable keep their own.
        shuffle: Whether rows are shuffled (with fresh preprocessing noise), as for training.
        rank: This process's number among ``world_size``; a DataLoader or an iterable is each process's own.
        world_size: Number of processes that share a batch.

    Raises:
        ValueError: The data is empty, a one-shot iterator, or nothing of this kind; or the batch size is below 1.
    """
    if whole_number("batch_size", batch_size) < 1:
        raise ValueError(f"batch_size must be at least 1, but got {batch_size}.")
    refuse_lists_of_numbers(data)

    source = _source(data)
    if source is not None:
        return SourceBatches(source, batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
    if isinstance(data, Dataset):  # a stream without a length
        return LoaderBatches(DataLoader(data, batch_size=batch_size))
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | dict | np.ndarray | Tensor):
        return LoaderBatches(data)

    if has_parts(data):
        raise ValueError(describe_parts(data))
    described = f"a {type(data).__name__}"
    if isinstance(data, np.ndarray | Tensor):
        described = f"{type(data).__name__} of dtype {data.dtype} with shape {tuple(data.shape)}"
    raise ValueError(
        f"data is {described}; a tensor, an array, a tuple of these, a data set from pyro_vaes.data.load_data, a "
        "torch Dataset or DataLoader, or an iterable of batches is wanted."
    )


def _source(data: object) -> Source | None:
    """A source of rows, from what has rows; a list is an iterable of batches instead."""
    items = data if isinstance(data, tuple) else (data,)
    tensors = [t for t in map(as_tensor, items) if t is not None and t.dim()]
    if tensors and len(tensors) == len(items):
        return TensorSource(*tensors)
    if isinstance(data, Source):
        return data
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        return DatasetSource(data)
    return None


def train_and_valid(data: object, valid: object | None) -> tuple[object, object | None]:
    """Split a data set with ``train`` and ``valid`` parts, unless a validation set is given."""
    if has_parts(data):
        part = getattr(data, "valid", None)
        if valid is None and part is not None and len(part):
            valid = part
        return data.train, valid
    return data, valid


def first_batch(data: object, device: Device, batch_size: int = 128) -> object:
    """The first batch of whatever a user has, as for :func:`as_batches`; tensors and tuples of them are one already.

    Arguments:
        data: What :func:`as_batches` takes, a data set with parts (its ``train`` counts), a batch with arrays in it, or
            a mapping.
        device: Where the batch goes; what is one already stays where it is, arrays apart.
        batch_size: Rows of a batch where the data do not say.

    Raises:
        ValueError: The data are nothing of this kind, or empty.
    """
    if isinstance(data, Tensor | Mapping):
        return data
    if isinstance(data, list | tuple) and not (data and isinstance(data[0], list | tuple)):
        return tuple(item_on_device(i, device) if isinstance(i, np.ndarray) else i for i in data)

    place = torch.device(device)
    batches = as_batches(train_and_valid(data, None)[0], batch_size, shuffle=False).to(place)
    for batch in batches.epoch(0, 0, place):
        return batch
    raise ValueError(EMPTY)
