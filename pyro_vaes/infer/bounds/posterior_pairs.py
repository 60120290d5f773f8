"""KL divergences between the posteriors of all ordered pairs of data, by the cheapest way that a family allows.

    diagonal normal             matrix products; the units are the dimensions
    full-covariance normal      matrix products; the units are the dimensions' marginals
    other registered families   a closed form for each pair; the units are the elements of the event
    the rest                    log q_i(z_i) - log q_j(z_i) averaged over draws z_i ~ q_i, of a mixture from each part

Units are what a diversity term takes one by one. A family that is neither normal nor independent over the elements of
its event is one unit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal
from torch.distributions.kl import kl_divergence
from torch.nn.functional import softplus

from pyro_vaes.distributions import (
    PrecisionNormal,
    RecursiveMixture,
    event_elements,
    has_transforms,
    map_parameters,
)
from pyro_vaes.errors import UsageError, use_bound
from pyro_vaes.ops import (
    multivariate_normal_pairwise_kl,
    normal_mean_kl,
    normal_mean_softplus,
    normal_pairwise_kl,
    off_diagonal,
)

from .global_batch import all_rows, is_shared


@dataclass(frozen=True)
class _Normals:
    """Diagonal normals: means and standard deviations ``(n, U)``."""

    loc: Tensor
    scale: Tensor

    def mean(self) -> Tensor:
        """The mean over i != j for each unit, ``(U,)``."""
        return normal_mean_kl(self.loc, self.scale)

    def mean_softplus(self) -> Tensor:
        """The mean over i != j of softplus(-P_iju) for each unit, ``(U,)``."""
        return normal_mean_softplus(self.loc, self.scale)

    def total(self) -> Tensor:
        """KL(q_i || q_j) of the whole event, ``(n, n)``."""
        return normal_pairwise_kl(self.loc, self.scale)


@dataclass(frozen=True)
class _FullNormals(_Normals):
    """Normals with full covariances: the marginals, and triangular factors of m independent blocks.

    The factors F with covariance F Fᵀ, and their inverses, have shape ``(n, m, d, d)``; U = m d.
    """

    factor: Tensor
    inverse: Tensor

    def total(self) -> Tensor:
        means = self.loc.unflatten(1, self.factor.shape[1:3])  # (n, m, d)
        blocks = (t.unbind(1) for t in (means, self.factor, self.inverse))
        return torch.stack(list(map(multivariate_normal_pairwise_kl, *blocks))).sum(0)


class _Elements(NamedTuple):
    """Divergences of each pair and unit, ``(n, n, U)``."""

    values: Tensor

    def mean(self) -> Tensor:
        return off_diagonal(self.values).mean(0)

    def mean_softplus(self) -> Tensor:
        return off_diagonal(softplus(-self.values)).mean(0)

    def total(self) -> Tensor:
        return self.values.sum(-1)


# The divergences P_iju = KL(q_i || q_j) of the ordered pairs of n posteriors, at U units.
Pairs = _Normals | _Elements


def pairs_of(fn: Distribution, num_samples: int, name: str) -> Pairs:
    """The divergences of all pairs of rows of a distribution, over all processes where these share a batch.

    Arguments:
        fn: Posteriors with batch shape ``(n, ...)``; batch dimensions behind the rows belong to the datum.
        num_samples: Draws for each datum where there is no closed form; from torch's global generator.
        name: The site, for what is said about it.

    Raises:
        ValueError: The divergence needs draws that carry no gradient, or parameters that cannot be gathered.
    """
    base = event_elements(fn)
    if isinstance(base, Normal):
        return _Normals(*(all_rows(t.reshape(len(t), -1)) for t in (base.loc, base.scale)))
    if isinstance(base, MultivariateNormal | PrecisionNormal):
        return _full_normals(base)
    if not has_transforms(base) and not isinstance(base, RecursiveMixture):
        closed = _closed(_gathered(fn, name))
        if closed is not None:
            return _Elements(closed)
    return _Elements(_from_draws(fn, num_samples, name))


def _gathered(fn: Distribution, name: str) -> Distribution:
    """The same distributions of all processes' rows."""
    if not is_shared():
        return fn
    try:
        if has_transforms(fn):
            raise TypeError
        return map_parameters(fn, lambda p, _: all_rows(p))
    except (AttributeError, NotImplementedError, TypeError):
        raise ValueError(
            f"The posteriors at the guide's site {name!r} ({type(fn).__name__}) cannot be exchanged between processes, "
            "so pairs of data on different ones cannot be compared. Use a normal or mixture guide, or one process."
        ) from None


def _full_normals(base: MultivariateNormal | PrecisionNormal) -> _FullNormals:
    if isinstance(base, PrecisionNormal):  # P = C Cᵀ, so F = C⁻ᵀ
        factor, inverse = base._inverse_factor().mT, base.chol_precision.mT
    else:
        factor = base.scale_tril
        eye = factor.new_ones(factor.shape[-1]).diag()
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)

    loc, factor, inverse = map(all_rows, (base.loc, factor, inverse))
    scale = factor.square().sum(-1).sqrt()

    blocks = (len(loc), -1, *factor.shape[-2:])
    return _FullNormals(
        loc.flatten(1),
        scale.flatten(1),
        factor.reshape(blocks),
        inverse.reshape(blocks),
    )


def _closed(fn: Distribution) -> Tensor | None:
    """KL(q_i || q_j) ``(n, n, U)`` of a family for which a closed form is registered."""
    base = event_elements(fn)
    shape = torch.Size([base.batch_shape[0], *base.batch_shape])

    def along(dim: int) -> Distribution:
        return map_parameters(base, lambda p, _: p.unsqueeze(dim)).expand(shape)

    try:
        return kl_divergence(along(1), along(0)).reshape(*shape[:2], -1)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _from_draws(fn: Distribution, num_samples: int, name: str) -> Tensor:
    """Estimates of KL(q_i || q_j) ``(n, n, U)``, differentiable through the draws."""
    size = torch.Size([num_samples])

    if isinstance(fn, RecursiveMixture):
        draws = fn.stratified_rsample(size).flatten(0, 1)  # num_samples draws from each of M + 1 components
        alpha = fn.log_alpha.exp().repeat_interleave(num_samples, -1).movedim(-1, 0)
        weight = alpha / num_samples  # ((M + 1) S, n, ...)
    elif fn.has_rsample or not torch.is_grad_enabled():
        draws = fn.rsample(size) if fn.has_rsample else fn.sample(size)  # (S, n, ..., *event)
        weight = draws.new_full((num_samples, *fn.batch_shape), 1 / num_samples)
    else:
        raise UsageError(
            f"The posteriors at the guide's site {name!r} ({type(fn).__name__}) have neither a closed KL divergence "
            "nor reparameterised draws, so no gradient of their divergence is right. Compare other sites, sites=[...]?",
            use_bound(),
        )
    z, weight = (all_rows(t.movedim(1, 0)).movedim(0, 1) for t in (draws, weight))

    scored = event_elements(_gathered(fn, name))
    ratio = scored.log_prob(z).unsqueeze(2) - scored.log_prob(z.unsqueeze(2))
    weight = weight.unsqueeze(2)  # of (S, n, n, ..., elements of the event)
    weight = weight.reshape(weight.shape + (1,) * (ratio.dim() - weight.dim()))
    mean = (weight * ratio).sum(0)
    return mean.reshape(*mean.shape[:2], -1)
