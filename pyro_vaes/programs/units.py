"""The plate whose rows are the data, and how many of them a batch stands for.

The *unit* is what "per datum" means: a row of the outermost plate that all observed sites
share. A latent site outside that plate is *global*: one value for all data.
"""

from dataclasses import dataclass

from pyro.poutine import Trace
from torch import Tensor

from .aside import local_parameters
from .plates import Plate, find_plate, plates
from .reach import Program
from .runs import PairTraces, dry_run, dry_run_pair
from .sites import OBJECTIVE, Role, sites
from .structure import Findings

Args = tuple[object, ...]


@dataclass(frozen=True)
class DataPlate:
    """The plate of the data in a model/guide pair.

    Attributes:
        name: Its name.
        dim: Its batch dimension, negative.
        depth: Number of batch dimensions that the pair's plates use.
        size: Number of rows in the run that was looked at.
        full_size: Number of data that the plate stood for if it subsampled in that run;
            None if it did not.
    """

    name: str
    dim: int
    depth: int
    size: int
    full_size: int | None

    def scale(self, trace: Trace) -> float:
        """How many data a row of this run stands for: other batches may have others."""
        site = next(iter(sites(trace, OBJECTIVE).values()))
        return find_plate(site, self.name).scale


def find_data_plate(model: Program, guide: Program, args: Args) -> DataPlate:
    """Run the pair once, aside, and find the outermost plate that holds all its sites.

    Raises:
        ValueError: A site lies outside every plate, the sites share none, or the guide
            lacks a latent site.
    """
    return data_plate(dry_run_pair(model, guide, args))


def data_plate(traces: PairTraces) -> DataPlate:
    """The outermost plate that holds all sites of these runs; see find_data_plate."""
    guide_sites, model_sites = sites(traces.guide, OBJECTIVE), sites(traces.model, OBJECTIVE)
    everything = [*guide_sites.items(), *model_sites.items()]

    for name, site in everything:
        if not plates(site):
            kind = "observed" if site["is_observed"] else "latent"
            raise ValueError(
                f"The {kind} site {name!r} lies outside the data plate, so nothing per datum can be said of "
                "it. Put it into `with pyro.plate('data', len(x)):`."
            )

    missing = [n for n, s in model_sites.items() if not s["is_observed"] and n not in guide_sites]
    if missing:
        raise ValueError(
            f"The guide does not draw the model's latent sites {missing}, so they have no importance weights. Draw "
            "them in the guide, or sum a discrete one out of the model (MixtureSameFamily)?"
        )

    stacks = [plates(site) for _, site in everything]
    shared = _shared_by_all(stacks)
    if shared is None:
        names = sorted({name for name, _ in everything})
        raise ValueError(f"The sites {names} share no plate; put them all into one data plate.")

    depth = -min(plate.dim for stack in stacks for plate in stack)
    full_size = shared.num_data if shared.subsamples else None
    return DataPlate(shared.name, shared.dim, depth, shared.size, full_size)


def _shared_by_all(stacks: list[tuple[Plate, ...]]) -> Plate | None:
    """The outermost plate that stands in all stacks."""
    if not stacks:
        return None
    for plate in stacks[0]:
        if all(plate.name in {p.name for p in stack} for stack in stacks):
            return plate
    return None


@dataclass(frozen=True)
class Units:
    """How many units a batch holds, and how many its loss stands for."""

    size: int
    num_data: int


class UnitCounter:
    """How many units the loss of a batch stands for.

    The model is looked at once for each structure of its batches.

    Arguments:
        model: The model.
    """

    def __init__(self, model: Program) -> None:
        self.model = model
        self._found = Findings[Units]()

    def of(self, args: Args) -> Units:
        """The units of a batch.

        Where the observed sites share no plate, these are the rows of its first tensor.
        """
        return self._found.of((self.model,), args, lambda: self._count(args))

    def _count(self, args: Args) -> Units:
        with local_parameters():
            observed = sites(dry_run(self.model, args), Role.OBSERVED)

        plate = _shared_by_all([plates(site) for site in observed.values()])
        if plate is None:
            rows = num_rows(args)
            return Units(rows, rows)
        return Units(plate.size, plate.num_data)


def num_rows(args: Args) -> int:
    """The rows of the first tensor that has any; 1 without one."""
    for value in args:
        if isinstance(value, Tensor) and value.dim():
            return len(value)
    return 1
