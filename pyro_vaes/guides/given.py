"""The arguments of one call of a guide."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

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
    """The arguments of a program, and the rows that its plate is to hold; None for all."""

    args: Args
    kwargs: Mapping[str, object]
    rows: Tensor | None = None

    @property
    def size(self) -> int | None:
        """Number of rows of the arguments; None where there is no tensor."""
        return batch_rows(self.args, self.kwargs)

    def call(self, function: Callable[..., Output]) -> Output:
        """What a function that takes the rows as well returns for these arguments."""
        return function(*self.args, rows=self.rows, **self.kwargs)


@contextmanager
def differentiable(given: Given) -> Iterator[Given]:
    """Leave ``torch.inference_mode()`` for ``torch.no_grad()``, with ordinary copies of the tensors made in it.

    Guides that differentiate the program to find q need that: nothing has a derivative there.
    """
    if not torch.is_inference_mode_enabled():
        yield given
        return

    with torch.inference_mode(False), torch.no_grad():
        keywords = {name: _ordinary(value) for name, value in given.kwargs.items()}
        rows = None if given.rows is None else given.rows.clone()
        yield Given(tuple(map(_ordinary, given.args)), keywords, rows)


def _ordinary(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
