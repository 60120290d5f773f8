"""A model and a start as two densities of one unconstrained vector per datum, for chains that walk between them.

    log q(z)    the guide's density, or the prior's
    log p(x, z) the model's,    both with log |det d value / d z|

by conditioning the programs on the values that belong to z and tracing them, all chains in one pass.
"""

from collections.abc import Mapping

import torch
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions.distribution import Distribution

from pyro_vaes.guides import find_latents
from pyro_vaes.programs import VALUED, Program, Sites, run, sites

from ..particles import Particles
from ..sites import Args, aligned, innermost, vector_site


class UnconstrainedPair:
    """log q(z) and log p(x, z) of the rows in ``args``; use it inside the loop over ``particles.rows()``.

    Arguments:
        particles: The pair; with ``from_prior`` its guide is :func:`prior_of` its model.
        args: The programs' arguments.
        from_prior: Whether q is the prior, which one run of the model gives along with p.
        observed: Values by site to observe instead of those in ``args``.

    Raises:
        ValueError: A latent site is discrete, lies in another plate or none, or is masked; the guide is a point or has
            auxiliary sites; or the data of a batch depend on each other.
    """

    def __init__(
        self, particles: Particles, args: Args, *, from_prior: bool, observed: Mapping[str, Tensor] | None = None
    ) -> None:
        self.particles, self.args = particles, args
        self.plate, self.from_prior = particles.plate, from_prior
        self.observed = dict(observed or {})
        self.latents = find_latents(particles.model, *args)
        self.names = [site.name for site in self.latents.sites]

        model_sites = sites(run(particles.model, args), VALUED)
        guide_sites = sites(run(particles.guide, args), VALUED)
        _refuse_masks({n: model_sites[n] for n in self.names}, "model")
        _refuse_masks(guide_sites, "guide")

        self.drawn = [n for n, s in guide_sites.items() if not isinstance(innermost(s["fn"]), Delta)]
        self.flat = vector_site(guide_sites, self.latents)
        if self.flat is None and set(self.drawn) != set(self.names):
            raise ValueError(
                f"The guide draws {self.drawn} where the model's latent sites are {self.names}, so that it has no "
                "density to start annealing from: a point (Delta) has none, and auxiliary sites hide it. Use "
                "start='prior'?"
            )
        # the distribution of a guide's only site depends on nothing that the chains move: the encoder runs just once
        self.fixed: Distribution | None = guide_sites[self.drawn[0]]["fn"] if len(self.drawn) == 1 else None

    def draw(self, num: int) -> Tensor:
        """``num`` draws of q for each datum, shape ``(num, B, numel)``."""
        sites = self.particles.draw(self.args, num).guide_sites
        z = self.unconstrain(sites) if self.flat is None else aligned(sites[self.flat], self.plate)
        self._refuse_dependence(z)
        return z

    def unconstrain(self, sites: Sites) -> Tensor:
        """The vectors ``(K, B, numel)`` of the latent sites' values."""
        values = {}
        for name in self.names:
            values[name] = aligned(sites[name], self.plate)
        return self.latents.join(values)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log q(z) and log p(x, z) - log q(z), each with shape ``(C, B)``, for ``z`` with shape ``(C, B, numel)``."""
        values, log_det = self._values(z)
        log_prior, log_likelihood = self._model_log_probs(values)
        if self.from_prior:
            return log_prior + log_det, log_likelihood
        log_q = self._guide_log_prob(z, values, log_det)
        return log_q, log_prior + log_likelihood + log_det - log_q

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z) of the latents' values, shape ``(C, B)``."""
        log_prior, log_likelihood = self._model_log_probs(self._values(z)[0])
        return log_prior + log_likelihood

    def _model_log_probs(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """log p(z) and log p(x | z)."""
        num = len(next(iter(values.values())))
        observed = {n: value.expand(num, *value.shape) for n, value in self.observed.items()}
        return self._log_probs(self.particles.model, {**values, **observed}, self.names)

    def _guide_log_prob(self, z: Tensor, values: dict[str, Tensor], log_det: Tensor) -> Tensor:
        if self.flat is not None:
            values, log_det = {self.flat: self._shaped(z)}, torch.zeros_like(log_det)
        if self.fixed is not None:
            return self.fixed.log_prob(values[self.drawn[0]]).reshape(z.shape[:2]) + log_det
        return self._log_probs(self.particles.guide, values, self.drawn)[0] + log_det

    def _shaped(self, part: Tensor) -> Tensor:
        """``(C, B, n)`` with all batch dimensions of the pair's plates: ``(C, *batch, n)``."""
        plate = self.plate
        left, right = (1,) * (plate.depth + plate.dim), (1,) * (-plate.dim - 1)
        return part.reshape(part.shape[0], *left, part.shape[1], *right, part.shape[2])

    def _values(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The values of the latent sites with shape ``(C, *batch, *event)``, and the log |det| ``(C, B)``."""
        values, total = {}, z.new_zeros(z.shape[:2])
        for site, part in zip(self.latents.sites, self.latents.split(z), strict=True):
            values[site.name], log_det = site.constrain(self._shaped(part))
            total = total + log_det.reshape(z.shape[:2])
        return values, total

    def _log_probs(self, program: Program, values: dict[str, Tensor], names: list[str]) -> tuple[Tensor, Tensor]:
        """log-densities ``(C, B)`` of the sites named, and of all others, of a program conditioned on ``values``."""
        num = len(next(iter(values.values())))
        traces = self.particles.traces(program, self.args, num, values)
        named = self.particles.log_prob(traces, lambda name: name in names)
        others = self.particles.log_prob(traces, lambda name: name not in names)
        if others.shape != named.shape:  # nothing else has a density
            others = torch.zeros_like(named)
        return named, others

    def _refuse_dependence(self, z: Tensor) -> None:
        """Moving the first datum's latents must leave the densities of the others alone."""
        z = z[:1]
        moved = torch.cat([z[:, :1] + 0.1, z[:, 1:]], 1)
        for before, after in zip(self(z), self(moved), strict=True):
            if not torch.allclose(before[:, 1:], after[:, 1:], rtol=1e-4, atol=1e-3, equal_nan=True):
                raise ValueError(
                    "The density of a datum changes with the latents of its batch mates, or from one evaluation to "
                    "the next, so that no chain of its own leads to its evidence. Is there a normalisation over the "
                    "batch, or a draw outside Pyro in the model or the guide?"
                )


def _refuse_masks(sites: Sites, program: str) -> None:
    for name, site in sites.items():
        masks = [site["mask"]]
        if isinstance(site["fn"], MaskedDistribution):
            masks.append(site["fn"]._mask)
        if any(m is not None and not bool(torch.as_tensor(m).all()) for m in masks):
            raise ValueError(
                f"The {program}'s latent site {name!r} is masked, so that some data have no density over it and a "
                "chain would walk off for ever. Mask the observations only, and leave out padded rows."
            )
