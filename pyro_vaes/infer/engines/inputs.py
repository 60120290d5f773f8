"""The tensors among a program's arguments, and what must be alike for one graph."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .reads import CannotCapture

Args = tuple[object, ...]
PLAIN = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor among the arguments."""

    index: int


@dataclass(frozen=True)
class Inputs:
    """A batch as the inputs of a graph.

    Attributes:
        key: Equal for batches to which one graph applies.
        tensors: The tensors of the batch, in the order in which they stand in it.
        template: The batch with slots in place of its tensors.
    """

    key: Hashable
    tensors: list[Tensor]
    template: tuple[object, ...]

    def arguments(self, tensors: Sequence[Tensor]) -> Args:
        """The programs' arguments with other tensors."""
        return tuple(_fill(part, tensors) for part in self.template)


def inputs_of(args: Args) -> Inputs:
    """The inputs that a graph takes for these arguments.

    Raises:
        CannotCapture: An argument holds something else than tensors and plain values.

    Example:
        >>> found = inputs_of((torch.zeros(2), {"y": torch.ones(3)}, None))
        >>> [len(tensor) for tensor in found.tensors]
        [2, 3]
    """
    tensors: list[Tensor] = []
    keys: list[Hashable] = []
    template = tuple(_split(value, tensors, keys) for value in args)
    return Inputs(tuple(keys), tensors, template)


def _split(value: object, tensors: list[Tensor], keys: list[Hashable]) -> object:
    """A part of the template; tensors and keys are added on the way."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.layout is not torch.strided:
            kind = type(value).__name__
            raise CannotCapture(f"an argument is a {kind} of layout {value.layout}")
        keys.append(
            (
                value.shape,
                value.stride(),
                value.dtype,
                value.device,
                value.requires_grad,
            )
        )
        tensors.append(value)
        return _Slot(len(tensors) - 1)

    if isinstance(value, PLAIN):
        keys.append((type(value), value))
        return value

    if type(value) in (list, tuple):
        assert isinstance(value, list | tuple)
        keys.append((type(value), len(value)))
        return type(value)(_split(part, tensors, keys) for part in value)

    if type(value) is dict:
        assert isinstance(value, dict)
        keys.append((dict, tuple(value)))
        return {name: _split(part, tensors, keys) for name, part in value.items()}

    raise CannotCapture(f"an argument is a {type(value).__name__}, not a tensor")


def _fill(part: object, tensors: Sequence[Tensor]) -> object:
    if isinstance(part, _Slot):
        return tensors[part.index]
    if isinstance(part, Mapping):
        return {name: _fill(value, tensors) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(_fill(value, tensors) for value in part)
    return part
