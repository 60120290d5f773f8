"""Guides that differentiate the program to find q, under ``torch.inference_mode()``: there nothing has a derivative."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Given", "differentiable"]


@dataclass(frozen=True)
class Given:
    """The arguments of a program, and the rows that its plate is to hold."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    rows: Tensor | None = None


@contextmanager
def differentiable(
    args: tuple[object, ...], kwargs: Mapping[str, object], rows: Tensor | None = None
) -> Iterator[Given]:
    """Leave ``torch.inference_mode()`` for ``torch.no_grad()``, with ordinary copies of the tensors made in it."""
    if not torch.is_inference_mode_enabled():
        yield Given(args, kwargs, rows)
        return
    with torch.inference_mode(False), torch.no_grad():
        copies = {name: _ordinary(value) for name, value in kwargs.items()}
        yield Given(tuple(map(_ordinary, args)), copies, None if rows is None else rows.clone())


def _ordinary(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
