"""Whole numbers as users give them."""

import operator
from typing import SupportsIndex


def whole_number(name: str, value: SupportsIndex) -> int:
    """A whole number of any kind, NumPy's too.

    Arguments:
        name: Name of the argument, for the error message.
        value: What was given.

    Raises:
        ValueError: It is no whole number.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; a whole number is wanted.") from None
