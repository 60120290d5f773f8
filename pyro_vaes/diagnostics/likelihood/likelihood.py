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

from dataclasses import dataclass

from torch import Tensor

from pyro_vaes.programs import Program

from ..importance_weights import average_weights, pareto_khat
from ..particles import Particles
from ..sites import Args
from ..summaries import mean_and_error, require_positive


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
    require_positive(num_particles=num_particles)
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)
    weights = particles.for_each_pass(lambda args: particles.log_weights(args, num_particles))
    return particles.joined(weights, dim=1)


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

    def __repr__(self) -> str:
        if self.num_particles < 25:
            tail = "k-hat needs 25 particles"
        else:
            tail = f"k-hat > 0.7 for {(self.khat > 0.7).double().mean().item():.1%} of the data"
        return (
            f"IW-{self.num_particles} {mean_and_error(self.log_likelihood)} nats per datum "
            f"(N = {len(self.khat)}), ELBO {self.elbo.mean().item():.3f}, "
            f"median ESS {self.ess.median().item():.1f}, {tail}"
        )


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
    require_positive(num_particles=num_particles)
    particles = Particles(model, guide, data, batch_size=batch_size, chunk_size=chunk_size, seed=seed)

    def summarised(args: Args) -> LogLikelihood:
        return summarise(particles.log_weights(args, num_particles).double())

    return particles.joined(particles.for_each_pass(summarised))


def summarise(log_w: Tensor) -> LogLikelihood:
    """Estimates and what tells whether to believe them, from log weights ``(K, B)``."""
    average = average_weights(log_w)
    return LogLikelihood(
        log_likelihood=average.estimate,
        standard_error=average.error,
        elbo=log_w.mean(0),
        ess=average.ess,
        khat=pareto_khat(log_w),
        num_particles=len(log_w),
    )
