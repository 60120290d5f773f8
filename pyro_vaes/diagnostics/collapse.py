"""Posterior collapse, by every definition in use, each with its name.

For a latent unit i with posterior q(z_i | x) and prior p(z_i | parents):

    KL_i          E_x KL(q(z_i | x) || p(z_i))                                          nats
    active units  Burda et al. (2016): Var_x E[z_i | x] > 0.01
    active pairs  share of (datum, unit) pairs with KL >= 0.01
    (eps, delta)  Lucas et al. (2019): the unit is collapsed iff P_x[KL(q(z_i | x) || p(z_i)) < eps] >= 1 - delta
    I_q(x; z)     E log q(z | x) / q(z), with q(z) the mixture of the N posteriors at hand; 0 <= I_q <= min(E KL, log N)
    aggregate KL  KL(q(z) || p(z)) = E KL - I_q

References:
    | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519
    | Don't Blame the ELBO! (Lucas et al., 2019), https://arxiv.org/abs/1911.02469
    | ELBO surgery (Hoffman & Johnson, 2016)
"""

import math
from dataclasses import dataclass

import torch
from pyro.distributions import Independent
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vaes.diagnostics.particles import Draws, Particles
from pyro_vaes.infer.bound import Program
from pyro_vaes.infer.check import mean_field_violations

__all__ = ["CollapseReport", "SiteCollapse", "collapse_report"]

ACTIVE_VARIANCE = ACTIVE_KL = 0.01


@dataclass(frozen=True)
class SiteCollapse:
    """One latent site with d units, measured on N data; nats.

    Attributes:
        name: The site.
        kl: KL of each unit, ``(d,)`` (one number for the site where the distributions do not factorise).
        kl_error: Standard error of that mean over the data, ``(d,)``.
        kl_per_datum: ``(N, d)``.
        mean_variance: Var_x E[z_i | x], ``(d,)``.
        mutual_information: I_q(x; z) estimated with a mixture of N posteriors, at most log N; nan for a site whose
            posterior the guide draws given other latents.
        aggregate_kl: E KL - I_q; nan likewise.
        analytic: Whether the KLs are closed forms rather than one-sample estimates.
    """

    name: str
    kl: Tensor
    kl_error: Tensor
    kl_per_datum: Tensor
    mean_variance: Tensor
    mutual_information: float
    aggregate_kl: float
    analytic: bool

    @property
    def total_kl(self) -> float:
        """Sum over the units, nats per datum."""
        return self.kl.sum().item()

    @property
    def active_units(self) -> int:
        """Burda's count: units whose posterior mean varies, Var_x E[z_i | x] > 0.01."""
        return int((self.mean_variance > ACTIVE_VARIANCE).sum())

    @property
    def active_pairs(self) -> float:
        """Share of (datum, unit) pairs with a KL of at least 0.01 nats."""
        return (self.kl_per_datum >= ACTIVE_KL).double().mean().item()

    def collapse_curve(self, epsilon: Tensor | None = None, delta: float = 0.05) -> tuple[Tensor, Tensor]:
        """Share of units that are (epsilon, delta)-collapsed, against epsilon.

        Arguments:
            epsilon: Thresholds in nats; 100 from 1e-3 to 10 by default.
            delta: Share of the data that may exceed the threshold, in [0, 1).

        Returns:
            epsilon and the shares, tensors of one length; the shares never fall.
        """
        if not 0 <= delta < 1:
            raise ValueError(f"delta is a share of the data in [0, 1), but got {delta}.")
        epsilon = torch.logspace(-3, 1, 100, dtype=self.kl_per_datum.dtype) if epsilon is None else epsilon
        below = (self.kl_per_datum < epsilon[:, None, None]).double().mean(1)  # (epsilons, units)
        return epsilon, (below >= 1 - delta - 1e-12).double().mean(1)


@dataclass(frozen=True)
class CollapseReport:
    """All latent sites of a pair, see :class:`SiteCollapse`; prints itself as a table."""

    sites: dict[str, SiteCollapse]
    num_data: int

    def __getitem__(self, name: str) -> SiteCollapse:
        return self.sites[name]

    def __str__(self) -> str:
        lines = [
            f"{'site':<8}{'units':>6}{'KL':>9}{'±':>7}{'active (Burda)':>16}{'pairs KL>=.01':>15}{'collapsed (.1, .05)':>21}"
            f"{'I(x;z)':>9}{'agg. KL':>9}"
        ]
        for site in self.sites.values():
            _, collapsed = site.collapse_curve(torch.tensor([0.1], dtype=site.kl.dtype))
            error = site.kl_per_datum.sum(1).std().item() / math.sqrt(self.num_data) if self.num_data > 1 else math.nan
            lines.append(
                f"{site.name:<8}{len(site.kl):>6}{site.total_kl:>9.3f}{error:>7.3f}{site.active_units:>16}"
                f"{site.active_pairs:>15.1%}{collapsed.item():>21.1%}{site.mutual_information:>9.3f}{site.aggregate_kl:>9.3f}"
            )
        lines.append(f"nats per datum, N = {self.num_data}; I(x;z) cannot exceed log N = {math.log(self.num_data):.2f}")
        return "\n".join(lines)

    __repr__ = __str__


def collapse_report(
    model: Program,
    guide: Program,
    data: object,
    *,
    num_samples: int = 8,
    batch_size: int = 256,
    max_mixture: int = 2000,
    seed: int = 0,
) -> CollapseReport:
    """Measure the collapse of every latent site of a pair on data.

    KLs are closed forms where the guide's and the model's distributions of a site have one and the guide draws the site
    after, or independently of, what its prior depends on; else they are estimates from ``num_samples`` draws, which can
    be negative for a site in the middle of a hierarchy.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_samples: Draws per datum for what has no closed form.
        batch_size: Rows per pass.
        max_mixture: Data in the mixture that estimates the mutual information (its cost is quadratic).
        seed: Seed of the draws.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=num_samples, seed=seed)
    parts: dict[str, list[_Part]] = {}
    violating: set[str] | None = None
    dependent: set[str] = set()
    for args in particles.rows():
        if violating is None:
            violating, dependent = mean_field_violations(particles.pair, args)
        draws = [particles.draw(args, 1) for _ in range(num_samples)]
        for name in draws[0].latents():
            parts.setdefault(name, []).append(_measure(name, draws, closed=name not in violating))
    sites = {}
    num_data = 0
    for name, pieces in parts.items():
        kl = torch.cat([p.kl for p in pieces])
        mean = torch.cat([p.mean for p in pieces])
        num_data = len(kl)
        information = math.nan
        if name not in dependent:
            information = _mutual_information(pieces, max_mixture)
        sites[name] = SiteCollapse(
            name=name,
            kl=kl.mean(0),
            kl_error=kl.std(0) / math.sqrt(num_data) if num_data > 1 else torch.full_like(kl[0], math.nan),
            kl_per_datum=kl,
            mean_variance=mean.var(0, correction=0),
            mutual_information=information,
            aggregate_kl=kl.sum(1).mean().item() - information,
            analytic=pieces[0].analytic,
        )
    return CollapseReport(sites, num_data)


@dataclass
class _Part:
    """One batch of one site: KLs ``(B, d)``, posterior means ``(B, d)``, a draw, and the posterior itself."""

    kl: Tensor
    mean: Tensor
    value: Tensor
    posterior: torch.distributions.Distribution
    analytic: bool


def _measure(name: str, draws: list[Draws], *, closed: bool) -> _Part:
    kls, means, analytic = [], [], closed
    for draw in draws:
        kl, analytic = _kl(draw.guide_sites[name], draw.model_sites[name], closed)
        kls.append(kl)
        means.append(_mean(draw.guide_sites[name]).flatten(1))
    site = draws[0].guide_sites[name]
    return _Part(
        torch.stack(kls).mean(0).double().cpu(),
        torch.stack(means).mean(0).double().cpu(),
        site["value"][0],
        site["fn"],
        analytic,
    )


def _kl(q_site: Message, p_site: Message, closed: bool) -> tuple[Tensor, bool]:
    """KL per datum and unit ``(B, d)`` of one draw, and whether it is a closed form; ``(B, 1)`` without units."""
    q, p, value = q_site["fn"], p_site["fn"], q_site["value"][0]
    rows = len(value)
    factorises = isinstance(q, Independent) and isinstance(p, Independent)
    if closed:
        try:
            kl = kl_divergence(q.base_dist, p.base_dist) if factorises else kl_divergence(q, p)
            return kl.reshape(rows, -1), True
        except NotImplementedError:
            pass
    if factorises:
        return (q.base_dist.log_prob(value) - p.base_dist.log_prob(value)).reshape(rows, -1), False
    return (q.log_prob(value) - p.log_prob(value)).reshape(rows, 1), False


def _mean(site: Message) -> Tensor:
    """The posterior mean ``(B, ...)``, or the draw where the distribution has none."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        return site["value"][0]
    return mean.reshape(site["value"].shape[1:])


def _mutual_information(pieces: list[_Part], max_mixture: int) -> float:
    """E log q(z|x) - log q(z) with q(z) the mixture of the posteriors of all data, at one draw for each datum."""
    used, rows = [], 0
    for piece in pieces:
        if rows < max_mixture:
            used.append(piece)
            rows += len(piece.value)
    own, columns = [], []
    for piece in used:
        own.append(piece.posterior.log_prob(piece.value).reshape(-1))
        others = [p.posterior.log_prob(piece.value.unsqueeze(1)).reshape(len(piece.value), -1) for p in used]
        columns.append(torch.cat(others, dim=1).logsumexp(1) - math.log(rows))
    return (torch.cat(own) - torch.cat(columns)).double().mean().item()
