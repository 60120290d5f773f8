"""Data that are no source of batches: what they are, and what is meant instead, in words."""

import numpy as np
from torch import Tensor

from pyro_vaes.infer.batches.sources import Source, as_tensor

__all__ = ["has_parts", "refuse_numbers", "said", "said_parts"]


def said(data: object) -> str:
    """What this is, for an error."""
    if isinstance(data, np.ndarray | Tensor):
        return f"{type(data).__name__} of dtype {data.dtype} with shape {tuple(data.shape)}"
    return f"a {type(data).__name__}"


def refuse_numbers(data: object) -> None:
    """Refuse rows that are lists of numbers: a list is read as batches, and a tuple as the model's arguments."""
    if not isinstance(data, list | tuple) or not data:
        return
    if isinstance(data, tuple) and any(as_tensor(item) is not None for item in data):
        if any(_are_numbers(item) for item in data):
            raise ValueError(
                "data is a tuple of the model's arguments, of which one is a list of numbers: torch.tensor(labels)?"
            )
        return
    lists, first = "", data
    while isinstance(first[0], list | tuple) and first[0]:
        lists, first = f"{lists} of lists", first[0]
    if _are_numbers(first):
        raise ValueError(
            f"data is a {type(data).__name__}{lists} of numbers, but a list is read as batches: torch.tensor(rows)?"
        )


def _are_numbers(item: object) -> bool:
    return isinstance(item, list | tuple) and len(item) > 0 and all(isinstance(i, int | float) for i in item)


def has_parts(data: object) -> bool:
    """Whether this is a data set of which a training part is one of several parts."""
    return isinstance(getattr(data, "train", None), Source)


def said_parts(data: object) -> str:
    """Which parts a whole data set has, of which one is wanted."""
    name = str(getattr(data, "name", ""))
    variable = name if name.isidentifier() else "data"
    parts = [f"{variable}.{part}" for part in ("test", "valid", "train") if getattr(data, part, None) is not None]
    *others, last = parts
    which = f"one of them, {', '.join(others)} or {last}" if others else last
    whole = f"the whole data set {name!r}" if name else "a whole data set"
    return f"data is {whole}, which has parts: pass {which}."
