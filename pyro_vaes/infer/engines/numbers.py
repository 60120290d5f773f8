"""Numbers of the callbacks' handlers, which change from step to step, as tensors.

A KL weight is a number of Python where the step is eager. In a graph it would stay what it
was; so graphs take it as an input.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..handlers import NumberedHandler
from .inputs import PLAIN
from .reads import CannotCapture

Handler = AbstractContextManager[object]


def describe_handlers(handlers: Sequence[Handler]) -> tuple[Hashable, list[float]]:
    """What must be alike for one graph, and the numbers that may differ.

    Raises:
        CannotCapture: A handler may hold anything.
    """
    forms: list[Hashable] = []
    numbers: list[float] = []
    for handler in handlers:
        if isinstance(handler, NumberedHandler):
            forms.append((type(handler), handler.form))
            numbers.extend(handler.numbers)
        else:
            forms.append(_plain_form(handler))
    return tuple(forms), numbers


def as_tensors(numbers: Sequence[float], device: torch.device) -> list[Tensor]:
    """Each number as a tensor without dimensions, as precise as Python has it."""
    return [torch.tensor(n, dtype=torch.float64, device=device) for n in numbers]


def with_tensors(
    handlers: Sequence[Handler],
    tensors: Sequence[Tensor],
) -> list[Handler]:
    """The handlers with tensors in place of their numbers."""
    found, rest = [], list(tensors)
    for handler in handlers:
        if isinstance(handler, NumberedHandler):
            num = len(handler.numbers)
            handler, rest = handler.with_numbers(rest[:num]), rest[num:]
        found.append(handler)
    return found


def _plain_form(handler: Handler) -> Hashable:
    """The plain attributes of an effect handler that has nothing else."""
    name = type(handler).__name__
    if not isinstance(handler, Messenger):
        unknown = f"a callback's handler is a {name}, whose numbers are not known"
        raise CannotCapture(unknown)

    held: list[Hashable] = []
    for attribute, value in sorted(vars(handler).items()):
        if not isinstance(value, PLAIN):
            what = f"a {type(value).__name__} ({attribute})"
            raise CannotCapture(f"a callback's handler {name} holds {what}")
        held.append((attribute, value))
    return type(handler), tuple(held)
