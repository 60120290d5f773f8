"""Posteriors where the model masks a latent site.

A masked row has no density in the model, but what depends on it has: a gap in a
    sequence is
followed by steps that are observed. The posterior of such a row is therefore its prior
given what is upstream, and both densities are masked.
"""

from typing import cast

import torch
from pyro.distributions import (
    Independent,
    MaskedDistribution,
    MaskedMixture,
    TorchDistribution,
)
from torch import Tensor
from torch.distributions import kl_divergence
from torch.distributions.distribution import Distribution
from torch.distributions.kl import register_kl

Mask = bool | Tensor | None


def masked_posterior(
    q: TorchDistribution,
    prior: TorchDistribution,
    mask: Mask,
) -> TorchDistribution:
    """The posterior q, and the prior in the rows that are masked.

    Arguments:
        q: The posterior of rows that are not.
        prior: The prior, which may have a mask of its own (``prior.mask(...)``).
        mask: The mask of handlers around the site; False for rows that are masked.
    """
    if isinstance(prior, MaskedDistribution):
        own, bare = prior._mask, cast(TorchDistribution, prior.base_dist)
        # a MaskedMixture has no method mask, but an attribute of that name
        q = MaskedDistribution(masked_posterior(q, bare, own), own)

    if isinstance(prior, Independent) and isinstance(q, Independent):
        count = prior.reinterpreted_batch_ndims
        if count == q.reinterpreted_batch_ndims and _is_masked(prior.base_dist):
            # a mask for each element of the event
            elements = masked_posterior(q.base_dist, prior.base_dist, None)
            q = elements.to_event(count)

    if mask is None or mask is True:
        return q
    if mask is False:
        return prior
    # expanded, since a mixture switches off the validation of its parts
    shape = prior.batch_shape
    return MaskedMixture(mask.bool(), prior.expand(shape), q)


def _is_masked(fn: object) -> bool:
    return isinstance(fn, MaskedDistribution)


def own_mask(name: str, fn: TorchDistribution) -> bool | Tensor:
    """The mask that the prior of a jointly drawn site carries itself; True without one.

    Raises:
        ValueError: It masks elements of an event.
    """
    if isinstance(fn, MaskedDistribution):
        own: bool | Tensor = fn._mask
        return own
    if has_mask(fn, None):
        raise ValueError(
            f"The latent site {name!r} masks elements of its event, so no density of a "
            "whole vector fits it. Use a rule for each element, Amortized(network), "
            "or mask whole events: .to_event(...).mask(...)?"
        )
    return True


def without_mask(fn: TorchDistribution) -> TorchDistribution:
    """A distribution without the masks that it carries itself."""
    if isinstance(fn, MaskedDistribution):
        return without_mask(cast(TorchDistribution, fn.base_dist))
    if isinstance(fn, Independent):
        base = cast(TorchDistribution, fn.base_dist)
        bare = without_mask(base)
        if bare is not base:
            return bare.to_event(fn.reinterpreted_batch_ndims)
    return fn


def has_mask(prior: TorchDistribution, mask: Mask) -> bool:
    """Whether some rows of a site may be masked."""
    while isinstance(prior, Independent):
        prior = cast(TorchDistribution, prior.base_dist)
    return _is_masked(prior) or not (mask is None or mask is True)


@register_kl(MaskedMixture, Distribution)
def _kl_of_masked(q: MaskedMixture, prior: Distribution) -> Tensor:
    of_posterior: Tensor = kl_divergence(q.component1, prior)
    of_prior: Tensor = kl_divergence(q.component0, prior)
    mask = cast(Tensor, q.mask)
    return torch.where(mask, of_posterior, of_prior)
