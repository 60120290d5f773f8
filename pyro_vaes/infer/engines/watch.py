"""What programs hold in Python beside their tensors, and whether any of it has changed.

A graph is what a program did once, with the numbers, flags and modules that it then met:
attributes of its modules and objects, variables of its closure, the globals that it names.
A :class:`Watch` notes them, and says in every step whether they still are what they were.
"""

import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sized
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vaes.programs import Findings

from .inputs import PLAIN

LIBRARIES = (
    "torch",
    "pyro",
    "pyro_vaes",
    "numpy",
    "functools",
    "builtins",
    "contextlib",
)
SKIPPED = (
    Findings,
    WeakKeyDictionary,
    WeakValueDictionary,
    types.ModuleType,
    torch.Generator,
    torch.distributions.Distribution,
)
MAX_ITEMS = 64  # of a list or a dictionary that are looked at one by one
MAX_DEPTH = 12
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
_MISSING = object()


@dataclass
class Watch:
    """The values within reach of some objects, as they are now.

    Arguments:
        roots: Programs, bounds, handlers, by name.
        ignored: Attributes, as pairs of an object and a name, that may change.
    """

    roots: Mapping[str, object]
    ignored: Iterable[tuple[object, str]] = ()
    _seen: set[int] = field(default_factory=set, init=False)
    _alive: list[object] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._items: list[tuple[Mapping[Any, object], object, object, str]] = []
        self._cells: list[tuple[types.CellType, object, str]] = []
        self._sizes: list[tuple[Sized, int, str]] = []
        self._containers: list[tuple[object, tuple[object, ...], str]] = []
        self._leaves: list[tuple[Tensor, bool, str]] = []
        self._free = {(id(owner), name) for owner, name in self.ignored}

        for name, root in self.roots.items():
            self._visit(root, name, 0)

    def changed(self) -> str | None:
        """The name of a value that is another one now; None where all are the same."""
        for mapping, key, value, where in self._items:
            now = mapping.get(key, _MISSING)
            if now is not value and not _same_number(now, value):
                return where

        for cell, value, where in self._cells:
            now = _content(cell)
            if now is not value and not _same_number(now, value):
                return where

        for sized, size, where in self._sizes:
            if len(sized) != size:
                return where

        for container, items, where in self._containers:
            if not _same_items(container, items):
                return where

        for tensor, requires_grad, where in self._leaves:
            if tensor.requires_grad != requires_grad:
                return f"whether {where} requires a gradient"
        return None

    # looking around

    def _visit(self, value: object, where: str, depth: int) -> None:
        """Note what an object holds, and go on to what these things hold."""
        if isinstance(value, PLAIN) or depth > MAX_DEPTH or id(value) in self._seen:
            return
        if isinstance(value, SKIPPED) or inspect.isclass(value):
            return
        self._seen.add(id(value))
        self._alive.append(value)  # so that its id stays its own

        if isinstance(value, Tensor):
            if value.is_leaf:
                self._leaves.append((value, value.requires_grad, where))
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._visit(part, where, depth + 1)
        elif inspect.ismethod(value):
            self._visit(value.__self__, where, depth + 1)
            self._visit(value.__func__, where, depth + 1)
        elif inspect.isfunction(value):
            self._visit_function(value, where, depth)
        elif isinstance(value, nn.Module):
            self._visit_module(value, where, depth)
        elif isinstance(value, list | tuple | set | frozenset | Mapping):
            self._visit_container(value, where, depth)
        elif hasattr(value, "__dict__"):
            self._visit_object(value, where, depth)

    def _visit_function(
        self,
        function: types.FunctionType,
        where: str,
        depth: int,
    ) -> None:
        variables, cells = function.__code__.co_freevars, function.__closure__ or ()
        for name, cell in zip(variables, cells, strict=True):
            content = _content(cell)
            self._cells.append((cell, content, f"{name} of {where}"))
            self._visit(content, f"{where}.{name}", depth + 1)

        self._visit(function.__defaults__, where, depth + 1)
        self._visit(function.__kwdefaults__, where, depth + 1)
        if _is_library(function.__module__):
            return

        for name in _global_names(function.__code__):
            if name not in function.__globals__:
                continue
            content = function.__globals__[name]
            if inspect.ismodule(content):
                continue
            if callable(content) and _is_library(getattr(content, "__module__", None)):
                continue
            self._items.append((function.__globals__, name, content, name))
            self._visit(content, name, depth + 1)

    def _visit_module(self, module: nn.Module, where: str, depth: int) -> None:
        for part in ("_parameters", "_buffers", "_modules", *HOOKS):
            held = vars(module).get(part)
            if held is not None:
                self._sizes.append((held, len(held), where))
                for name, value in held.items():
                    self._items.append((held, name, value, f"{where}.{name}"))
                    self._visit(value, f"{where}.{name}", depth + 1)
        self._visit_object(module, where, depth)

    def _visit_object(self, owner: object, where: str, depth: int) -> None:
        """Attributes: all of a user's objects, the plain ones of the libraries' own."""
        of_library = _is_library(type(owner).__module__)
        attributes = vars(owner)
        for name, value in attributes.items():
            if (id(owner), name) in self._free or name.startswith("__"):
                continue
            if isinstance(owner, nn.Module) and name in _OF_MODULES:
                continue
            if of_library and name.startswith("_"):
                continue

            # a library's handlers hold tensors of their latest run
            of_a_run = isinstance(owner, Messenger) and isinstance(value, Tensor)
            is_noted = isinstance(value, (*PLAIN, Tensor)) or callable(value)
            label = f"{where}.{name}"
            if (is_noted and not of_a_run) or not of_library:
                self._items.append((attributes, name, value, label))
            self._visit(value, label, depth + 1)

    def _visit_container(self, value: object, where: str, depth: int) -> None:
        items = tuple(_flat(value))
        if isinstance(value, list | set | MutableMapping):
            self._containers.append((value, items, where))
        if len(items) <= MAX_ITEMS:
            for item in items:
                self._visit(item, where, depth + 1)


_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}


def _same_number(one: object, two: object) -> bool:
    """Whether two plain values are equal, NaN included."""
    if type(one) is not type(two) or not isinstance(one, PLAIN):
        return False
    return one == two or (one != one and two != two)


def _same_items(container: object, items: tuple[object, ...]) -> bool:
    now = tuple(_flat(container))
    if len(now) != len(items):
        return False
    return all(a is b or _same_number(a, b) for a, b in zip(now, items, strict=True))


def _flat(container: object) -> Iterator[object]:
    """The items of a container; keys and values of a mapping."""
    if isinstance(container, Mapping):
        for key, value in list(container.items())[:MAX_ITEMS]:
            yield key
            yield value
        yield len(container)
    elif isinstance(container, set | frozenset):
        yield len(container)
    else:
        assert isinstance(container, list | tuple)
        yield from container[:MAX_ITEMS]
        yield len(container)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return _MISSING


def _is_library(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in LIBRARIES


@functools.lru_cache(maxsize=512)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The globals that a function names, those of functions inside it included."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.extend(_global_names(constant))
    return tuple(dict.fromkeys(names))
