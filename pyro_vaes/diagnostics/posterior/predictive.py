"""Replicated data: what the fitted program would have produced instead of what was observed."""

from collections.abc import Callable, Sequence

import torch

from pyro_vaes.programs import Program

from ..particles import Particles, Values
from ..sites import Args
from ..summaries import require_positive


def posterior_predictive(
    model: Program, guide: Program, data: object, num_samples: int = 1, *, batch_size: int = 128, seed: int = 0
) -> Values:
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
    particles = Particles(model, guide, data, batch_size=batch_size, seed=seed)
    return _draws(particles, num_samples, lambda args, k: particles.replicate(args, particles.draw(args, k)))


def prior_predictive(
    model: Program, guide: Program, data: object, num_samples: int = 1, *, batch_size: int = 128, seed: int = 0
) -> Values:
    """New observations from the program run forward, one for each row of ``data`` (whose covariates it uses).

    Arguments and result are those of :func:`posterior_predictive`.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, seed=seed)
    return _draws(particles, num_samples, lambda args, k: particles.simulated(particles.prior(args, k)))


def _draws(particles: Particles, num_samples: int, draw: Callable[[Args, int], Values]) -> Values:
    """So many draws for each row, chunk by chunk, on the CPU."""
    require_positive(num_samples=num_samples)

    def draws(args: Args) -> Values:
        chunks = [{n: v.cpu() for n, v in draw(args, k).items()} for k in particles.chunks(num_samples)]
        return {n: torch.cat([c[n] for c in chunks]) for n in chunks[0]}

    return particles.joined(particles.for_each_pass(draws), dim=1)


def reconstruct(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 1,
    *,
    through: Sequence[str] | None = None,
    batch_size: int = 128,
    seed: int = 0,
) -> Values:
    """Means of the observations' distributions given latents drawn from the guide, averaged over the draws.

    The other arguments are those of :func:`posterior_predictive`.

    Arguments:
        num_particles: Draws of the latents of each datum, over which the means are averaged.
        through: Latent sites that keep the guide's draws, the others being drawn anew by the model; None for all. With
            ``through=["z_2"]`` a hierarchy shows what its top level knows of the data, and whether it has collapsed.

    Returns:
        For each observed site a tensor with shape ``(N, *event)``: what the decoder says, without observation noise.

    Raises:
        ValueError: An observation's distribution has no mean, such as a category's; ``through`` names no latent site.
    """
    require_positive(num_particles=num_particles)
    particles = Particles(model, guide, data, batch_size=batch_size, seed=seed)

    def means(args: Args) -> Values:
        total: Values = {}
        for size in particles.chunks(num_particles):
            for name, mean in particles.observed_means(args, particles.draw(args, size), through).items():
                total[name] = total.get(name, 0) + mean.sum(0) / num_particles
        return {n: t.cpu() for n, t in total.items()}

    return particles.joined(particles.for_each_pass(means))
