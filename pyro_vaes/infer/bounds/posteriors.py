"""The posteriors q(z | x_1), .., q(z | x_n) that a guide uses for the rows of a batch, read off while it runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from pyro_vaes.distributions import event_elements, has_transforms, map_parameters
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import (
    DRAWN,
    Program,
    Sites,
    dependencies,
    dry_run,
    find_plate,
    is_auxiliary,
    may_be_point,
    plates,
    preserve_rng,
    run,
    sites,
)

from .bound import Args

OTHER_SITES = Cure("sites", words="compare other sites, sites=[...]")


class PosteriorSite(NamedTuple):
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
        if may_be_point(message):  # labels came after the first look
            raise _is_point(self.name, use_bound(), OTHER_SITES)

        dims = {p.name: p.dim for p in plates(message) if p.name in self.plates}
        data_dim, kept = dims[self.plate], set(dims.values())

        def front(parameter: Tensor, event_dim: int) -> Tensor:
            for dim in range(event_dim - parameter.dim(), 0):  # batch dimensions, -1 the last
                if dim not in kept:
                    parameter = parameter.narrow(dim - event_dim, 0, 1)
            return parameter.movedim(data_dim - event_dim, 0)

        fn = _before_maps(fn) if self.plain else fn
        try:
            if has_transforms(event_elements(fn)) and kept != {-1}:  # what a map holds for each row cannot be moved
                raise TypeError
            return map_parameters(fn, front)
        except (AttributeError, NotImplementedError, TypeError):
            if len(fn.batch_shape) == 1 and kept == {-1}:
                return fn
        raise ValueError(
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
    if has_transforms(fn) or isinstance(fn, LogNormal):
        return _before_maps(fn.base_dist)
    return fn


def _is_plain(fn: Distribution, dim: int) -> bool:
    """Whether all maps are invertible and the same for all rows: whether they map one row's point to one point.

    Arguments:
        fn: Posteriors of rows.
        dim: Dimension of the rows in a value, negative.
    """
    fn = event_elements(fn)
    if not has_transforms(fn):
        return True
    if not all(t.bijective for t in fn.transforms):
        return False

    base_dim = dim + len(fn.event_shape) - len(fn.base_dist.event_shape)
    value = _first_row(fn.base_dist.sample(), base_dim)
    for transform in fn.transforms:
        value = transform(value)

    same = torch.allclose(value, _first_row(value, dim), rtol=1e-6)
    return same and _is_plain(fn.base_dist, base_dim)


def _first_row(value: Tensor, dim: int) -> Tensor:
    """The first row in place of all."""
    return value.narrow(dim, 0, 1).expand_as(value)


def sites_given_others(program: Program, args: Args, own_sites: Sites) -> set[str]:
    """The sites of a program whose distributions change with the values of others.

    Arguments:
        program: The program, which is run aside.
        args: Its arguments.
        own_sites: The sites that it draws in a run.
    """
    values = {n: s["value"] for n, s in own_sites.items()}
    if len(values) < 2:
        return set()

    with preserve_rng(0):
        gradients = dependencies(program, values, args)
    found = {name for name, others in gradients.items() if others}

    # a discrete value has no gradient: two values of it are compared
    for name, value in values.items():
        if not value.is_floating_point():
            found |= _moved_by(program, args, own_sites[name], values)
    return found


def _moved_by(program: Program, args: Args, site: Message, values: dict[str, Tensor]) -> set[str]:
    """Sites whose densities at the same values differ between two values of a discrete one."""
    fn, name = site["fn"], site["name"]
    ends = (values[name], 0 * values[name])
    if fn.has_enumerate_support:
        support = fn.enumerate_support(expand=True)
        ends = (support[0], support[-1])

    densities = []
    for value in ends:
        with torch.no_grad(), poutine.block(), preserve_rng(0):
            trace = run(program, args, given={**values, name: value})
            others = {n: v for n, v in values.items() if n != name}
            densities.append({n: trace.nodes[n]["fn"].log_prob(v) for n, v in others.items()})

    first, second = densities
    return {n for n in first if not torch.allclose(first[n], second[n], equal_nan=True)}


def find_posteriors(guide: Program, args: Args, names: Sequence[str] | None) -> tuple[PosteriorSite, ...]:
    """Run a guide once, aside, and find its sites that are posteriors given the data.

    A latent site that is a function of an auxiliary one (a
    :class:`~pyro.distributions.Delta`) is represented by that.

    Arguments:
        guide: The guide.
        args: Its arguments.
        names: The sites wanted; all by default.

    Raises:
        ValueError: A wanted site is unknown, lies outside every plate, is drawn given other
            latent sites, is a point, or is one for some data (marked
            ``infer={"may_be_point": True}``); or the sites share no plate.
    """
    own_sites = sites(dry_run(guide, args), DRAWN)
    functions = any(map(is_auxiliary, own_sites.values()))
    candidates = {}
    for name, site in own_sites.items():
        if not (functions and isinstance(site["fn"], Delta)):
            candidates[name] = site

    chosen = set(candidates if names is None else names)
    unknown = sorted(chosen - candidates.keys())
    if unknown or not candidates:
        raise UsageError(
            f"The posteriors of the sites {unknown or 'of this guide'} cannot be compared: the "
            f"guide's sites with a distribution of their own are {sorted(candidates)}.",
            use_bound(),
            Cure("sites", tuple(sorted(candidates)), words="name some of these, sites=[...]"),
        )

    wanted = {n: s for n, s in candidates.items() if n in chosen}
    conditional = sites_given_others(guide, args, own_sites)
    for problem in _problems(wanted, conditional, candidates):
        raise problem

    around = {n: tuple(plate.name for plate in plates(s)) for n, s in wanted.items()}
    first, *others = around.values()
    shared = [name for name in first if all(name in other for other in others)]
    if not shared:
        raise ValueError(f"The sites {sorted(wanted)} share no plate; put them all into one data plate.")

    data_plate = shared[0]  # the outermost
    found = []
    with torch.no_grad(), preserve_rng():
        for name, site in wanted.items():
            fn = site["fn"]
            dim = find_plate(site, data_plate).dim - len(fn.event_shape)
            found.append(PosteriorSite(name, data_plate, around[name], _is_plain(fn, dim)))
    return tuple(found)


def _problems(wanted: Sites, conditional: set[str], candidates: Sites) -> Iterator[UsageError]:
    points = {n for n, s in candidates.items() if may_be_point(s)}
    others = sorted(candidates.keys() - conditional - points)
    compare_others = Cure("sites", tuple(others), words=f"compare the others, sites={others}")

    for name, site in wanted.items():
        if name in points:
            yield _is_point(name, compare_others if others else use_bound())
        if name in conditional:
            yield UsageError(
                f"The guide draws {name!r} given other latent sites, so it has no posterior of "
                "its own given the datum that could be compared with another's.",
                use_bound(),
                compare_others,
            )
        if not plates(site):
            yield UsageError(
                f"The guide's site {name!r} lies outside every plate: it has one posterior for all data.",
                Cure("plate", words="put it into `with pyro.plate('data', len(x)):`"),
                OTHER_SITES,
            )
        if isinstance(site["fn"], Delta):
            yield UsageError(
                f"The guide's site {name!r} is a point (Delta), whose KL divergence from another is infinite.",
                OTHER_SITES,
                Cure(
                    "guide",
                    "AmortizedNormal",
                    words="use a guide with a spread, such as AmortizedNormal",
                ),
            )


def _is_point(name: str, *cures: Cure) -> UsageError:
    return UsageError(
        f"The guide's site {name!r} is a point where it is known (labels), whose KL divergence "
        "from another is infinite.",
        *cures,
    )
