"""The table that everybody debugs with: what each site of a pair is, and where it lies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyro
from pyro.poutine.runtime import Message

from pyro_vaes.programs import (
    OBJECTIVE,
    Pair,
    Program,
    Sites,
    crossed_plates,
    dry_run_pair,
    enclosing_plates,
    find_unit,
    is_inside,
    mask_of,
    own_scale,
    preserve_rng,
    role,
    sites,
)

from ..batches.batches import first_batch
from .tables import family


@dataclass(frozen=True)
class SiteRow:
    """One site of a program.

    Attributes:
        program: ``"model"`` or ``"guide"``.
        name: Its name.
        role: What it is, see :class:`~pyro_vaes.programs.Role`.
        distribution: The family of its distribution.
        shape: Batch shape and event shape.
        plates: The plates around it with the rows that they hold, and the full size where
            that is another; outermost first. A loop over rows is written as such.
        mask: How many elements count, of how many; empty where all do.
        scale: Its scale beside that of its plates; 1 if it has none.
        per: The plate of the units if it lies in it, ``"all data"`` if it is global.
        rule: What the guide says of it, where the guide has a ``describe_rule(name)``.
    """

    program: str
    name: str
    role: str
    distribution: str
    shape: str
    plates: str
    mask: str
    scale: float
    per: str
    rule: str


@dataclass(frozen=True)
class Description:
    """The sites of a pair on a batch, as a table that prints itself.

    Attributes:
        rows: One for each site, those of the model first.
        unit: Name of the plate whose rows are the data; None where there is none.
        candidates: The plates of which each could be meant, where several cross.
    """

    rows: tuple[SiteRow, ...]
    unit: str | None
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        heads = ("program", "site", "role", "distribution", "shape", "plates", "mask")
        table = [[*heads, "scale", "per", "rule"]]
        for row in self.rows:
            values = [str(value) for value in vars(row).values()]
            values[7] = f"{row.scale:g}"
            table.append(values)

        kept = [list(column) for column in zip(*table, strict=True) if any(column[1:])]
        for column in kept:
            width = max(map(len, column)) + 2
            column[:] = [text.ljust(width) for text in column]

        lines = ["".join(cells).rstrip() for cells in zip(*kept, strict=True)]
        return "\n".join([*lines, self._about_units()])

    __repr__ = __str__

    def _about_units(self) -> str:
        if self.unit is not None:
            return f"per datum means per row of the plate {self.unit!r}"
        if self.candidates:
            return f"all data are one unit; pass unit= one of {list(self.candidates)}"
        return "all data are one unit: the observed sites share no plate"


def describe(
    model: Program,
    guide: Program,
    batch: object,
    *,
    unit: str | None = None,
) -> Description:
    """Run a pair once on a batch, aside, and describe its sites.

    A guide may have a method ``describe_rule(site_name) -> str``, whose text is shown.

    Arguments:
        model: The model.
        guide: The guide.
        batch: As for :func:`~pyro_vaes.infer.check`.
        unit: Name of the plate whose rows are the data; found by default.

    Example:
        >>> import pyro, torch
        >>> from pyro.distributions import Normal
        >>> def model(x):
        ...     with pyro.plate("data", 90, subsample_size=len(x)):
        ...         z = pyro.sample("z", Normal(0.0, 1.0))
        ...         pyro.sample("x", Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", 90, subsample_size=len(x)):
        ...         pyro.sample("z", Normal(x / 2, 1.0))
        >>> describe(model, guide, torch.zeros(5))
        program  site  role      distribution  shape   plates         scale  per
        model    z     latent    Normal        (5) ()  data[5 of 90]  1      data
        model    x     observed  Normal        (5) ()  data[5 of 90]  1      data
        guide    z     latent    Normal        (5) ()  data[5 of 90]  1      data
        per datum means per row of the plate 'data'
    """
    pair = Pair(model, guide)
    with preserve_rng():
        args = pair.arguments(first_batch(batch, pair.device() or "cpu"))
    with pair.aside(), pyro.validation_enabled(False):
        traces = dry_run_pair(model, guide, args)

    model_sites = sites(traces.model, OBJECTIVE)
    plate = find_unit(model_sites, unit)
    name = None if plate is None else plate.name

    explain = getattr(guide, "describe_rule", _no_rule)
    found: list[SiteRow] = []
    programs: Mapping[str, Sites] = {
        "model": sites(traces.model),
        "guide": sites(traces.guide),
    }
    for label, its_sites in programs.items():
        rule = explain if label == "guide" else _no_rule
        for site in its_sites.values():
            found.append(_row(label, site, name, rule))

    crossed = tuple(around.name for around in crossed_plates(model_sites))
    return Description(tuple(found), name, crossed)


def _no_rule(name: str) -> str:
    return ""


def _row(
    label: str,
    site: Message,
    unit: str | None,
    rule: Callable[[str], str],
) -> SiteRow:
    fn, name = site["fn"], str(site["name"])
    batch = ", ".join(map(str, fn.batch_shape))
    event = ", ".join(map(str, fn.event_shape))

    per = "all data"
    if unit is not None and is_inside(site, unit):
        per = unit

    return SiteRow(
        program=label,
        name=name,
        role=role(site).value,
        distribution=family(fn),
        shape=f"({batch}) ({event})",
        plates=_plates(site),
        mask=_mask(site),
        scale=own_scale(site),
        per=per,
        rule=rule(name),
    )


def _plates(site: Message) -> str:
    found = []
    for plate in enclosing_plates(site):
        rows = str(plate.size)
        if plate.subsamples:
            rows += f" of {plate.num_data}"
        loop = "for each of " if plate.is_loop else ""
        found.append(f"{loop}{plate.name}[{rows}]")
    return ", ".join(found)


def _mask(site: Message) -> str:
    mask = mask_of(site)
    if mask is None:
        return ""
    return f"{int(mask.sum())} of {mask.numel()}"
