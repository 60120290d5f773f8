"""What a user gives a training loop besides data: read, or refused in words before any work."""

import inspect
from collections.abc import Sequence

import torch
from pyro.infer import ELBO, Trace_ELBO

from ..callback import Callback


def as_bound(loss: ELBO | None) -> ELBO:
    """The bound, ``Trace_ELBO()`` for None.

    Raises:
        ValueError: It is a class, or nothing that has a loss.
    """
    if loss is None:
        return Trace_ELBO()
    if isinstance(loss, type):
        raise ValueError(f"loss is the class {loss.__name__}; an instance is wanted: loss={_call(loss)}.")
    if not callable(getattr(loss, "loss", None)):
        raise ValueError(f"loss is a {type(loss).__name__}; a Pyro ELBO is wanted, such as Trace_ELBO().")
    return loss


def as_callbacks(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """The callbacks of a run.

    Raises:
        ValueError: It is a single one, or something else is among them.
    """
    if isinstance(callbacks, Callback):
        name = type(callbacks).__name__
        raise ValueError(f"callbacks is one {name}; a list is wanted: callbacks=[{name}(...)].")
    try:
        given = tuple(callbacks)
    except TypeError:
        raise ValueError(f"callbacks is {_kind(callbacks)}; a list of callbacks is wanted.") from None
    for callback in given:
        if isinstance(callback, type) and issubclass(callback, Callback):
            name = callback.__name__
            raise ValueError(f"callbacks holds the class {name}; an instance is wanted: {_call(callback)}.")
        if not isinstance(callback, Callback):
            raise ValueError(f"callbacks holds {_kind(callback)}; an instance of a subclass of Callback is wanted.")
    return given


def as_device(device: torch.device | str) -> torch.device:
    """A device that computes here.

    Raises:
        ValueError: There is none of that name.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}): leave it out to train where the networks are."
        ) from error
    return place


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _call(kind: type) -> str:
    """How to make an instance of a class: with nothing in the brackets where that is enough."""
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):
        return f"{kind.__name__}(...)"
    return f"{kind.__name__}()"
