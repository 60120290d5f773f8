"""The bound with free bits: KL terms below a floor cost nothing.

    L = sum_n E log p(x_n | z_n) - N sum_j max(lambda, mean_n KL_nj),    KL_nj = E_q[log q_j - log p_j]

with one group j per latent site, or per unit of each site. The terms are one-sample estimates at the guide's draw, so
the bound is right for every order in which the guide draws its sites.

References:
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), appendix C.8
    | https://arxiv.org/abs/1606.04934
"""

import torch
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.programs import (
    DENSITIES,
    DRAWN,
    OBJECTIVE,
    Program,
    Role,
    log_density,
    log_density_sum,
    sites,
)

from .bound import Bound


class FreeBits_ELBO(Bound):
    """The evidence lower bound with a floor under each group's batch-mean KL divergence.

    Arguments:
        nats: The floor lambda in nats per datum for each group; 0 gives the plain bound.
        per_unit: Whether each unit of a latent site is a group of its own (needs factorised distributions); else each
            site is one, and all sites together are one where the guide draws them from one joint distribution.

    Raises:
        ValueError: The floor is negative, or ``per_unit`` is asked for where the densities do not factorise.
    """

    def __init__(self, nats: float, *, per_unit: bool = False) -> None:
        if nats < 0:
            raise ValueError(f"The floor of free bits is in nats and cannot be negative, but got {nats}.")
        super().__init__()
        self.nats, self.per_unit = nats, per_unit

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The negative bound, summed over the batch."""
        guide_trace, model_trace = self._run_reparameterised(model, guide, args)
        if self.nats == 0:  # no floor: a KL is never negative, only its estimate is
            return guide_trace.log_prob_sum() - model_trace.log_prob_sum()

        loss: Tensor | float = log_density_sum(guide_trace, Role.OBJECTIVE_ONLY)
        for site in sites(model_trace, OBJECTIVE - DRAWN).values():
            loss = loss - log_density(site).sum()

        for weight, term in self._groups(guide_trace, model_trace):
            loss = loss + self._floored(weight, term)

        assert isinstance(loss, Tensor)
        return loss

    def _groups(self, guide_trace: Trace, model_trace: Trace) -> list[tuple[Tensor, Tensor]]:
        """Weights ``(...)`` and KL estimates ``(...)`` or ``(..., units)`` of each group."""
        guide_sites = sites(guide_trace, DENSITIES)

        groups = []
        for name, site in sites(model_trace, DRAWN).items():
            term = self._log_ratio(guide_sites[name], site)
            weight = term.new_ones(term.shape[: term.dim() - self.per_unit])
            groups.append((scale_and_mask(weight, site["scale"], site["mask"]), term))

        # one density for all sites may sit in an auxiliary site of the guide
        joint = []
        for name, site in guide_sites.items():
            if name not in model_trace:
                joint.append(site["fn"].log_prob(site["value"]))
        if joint:
            terms = [term for _, term in groups] + joint
            groups = [(groups[0][0], sum(terms, start=torch.zeros(())))]

        return groups

    def _floored(self, weight: Tensor, term: Tensor) -> Tensor:
        """sum_n w_n max(lambda, weighted mean of the terms): subsampling and KL weights scale the floor as well."""
        if self.per_unit:
            weight = weight.unsqueeze(-1)

        # masked terms may be NaN
        kept = torch.where(weight == 0, 0, term)
        data_dims = tuple(range(term.dim() - self.per_unit))
        total, weighted = weight, weight * kept
        if data_dims:
            total, weighted = total.sum(data_dims), weighted.sum(data_dims)

        mean = weighted / total.clamp(min=torch.finfo(term.dtype).tiny)
        return (total * mean.clamp(min=self.nats)).sum()

    def _log_ratio(self, guide_site: Message, model_site: Message) -> Tensor:
        """log q - log p at the draw, unscaled, with the batch's shape or, per unit, one dimension more."""
        value, q, p = model_site["value"], guide_site["fn"], model_site["fn"]
        if not self.per_unit:
            return q.log_prob(value) - p.log_prob(value)
        if not (isinstance(q, Independent) and isinstance(p, Independent)):
            raise ValueError(
                f"Free bits per unit need factorised distributions at the site {model_site['name']!r}, but the guide "
                f"has {q} and the model {p}. Use per_unit=False."
            )
        return (q.base_dist.log_prob(value) - p.base_dist.log_prob(value)).flatten(-len(q.event_shape))
