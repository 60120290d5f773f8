"""What "per datum" means for a pair, and how many data a batch stands for.

The *unit* is a row of the outermost plate that all observed sites share. What is said per
datum is said per unit. A latent site outside that plate is *global*: it has one value for
all units. Where the observed sites share no plate, or two that cross, the whole data are
one unit.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass

from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError, use_bound

from .aside import local_parameters
from .plates import Plate, enclosing_plates, find_plate
from .reach import Program
from .runs import PairTraces, dry_run, dry_run_pair
from .sites import OBJECTIVE, Role, Sites, sites
from .structure import Findings
from .which_unit import crossed_plates, find_unit, is_inside, shared_plates

logger = logging.getLogger(__name__)
Args = tuple[object, ...]


@dataclass(frozen=True)
class DataPlate:
    """The plate of the data in a model/guide pair.

    Attributes:
        name: Its name.
        dim: Its batch dimension, negative; 0 where the programs loop over its rows.
        depth: Number of batch dimensions that the pair's plates use.
        size: Number of rows in the run that was looked at.
        full_size: Number of data that the plate stood for if it subsampled in that run;
            None if it did not.
        global_sites: Names of the latent sites outside it.
        broadcasts: Whether one pass of the programs may hold several particles.
        enumerated: Names of the model's sites that are summed over.
    """

    name: str
    dim: int
    depth: int
    size: int
    full_size: int | None
    global_sites: frozenset[str] = frozenset()
    broadcasts: bool = True
    enumerated: frozenset[str] = frozenset()

    def scale(self, trace: Trace) -> float:
        """How many data a row of this run stands for: other batches may have others."""
        for site in sites(trace, OBJECTIVE).values():
            if is_inside(site, self.name):
                return find_plate(site, self.name).scale
        raise ValueError(f"No site of this run lies in the plate {self.name!r}.")


# the plate of importance weights


def find_data_plate(
    model: Program,
    guide: Program,
    args: Args,
    unit: str | None = None,
    *,
    globals_too: bool = False,
    enumerated_too: bool = False,
) -> DataPlate:
    """Run the pair once, aside, and find the plate whose rows are the data.

    Arguments:
        model, guide: The pair.
        args: Their arguments.
        unit: Name of the plate; by default the outermost one of all observed sites.
        globals_too: Whether latent sites may lie outside it.
        enumerated_too: Whether the guide may lack sites that the model sums over.

    Raises:
        ValueError: The sites share no plate, a latent site lies outside it, or the
            guide lacks a latent site.
    """
    traces = dry_run_pair(model, guide, args)
    return data_plate(
        traces,
        unit,
        globals_too=globals_too,
        enumerated_too=enumerated_too,
    )


def data_plate(
    traces: PairTraces,
    unit: str | None = None,
    *,
    globals_too: bool = False,
    enumerated_too: bool = False,
) -> DataPlate:
    """The plate whose rows are the data of these runs; see :func:`find_data_plate`."""
    guide_sites = sites(traces.guide, OBJECTIVE)
    model_sites = sites(traces.model, OBJECTIVE)
    plate = find_unit(model_sites, unit)
    if plate is None:
        raise _no_plate(model_sites | guide_sites)

    if plate.is_loop:
        raise _is_loop(plate.name)

    outside, all_sites = [], model_sites | guide_sites
    for name, site in [*guide_sites.items(), *model_sites.items()]:
        if not is_inside(site, plate.name):
            outside.append(name)
    apart = [name for name in outside if all_sites[name]["cond_indep_stack"]]
    if outside and not globals_too:
        if unit is None and len(apart) == len(outside):
            raise _share_none(all_sites)
        raise _is_global(outside[0], all_sites)

    enumerated = frozenset[str]()
    if enumerated_too:
        absent = sites(traces.model, Role.ENUMERATED).keys() - guide_sites.keys()
        enumerated = frozenset(absent)
    _refuse_missing(guide_sites.keys() | enumerated, model_sites)

    # the particles' dimension lies to the left of all of these
    dims = [0]
    for site in [*guide_sites.values(), *model_sites.values()]:
        dims += [around.dim for around in enclosing_plates(site)]

    full_size = plate.num_data if plate.subsamples else None
    return DataPlate(
        plate.name,
        plate.dim,
        depth=-min(dims),
        size=plate.size,
        full_size=full_size,
        global_sites=frozenset(outside),
        enumerated=enumerated,
    )


def _no_plate(all_sites: Sites) -> UsageError:
    crossed = [plate.name for plate in crossed_plates(all_sites)]
    if crossed:
        return UsageError(
            f"The data lie in the plates {crossed}, none of them inside another, so it is not known what one datum is.",
            *_cures(crossed),
        )

    for name, site in all_sites.items():
        if not site["cond_indep_stack"]:
            return _is_global(name, all_sites)

    return _share_none(all_sites)


def _share_none(all_sites: Sites) -> UsageError:
    words = "put them into one data plate, `with pyro.plate('data', len(x)):`"
    return UsageError(
        f"The sites {sorted(all_sites)} share no plate, so nothing can be said per datum.",
        Cure("plate", words=words),
    )


def _cures(names: list[str]) -> list[Cure]:
    return [Cure("unit", name) for name in names]


def _is_loop(name: str) -> UsageError:
    words = f"write `with pyro.plate({name!r}, ...):` around sites that hold all rows"
    return UsageError(
        f"The programs loop over the rows of the plate {name!r}, so no pass of them holds "
        "all rows side by side, as weights per datum need them.",
        Cure("plate", words=words),
        use_bound(detail=", which takes loops, if this is a bound"),
    )


def _is_global(name: str, all_sites: Sites) -> UsageError:
    kind = "observed" if all_sites[name]["is_observed"] else "latent"
    return UsageError(
        f"The {kind} site {name!r} lies outside the data plate, so it is global: it has "
        "one value for all data, and no importance weight or posterior per datum.",
        Cure("plate", words="put it into the data plate if each datum has its own"),
        use_bound(detail=", which takes global sites, if this is a bound"),
    )


def _refuse_missing(drawn: Set[str], model_sites: Sites) -> None:
    missing = []
    for name, site in model_sites.items():
        if not site["is_observed"] and name not in drawn:
            missing.append(name)
    if missing:
        raise ValueError(
            f"The guide does not draw the model's latent sites {missing}, so they have "
            "no importance weights. Draw them in the guide, or sum a discrete one out of "
            "the model (MixtureSameFamily)?"
        )


# how many


@dataclass(frozen=True)
class Units:
    """How many units a batch holds, and how many its loss stands for.

    Attributes:
        size: Number of units in the batch; where the whole data are one unit, the
            share of them that the batch holds.
        num_data: Number of units for which its loss stands.
        plate: Name of the plate whose rows they are; None where the whole data are one.
    """

    size: float
    num_data: float
    plate: str | None = None


class UnitCounter:
    """How many units the loss of a batch stands for.

    The programs are looked at once for each structure of their batches. Where the whole
    data count as one unit, that is logged once.

    Arguments:
        model: The model.
        guide: The guide, which may draw the rows for the model.
        unit: Name of the plate whose rows are the units; found by default.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None = None,
        unit: str | None = None,
    ) -> None:
        self.model, self.guide, self.unit = model, guide, unit
        self._found = Findings[Units]()
        self._has_warned = False

    def of(self, args: Args) -> Units:
        """The units of a batch."""
        programs = [self.model] if self.guide is None else [self.model, self.guide]
        return self._found.of(programs, args, lambda: self._count(args))

    def _count(self, args: Args) -> Units:
        with local_parameters():
            if self.guide is None:
                trace = dry_run(self.model, args)
            else:
                trace = dry_run_pair(self.model, self.guide, args).model

        model_sites = sites(trace, OBJECTIVE)
        plate = find_unit(model_sites, self.unit)
        if plate is not None:
            return _rows_of(plate, model_sites)

        self._warn_once(model_sites)
        share: float = 1
        for around in shared_plates(model_sites):
            if around.subsamples:
                share = share / around.scale
        return Units(share, 1)

    def _warn_once(self, model_sites: Sites) -> None:
        if self._has_warned:
            return
        self._has_warned = True

        reason, cure = "share no plate", "put them into one data plate"
        crossed = [plate.name for plate in crossed_plates(model_sites)]
        if crossed:
            reason = f"lie in the plates {crossed}, none of them inside another"
            cure = f"pass unit={crossed[0]!r}"
        logger.warning(
            "The observed sites %s, so the whole data count as one unit: losses are in "
            "nats for all data, not per datum. For nats per datum %s.",
            reason,
            cure,
        )


def _rows_of(plate: Plate, model_sites: Sites) -> Units:
    """The rows of a plate, those of all plates around it taken together."""
    inside = [site for site in model_sites.values() if is_inside(site, plate.name)]
    size, num_data = plate.size, plate.num_data

    for around in enclosing_plates(inside[0]):
        if around.name == plate.name:
            break
        if all(is_inside(site, around.name) for site in inside):
            size, num_data = size * around.size, num_data * around.num_data
    return Units(size, num_data, plate.name)


def num_rows(args: Args) -> int:
    """The rows of the first tensor that has any; 1 without one."""
    for value in args:
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    return 1
