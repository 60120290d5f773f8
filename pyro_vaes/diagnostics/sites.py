"""Sites of traces as tensors: with all their dimensions, lined up by particle and datum."""

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.distributions import Autoregressive
from pyro_vaes.programs import DataPlate, Sites, plates

Args = tuple[object, ...]


def holds(argument: Tensor, value: Tensor, rows: Tensor | None = None) -> bool:
    """Whether an argument, or those of its rows that the programs use, is this value up to its shape."""
    if argument.numel() != value.numel() and rows is not None and argument.dim() and int(rows.max()) < len(argument):
        argument = argument[rows]
    return argument.numel() == value.numel() and torch.equal(argument.reshape(value.shape).to(value.dtype), value)


def expanded(sites: Sites) -> Sites:
    """Sites whose values have all batch dimensions of their distribution (views)."""
    result = {}
    for name, site in sites.items():
        value, event_shape = site["value"], site["fn"].event_shape
        batch_shape = torch.broadcast_shapes(site["fn"].batch_shape, value.shape[: value.dim() - len(event_shape)])
        result[name] = {**site, "value": value.expand(batch_shape + event_shape)}
    return result


def scored(sites: Sites, *, pointwise: bool) -> Sites:
    """Observed sites with their log-densities ``(*batch)``, or pointwise those of the events' elements."""
    result = dict(sites)
    for name, site in sites.items():
        if site["is_observed"]:
            fn, value = site["fn"], site["value"]
            log_prob = _elementwise(fn, value) if pointwise else fn.log_prob(value)
            result[name] = {**site, "log_prob": _masked(log_prob, site["mask"], len(fn.batch_shape))}
    return result


def _elementwise(fn: torch.distributions.Distribution, value: Tensor) -> Tensor:
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


def mean_or_draw(site: Message) -> Tensor:
    """The mean of a site's distribution, or its draw where that has none."""
    try:
        return site["fn"].mean.expand(site["value"].shape)
    except NotImplementedError:
        return site["value"]


def observed_mean(name: str, site: Message) -> Tensor:
    """The mean of an observed site's distribution."""
    try:
        return site["fn"].mean
    except NotImplementedError as error:
        raise ValueError(
            f"The distribution of the observed site {name!r} ({type(site['fn']).__name__}) has no mean to reconstruct; "
            "use posterior_predictive, and average or count its draws?"
        ) from error
