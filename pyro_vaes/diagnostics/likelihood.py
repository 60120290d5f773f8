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
from dataclasses import dataclass

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_vaes.diagnostics.particles import Particles
from pyro_vaes.infer.bound import Program

__all__ = ["LogLikelihood", "log_likelihood", "log_weights", "pareto_khat"]


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
        ValueError: A site lies outside the data plate.
    """
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)
    batches = []
    for args in particles.rows():
        chunks = [particles.draw(args, k).log_weights.cpu() for k in particles.chunks(num_particles)]
        batches.append(torch.cat(chunks))
    return torch.cat(batches, dim=1)


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
        return (
            f"IW-{self.num_particles} {self.log_likelihood.mean().item():.3f} ± {spread:.3f} nats per datum (N = {n}), "
            f"ELBO {self.elbo.mean().item():.3f}, median ESS {self.ess.median().item():.1f}, "
            f"k-hat > 0.7 for {high:.1%} of the data"
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
    columns: list[tuple[Tensor, ...]] = []
    for args in particles.rows():
        chunks = [particles.draw(args, k).log_weights for k in particles.chunks(num_particles)]
        columns.append(_summarise(torch.cat(chunks).double().cpu()))
    return LogLikelihood(*(torch.cat(c) for c in zip(*columns, strict=True)), num_particles=num_particles)


def _summarise(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Estimate, standard error, ELBO, effective sample size and k-hat from weights ``(K, B)``."""
    num = len(log_w)
    estimate = log_w.logsumexp(0) - math.log(num)
    relative = (log_w - estimate).exp()  # weights over their mean
    error = relative.std(0) / math.sqrt(num) if num > 1 else torch.full_like(estimate, math.nan)
    ess = relative.sum(0).square() / relative.square().sum(0)
    return estimate, error, log_w.mean(0), ess, pareto_khat(log_w)


def pareto_khat(log_w: Tensor) -> Tensor:
    """Pareto shape of the largest weights of each datum; ``(K, N) -> (N,)``, nan below 25 particles.

    The tail is the ``min(K / 5, 3 sqrt(K))`` largest weights. Weights that are all alike have no tail: minus infinity.
    """
    num = len(log_w)
    tail = math.ceil(min(0.2 * num, 3.0 * math.sqrt(num)))
    if num < 25 or tail < 5:
        return log_w.new_full(log_w.shape[1:], math.nan)
    largest, _ = log_w.topk(tail + 1, dim=0)
    weights = (largest - largest[0]).exp()
    excess = weights[:-1] - weights[-1]  # over the threshold
    khats = [
        fit_generalized_pareto(e)[0] if e[0] > 0 and w[-1] > 0 else log_w.new_tensor(-math.inf)
        for e, w in zip(excess.T, weights.T, strict=True)
    ]
    return torch.stack([torch.as_tensor(k, dtype=log_w.dtype) for k in khats])
