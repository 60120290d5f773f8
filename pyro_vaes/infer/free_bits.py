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
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.infer.bound import Bound, Program
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.infer.importance import guide_and_model_traces

__all__ = ["FreeBits_ELBO"]


class FreeBits_ELBO(Bound):  # noqa: N801 - bounds keep Pyro's spelling
    """The evidence lower bound with a floor under each group's batch-mean KL divergence.

    Arguments:
        nats: The floor lambda in nats per datum for each group; 0 gives the plain bound (where no term is negative).
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

    def differentiable_loss(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The negative bound, summed over the batch."""
        guide_trace, model_trace = guide_and_model_traces(model, guide, args)
        guide_sites = {n: s for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
        model_sites = {n: s for n, s in model_trace.nodes.items() if s["type"] == "sample"}
        loss: Tensor | float = 0.0
        groups: list[Tensor] = []
        for name, site in model_sites.items():
            if is_latent(site):
                groups.append(self._log_ratio(guide_sites[name], site))
            else:
                log_prob = site["fn"].log_prob(site["value"])
                loss = loss - scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
        joint = [s["scale"] * s["fn"].log_prob(s["value"]) for n, s in guide_sites.items() if n not in model_sites]
        if joint:  # one density for all sites sits in an auxiliary site of the guide
            groups = [sum([*groups, *joint], start=torch.zeros(()))]
        for group in groups:
            batch_dim = group.dim() - int(self.per_unit)
            rows = group.shape[:batch_dim].numel()
            loss = loss + rows * group.flatten(0, batch_dim - 1).mean(0).clamp(min=self.nats).sum()
        assert isinstance(loss, Tensor)
        return loss

    def _log_ratio(self, guide_site: Message, model_site: Message) -> Tensor:
        """log q - log p at the draw, scaled, with shape ``(B,)`` or, per unit, ``(B, units)``."""
        value, q, p, mask = model_site["value"], guide_site["fn"], model_site["fn"], model_site["mask"]
        if not self.per_unit:
            return scale_and_mask(q.log_prob(value) - p.log_prob(value), model_site["scale"], mask)
        if not (isinstance(q, Independent) and isinstance(p, Independent)):
            raise ValueError(
                f"Free bits per unit need factorised distributions at the site {model_site['name']!r}, but the guide has "
                f"{q} and the model {p}. Use per_unit=False."
            )
        ratio = q.base_dist.log_prob(value) - p.base_dist.log_prob(value)
        ratio = ratio.flatten(-len(q.event_shape))
        return scale_and_mask(ratio, model_site["scale"], None if mask is None else mask.unsqueeze(-1))
