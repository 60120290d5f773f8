"""One part of a data set: raw images in memory, preprocessed batch by batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .completion import complete
from .steps.base import CHUNK, Step, apply_steps, floating
from .types import ImageShape


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    r"""Images (and labels) of the training, validation or test part, a source of batches.

    Storage keeps the raw dtype. A batch is an index-select followed by the preprocessing steps, on the device
    of the images, with no copy to the host.

    Arguments:
        images: Raw images, with shape `(N, C, H, W)`.
        labels: Labels, with shape `(N,)` or `(N, K)`, int64, or None.
        steps: Fitted preprocessing steps.
        flatten: Whether batches are `(B, C * H * W)` rather than `(B, C, H, W)`.
        labelled: Whether batches are `(x, y)` rather than `(x,)`.
        observed: For image completion, the observed part: batches are `(target, covariate)`.
        first_row: Fixed noise belongs to the numbers `first_row` to `first_row + N - 1`, so that the parts of
            a data set do not share it.
        rows: The numbers from 0, with shape `(N,)`, int64, that these rows have in the part from which they were taken
            at random; None for 0 to N - 1. They keep its noise.

    Example:
        >>> split = Split(torch.zeros(10, 1, 4, 4), torch.arange(10), labelled=True)
        >>> x, y = split.batch(torch.tensor([5, 2]))
        >>> x.shape, y
        (torch.Size([2, 16]), tensor([5, 2]))
    """

    images: Tensor
    labels: Tensor | None = None
    steps: tuple[Step, ...] = ()
    flatten: bool = True
    labelled: bool = False
    observed: str | None = None
    first_row: int = 0
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(part.shape[1:])) for part in self.batch(slice(0, 1)))
        return f"Split({len(self)} images, batches of {shapes}, {self.images.dtype} on {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the images, on which batches are made."""
        return self.images.device

    @cached_property
    def image_shape(self) -> ImageShape:
        """The shape `(C, H, W)` of preprocessed images."""
        channels, height, width = self._preprocess(slice(0, 1), None).shape[1:]
        return channels, height, width

    def batch(self, index: Tensor | slice, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The positional model arguments for some rows.

        Arguments:
            index: Row numbers from 0 to N - 1, with shape `(B,)`, int64, on any device, or a slice.
            generator: Where random steps draw fresh noise, on the device of the split. With None (evaluation)
                the noise of a row is fixed: the same however it is batched, on every device.

        Returns:
            `(x,)`; with labels `(x, y)`; for image completion `(target, covariate)`.

        Example:
            >>> from pyro_vaes.data import load_data
            >>> (x,) = load_data("digits").train.batch(slice(0, 32))
            >>> x.shape
            torch.Size([32, 64])
        """
        x = self._preprocess(index, generator)
        if self.observed is not None:
            return complete(x, self.observed)
        x = x.flatten(1) if self.flatten else x
        if self.labelled and self.labels is not None:
            return x, _select(self.labels, index)
        return (x,)

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self), device=self.device) if self.rows is None else self.rows

    def _preprocess(self, index: Tensor | slice, generator: torch.Generator | None) -> Tensor:
        """Preprocessed images of some rows, with shape `(B, C, H, W)`, floating point."""
        rows = None
        if generator is None and any(step.random for step in self.steps):
            rows = _select(self._numbers, index) + self.first_row
        x = apply_steps(self.steps, _select(self.images, index), generator, rows)
        return x.to(floating(x.dtype))

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Tensor | tuple[Tensor, ...]:
        """Rows for evaluation: x, or `(x, y)` with labels; one image, without batch, for an integer.

        Row numbers may be negative, to count from the end, and a mask of shape `(N,)` works too.
        """
        if isinstance(index, slice):
            parts = self.batch(index)
        else:
            # indexing the row numbers checks them, and gives masks and negative numbers their meaning
            rows = torch.arange(len(self))[torch.as_tensor(index, device="cpu")]
            parts = self.batch(rows.reshape(-1))
            if rows.dim() == 0:
                parts = tuple(part[0] for part in parts)
        return parts if len(parts) > 1 else parts[0]

    @property
    def x(self) -> Tensor:
        """All images as evaluation sees them, with shape `(N, C * H * W)` or `(N, C, H, W)`."""
        images = replace(self, labelled=False, observed=None)
        starts = range(0, len(self), CHUNK)
        return torch.cat([images.batch(slice(start, start + CHUNK))[0] for start in starts])

    def take(self, count: int, seed: int | None = None) -> "Split":
        """The first `count` rows, with the noise that they have here; all of them if there are fewer.

        Arguments:
            count: How many rows to keep.
            seed: Takes rows at random instead, which follow from the seed alone: fewer of them are the first of more.
                Rows that are sorted by class, as the test parts of some published data sets are, need one.

        Example:
            >>> split = Split(torch.zeros(10, 1, 4, 4), torch.arange(10) // 2)
            >>> split.take(4).labels, len(split.take(4, seed=1).labels.unique())
            (tensor([0, 0, 1, 1]), 4)
        """
        if seed is None or count >= len(self):
            return self.select(slice(count))

        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self), generator=generator)[:count].to(self.device)
        return replace(self, rows=self._numbers).select(index)

    def select(self, index: Tensor | slice) -> "Split":
        """Some of the rows, by number or as a slice; with `rows` of None their noise follows from their new numbers."""
        return self._each(lambda x: _select(x, index))

    def to(self, device: torch.device | str) -> "Split":
        """The same rows on another device, with the same fixed noise."""
        steps = tuple(step.to(device) for step in self.steps)
        return replace(self, steps=steps)._each(lambda x: x.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Split":
        """The same split after a change of every tensor that has its rows."""
        return replace(
            self,
            images=change(self.images),
            labels=None if self.labels is None else change(self.labels),
            rows=None if self.rows is None else change(self.rows),
        )


def _select(x: Tensor, index: Tensor | slice) -> Tensor:
    """Some rows of x; index_select, unlike indexing, is no slower than a copy for rows of bytes."""
    if isinstance(index, slice):
        return x[index]
    return x.index_select(0, index.to(x.device, non_blocking=True))
