"""Programs together with the keywords of one call."""

from collections.abc import Mapping
from dataclasses import dataclass

from .reach import Program


@dataclass(frozen=True)
class WithKeywords:
    """A program with the keywords of one call."""

    program: Program
    keywords: Mapping[str, object]

    def __call__(self, *args: object) -> object:
        return self.program(*args, **self.keywords)


def bind_keywords(program: Program, keywords: Mapping[str, object]) -> Program:
    """The program with these keywords; itself where there are none."""
    return WithKeywords(program, keywords) if keywords else program


def unbind_keywords(program: Program) -> tuple[Program, Mapping[str, object]]:
    """The program itself and its keywords."""
    if isinstance(program, WithKeywords):
        return program.program, program.keywords
    return program, {}
