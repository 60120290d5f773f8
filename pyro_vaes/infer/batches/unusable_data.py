"""Data that are no source of batches: what they are, and what is meant instead, in words."""

from typing import Protocol, TypeGuard

from .sources import Source, as_tensor


class Parts(Protocol):
    """A data set of which a training part is one of several parts."""

    train: Source


def refuse_lists_of_numbers(data: object) -> None:
    """Refuse rows that are lists of numbers: a list is read as batches, and a tuple as the model's arguments.

    Raises:
        ValueError: The data hold such a list.
    """
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
    if not isinstance(item, list | tuple) or not item:
        return False
    return all(isinstance(i, int | float) for i in item)


def has_parts(data: object) -> TypeGuard[Parts]:
    """Whether this is a data set of which a training part is one of several parts."""
    return isinstance(getattr(data, "train", None), Source)


def describe_parts(data: Parts) -> str:
    """Which parts a whole data set has, of which one is wanted."""
    name = str(getattr(data, "name", ""))
    variable = name if name.isidentifier() else "data"
    names = ("test", "valid", "train")
    parts = [f"{variable}.{part}" for part in names if getattr(data, part, None) is not None]

    *others, last = parts
    which = f"one of them, {', '.join(others)} or {last}" if others else last
    whole = f"the whole data set {name!r}" if name else "a whole data set"
    return f"data is {whole}, which has parts: pass {which}."
