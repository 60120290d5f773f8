"""Posterior collapse, by every definition in use, each with its name.

For a latent unit i with posterior q(z_i | x) and prior p(z_i | parents):

    KL_i          E_x KL(q(z_i | x) || p(z_i))                                          nats
    active units  Burda et al. (2016): Var_x E[z_i | x] > 0.01; where E[z_i | x] is an average of S draws, their
                  variance over S is subtracted
    active pairs  share of (datum, unit) pairs with KL >= 0.01
    (eps, delta)  Lucas et al. (2019): the unit is collapsed iff P_x[KL(q(z_i | x) || p(z_i)) < eps] >= 1 - delta
    I_q(x; z)     E log q(z | x) / q(z), with q(z) the mixture of the N posteriors at hand; 0 <= I_q <= min(E KL, log N)
    aggregate KL  KL(q(z) || p(z)) = E KL - I_q, where every datum has the same prior p(z)

References:
    | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519
    | Don't Blame the ELBO! (Lucas et al., 2019), https://arxiv.org/abs/1911.02469
    | ELBO surgery (Hoffman & Johnson, 2016)
"""

import contextlib
import math
from dataclasses import dataclass

import torch
from pyro.distributions import Delta, Independent
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vaes.programs import (
    DataPlate,
    Program,
    Sites,
    mask_of,
    mean_field_violations,
)

from ..particles import Draws, Particles
from ..sites import mean_or_draw, rows_first, unmasked
from ..summaries import require_positive, standard_error
from .collapse_tables import CollapseReport, SiteCollapse


def collapse_report(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 8,
    *,
    max_mixture: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
    unit: str | None = None,
) -> CollapseReport:
    """Measure the collapse of every latent site of a pair on data.

    KLs are closed forms where the guide's and the model's distributions of a site have one and the guide draws the site
    after, or independently of, what its prior depends on; else they are estimates from ``num_particles`` draws, which
    can be negative for a site in the middle of a hierarchy.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_particles: Draws S per datum for what has no closed form.
        max_mixture: Data in the mixture that estimates the mutual information (its cost is quadratic); of more data,
            batches are taken at even distances.
        batch_size: Rows per pass.
        seed: Seed of the draws.
        unit: Name of the plate whose rows are the data, where there are several.
    """
    require_positive(num_particles=num_particles, max_mixture=max_mixture)

    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        seed=seed,
        unit=unit,
    )

    violating: set[str] | None = None
    dependent: set[str] = set()
    parts: dict[_Entry, list[_Part]] = {}
    num_data = 0

    with particles.rows() as rows:
        for args in rows:
            if violating is None:
                violating, dependent = mean_field_violations(particles.model, particles.guide, args)
            draws = [particles.draw(args, 1) for _ in range(num_particles)]
            size = particles.num_counted(draws[0].log_weights.shape[1], num_data)
            num_data += size

            for entry in _entries(draws[0]):
                closed = not violating & set(entry.latents)
                part = _measure(entry, draws, particles.plate, size, closed=closed)
                parts.setdefault(entry, []).append(part)

    sites = {}
    for entry, found in parts.items():
        sites[entry.name] = _summarise(entry, found, max_mixture, dependent=entry.posterior[0] in dependent)
    return CollapseReport(sites, num_data)


@dataclass(frozen=True)
class _Entry:
    """Latent sites that are measured together, and the sites of the guide whose densities are their posterior."""

    latents: tuple[str, ...]
    posterior: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.latents)


def _entries(draw: Draws) -> list[_Entry]:
    """One entry for each latent site; one for all those that are functions of auxiliary sites of the guide."""
    latents = draw.latents()
    auxiliary = tuple(n for n in draw.guide_sites if n not in latents)
    joint = tuple(n for n, s in latents.items() if isinstance(s["fn"], Delta)) if auxiliary else ()
    single = [_Entry((n,), (n,)) for n in latents if n not in joint]
    return [*([_Entry(joint, auxiliary)] if joint else []), *single]


@dataclass
class _Part:
    """One batch of B data of one entry.

    Attributes:
        kl: ``(S, B, d)``, or ``(1, B, d)`` where it is the same for all draws or an average over them.
        means: Posterior means given S draws, ``(S, B, units)``.
        draw: The distribution of each site of the posterior, and a draw of it.
        size: B.
        plate: The data plate.
        analytic: Whether the KLs are closed forms.
        one_prior: Whether the prior is the same for all data.
        is_masked: Whether some elements do not count. A mutual information of the others
            is not defined.
    """

    kl: Tensor
    means: Tensor
    draw: list[tuple[torch.distributions.Distribution, Tensor]]
    size: int
    plate: DataPlate
    analytic: bool
    one_prior: bool
    is_masked: bool

    def log_densities(self, of: "_Part") -> Tensor:
        """log q(z_j | x_i) of the draws z_j of a part under the posteriors of this one, ``(of.size, self.size)``."""
        total = torch.zeros(())
        for (fn, _), (_, value) in zip(self.draw, of.draw, strict=True):
            event_dim = len(fn.event_shape)
            # rows in front of all batch dimensions, and 1 where they were: (B_j, ..., 1, ..., *event)
            value = value.movedim(self.plate.dim - event_dim, 0).unsqueeze(self.plate.dim - event_dim)
            log_prob = fn.log_prob(value).movedim(self.plate.dim, 1)  # (B_j, B_i, ...)
            total = total.to(log_prob) + log_prob.reshape(*log_prob.shape[:2], -1).sum(-1)
        return total[: of.size, : self.size].double().cpu()


def _measure(entry: _Entry, draws: list[Draws], plate: DataPlate, size: int, *, closed: bool) -> _Part:
    kls, means, analytic = [], [], closed
    for draw in draws:
        kl, analytic = _kl(entry, draw, plate, closed)
        kls.append(kl)

        each = [mean_or_draw(draw.guide_sites[n], plate) for n in entry.latents]
        means.append(torch.cat(each, dim=1))

    kl = torch.stack(kls).double().cpu()[:, :size]
    if not analytic or (kl == kl[0]).all():
        kl = kl.mean(0, keepdim=True)

    first = draws[0]
    is_masked = False
    for name in entry.latents:
        is_masked = is_masked or mask_of(first.model_sites[name]) is not None
    posterior = [first.guide_sites[n] for n in entry.posterior]

    return _Part(
        kl=kl,
        means=torch.stack(means).double().cpu()[:, :size],
        draw=[(site["fn"], site["value"][0]) for site in posterior],
        size=size,
        plate=plate,
        analytic=analytic,
        one_prior=all(_same_for_all(first.model_sites[n], plate) for n in entry.latents),
        is_masked=is_masked,
    )


def _kl(entry: _Entry, draw: Draws, plate: DataPlate, closed: bool) -> tuple[Tensor, bool]:
    """KL per datum and unit ``(B, d)`` of one draw, and whether it is a closed form; ``(B, 1)`` without units."""
    if entry.posterior != entry.latents:  # a joint posterior
        log_q = _log_density(draw.guide_sites, (*entry.posterior, *entry.latents), plate)
        return log_q - _log_density(draw.model_sites, entry.latents, plate), False

    (name,) = entry.latents
    site, prior = draw.guide_sites[name], draw.model_sites[name]
    q, p, value, event_dim = unmasked(site["fn"]), unmasked(prior["fn"]), site["value"][0], 0
    if isinstance(q, Independent) and isinstance(p, Independent):  # one KL for each unit
        if q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
            event_dim = q.reinterpreted_batch_ndims
            q, p = q.base_dist, p.base_dist

    analytic, kl = False, torch.zeros(())
    if closed and not isinstance(q, Delta):
        with contextlib.suppress(NotImplementedError):
            kl, analytic = kl_divergence(q, p), True
    if not analytic:
        kl = q.log_prob(value) - p.log_prob(value)

    kl = _masked(kl, prior, event_dim)
    return rows_first(kl, event_dim, plate.dim), analytic


def _masked(values: Tensor, site: Message, event_dim: int) -> Tensor:
    """Values ``(*batch, *event)``, 0 where the site is masked."""
    mask = mask_of(site)
    if mask is None:
        return values
    mask = mask.reshape(mask.shape + (1,) * event_dim)
    return torch.where(mask, values, torch.zeros_like(values))


def _log_density(sites: Sites, names: tuple[str, ...], plate: DataPlate) -> Tensor:
    """log-density of the first draws of some sites together, ``(B, 1)``."""
    each = []
    for site in (sites[name] for name in names):
        log_prob = _masked(site["fn"].log_prob(site["value"][0]), site, 0)
        log_prob = rows_first(log_prob, 0, plate.dim)
        each.append(log_prob.sum(1, keepdim=True))
    return torch.cat(each, dim=1).sum(1, keepdim=True)


def _same_for_all(site: Message, plate: DataPlate) -> bool:
    """Whether the prior of a site is the same for all rows: whether all give one row's value the same density."""
    event_dim = len(site["fn"].event_shape)
    value = site["value"][0]
    one = value.narrow(plate.dim - event_dim, 0, 1).expand_as(value)
    log_prob = rows_first(site["fn"].log_prob(one), 0, plate.dim)
    return torch.allclose(log_prob, log_prob[:1].expand_as(log_prob), rtol=1e-5, atol=1e-6)


def _summarise(entry: _Entry, parts: list[_Part], max_mixture: int, *, dependent: bool) -> SiteCollapse:
    draws = max(len(p.kl) for p in parts)
    kl = torch.cat([p.kl.expand(draws, -1, -1) for p in parts], dim=1)
    means = torch.cat([p.means for p in parts], dim=1)  # (S, N, units)
    variance = means.mean(0).var(0, correction=0)
    if len(means) > 1:  # what the draws add to the variance of their average
        variance = variance - means.var(0).mean(0) / len(means)

    used = _spread(parts, max_mixture)
    size = sum(p.size for p in used)
    if dependent or parts[0].is_masked:
        information = torch.full((size,), math.nan, dtype=kl.dtype)
    else:
        information = _mutual_information(used)

    aggregate_kl = math.nan
    if all(p.one_prior for p in parts):
        divergence = torch.cat([p.kl.mean(0).sum(1) for p in used])
        aggregate_kl = (divergence - information).mean().item()

    return SiteCollapse(
        name=entry.name,
        kl_draws=kl,
        mean_variance=variance,
        mutual_information=information.mean().item(),
        mutual_information_error=standard_error(information).item(),
        mixture_size=size,
        aggregate_kl=aggregate_kl,
        analytic=parts[0].analytic,
    )


def _spread(parts: list[_Part], max_mixture: int) -> list[_Part]:
    """Parts at even distances that hold about so many rows: the data may be sorted."""
    total = sum(p.size for p in parts)
    if total <= max_mixture:
        return parts
    number = max(1, len(parts) * max_mixture // total)
    return [parts[i * len(parts) // number] for i in range(number)]


def _mutual_information(parts: list[_Part]) -> Tensor:
    """log q(z|x) - log q(z) at one draw for each datum, ``(N,)``, with q(z) the mixture of all data's posteriors."""
    terms = []
    for j, part in enumerate(parts):
        log_q = [other.log_densities(part) for other in parts]  # (B_j, B_i) each
        mixture = torch.cat(log_q, dim=1)
        terms.append(log_q[j].diagonal() - mixture.logsumexp(1) + math.log(mixture.shape[1]))
    return torch.cat(terms)
