"""The arguments of one call of a guide."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .latents import Latents
from .plate_shapes import Layout, Placement, place, reshape_rows

Args = tuple[object, ...]
Output = TypeVar("Output")


def batch_rows(args: Args, kwargs: Mapping[str, object] | None = None) -> int | None:
    """Number of rows of the first tensor among the arguments of a program."""
    for value in (*args, *(kwargs or {}).values()):
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    return None


@dataclass(frozen=True)
class Given:
    """What a posterior is a posterior given.

    Attributes:
        args, kwargs: The arguments of the program.
        rows: The rows that its plate is to hold; None for all.
        upstream: Values of sites that are drawn already, and rows of plates, by name.
        keywords: What networks are called with beside the arguments, by keyword.
        latents: The latent sites in question; None for all of the program.
        layout: Where the rows of the posterior lie; None for the rows of one data
            plate.
        placement: Where the batch dimensions of what a network returns belong;
            likewise.
    """

    args: Args
    kwargs: Mapping[str, object]
    rows: Tensor | None = None
    upstream: Mapping[str, Tensor] = field(default_factory=dict)
    keywords: Mapping[str, object] = field(default_factory=dict)
    latents: Latents | None = None
    layout: Layout | None = None
    placement: Placement | None = None

    @property
    def size(self) -> int | None:
        """Number of rows of the arguments; None where there is no tensor."""
        return batch_rows(self.args, self.kwargs)

    def in_rows(self, vectors: Tensor) -> Tensor:
        """Vectors ``(..., d)`` that a network returned as the rows of a matrix, ``(N,
        d)``."""
        if self.layout is None or self.placement is None:
            return vectors
        move = self.placement.move(vectors.shape[:-1])
        if move is not None:
            vectors = move(vectors, 1)
        length = vectors.shape[-1]
        return vectors.expand(*self.layout.shape, length).reshape(-1, length)

    def laid_out(self, q: TorchDistribution, placement: Placement) -> TorchDistribution:
        """A posterior, of rows or as a network returned it, where the plates of its
        sites are."""
        if self.layout is not None and q.batch_shape == (self.layout.num_rows,):
            return reshape_rows(q, self.layout)
        return place(q, placement)

    def with_rows(self, latents: Latents) -> "Given":
        """With the rows that the program's own plate is to hold when a guide runs it on them.

        Raises:
            ValueError: The program would draw some of its rows, and it is not known
                which.
        """
        return replace(self, rows=latents.rows_to_hold(self.size, self.rows))

    def call(self, function: Callable[..., Output]) -> Output:
        """What a function that takes the rows as well returns for these arguments."""
        rows = self.rows if self.latents is None else self
        return function(*self.args, rows=rows, **self.kwargs)


Rows = Tensor | Given | None  # the rows that a plate drew, or all that is known


def as_given(args: Args, kwargs: Mapping[str, object], rows: Rows) -> Given:
    """What a posterior is asked for: these arguments and rows, or what they stand
    for."""
    return rows if isinstance(rows, Given) else Given(args, kwargs, rows)


@contextmanager
def differentiable(given: Given) -> Iterator[Given]:
    """Leave ``torch.inference_mode()`` for ``torch.no_grad()``, with ordinary copies of the tensors made in it.

    Guides that differentiate the program to find q need that: nothing has a derivative
        there.
    """
    if not torch.is_inference_mode_enabled():
        yield given
        return

    with torch.inference_mode(False), torch.no_grad():
        yield replace(
            given,
            args=tuple(map(_ordinary, given.args)),
            kwargs={name: _ordinary(value) for name, value in given.kwargs.items()},
            rows=None if given.rows is None else given.rows.clone(),
            upstream={name: value.clone() for name, value in given.upstream.items()},
        )


def _ordinary(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
