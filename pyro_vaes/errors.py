"""Errors that say what came and what was wanted, and that hold what the user can do about it as data.

Python users read the cure behind the message, in Python. Another front end, such as the command line, words the same
data for its own users.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CurableError",
    "Cure",
    "MissingFileError",
    "UnwritableError",
    "UsageError",
    "leave_out",
    "message_and_cures",
    "suggest",
    "use_bound",
    "with_cures",
]


@dataclass(frozen=True)
class Cure:
    """One thing that the user can do about an error.

    Arguments:
        parameter: Name of the parameter to give or to change.
        value: An example of a value for it.
        words: What a Python user reads, where it is not "pass PARAMETER=VALUE".
        detail: The end of the clause, which is the same for all users.
        omitted: The parameters to leave out, where that is the cure.

    Example:
        >>> str(Cure("resize", 64, detail=" to make the images smaller"))
        'pass resize=64 to make the images smaller'
    """

    parameter: str
    value: object = None
    words: str = ""
    detail: str = ""
    omitted: tuple[str, ...] = ()

    def __str__(self) -> str:
        value = "" if self.value is None else repr(self.value)
        return (self.words or f"pass {self.parameter}={value}") + self.detail


def leave_out(*parameters: str) -> Cure:
    """The cure to leave parameters out.

    Example:
        >>> str(leave_out("key", "label_key"))
        'leave out key and label_key'
    """
    names = " and ".join(parameters)
    return Cure(parameters[0], words=f"leave out {names}", omitted=parameters)


def use_bound(name: str = "Trace_ELBO", detail: str = "") -> Cure:
    """The cure to train with another bound.

    Example:
        >>> str(use_bound())
        'use Trace_ELBO'
    """
    return Cure("loss", name, words=f"use {name}", detail=detail)


def with_cures(message: str, cures: Iterable[str]) -> str:
    """A message, and behind it a sentence of what can be done, one thing or the other.

    Example:
        >>> with_cures("It has no KL.", ["use Trace_ELBO", "a top-down guide"])
        'It has no KL. Use Trace_ELBO, or a top-down guide.'
    """
    *others, last = list(cures) or [""]
    if not last:
        return message

    text = f"{', '.join(others)}, or {last}" if others else last
    if "\n" in message:  # a table keeps its last line to itself
        divider = "\n"
    else:
        divider = " " if message.endswith((".", "?")) else ". "
    return f"{message}{divider}{text[0].upper()}{text[1:]}."


class CurableError(Exception):
    """An error with cures, which stand behind its message as a sentence of their own.

    Arguments:
        message: What came and what was wanted, as whole sentences.
        cures: What the user can do, one thing or the other.

    Example:
        >>> raise UsageError("The images differ in size.", Cure("resize", 64))
        Traceback (most recent call last):
            ...
        pyro_vaes.errors.UsageError: The images differ in size. Pass resize=64.
    """

    def __init__(self, message: str, *cures: Cure) -> None:
        super().__init__(with_cures(message, map(str, cures)))
        self.message, self.cures = message, cures


class UsageError(CurableError, ValueError):
    """A value that cannot be used."""


class MissingFileError(CurableError, FileNotFoundError):
    """A file that is needed and not here."""


class UnwritableError(CurableError, PermissionError):
    """A folder that cannot be written to."""


def message_and_cures(error: BaseException) -> tuple[str, tuple[Cure, ...]]:
    """What an error says without its cures, and the cures; any other error has none."""
    if isinstance(error, CurableError):
        return error.message, error.cures
    return str(error), ()


def suggest(name: str, known: Iterable[str], n: int = 2, cutoff: float = 0.5) -> str:
    """The nearest known names as a question, empty if none is near; see `difflib.get_close_matches`.

    Example:
        >>> suggest("Mean-Feild", ["trace", "mean_field"])
        "did you mean 'mean_field'? "
    """
    written = name.lower().replace("-", "_")
    near = difflib.get_close_matches(written, list(known), n, cutoff)
    if not near:
        return ""
    return f"did you mean {' or '.join(map(repr, near))}? "
