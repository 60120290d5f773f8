"""Replicated data: what the fitted program would have produced instead of what was observed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vaes.diagnostics.particles import Particles
from pyro_vaes.diagnostics.sites import Args, aligned
from pyro_vaes.programs import Program, was_observed

__all__ = ["posterior_predictive", "prior_predictive", "reconstruct"]


def posterior_predictive(
    model: Program, guide: Program, data: object, num_samples: int = 1, *, batch_size: int = 128, seed: int = 0
) -> dict[str, Tensor]:
    """Replicates of the observations given latents drawn from the guide, on the CPU.

    Unlike ``pyro.infer.Predictive(model, guide=guide)(x)``, which returns the observed x itself.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_samples: Replicates S of each datum.
        batch_size: Rows per pass.
        seed: Seed of the draws.

    Returns:
        For each observed site a tensor with shape ``(S, N, *event)``.

    Raises:
        ValueError: ``num_samples`` is below 1, or the pair does not fit the data.
    """
    particles = _particles(model, guide, data, num_samples, batch_size, seed)

    def batch(args: Args) -> dict[str, Tensor]:
        chunks = [particles.replicate(args, particles.draw(args, k)) for k in particles.chunks(num_samples)]
        return {n: torch.cat([c[n].cpu() for c in chunks]) for n in chunks[0]}

    return _over_rows(particles, batch, particle_dims=1)


def prior_predictive(
    model: Program, guide: Program, data: object, num_samples: int = 1, *, batch_size: int = 128, seed: int = 0
) -> dict[str, Tensor]:
    """New observations from the program run forward, one for each row of ``data`` (whose covariates it uses).

    Arguments and result are those of :func:`posterior_predictive`.
    """
    particles = _particles(model, guide, data, num_samples, batch_size, seed)

    def batch(args: Args) -> dict[str, Tensor]:
        chunks = [
            {n: aligned(s, particles.plate).cpu() for n, s in particles.prior(args, k).items() if was_observed(s)}
            for k in particles.chunks(num_samples)
        ]
        return {n: torch.cat([c[n] for c in chunks]) for n in chunks[0]}

    return _over_rows(particles, batch, particle_dims=1)


def reconstruct(
    model: Program,
    guide: Program,
    data: object,
    *,
    through: Sequence[str] | None = None,
    num_samples: int = 1,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Means of the observations' distributions given latents drawn from the guide, averaged over the draws.

    The other arguments are those of :func:`posterior_predictive`.

    Arguments:
        through: Latent sites that keep the guide's draws, the others being drawn anew by the model; None for all. With
            ``through=["z_2"]`` a hierarchy shows what its top level knows of the data, and whether it has collapsed.

    Returns:
        For each observed site a tensor with shape ``(N, *event)``: what the decoder says, without observation noise.

    Raises:
        ValueError: An observation's distribution has no mean, such as a category's; ``through`` names no latent site.
    """
    particles = _particles(model, guide, data, num_samples, batch_size, seed)

    def batch(args: Args) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for size in particles.chunks(num_samples):
            for name, means in particles.observed_means(args, particles.draw(args, size), through).items():
                total[name] = total.get(name, 0) + means.sum(0) / num_samples
        return {n: t.cpu() for n, t in total.items()}

    return _over_rows(particles, batch, particle_dims=0)


def _particles(model: Program, guide: Program, data: object, num_samples: int, batch_size: int, seed: int) -> Particles:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, but got {num_samples}.")
    return Particles(model, guide, data, batch_size=batch_size, seed=seed)


def _over_rows(
    particles: Particles, batch: Callable[[Args], dict[str, Tensor]], *, particle_dims: int
) -> dict[str, Tensor]:
    """The results of all passes, joined along the data."""
    with particles.rows() as rows:
        parts = [batch(args) for args in rows]
    joined = {n: torch.cat([p.pop(n) for p in parts], dim=particle_dims) for n in list(parts[0])}
    if particles.limit is not None:
        joined = {n: v.narrow(particle_dims, 0, particles.limit) for n, v in joined.items()}
    return joined
