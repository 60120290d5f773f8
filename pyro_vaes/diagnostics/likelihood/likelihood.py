"""Held-out log-likelihood by importance sampling, per datum, with what tells whether to believe it.

    log p(x) ≈ log 1/K sum_k w_k,    w_k = p(x, z_k) / q(z_k | x)

Standard error by the delta method, ``sd(w) / (sqrt(K) mean(w))``; effective sample size ``(sum w)² / sum w²``; and the
Pareto shape k-hat of the largest weights: below 0.5 the estimate can be trusted, above 0.7 not.

References:
    | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    | https://arxiv.org/abs/1509.00519
    | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
    | https://arxiv.org/abs/1507.02646
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_vaes.diagnostics.particles import Particles
from pyro_vaes.programs import Program

__all__ = ["LogLikelihood", "average_weights", "log_likelihood", "log_weights", "pareto_khat", "summarise"]

T = TypeVar("T")


def log_weights(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 100,
    *,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
) -> Tensor:
    """Per-datum log importance weights ``log p(x, z) - log q(z | x)`` with shape ``(num_particles, N)``, on the CPU.

    Scales of sites (subsampling plates, ``poutine.scale``, KL weights) do not enter; masks do.

    Arguments:
        model: The model; latents and data in one data plate.
        guide: The guide.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_particles: Draws of the latents per datum.
        batch_size: Rows per pass.
        chunk_size: Particles per pass.
        seed: Seed of the draws; the generators' states come back afterwards.

    Raises:
        ValueError: A site lies outside the data plate, the guide lacks a latent site, or data lie outside a support.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)
    return torch.cat(_by_batch(lambda w: w, particles, num_particles), dim=1)


def _by_batch(reduce: Callable[[Tensor], T], particles: Particles, num_particles: int) -> list[T]:
    """A function of the log weights ``(K, B)`` of each batch; only one batch's weights are held at a time."""
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
    results, seen = [], 0
    with particles.rows() as rows:
        for args in rows:
            weights = torch.cat([particles.draw(args, k).log_weights.cpu() for k in particles.chunks(num_particles)])
            results.append(reduce(weights if particles.limit is None else weights[:, : particles.limit - seen]))
            seen += weights.shape[1]
    return results


@dataclass(frozen=True)
class LogLikelihood:
    """Importance-sampling estimates per datum, each a tensor with shape ``(N,)``, in nats.

    Attributes:
        log_likelihood: The IW-K estimate of log p(x), a lower bound in expectation.
        standard_error: Its Monte-Carlo standard error.
        elbo: Mean log weight, the evidence lower bound.
        ess: Effective sample size, between 1 and K.
        khat: Pareto shape of the largest weights; nan where K is too small for it (below 25).
        num_particles: K.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    elbo: Tensor
    ess: Tensor
    khat: Tensor
    num_particles: int

    def __str__(self) -> str:
        n = len(self.log_likelihood)
        spread = self.log_likelihood.std().item() / math.sqrt(n) if n > 1 else math.nan
        high = (self.khat > 0.7).double().mean().item()
        tail = "k-hat needs 25 particles" if self.num_particles < 25 else f"k-hat > 0.7 for {high:.1%} of the data"
        return (
            f"IW-{self.num_particles} {self.log_likelihood.mean().item():.3f} ± {spread:.3f} nats per datum (N = {n}), "
            f"ELBO {self.elbo.mean().item():.3f}, median ESS {self.ess.median().item():.1f}, {tail}"
        )

    __repr__ = __str__


def log_likelihood(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 500,
    *,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
) -> LogLikelihood:
    """Estimate log p(x) of each datum by importance sampling; arguments as for :func:`log_weights`.

    Weights are streamed: only those of one batch are held at a time.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)
    columns = _by_batch(lambda w: summarise(w.double()), particles, num_particles)
    estimate, error, elbo, ess, khat = (torch.cat(c) for c in zip(*columns, strict=True))
    return LogLikelihood(estimate, error, elbo, ess, khat, num_particles)


def summarise(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Estimate, standard error, ELBO, effective sample size and k-hat from weights ``(K, B)``."""
    estimate, error, ess = average_weights(log_w)
    return estimate, error, log_w.mean(0), ess, pareto_khat(log_w)


def average_weights(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the mean weight, its standard error and the effective sample size, each ``(B,)``, from ``(K, B)``."""
    num = len(log_w)
    estimate = log_w.logsumexp(0) - math.log(num)
    relative = (log_w - estimate).exp()  # weights over their mean
    error = relative.std(0) / math.sqrt(num) if num > 1 else torch.full_like(estimate, math.nan)
    ess = relative.sum(0).square() / relative.square().sum(0)
    return estimate, error, ess


def pareto_khat(log_w: Tensor) -> Tensor:
    """Pareto shape of the largest weights of each datum.

    The tail is what exceeds the largest weight but M, with M = min(K / 5, 3 sqrt(K)). Where the M largest log weights
    agree within 1e-3 nats there is no tail: minus infinity. Where fewer than 5 weights exceed a threshold that others
    tie with, the fit is hopeless: infinity.

    Arguments:
        log_w: Log weights in nats, up to a constant for each datum, shape ``(K, N)``.

    Returns:
        Tensor with shape ``(N,)``; nan below 25 particles, or where log weights are not numbers.
    """
    num = len(log_w)
    if num < 25:
        return log_w.new_full(log_w.shape[1:], math.nan)
    tail = math.ceil(min(0.2 * num, 3.0 * math.sqrt(num)))
    largest, _ = log_w.double().cpu().topk(tail + 1, dim=0)
    return log_w.new_tensor([_tail_shape(column) for column in largest.T])


def _tail_shape(largest: Tensor) -> float:
    """The shape of weights in excess of the last, from their logarithms in descending order, ``(M + 1,)``."""
    if not largest[0].isfinite():
        return math.nan
    if largest[0] - largest[-1] < 1e-3:  # below the rounding of float32 log-densities
        return -math.inf
    weights = (largest - largest[0]).exp()
    excess = weights - weights[-1]
    excess = excess[excess > 0]
    return fit_generalized_pareto(excess)[0] if len(excess) >= 5 else math.inf
