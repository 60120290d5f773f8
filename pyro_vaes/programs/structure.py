"""Which batches a program treats alike, and what was found out about them.

A program may have other sites, plates or sizes for another batch. What a look at it has
found therefore holds for batches of one structure: the shapes and dtypes of tensors, which
arguments are None, and the values of whole numbers and texts.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from torch import Tensor

from .buffers import untouched_buffers
from .keywords import unbind_keywords
from .reach import Program, identity

Found = TypeVar("Found")
MAX_STRUCTURES = 64  # kept by one Findings; sequences may have a new length in each batch


def batch_structure(args: Sequence[object], kwargs: Mapping[str, object] | None = None) -> Hashable:
    """A key that is equal for batches which a program treats alike.

    Example:
        >>> import torch
        >>> batch_structure((torch.zeros(3, 2), None)) == batch_structure((torch.ones(3, 2), None))
        True
        >>> batch_structure((torch.zeros(3, 2),)) == batch_structure((torch.zeros(4, 2),))
        False
    """
    named = sorted((kwargs or {}).items())
    return tuple(map(_part, args)), tuple((name, _part(value)) for name, value in named)


def _part(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_part, value))
    if isinstance(value, Mapping):
        return "mapping", tuple((key, _part(value[key])) for key in value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # an array
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, int | str | None):
        return value
    return type(value).__name__  # a float may differ in each step


class Findings(Generic[Found]):
    """What was found out about programs, once for each structure of their arguments.

    A copy starts empty: it takes no programs along.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, tuple[Sequence[Program], Found]] = OrderedDict()

    def __len__(self) -> int:
        """For how many programs and structures something is known."""
        return len(self._found)

    def values(self) -> list[Found]:
        """What was found, in the order in which it was last added."""
        return [found for _, found in self._found.values()]

    def __getstate__(self) -> dict[str, object]:
        return {"_found": OrderedDict()}

    def of(
        self,
        programs: Sequence[Program],
        args: Sequence[object],
        find: Callable[[], Found],
    ) -> Found:
        """What ``find`` returns for these programs and arguments of this structure.

        Arguments:
            programs: The programs, which may have keywords bound to them.
            args: Their positional arguments.
            find: Looks at the programs; no buffer changes while it does.
        """
        bare, structures = [], []
        for program in programs:
            unbound, keywords = unbind_keywords(program)
            bare.append(unbound)
            structures.append(batch_structure((), keywords))

        identities = tuple(map(identity, bare))
        key = (identities, batch_structure(args), tuple(structures))

        if key not in self._found:
            with untouched_buffers():
                found = find()
            self._found[key] = (bare, found)  # holds the programs: ids stay theirs
            if len(self._found) > MAX_STRUCTURES:
                self._found.popitem(last=False)

        return self._found[key][1]
