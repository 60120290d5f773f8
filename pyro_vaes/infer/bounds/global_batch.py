"""The batch of all processes, for bounds whose terms compare the data of a batch.

A sum over data splits into the processes' shares, whose gradients data parallelism averages. A term over pairs of data
does not: it needs the rows of all processes, with gradients back to each.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from torch import Tensor

AllGather = Callable[[Tensor], Tensor]

_all_gather = ContextVar[AllGather | None]("_all_gather", default=None)


@contextlib.contextmanager
def global_batch(all_gather: AllGather | None) -> Iterator[None]:
    """Inside, :func:`all_rows` collects the rows of all processes, each of which must be inside as well.

    :func:`~pyro_vaes.infer.fit` enters it around the loss of a training step on several processes, and there only:
    evaluations, checks and a single process's own calls see that process's rows and wait for nobody.

    Arguments:
        all_gather: Maps ``(B, ...)`` to ``(R, B, ...)`` with one entry for each of R processes, whose gradients are
            summed over the processes on the way back, such as ``partial(fabric.all_gather, sync_grads=True)``; None
            for one process. A term that every process computes on all rows then has, once the processes' gradients
            are averaged, the gradient that one process would have found. B must be the same everywhere.
    """
    token = _all_gather.set(all_gather)
    try:
        yield
    finally:
        _all_gather.reset(token)


def is_shared() -> bool:
    """Whether :func:`all_rows` collects rows of several processes."""
    return _all_gather.get() is not None


def all_rows(tensor: Tensor) -> Tensor:
    """The rows ``(R B, ...)`` of all processes inside :func:`global_batch`; elsewhere the rows ``(B, ...)`` given.

    Example:
        >>> import torch
        >>> with global_batch(lambda t: torch.stack([t, t + 10])):
        ...     all_rows(torch.arange(3))
        tensor([ 0,  1,  2, 10, 11, 12])
    """
    all_gather = _all_gather.get()
    return tensor if all_gather is None else all_gather(tensor).flatten(0, 1)
