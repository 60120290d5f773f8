"""Programs within a recorder, as a bound hands them to the bound that it wraps."""

from typing import Generic, TypeVar

from pyro_vaes.programs import (
    Findings,
    Program,
    SiteRecorder,
    bind_keywords,
    unbind_keywords,
)

R = TypeVar("R", bound=SiteRecorder)


class Recorded(Generic[R]):
    """Maps a program to that program within the recorder.

    It is one object in all steps, so that a wrapped bound looks at it once.
    """

    def __init__(self, recorder: R) -> None:
        self.recorder = recorder
        self._programs = Findings[Program]()

    def __call__(self, program: Program) -> Program:
        bare, keywords = unbind_keywords(program)
        recorded = self._programs.of((bare,), (), lambda: self.recorder(bare))
        return bind_keywords(recorded, keywords)
