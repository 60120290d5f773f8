"""Sites of traces as tensors: with all their dimensions, lined up by particle and datum."""

import torch
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from pyro_vaes.distributions import Autoregressive
from pyro_vaes.guides import Latents
from pyro_vaes.programs import DataPlate, Sites, expanded, plates

Args = tuple[object, ...]


def holds(argument: Tensor, value: Tensor, rows: Tensor | None = None) -> bool:
    """Whether an argument, or those of its rows that the programs use, is this value up to its shape."""
    if argument.numel() != value.numel() and rows is not None and argument.dim() and int(rows.max()) < len(argument):
        argument = argument[rows]
    return argument.numel() == value.numel() and torch.equal(argument.reshape(value.shape).to(value.dtype), value)


def holders(args: Args, value: Tensor, rows: Tensor | None = None) -> dict[int, Tensor]:
    """The arguments, by position, that are a value: the very tensor, or all that equal it."""
    equal = {}
    for position, argument in enumerate(args):
        if isinstance(argument, Tensor) and holds(argument, value, rows):
            equal[position] = argument

    same = {i: a for i, a in equal.items() if a.data_ptr() == value.data_ptr()}
    return same or equal


def vector_site(sites: Sites, latents: Latents) -> str | None:
    """The auxiliary site that holds the unconstrained vector of all latents, as amortised guides have it."""
    names = {site.name for site in latents.sites}
    extra = []
    for name, site in sites.items():
        if name not in names and not isinstance(innermost(site["fn"]), Delta):
            extra.append(name)

    if len(extra) != 1 or not names <= sites.keys():
        return None
    vector = sites[extra[0]]
    if vector["fn"].event_shape != (latents.numel,):
        return None

    for latent, part in zip(latents.sites, latents.split(vector["value"]), strict=True):
        value, _ = latent.constrain(part)
        if not torch.allclose(value, sites[latent.name]["value"], equal_nan=True):
            return None
    return extra[0]


def scored(site: Message, *, pointwise: bool) -> Message:
    """An expanded site; an observed one with log-densities ``(*batch)``, or those of the event's elements."""
    site = expanded(site)
    if not site["is_observed"]:
        return site

    fn, value = site["fn"], site["value"]
    log_prob = _elementwise(fn, value) if pointwise else fn.log_prob(value)
    return {**site, "log_prob": _masked(log_prob, site["mask"], len(fn.batch_shape))}


def _elementwise(fn: Distribution, value: Tensor) -> Tensor:
    """Log-densities ``(*batch, *event)`` of the elements of events, as far as the distribution factorises."""
    if isinstance(fn, MaskedDistribution):
        return _masked(_elementwise(fn.base_dist, value), fn._mask, len(fn.batch_shape))
    if isinstance(fn, Autoregressive):
        return _elementwise(fn.given(value), value)  # by the chain rule
    if isinstance(fn, Independent | ExpandedDistribution):
        return _elementwise(fn.base_dist, value)  # the value has the full shape, so the densities have it too
    return fn.log_prob(value)


def _masked(log_prob: Tensor, mask: Tensor | bool | None, batch_dim: int) -> Tensor:
    """Set log-densities ``(*batch, *event)`` to zero where a mask ``(*batch)`` says so."""
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (log_prob.dim() - batch_dim))
    return scale_and_mask(log_prob, mask=mask)


def aligned(site: Message, plate: DataPlate, *, key: str = "value") -> Tensor:
    """A site's values (log-densities, means) with shape ``(K, B, *plates, *event)``.

    The data plate comes first, then the other plates that hold the site.
    """
    value = site[key]
    event_dim = value.dim() - (site["value"].dim() - len(site["fn"].event_shape))

    missing = 1 + plate.depth - (value.dim() - event_dim)
    value = value.reshape(value.shape[:1] + (1,) * missing + value.shape[1:])
    value = value.movedim(plate.dim - event_dim, 1)

    others = [d for d in range(-plate.depth, 0) if d != plate.dim]  # behind the data, in this order
    used = {around.dim for around in plates(site)}
    unused = [2 + i for i, d in enumerate(others) if d not in used]
    return value.squeeze([d for d in unused if value.shape[d] == 1])


def stacked(each: list[Sites]) -> Sites:
    """The sites of several single runs as those of one; what was observed is the same for all."""
    result = {}
    for name, first in each[0].items():
        result[name] = dict(first)
        for key in ("value", "log_prob", "mean"):
            if key == "value" and first["is_observed"]:
                result[name][key] = first[key].expand(len(each), *first[key].shape)
            elif key in first:
                result[name][key] = torch.stack([sites[name][key] for sites in each])
    return result


def rows_first(tensor: Tensor, event_dim: int, plate_dim: int) -> Tensor:
    """``(*batch, *event)`` as ``(B, everything else)``."""
    tensor = tensor.movedim(plate_dim - event_dim, 0)
    return tensor.reshape(len(tensor), -1)


def innermost(fn: Distribution) -> Distribution:
    """The distribution of the independent elements."""
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return fn


def unmasked(fn: Distribution) -> Distribution:
    """The distribution without its own mask (``dist.mask()``)."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def mean_of(fn: Distribution) -> Tensor | None:
    """The mean of a distribution, if it has one."""
    try:
        return fn.mean
    except NotImplementedError:
        return None


def mean_or_draw(site: Message, plate: DataPlate) -> Tensor:
    """The mean of a single run's site, or its draw where it has none, ``(B, units)``."""
    mean = mean_of(site["fn"])
    value = site["value"]
    if mean is not None:
        value = mean.expand(value.shape)
    return rows_first(value, len(site["fn"].event_shape), plate.dim)


def with_mean(site: Message) -> Message:
    """An expanded site; an observed one with the mean of its distribution."""
    site = expanded(site)
    if not site["is_observed"]:
        return site

    mean = mean_of(site["fn"])
    if mean is None:
        kind = type(site["fn"]).__name__
        raise ValueError(
            f"The distribution of the observed site {site['name']!r} ({kind}) has no mean to "
            "reconstruct; use posterior_predictive, and average or count its draws?"
        )
    return {**site, "mean": mean}
