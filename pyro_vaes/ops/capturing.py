"""Whether the operations of this moment are being recorded as a graph.

A graph is what a function did once. What a function looks up in its tensors on the way
(a check of labels, the units that are idle) must then be left out or become an operation.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_is_capturing: ContextVar[bool] = ContextVar("_is_capturing", default=False)


def is_capturing() -> bool:
    """Whether a graph is being recorded, so that no number may be read into Python.

    Example:
        >>> is_capturing()
        False
        >>> with capturing():
        ...     is_capturing()
        True
    """
    return _is_capturing.get()


def assert_in_graph(good: Tensor, message: str) -> None:
    """An operation that fails where an entry of ``good`` is false, without being read into Python.

    Raises:
        RuntimeError: An entry is false; when the operation runs on the CPU.
    """
    torch._assert_async(good.all(), message)


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Inside, :func:`is_capturing` is true, for this thread alone."""
    token = _is_capturing.set(True)
    try:
        yield
    finally:
        _is_capturing.reset(token)
