"""Replicated data: what the fitted program would have produced instead of what was observed."""

from collections.abc import Callable, Sequence

import torch

from pyro_vaes.programs import Program

from ..handlers import prior_of
from ..particles import Particles, Values
from ..sites import Args
from ..summaries import require_positive


def posterior_predictive(
    model: Program,
    guide: Program,
    data: object,
    num_samples: int = 1,
    *,
    batch_size: int = 128,
    seed: int = 0,
    unit: str | None = None,
) -> Values:
    """Replicates of the observations given latents drawn from the guide, on the CPU.

    Unlike ``pyro.infer.Predictive(model, guide=guide)(x)``, which returns the observed x
    itself. A latent outside the data plate is drawn once for each replicate of all data.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_samples: Replicates S of each datum.
        batch_size: Rows per pass.
        seed: Seed of the draws.
        unit: Name of the plate whose rows are the data, where there are several.

    Returns:
        For each observed site a tensor with shape ``(S, N, *event)``.

    Raises:
        ValueError: ``num_samples`` is below 1, or the pair does not fit the data.
    """
    require_positive(num_samples=num_samples)
    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        seed=seed,
        unit=unit,
        globals_too=True,
    )

    def replicate(args: Args, num: int) -> Values:
        return particles.replicate(args, particles.draw(args, num))

    first = particles.first_rows()
    if not particles.plate.global_sites:
        return _draws(particles, num_samples, replicate)

    each = []
    draws = particles.all_globals(first, num_samples)
    for number in range(num_samples):
        draw = draws[min(number, len(draws) - 1)]  # of points there is one
        particles.fix_globals(draw.values)
        particles.seed = seed + number
        each.append(_draws(particles, 1, replicate))
    return _side_by_side(each)


def prior_predictive(
    model: Program,
    guide: Program | None,
    data: object,
    num_samples: int = 1,
    *,
    batch_size: int = 128,
    seed: int = 0,
    unit: str | None = None,
) -> Values:
    """New observations from the program run forward, one for each row of ``data`` (whose covariates it uses).

    Arguments and result are those of :func:`posterior_predictive`. The guide has no effect
    and may be None.
    """
    require_positive(num_samples=num_samples)
    particles = Particles(
        model,
        prior_of(model),
        data,
        batch_size=batch_size,
        seed=seed,
        unit=unit,
        globals_too=True,
    )

    def simulate(args: Args, num: int) -> Values:
        return particles.simulated(particles.prior(args, num))

    return _draws(particles, num_samples, simulate)


def _side_by_side(each: Sequence[Values]) -> Values:
    """Draws of several passes, one after the other."""
    joined = {}
    for name in each[0]:
        joined[name] = torch.cat([values[name] for values in each])
    return joined


def _draws(particles: Particles, num_samples: int, draw: Callable[[Args, int], Values]) -> Values:
    """So many draws for each row, chunk by chunk, on the CPU."""

    def draws(args: Args) -> Values:
        chunks = []
        for size in particles.chunks(num_samples):
            drawn = draw(args, size)
            chunks.append({name: value.cpu() for name, value in drawn.items()})
        return _side_by_side(chunks)

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
