"""The best normal for each datum of a batch by itself, found by gradient steps: what an amortised guide is held to.

Its parameters climb the path derivative of the bound, log q's own score function left out, which has no noise left
where q is the posterior.
"""

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.distributions.transforms import SoftplusTransform
from torch.nn.functional import softplus

from pyro_vaes.guides import Latents, batch_rows
from pyro_vaes.programs import Sites, is_auxiliary

from ..particles import Particles
from ..sites import Args

START_DRAWS = 32
"""Draws whose mean and standard deviation q* starts from."""
NARROWEST = 1e-4
"""Floor of the standard deviations of q*, in the unconstrained space."""


class LocalNormal:
    """q of each datum of a batch as a guide: a normal over the latents in their unconstrained space."""

    def __init__(self, latents: Latents, loc: Tensor, scale: Tensor, *, full_covariance: bool) -> None:
        self.latents, self.full_covariance = latents, full_covariance
        excess = (scale.detach() - NARROWEST).clamp(min=NARROWEST)
        raw = SoftplusTransform().inv(excess)  # (B, d)
        self.parameters = [loc.detach().clone().requires_grad_(), raw.requires_grad_()]

        size = loc.shape[-1]
        if full_covariance:
            # below the diagonal in units of the row's scale: one step size then suits latents of all sizes
            self.parameters.append(loc.new_zeros((len(loc), size, size)).requires_grad_())

    def distribution(self, *, fixed: bool = False) -> TorchDistribution:
        """q; with ``fixed`` parameters its density has no score function."""
        shaped = []
        for parameter in self.parameters:
            value = parameter.detach() if fixed else parameter
            shaped.append(value.reshape(len(value), *self.latents.inner, *value.shape[1:]))

        loc, raw, *lower = shaped
        scale = softplus(raw) + NARROWEST
        if not lower:
            return Normal(loc, scale).to_event(1)
        below = scale.unsqueeze(-1) * lower[0].tril(-1)
        return MultivariateNormal(loc, scale_tril=below + torch.diag_embed(scale))

    def __call__(self, *args: object) -> None:
        with self.latents.data_plate(batch_rows(args)):
            self.latents.sample_flat(self.distribution())


def moments_at_start(particles: Particles, args: Args, latents: Latents, *, from_guide: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(B, d)`` of draws from the guide or the prior, in the unconstrained space."""
    if from_guide:
        sites = particles.draw(args, START_DRAWS).latents()
    else:
        sites = particles.prior(args, START_DRAWS)

    values = latents.join({site.name: sites[site.name]["value"] for site in latents.sites})
    values = values.reshape(START_DRAWS, -1, latents.numel)  # (S, B, d): the data plate is their only one
    values = values.nan_to_num(nan=0.0, posinf=30.0, neginf=-30.0)  # draws that were rounded onto a support's edge
    return values.mean(0), values.std(0).clamp(min=2 * NARROWEST)


def climb(family: LocalNormal, particles: Particles, args: Args, steps: int, lr: float, num_particles: int) -> Tensor:
    """Climb the bound of each datum; returns it at each step, ``(steps, B)``."""
    optimizer = torch.optim.Adam(family.parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = []

    for _ in range(steps):
        with torch.enable_grad():
            draws = particles.draw(args, num_particles, family)
            z = _drawn(draws.guide_sites, family)
            # log q is in the weights; put in its place the one without a score function
            score = family.distribution().log_prob(z) - family.distribution(fixed=True).log_prob(z)
            bound = (draws.log_weights + score.reshape(draws.log_weights.shape)).mean(0)  # (B,)
            optimizer.zero_grad()
            bound.sum().neg().backward(inputs=family.parameters)

        optimizer.step()
        schedule.step()
        history.append(bound.detach())
    return torch.stack(history)


def _drawn(sites: Sites, family: LocalNormal) -> Tensor:
    """The draw of the whole vector: the auxiliary site's, or that of the one site there is."""
    first, *_ = [s for s in sites.values() if is_auxiliary(s)] or list(sites.values())
    assert first["value"].shape[-1] == family.latents.numel
    return first["value"]
