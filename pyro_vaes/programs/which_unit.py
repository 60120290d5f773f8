"""Which plate's rows are the units: the outermost one that all observed sites share.

Where two plates cross (users × items) either could be meant, and it is the user who
names one.
"""

from pyro.poutine.runtime import Message

from pyro_vaes.errors import Cure, UsageError

from .plates import Plate, enclosing_plates
from .sites import DRAWN, Role, Sites, role


def is_inside(site: Message, name: str) -> bool:
    """Whether a site lies in the plate of that name."""
    return any(frame.name == name for frame in site["cond_indep_stack"])


def find_unit(model_sites: Sites, unit: str | None = None) -> Plate | None:
    """The plate of the units; None where the whole data are one unit.

    Of several plates that all observed sites share, it is the outermost one that holds the
    latents as well; where none holds all of them, the outermost.

    Arguments:
        model_sites: The model's sites in a run.
        unit: Name of the plate; by default it is found.

    Raises:
        ValueError: The plate of that name does not hold all observed sites.
    """
    shared = shared_plates(model_sites)
    if unit is not None:
        for plate in shared:
            if plate.name == unit:
                return plate
        found = [plate.name for plate in shared]
        message = f"unit={unit!r} is no plate that holds all observed sites; "
        raise UsageError(
            f"{message}those are {found}.",
            *(Cure("unit", name) for name in found),
        )

    if len(crossed_plates(model_sites)) > 1:
        return None
    local = [plate for plate in shared if _holds_all_drawn(plate, model_sites)]
    return next(iter([*local, *shared]), None)


def shared_plates(model_sites: Sites) -> list[Plate]:
    """The plates that hold all observed sites, outermost first.

    Where nothing is observed, those that hold all factors, or else all sites.
    """
    chosen = list(model_sites.values())
    for wanted in (Role.OBSERVED, Role.FACTOR):
        of_role = [site for site in chosen if role(site) is wanted]
        if of_role:
            chosen = of_role
            break

    stacks = [enclosing_plates(site) for site in chosen]
    if not stacks:
        return []

    first, *others = stacks
    names = [{plate.name for plate in stack} for stack in others]
    return [plate for plate in first if all(plate.name in known for known in names)]


def crossed_plates(model_sites: Sites) -> list[Plate]:
    """The plates of which each could hold the units; none or several."""
    shared = shared_plates(model_sites)
    if not shared or any(_holds_all_drawn(plate, model_sites) for plate in shared):
        return []

    outermost, *inner = shared
    crossing = []
    for plate in inner:
        for site in _drawn(model_sites):
            if is_inside(site, plate.name) and not is_inside(site, outermost.name):
                crossing.append(plate)
                break
    return [outermost, *crossing] if crossing else []


def _drawn(model_sites: Sites) -> list[Message]:
    return [site for site in model_sites.values() if role(site) in DRAWN]


def _holds_all_drawn(plate: Plate, model_sites: Sites) -> bool:
    return all(is_inside(site, plate.name) for site in _drawn(model_sites))
