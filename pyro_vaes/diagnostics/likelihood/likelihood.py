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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor

from pyro_vaes.programs import Program

from ..importance_weights import average_weights, pareto_khat
from ..particles import Particles
from ..sites import Args
from ..summaries import mean_and_error, require_positive, standard_error


def log_weights(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 100,
    *,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
    unit: str | None = None,
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
        unit: Name of the plate whose rows are the data, where there are several.

    Raises:
        ValueError: A site lies outside the data plate, the guide lacks a latent site, or data lie outside a support.
    """
    require_positive(num_particles=num_particles)

    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        chunk_size=chunk_size,
        seed=seed,
        unit=unit,
    )

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
        global_sites: Names of the latents outside the data plate. Where there are any, the
            estimates are of E_q(w) log p(x | w), which is no bound on log p(x).
        num_globals: Draws S of these over which all is averaged.
        global_kl: KL(q(w) || p(w)) of all data together, estimated by these draws; 0
            where they are points.
        are_points: Whether the guide has one value for each of them.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    elbo: Tensor
    ess: Tensor
    khat: Tensor
    num_particles: int
    global_sites: tuple[str, ...] = ()
    num_globals: int = 0
    global_kl: float = 0.0
    are_points: bool = False

    @property
    def whole_elbo(self) -> float:
        """The evidence lower bound of all these data, with the globals' KL taken off once."""
        return self.elbo.sum().item() - self.global_kl

    def __repr__(self) -> str:
        if self.num_particles < 25:
            tail = "k-hat needs 25 particles"
        else:
            tail = f"k-hat > 0.7 for {(self.khat > 0.7).double().mean().item():.1%} of the data"
        return (
            f"IW-{self.num_particles} {mean_and_error(self.log_likelihood)} nats per datum "
            f"(N = {len(self.khat)}), ELBO {self.elbo.mean().item():.3f}, "
            f"median ESS {self.ess.median().item():.1f}, {tail}{self._about_globals()}"
        )

    def _about_globals(self) -> str:
        if not self.global_sites:
            return ""
        names = ", ".join(self.global_sites)

        if self.are_points:
            return f"; given the point estimates of {names}"
        return (
            f"; given {names}, averaged over {self.num_globals} draws: no bound before "
            f"KL(q || p) = {self.global_kl:.3f} nats comes off the sum"
        )


def log_likelihood(
    model: Program,
    guide: Program,
    data: object,
    num_particles: int = 500,
    *,
    num_globals: int = 10,
    unit: str | None = None,
    batch_size: int = 128,
    chunk_size: int = 50,
    seed: int = 0,
) -> LogLikelihood:
    """Estimate log p(x) of each datum by importance sampling; arguments as for :func:`log_weights`.

    Weights are streamed: only those of one batch are held at a time. A latent w outside the
    data plate has one value for all data: then this is E_q(w) log p(x | w) of each datum,
    with a pass over the data for each draw of w.

    Arguments:
        num_globals: Draws S of the latents outside the data plate, if there are any.

    Raises:
        ValueError: As for :func:`log_weights`; or the guide draws a continuous latent from
            a point (``Delta``), which is no proposal.
    """
    require_positive(num_particles=num_particles, num_globals=num_globals)

    particles = Particles(
        model,
        guide,
        data,
        batch_size=batch_size,
        chunk_size=chunk_size,
        seed=seed,
        unit=unit,
        globals_too=True,
    )

    def summarised(args: Args) -> LogLikelihood:
        return summarise(particles.log_weights(args, num_particles).double())

    # without globals one pass says it all
    first = particles.first_rows()
    names = tuple(sorted(particles.plate.global_sites))
    if not names:
        return particles.joined(particles.for_each_pass(summarised))

    draws = particles.all_globals(first, num_globals)
    each = []
    for number, draw in enumerate(draws):
        particles.fix_globals(draw.values)
        particles.seed = seed + number  # other local draws
        each.append(particles.joined(particles.for_each_pass(summarised)))

    are_points = draws[0].is_point
    kl = 0.0
    if not are_points:
        kl = torch.stack(list(map(attrgetter("kl"), draws))).mean().item()
    return replace(
        averaged(each),
        global_sites=names,
        num_globals=len(draws),
        global_kl=kl,
        are_points=are_points,
    )


def averaged(each: Sequence[LogLikelihood]) -> LogLikelihood:
    """The mean over draws of the globals, with the error of that mean."""
    columns: dict[str, Tensor] = {}
    for name in ("log_likelihood", "elbo", "ess", "khat"):
        columns[name] = torch.stack(list(map(attrgetter(name), each)))

    error = each[0].standard_error
    if len(each) > 1:
        error = standard_error(columns["log_likelihood"])  # with their own errors

    return replace(
        each[0],
        log_likelihood=columns["log_likelihood"].mean(0),
        standard_error=error,
        elbo=columns["elbo"].mean(0),
        ess=columns["ess"].mean(0),
        khat=columns["khat"].amax(0),
    )


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
