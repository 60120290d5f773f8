r"""The aggregate posterior of a data set, unit by unit: where it lies, how wide it is, and what the decoder sees of it.

    m_k = mean_i mu_ik,  V_k = mean_i (mu_ik - m_k)²,  A_k = V_k + mean_i sigma_ik²
    mean_i KL(q_i || p) = KL(N(m, A) || p) + 1/2 sum_k [log A_k - mean_i log sigma_ik²]       p = N(0, I)
    KL(N(m, A) || p) <= KL(mean_i q_i || p) <= mean_i KL(q_i || p)
    I(x; z) = mean_i KL(q_i || p) - KL(mean_i q_i || p),  in [0, log N]

A unit's means may vary although the decoder makes no use of it: its sensitivity, the mean of |dec(mu + e_k) - dec(mu)|
over data and values, tells. All is in the coordinates of each datum's prior, which are z itself under N(0, I).

References:
    | How to Train Your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vaes.distributions import AggregateGaussian, MixturePosterior
from pyro_vaes.infer import NormalSite, Standardised, find_normal_sites
from pyro_vaes.programs import VALUED, Program, Sites, run_pair, sites

from ..particles import Particles
from ..sites import Args, aligned, with_mean
from .aggregate_tables import AggregateReport, kl_decomposition

ROWS, UNITS = 16, 8  # whose images a sensitivity's run of the decoder holds, in all


def aggregate_report(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 4,
    *,
    sites: Sequence[str] | None = None,
    num_sensitivity: int = 64,
    max_mixture: int = 500,
    batch_size: int = 256,
    seed: int = 0,
    unit: str | None = None,
) -> AggregateReport:
    """Measure the aggregate posterior of a pair with normal posteriors and priors.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader. At least two data;
            fit on training data what :func:`~pyro_vaes.diagnostics.draw_from_aggregate` is to draw from.
        num_particles: Draws of each posterior for the mutual information, at least 2.
        sites: The guide's sites; all by default.
        num_sensitivity: Data over which the decoder's sensitivity is averaged, each in as many runs of the model as
            there are units; 0 leaves it out.
        max_mixture: Posteriors in its mixture (the cost is quadratic); of more data, some at even distances.
        batch_size: Rows per pass.
        seed: Seed of the draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Raises:
        ValueError: There are fewer than two data, a posterior or a prior is not normal, or a number is out of range.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> report = aggregate_report(vae.model, vae.guide, torch.randn(50, 3))
        >>> report.mean_variance.shape, report.num_data
        (torch.Size([2]), 50)
    """
    if num_sensitivity < 0 or num_particles < 2 or max_mixture < 2:
        raise ValueError(
            f"num_sensitivity must be at least 0, num_particles and max_mixture at least 2, but got {num_sensitivity}, "
            f"{num_particles} and {max_mixture}."
        )
    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        seed=seed,
        unit=unit,
    )
    found: tuple[NormalSite, ...] = ()
    parts = []
    with particles.rows() as rows:
        for args in rows:
            if not found:
                found = find_normal_sites(particles.model, particles.guide, args, sites, "aggregate_report")
            q, model_sites = _posteriors(particles, args, found)
            parts.append(q)

    sensitivity = torch.full((q.loc.shape[1],), math.nan)
    if num_sensitivity:
        few = Particles(
            model,
            guide,
            data,
            batch_size=ROWS,
            chunk_size=UNITS,
            seed=seed,
            unit=unit,
        )
        sensitivity = _sensitivity(few, found, num_sensitivity)
    sizes = _sizes(found, model_sites, len(q.loc))
    return _summarise(particles.joined(parts), sizes, sensitivity, num_particles, max_mixture)


def _posteriors(particles: Particles, args: Args, found: tuple[NormalSite, ...]) -> tuple[Standardised, Sites]:
    """The posteriors of one batch at all sites side by side, and the model's sites."""
    traces = run_pair(particles.model, particles.guide, args)
    guide_sites, model_sites = (sites(trace, VALUED) for trace in traces)
    each = [site.standardised(guide_sites, model_sites) for site in found]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(q, name) for q in each], 1)

    q = Standardised(
        loc=joined("loc"),
        scale=joined("scale"),
        prior_loc=joined("prior_loc"),
        prior_scale=joined("prior_scale"),
        entropy=torch.stack([q.entropy for q in each]).sum(0),
        diagonal=all(q.diagonal for q in each),
    )
    return q, model_sites


def _sizes(found: tuple[NormalSite, ...], model_sites: Sites, rows: int) -> dict[str, int]:
    """Units of each latent site."""
    return {n: model_sites[n]["value"].numel() // rows for site in found for n in site.latents}


def _summarise(
    q: Standardised, sizes: dict[str, int], sensitivity: Tensor, num_particles: int, max_mixture: int
) -> AggregateReport:
    loc, scale, entropy = (t.double().cpu() for t in (q.loc, q.scale, q.entropy))
    if len(loc) < 2:
        raise ValueError("One datum has no aggregate posterior: give at least two.")

    index = torch.linspace(0, len(loc) - 1, min(max_mixture, len(loc))).round().long()
    information = error = mixture_kl = math.nan
    if q.diagonal:
        mixture = MixturePosterior(loc[index], scale[index], validate_args=False)
        information, error = (t.item() for t in mixture.information(num_particles))
        mixture_kl = kl_decomposition(mixture.loc, mixture.scale).mean_kl - information

    means = AggregateGaussian(loc, scale, "means", validate_args=False)
    return AggregateReport(
        sites=sizes,
        loc=means.mean,
        mean_variance=means.variance,
        mean_scale=scale.mean(0),
        variance=AggregateGaussian(loc, scale, "mixture", validate_args=False).variance,
        sensitivity=sensitivity.double().cpu(),
        decomposition=kl_decomposition(loc, scale, entropy),
        means_kl=means.kl_units().sum().item(),
        mutual_information=information,
        mutual_information_error=error,
        mixture_kl=mixture_kl,
        mixture_size=len(index),
        num_data=len(loc),
    )


def _sensitivity(particles: Particles, found: tuple[NormalSite, ...], num_data: int) -> Tensor:
    """Mean |dec(mu + e_k) - dec(mu)| over data and values, ``(U,)``."""
    changes: list[Tensor] = []
    with particles.rows() as rows:
        for args in rows:
            changes += _changes(particles, args, found)
            if len(changes) >= num_data:
                break
    return torch.stack(changes[:num_data]).mean(0)


def _changes(particles: Particles, args: Args, found: tuple[NormalSite, ...]) -> Tensor:
    """Mean |dec(mu + e_k) - dec(mu)| over the values of each datum, ``(B, U)``: a particle for each unit moved."""
    q, model_sites = _posteriors(particles, args, found)
    sizes = _sizes(found, model_sites, len(q.loc))

    def means(flat: Tensor) -> Tensor:
        """Means of the observations ``(K, B, values)`` at latents ``(K, B, U)`` in the prior's coordinates."""
        given = {}
        z = q.prior_loc + q.prior_scale * flat
        for name, values in zip(sizes, z.split(list(sizes.values()), -1), strict=True):
            site = model_sites[name]
            dim = particles.plate.dim - len(site["fn"].event_shape)
            shape = site["value"].movedim(dim, 0).shape
            given[name] = values.reshape(len(z), *shape).movedim(1, dim)

        sites = particles.run_many(particles.model, args, len(z), given, with_mean)
        found = [aligned(s, particles.plate, key="mean") for s in sites.values() if "mean" in s]
        return torch.cat([mean.flatten(2) for mean in found], 2)

    units = torch.eye(q.loc.shape[1], dtype=q.loc.dtype, device=q.loc.device)
    at_mean = means(q.loc.unsqueeze(0))
    changes = []
    for some in units.split(particles.chunk_size):
        moved = means(q.loc + some.unsqueeze(1))
        changes.append((moved - at_mean).abs().mean(2))
    return torch.cat(changes).mT
