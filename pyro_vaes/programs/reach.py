"""What can be read off a Pyro program without running it: the modules within its reach, the arguments that it takes."""

import functools
import inspect
from collections.abc import Callable, Hashable, Mapping

from pyro.poutine.messenger import Messenger, unwrap
from torch import nn

Program = Callable[..., object]
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
MAX_DEPTH = 4  # functions that call functions, wrappers in wrappers


def modules_of(program: object, label: str, depth: int = 0) -> list[tuple[str, nn.Module]]:
    """The modules a program can reach, by name.

    These are itself, its owner, and what its closure, the globals it names, its partial arguments, its attributes and
    lists, tuples or dictionaries among these hold.

    Arguments:
        program: A module, a method, a function, a partial, an object that can be called, or a container of these.
        label: What the program itself is called.
        depth: How many steps from the first program this one is away.
    """
    if isinstance(program, nn.Module):
        return [(label, program)]
    if inspect.ismethod(program) and isinstance(program.__self__, nn.Module):
        return [(label, program.__self__)]
    if depth > MAX_DEPTH:
        return []
    return [found for name, value in _within(program, label) for found in modules_of(value, name, depth + 1)]


def _within(program: object, label: str) -> list[tuple[str, object]]:
    """The named things one step away from a program."""
    if isinstance(program, functools.partial):  # effect handlers wrap programs in partials too
        positional = [(label, part) for part in (program.func, *program.args)]
        return [*positional, *_named(program.keywords, label)]

    if inspect.ismethod(program):
        attributes = getattr(program.__self__, "__dict__", {})
        return [(label, program.__func__), *_named(attributes, label)]

    if inspect.isfunction(program):
        if program.__module__.partition(".")[0] in ("pyro", "torch"):
            return []
        try:
            names = inspect.getclosurevars(program)
        except ValueError:  # a variable of the enclosing function has no value yet
            return []
        return [*_named(names.nonlocals, label), *_named(names.globals, label)]

    if isinstance(program, Mapping):
        return _named(program, label)
    if isinstance(program, list | tuple):
        return [(f"{label}.{index}", value) for index, value in enumerate(program)]

    # an object that can be called; effect handlers and classes hold no networks
    if callable(program) and not inspect.isroutine(program) and not isinstance(program, type | Messenger):
        return _named(getattr(program, "__dict__", {}), label)
    return []


def _named(values: Mapping[str, object], label: str) -> list[tuple[str, object]]:
    """Sorted, so that names are the same in every process."""
    return [(f"{label}.{name}", values[name]) for name in sorted(values, key=str)]


def identity(program: Program) -> Hashable:
    """What tells a program from others while it is alive.

    A bound method is another object at each access, so it goes by its owner and function.
    """
    owner = getattr(program, "__self__", None)
    if owner is None:
        return id(program)
    return id(owner), id(getattr(program, "__func__", None))


def num_positional(program: Program) -> int | None:
    """How many positional arguments a program takes; None for any number."""
    parameters = _parameters(program)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in POSITIONAL for p in parameters)


def required_arguments(program: Program) -> list[str]:
    """The names of the positional arguments without which a program cannot run, as far as its signature says."""
    positional = (p for p in _parameters(program) or () if p.kind in POSITIONAL)
    return [p.name for p in positional if p.default is p.empty]


def argument_names(program: Program, num: int) -> list[str]:
    """What a program calls its first positional arguments, as far as its signature says."""
    names = [p.name for p in _parameters(program) or ()][:num]
    return names + [f"argument_{i}" for i in range(len(names), num)]


def _parameters(program: Program) -> list[inspect.Parameter] | None:
    """The parameters of a program without its wrappers; None where it does not say."""
    program = unwrap(program)
    function = program.forward if isinstance(program, nn.Module) else program
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
