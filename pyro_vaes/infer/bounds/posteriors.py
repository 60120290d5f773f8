"""The posteriors q(z | x_1), .., q(z | x_n) that a guide uses for the rows of a batch, read off while it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from pyro_vaes.distributions.map_parameters import elements, has_map, mapped
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.infer.bounds.bound import Program
from pyro_vaes.infer.checks.mean_field import dependencies
from pyro_vaes.infer.checks.tables import random_sites
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.programs.pair import preserve_rng
from pyro_vaes.programs.recorder import SiteRecorder

__all__ = ["PosteriorRecorder", "PosteriorSite", "find_posteriors", "sites_given_others"]

Args = tuple[object, ...]
OTHER_SITES = Cure("sites", words="compare other sites, sites=[...]")


@dataclass(frozen=True)
class PosteriorSite:
    """One site of a guide whose distribution is a posterior given the datum alone.

    Attributes:
        name: The site.
        plate: Name of the data plate.
        plates: Names of all plates that hold the site; other batch dimensions, such as particles, repeat it.
        plain: Whether its maps onto a support, if any, are the same invertible ones for all rows, so that a KL is that
            of the distributions before the maps.
    """

    name: str
    plate: str
    plates: tuple[str, ...]
    plain: bool

    def rows(self, message: Message) -> Distribution:
        """The posteriors of the rows with batch shape ``(n, ...)``: the data plate in front, no particles."""
        fn = message["fn"]
        if message["mask"] is not None and message["mask"] is not True:
            raise UsageError(
                f"The guide's site {self.name!r} is masked, and which pairs of posteriors a mask leaves is not "
                "defined.",
                use_bound(),
                Cure("rows", "unmasked", words="leave the masked rows out of the batch"),
                OTHER_SITES,
            )
        if _may_be_point(message):  # labels came after the first look
            raise _point(self.name, use_bound(), OTHER_SITES)
        dims = {f.name: f.dim for f in message["cond_indep_stack"] if f.vectorized and f.name in self.plates}
        data_dim, kept = dims[self.plate], set(dims.values())

        def front(parameter: Tensor, event_dim: int) -> Tensor:
            for dim in range(event_dim - parameter.dim(), 0):  # batch dimensions, -1 the last
                if dim not in kept:
                    parameter = parameter.narrow(dim - event_dim, 0, 1)
            return parameter.movedim(data_dim - event_dim, 0)

        fn = _before_maps(fn) if self.plain else fn
        try:
            if has_map(elements(fn)) and kept != {-1}:  # what a map holds for each row cannot be moved
                raise TypeError
            return mapped(fn, front)
        except (AttributeError, NotImplementedError, TypeError):
            if len(fn.batch_shape) == 1 and kept == {-1}:
                return cast(Distribution, fn)
        raise UsageError(
            f"The posteriors at the guide's site {self.name!r} ({type(fn).__name__}, batch shape "
            f"{tuple(fn.batch_shape)}) cannot be brought into one row for each datum.",
            use_bound(),
            Cure("plate", words="use one data plate and one particle"),
            OTHER_SITES,
        )


def _before_maps(fn: Distribution) -> Distribution:
    """The distribution before invertible maps onto a support."""
    if isinstance(fn, Independent):
        base = _before_maps(fn.base_dist)
        return Independent(base, fn.reinterpreted_batch_ndims) if base is not fn.base_dist else fn
    if has_map(fn) or isinstance(fn, LogNormal):
        return _before_maps(fn.base_dist)
    return fn


def _is_plain(fn: Distribution, data_dim: int) -> bool:
    """Whether all maps are invertible and the same for all rows: whether they map one row's point to one point."""
    while isinstance(fn, Independent):
        data_dim, fn = data_dim - fn.reinterpreted_batch_ndims, fn.base_dist
    if not has_map(fn):
        return True
    if not all(t.bijective for t in fn.transforms):
        return False
    base = fn.base_dist.sample()
    dim = data_dim - len(fn.base_dist.event_shape)
    value = base.narrow(dim, 0, 1).expand_as(base)
    for transform in fn.transforms:
        value = transform(value)
    event_dim = len(fn.event_shape)
    same = torch.allclose(value, value.narrow(data_dim - event_dim, 0, 1).expand_as(value), rtol=1e-6)
    return same and _is_plain(fn.base_dist, data_dim)


class PosteriorRecorder(SiteRecorder):
    """Around a guide: keeps the distributions of its latest run, particles and all."""

    def wants(self, msg: Message) -> bool:
        return is_latent(msg)


@dataclass
class _Look:
    """One dry run of a guide: its sites, and which of them are drawn given which others."""

    guide: Program
    args: Args
    sites: dict[str, Message] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with torch.no_grad(), poutine.block(), preserve_rng(0):
            trace = poutine.trace(self.guide).get_trace(*self.args)
        self.sites = {n: s for n, s in random_sites(trace).items() if not s["infer"].get("_deterministic")}

    def given_others(self) -> set[str]:
        """Sites whose distributions change with the values of others."""
        values = {n: s["value"] for n, s in self.sites.items() if not s["is_observed"]}
        if len(values) < 2:
            return set()
        with preserve_rng(0):
            found = {n for n, others in dependencies(self.guide, values, self.args).items() if others}
        for name, value in values.items():
            if not value.is_floating_point():
                found |= self._moved_by(name, values)
        return found

    def _moved_by(self, name: str, values: dict[str, Tensor]) -> set[str]:
        """Sites whose densities at the same values differ between two values of a discrete one."""
        fn, densities = self.sites[name]["fn"], []
        ends = (
            fn.enumerate_support(expand=True)[[0, -1]] if fn.has_enumerate_support else [values[name], 0 * values[name]]
        )
        for value in ends:
            with torch.no_grad(), poutine.block(), preserve_rng(0):
                program = poutine.condition(self.guide, data={**values, name: value})
                trace = poutine.trace(program).get_trace(*self.args)
                densities.append({n: trace.nodes[n]["fn"].log_prob(v) for n, v in values.items() if n != name})
        return {n for n, one in densities[0].items() if not torch.allclose(one, densities[1][n], equal_nan=True)}


def sites_given_others(program: Program, args: Args) -> set[str]:
    """The sites of a program, run aside, whose distributions change with the values of its other latent sites."""
    return _Look(program, args).given_others()


def find_posteriors(guide: Program, args: Args, sites: Sequence[str] | None) -> tuple[PosteriorSite, ...]:
    """Run a guide once, aside, and find the sites whose distributions are posteriors given the data alone.

    A latent site that is a function of an auxiliary one (a :class:`~pyro.distributions.Delta`) is represented by that.

    Arguments:
        guide: The guide.
        args: Its arguments.
        sites: The sites wanted; all by default.

    Raises:
        ValueError: A wanted site is unknown, lies outside every plate, is drawn given other latent sites, is a point,
            or is one for some data (marked ``infer={"may_be_point": True}``); or the sites share no plate.
    """
    look = _Look(guide, args)
    latent = {n: s for n, s in look.sites.items() if not s["is_observed"]}
    auxiliary = [n for n, s in latent.items() if s["infer"].get("is_auxiliary")]
    candidates = {n: s for n, s in latent.items() if not (auxiliary and isinstance(s["fn"], Delta))}
    unknown = [] if sites is None else sorted(set(sites) - candidates.keys())
    if unknown or not candidates:
        raise UsageError(
            f"The posteriors of the sites {unknown or 'of this guide'} cannot be compared: the guide's sites with a "
            f"distribution of their own are {sorted(candidates)}.",
            use_bound(),
            Cure("sites", tuple(sorted(candidates)), words="name some of these, sites=[...]"),
        )
    wanted = {n: s for n, s in candidates.items() if sites is None or n in sites}
    problems = list(_problems(wanted, look.given_others(), candidates))
    if problems:
        raise problems[0]
    frames = {n: [f for f in s["cond_indep_stack"] if f.vectorized] for n, s in wanted.items()}
    names = [{f.name for f in stack} for stack in frames.values()]
    shared = [f.name for f in next(iter(frames.values())) if all(f.name in n for n in names)]
    if not shared:
        raise ValueError(f"The sites {sorted(wanted)} share no plate; put them all into one data plate.")
    plate = shared[0]  # frames come in the order in which the plates were entered
    dims = {n: next(f.dim for f in stack if f.name == plate) for n, stack in frames.items()}
    with torch.no_grad(), preserve_rng():
        return tuple(
            PosteriorSite(n, plate, tuple(f.name for f in frames[n]), _is_plain(s["fn"], dims[n]))
            for n, s in wanted.items()
        )


def _problems(
    wanted: dict[str, Message], conditional: set[str], candidates: dict[str, Message]
) -> Iterator[UsageError]:
    points = {n for n, s in candidates.items() if _may_be_point(s)}
    others = sorted(candidates.keys() - conditional - points)
    compare_others = Cure("sites", tuple(others), words=f"compare the others, sites={others}")

    for name, site in wanted.items():
        if name in points:
            yield _point(name, compare_others if others else use_bound())
        if name in conditional:
            yield UsageError(
                f"The guide draws {name!r} given other latent sites, so it has no posterior of its own given the datum "
                "that could be compared with another's.",
                use_bound(),
                compare_others,
            )

        if not any(f.vectorized for f in site["cond_indep_stack"]):
            yield UsageError(
                f"The guide's site {name!r} lies outside every plate: it has one posterior for all data.",
                Cure("plate", words="put it into `with pyro.plate('data', len(x)):`"),
                OTHER_SITES,
            )
        if isinstance(site["fn"], Delta):
            yield UsageError(
                f"The guide's site {name!r} is a point (Delta), whose KL divergence from another is infinite.",
                OTHER_SITES,
                Cure("guide", "AmortizedNormal", words="use a guide with a spread, such as AmortizedNormal"),
            )


def _may_be_point(site: Message) -> bool:
    """Whether a guide says of a site that it is a point for some data."""
    return bool(site["infer"].get("may_be_point"))


def _point(name: str, *cures: Cure) -> UsageError:
    return UsageError(
        f"The guide's site {name!r} is a point where it is known (labels), whose KL divergence from another is "
        "infinite.",
        *cures,
    )
