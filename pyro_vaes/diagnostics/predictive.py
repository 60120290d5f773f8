"""Replicated data: what the fitted program would have produced instead of what was observed."""

from collections.abc import Iterator

import torch
from pyro import poutine
from torch import Tensor

from pyro_vaes.diagnostics.particles import Particles, random_sites, was_observed
from pyro_vaes.infer.bound import Program

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
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=min(num_samples, 50), seed=seed)
    batches: list[dict[str, Tensor]] = []
    for args in particles.rows():
        chunks = [particles.replicate(args, particles.draw(args, k)) for k in particles.chunks(num_samples)]
        batches.append({n: torch.cat([c[n].cpu() for c in chunks]) for n in chunks[0]})
    return {n: torch.cat([b[n] for b in batches], dim=1) for n in batches[0]}


def prior_predictive(
    model: Program, guide: Program, data: object, num_samples: int = 1, *, batch_size: int = 128, seed: int = 0
) -> dict[str, Tensor]:
    """New observations from the program run forward, one for each row of ``data`` (whose covariates it uses).

    Arguments and result are those of :func:`posterior_predictive`.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, seed=seed)
    batches: list[dict[str, Tensor]] = []
    for args in particles.rows():
        draws = [{n: s["value"] for n, s in particles.prior(args).items() if was_observed(s)} for _ in range(num_samples)]
        batches.append({n: torch.stack([d[n] for d in draws]).cpu() for n in draws[0]})
    return {n: torch.cat([b[n] for b in batches], dim=1) for n in batches[0]}


def reconstruct(
    model: Program, guide: Program, data: object, *, num_samples: int = 1, batch_size: int = 128, seed: int = 0
) -> dict[str, Tensor]:
    """Means of the observations' distributions given latents drawn from the guide, averaged over the draws.

    Returns:
        For each observed site a tensor with shape ``(N, *event)``: what the decoder says, without observation noise.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=min(num_samples, 50), seed=seed)
    batches: list[dict[str, Tensor]] = []
    for args in particles.rows():
        means = [m for k in particles.chunks(num_samples) for m in _means(particles, args, k)]
        batches.append({n: torch.stack([m[n] for m in means]).mean(0).cpu() for n in means[0]})
    return {n: torch.cat([b[n] for b in batches]) for n in batches[0]}


def _means(particles: Particles, args: tuple[object, ...], num: int) -> Iterator[dict[str, Tensor]]:
    """The means of the observed sites for each of ``num`` draws of the latents."""
    latents = particles.draw(args, num).latents()
    for k in range(num):
        values = {n: s["value"][k] for n, s in latents.items()}
        with poutine.block():
            trace = poutine.trace(poutine.condition(particles.pair.model, data=values)).get_trace(*args)
        yield {n: s["fn"].mean for n, s in random_sites(trace, observed=True).items() if n not in values}
