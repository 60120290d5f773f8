"""The means of a guide's posteriors, one row of units for each datum: features of the data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vaes.programs import DRAWN, Program, is_auxiliary, num_positional, run, sites

from ..particles import Particles
from ..sites import Args, mean_or_draw
from ..summaries import require_positive


def posterior_means(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 1,
    *,
    sites: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Tensor:
    """E[z | x] of each datum under the guide, all sites side by side, on the CPU; only the guide is run.

    Arguments:
        model: The model.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_particles: Draws over which means are averaged where a site is drawn given another one, or has no mean of
            its own (a function of a joint draw, a flow). Where the posterior depends on the datum alone one is exact.
        sites: The latent sites; all continuous ones by default.
        batch_size: Rows per pass.
        seed: Seed of the draws.

    Returns:
        ``(N, units)``.

    Raises:
        ValueError: A site is unknown or discrete, or ``num_particles`` is below 1.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> posterior_means(vae.model, vae.guide, torch.zeros(10, 3)).shape
        torch.Size([10, 2])
    """
    require_positive(num_particles=num_particles)

    def posterior(*args: object) -> object:  # the guide in both roles, on as many arguments as the model takes
        return guide(*args[: num_positional(model)])

    particles = Particles(posterior, posterior, data, batch_size=batch_size, seed=seed)
    means = particles.for_each_pass(lambda args: _batch_means(particles, args, sites, num_particles))
    return particles.joined(means)


def _batch_means(particles: Particles, args: Args, names: Sequence[str] | None, num_particles: int) -> Tensor:
    """Means of one batch, ``(B, units)``."""
    draws = []
    for _ in range(num_particles):
        drawn = sites(run(particles.guide, args), DRAWN)

        latents = {}
        for name, site in drawn.items():
            if site["value"].is_floating_point() and not is_auxiliary(site):
                latents[name] = site

        unknown = sorted(set(names or ()) - latents.keys())
        if unknown or not latents:
            raise ValueError(
                f"There is no continuous latent site {unknown or 'at all'}: those of the guide are {sorted(latents)}."
            )

        wanted = latents if names is None else names
        means = [mean_or_draw(latents[name], particles.plate) for name in wanted]
        draws.append(torch.cat(means, dim=1).cpu())
    return torch.stack(draws).mean(0)
