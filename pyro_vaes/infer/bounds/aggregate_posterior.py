r"""The KL divergence of each datum replaced by that of the batch's aggregate posterior: "How to train your VAE".

    loss / B = mean_i -log p(x_i | z_i) + K_g + K_i,    z_i ~ q(z | x_i) = N(mu_i, diag sigma_i²)
    K_g      = sum_k KL(N(m_k, V_k) || N(0, 1)),        m_k = mean_i mu_ik,  V_k = mean_i (mu_ik - m_k)²
    K_i      = mean_i sum_k -alpha (1 + log sigma_ik² - sigma_ik²) = 2 alpha mean_i KL(N(0, diag sigma_i²) || N(0, I))

Only the Gaussian of the batch's means is pulled to the prior, single means are free, and K_i holds the single
variances up. V -> 0 costs infinitely much, so no unit's means can collapse; a unit that the decoder does not use shows
in its sensitivity, not here. The aggregate's variance tends to 1 + mean_i sigma_i²: draw new data from the fitted
aggregate rather than from N(0, I). With ``moment="mixture"`` K_g sees the mixture's own variance, V + mean_i sigma_i².

K_g is a function of the batch, not a sum over data: perfect codes have E K_g = d/2 (-psi((B - 1) / 2) - log(2 / B)),
0.11 nats a unit at B = 10 and 0.016 at B = 64 (psi is the digamma function). Never compare it between batch sizes.

The released reconstruction term, w times the mean of |x - mean| over the D values of an image, is that of a
:class:`~pyro_vaes.nn.LaplaceLikelihood` with scale D / w, but for the constant D log(2 D / w).

References:
    | How to Train Your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.distributions import AggregateGaussian, Moment
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import (
    OBJECTIVE,
    Program,
    Sites,
    find_data_plate,
    find_plate,
    log_density_sum,
    run_pair,
)

from .bound import Args, Bound, found_once
from .global_batch import all_rows
from .standardised import NormalSite, find_normal_sites


@dataclass(frozen=True)
class AggregateTerms:
    """What a batch pays in place of its KL divergences, nats; per batch, as K_g is no mean over data.

    Attributes:
        kl: KL(N(m_k, V_k) || N(0, 1)) of each unit, those of all sites in turn, ``(U,)``; their sum is K_g.
        penalty: K_i, ``()``.
    """

    kl: Tensor
    penalty: Tensor

    @property
    def total(self) -> Tensor:
        """K_g + K_i, ``()``."""
        return self.kl.sum() + self.penalty


class AggregatePosterior_ELBO(Bound):
    """-E log p(x | z) plus the divergence of the batch's aggregate Gaussian, for any pair with normal posteriors.

    It is no bound on log p(x). Posteriors may be diagonal or full-covariance normals at one or several sites, each
    drawn given the datum alone; priors are independent normals that depend on no other latent. Each posterior is seen
    in the coordinates of its own prior (z itself under N(0, I)), so that the data of a conditional model have one prior
    in common. A full covariance enters K_g by its diagonal, K_g being a sum over units, and K_i as a whole,
    K_i = 2 alpha mean_i KL(N(0, S_i) || N(0, I)), which no correlation can escape.

    The loss stays a sum over the data: K_g + K_i times the batch's number of rows, or the number of data that a
    subsampling plate stands for. KL weights (``scale_latents``) weigh them; masks, and scales that differ between rows,
    are refused. In a training step of :func:`~pyro_vaes.infer.fit` on several processes the aggregate is that of the
    global batch. ``fit`` leaves the short last batch of an epoch out, and a single row is refused.

    Arguments:
        moment: The aggregate's variance: ``"means"``, V as released, or ``"mixture"``, V + mean_i sigma_i².
        variance_weight: alpha, 0 or more; the released 0.1.
        sites: The guide's sites whose posteriors are aggregated; all by default. The others keep their own KL, from
            draws.

    Raises:
        ValueError: An argument is out of range; at the first call, the pair has other posteriors or priors; at any, the
            batch has one row.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, LaplaceLikelihood, NormalHead
        >>> w = 5000.0
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), LaplaceLikelihood(3 / w), latent_dim=2)
        >>> bound, x = AggregatePosterior_ELBO(), torch.randn(8, 3)
        >>> bound.differentiable_loss(vae.model, vae.guide, x).shape
        torch.Size([])
        >>> bound.terms(vae.model, vae.guide, x).kl.shape
        torch.Size([2])
    """

    min_rows = 2

    def __init__(
        self, moment: Moment = "means", *, variance_weight: float = 0.1, sites: Sequence[str] | None = None
    ) -> None:
        if moment not in get_args(Moment):
            raise ValueError(f"moment must be one of {get_args(Moment)}, but got {moment!r}.")
        if not 0 <= variance_weight < math.inf:
            raise ValueError(
                f"variance_weight is the weight of a penalty, a number of 0 or more, but got {variance_weight}."
            )
        if isinstance(sites, str):
            raise ValueError(f"sites is a list of names, but got {sites!r}; sites=[{sites!r}]?")
        super().__init__()
        self.moment, self.variance_weight = moment, variance_weight
        self.sites = None if sites is None else tuple(sites)

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-sum_n log p(x_n | z_n) + N (K_g + K_i)."""
        sites = self._normal_sites(model, guide, args)
        guide_trace, model_trace = run_pair(model, guide, args)
        self._refuse_score_function(guide_trace)

        replaced = set[str]()
        for site in sites:
            replaced |= {site.posterior.name, *site.latents}

        def kept(name: str) -> bool:
            return name not in replaced

        log_q = log_density_sum(guide_trace, OBJECTIVE, keep=kept)
        loss = log_q - log_density_sum(model_trace, OBJECTIVE, keep=kept)
        for site in sites:
            terms = self._terms(site, guide_trace, model_trace)
            weight = _weight(site, guide_trace.nodes, model_trace.nodes)
            loss = loss + weight * terms.total

        assert isinstance(loss, Tensor)
        return loss

    def terms(self, model: Program, guide: Program, *args: object) -> AggregateTerms:
        """Run a pair once, and return K_g of each unit and K_i of the rows of its arguments."""
        sites = self._normal_sites(model, guide, args)
        traces = run_pair(model, guide, args)
        terms = [self._terms(site, *traces) for site in sites]
        return AggregateTerms(torch.cat([t.kl for t in terms]), torch.stack([t.penalty for t in terms]).sum())

    @found_once
    def _normal_sites(self, model: Program, guide: Program, args: Args) -> tuple[NormalSite, ...]:
        find_data_plate(model, guide, args)  # refuses what lies outside the data plate
        return find_normal_sites(model, guide, args, self.sites, type(self).__name__)

    def _terms(self, site: NormalSite, guide_trace: Trace, model_trace: Trace) -> AggregateTerms:
        device = guide_trace.nodes[site.posterior.name]["value"].device
        with torch.autocast(device.type, enabled=False):
            q = site.standardised(guide_trace.nodes, model_trace.nodes)
            loc, scale = all_rows(q.loc), all_rows(q.scale)

            if len(loc) < 2:
                raise ValueError(
                    "A batch with one row has no aggregate posterior: the variance of its means is 0. Leave the last, "
                    "short batch out, with fit(drop_last=True) or DataLoader(drop_last=True); or choose a batch size "
                    "that does not leave one row over."
                )
            aggregate = AggregateGaussian(loc, scale, self.moment, validate_args=False)

            # KL(N(0, S_i) || N(0, I))
            trace = q.scale.square().sum(1)  # of each covariance S_i
            divergence = 0.5 * (trace + loc.shape[1] * math.log(2 * math.pi)) - q.entropy
            return AggregateTerms(aggregate.kl_units(), 2 * self.variance_weight * divergence.mean())


def _weight(site: NormalSite, guide_sites: Sites, model_sites: Sites) -> float | Tensor:
    """The number of data for which a batch's terms stand, times a KL weight."""
    posterior = guide_sites[site.posterior.name]
    messages = [posterior, *(model_sites[name] for name in site.latents)]
    scales = [m["scale"] for m in messages]

    # numbers on a device are not waited for
    numbers = [s for s in scales if not isinstance(s, Tensor)]
    by_row = any(isinstance(s, Tensor) and s.numel() > 1 for s in scales)
    unequal = max(numbers, default=1) > min(numbers, default=1) * (1 + 1e-6)
    if by_row or unequal:
        given = []
        for scale in scales:
            if isinstance(scale, Tensor):
                given.append(f"of shape {tuple(scale.shape)}")
            else:
                given.append(f"{scale:g}")
        raise UsageError(
            f"The site {site.posterior.name!r} has scales {given} in the guide and in the "
            "model, but what all rows pay together has one weight.",
            use_bound(),
            Cure("beta", words="give both programs the same number with scale_latents(beta)"),
        )

    return find_plate(posterior, site.posterior.plate).size * scales[0]
