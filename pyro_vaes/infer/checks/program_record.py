"""What a dry run shows of one program, read off its trace once for all checks."""

from dataclasses import dataclass

from pyro.poutine import Trace

from pyro_vaes.programs import (
    DRAWN,
    OBJECTIVE,
    Plate,
    Sites,
    enclosing_plates,
    plates,
    sites,
)


@dataclass(frozen=True)
class ProgramRecord:
    """The sample sites of a program, and the plates around them.

    Attributes:
        label: Which program it is, ``"model"`` or ``"guide"``.
        all_sites: All its sites by name.
        sites: Those that an objective is made of.
        drawn: Those that draw a value.
        plates: The vectorised plates around each site, outermost first.
        enclosing: The same with the plates whose rows the program loops over.
    """

    label: str
    all_sites: Sites
    sites: Sites
    drawn: Sites
    plates: dict[str, tuple[Plate, ...]]
    enclosing: dict[str, tuple[Plate, ...]]


def record(label: str, trace: Trace) -> ProgramRecord:
    """The record of a program, from the trace of a dry run."""
    all_sites, around, enclosing = sites(trace), {}, {}
    objective, drawn = sites(trace, OBJECTIVE), sites(trace, DRAWN)
    for name, site in all_sites.items():
        around[name] = plates(site)
        enclosing[name] = enclosing_plates(site)
    return ProgramRecord(label, all_sites, objective, drawn, around, enclosing)
