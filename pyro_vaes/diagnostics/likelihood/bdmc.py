"""Bidirectional Monte Carlo: log p(x) between two bounds, on data that the model itself has drawn.

    z, x ~ p(z, x),    E[log 1/C sum_c w_c] <= log p(x) <= -E[log 1/C sum_c 1 / w'_c]

A datum that was drawn along with its latents comes with one exact draw of the posterior p(z | x), from which the chains
of annealed importance sampling can be run in reverse; their inverse weights have expectation 1 / p(x). The gap between
the bounds limits the error of either, and says how far :func:`~pyro_vaes.diagnostics.ais` with the same settings is to
be believed on real data like these.

References:
    | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani & Adams, 2015)
    | https://arxiv.org/abs/1511.02543
    | On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov & Grosse, 2017)
    | https://arxiv.org/abs/1611.04273
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vaes.programs import Program, Role, Sites, run, sites, was_observed

from ..importance_weights import average_weights
from ..particles import Particles
from ..sites import Args, holders
from ..summaries import mean_and_error
from .ais import (
    AnnealedLikelihood,
    annealed_likelihood,
    annealed_particles,
    progress_bar,
    share,
)
from .annealing import Annealing, Schedule, Walk
from .unconstrained import UnconstrainedPair


@dataclass(frozen=True)
class Sandwich:
    """Two bounds of log p(x) of simulated data, in nats, on the CPU.

    Attributes:
        forward: The chains from the prior or the guide: lower bounds ``forward.log_likelihood``, errors, weights.
        upper: The log of the harmonic mean of the reverse chains' weights, an upper bound in expectation, ``(N,)``.
        upper_error: Its standard error over the chains, ``(N,)``. They share one exact draw of the posterior, whose
            luck this leaves out; the spread over the data has it.
        reverse_acceptance: Acceptance rates of the reverse chains, low inverse temperatures first, ``(T - 1, N)``.
        reverse_log_weights: ``(C, N)``.
        observations: The simulated data by site, each ``(N, *plates, *event)``.
    """

    forward: AnnealedLikelihood
    upper: Tensor
    upper_error: Tensor
    reverse_acceptance: Tensor
    reverse_log_weights: Tensor
    observations: dict[str, Tensor]

    @property
    def lower(self) -> Tensor:
        """The lower bounds, ``(N,)``."""
        return self.forward.log_likelihood

    @property
    def gap(self) -> Tensor:
        """Upper less lower bound of each datum, ``(N,)``; at least 0 in expectation, not in every draw."""
        return self.upper - self.lower

    def __repr__(self) -> str:
        f = self.forward
        return (
            f"BDMC with {f.num_chains} chains of {f.num_steps} steps from the {f.start}: log p(x) of simulated data "
            f"between {mean_and_error(self.lower)} and {mean_and_error(self.upper)} nats per datum "
            f"(N = {len(self.upper)}), "
            f"gap {mean_and_error(self.gap)}, at most {self.gap.max().item():.3f}, "
            f"acceptance {share(f.acceptance)} and {share(self.reverse_acceptance)}"
        )


def bdmc(
    model: Program,
    guide: Program | None,
    data: object,
    num_chains: int = 16,
    *,
    num_steps: int = 500,
    leapfrog_steps: int = 10,
    schedule: str | Schedule = "sigmoidal",
    start: str = "prior",
    num_pilot_chains: int = 4,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> Sandwich:
    """Sandwich log p(x) of data drawn from the model, one for each row of ``data``.

    The rows of ``data`` only say how many data to draw, and hold the covariates: real data will do, or zeros where they
    can be observed. Step sizes come from a pilot run of chains on the simulated data, which sees nothing of the exact
    posterior draws, and are the same in both directions; adapted by the chains themselves they would void both bounds.

    Arguments are those of :func:`~pyro_vaes.diagnostics.ais`.

    Returns:
        The bounds, which print themselves.

    Raises:
        ValueError: As for :func:`~pyro_vaes.diagnostics.ais`; or the model has factors, which it cannot simulate, looks
            at its observations otherwise than as data, or observes no argument that the guide could see.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> sandwich = bdmc(model, None, torch.zeros(20), num_steps=50)
        >>> bool(sandwich.gap.mean() < 0.1)
        True
    """
    annealing = Annealing(num_chains, num_steps, leapfrog_steps, num_pilot_chains, schedule)
    particles = annealed_particles(model, guide, data, start, batch_size, seed)

    with progress_bar(particles, annealing, runs=2, shown=progress) as bar:

        def walk_both_ways(args: Args) -> tuple[Walk, Walk, dict[str, Tensor]]:
            simulated = _simulate(particles, args, from_prior=start == "prior")
            pair, posterior = simulated.pair, simulated.latents.expand(num_chains, -1, -1)
            steps = annealing.find_steps(pair, pair.draw(num_pilot_chains), bar.update)
            forward = annealing.walk(pair, pair.draw(num_chains), steps, tick=bar.update)
            reverse = annealing.walk(pair, posterior, steps, reverse=True, tick=bar.update)
            return forward, reverse, simulated.observations

        forward, reverse, observed = zip(*particles.for_each_pass(walk_both_ways), strict=True)

    lower = annealed_likelihood(particles.joined(forward, dim=1), start)
    back = particles.joined(reverse, dim=1)
    inverse = average_weights(-back.log_weights)
    observations = particles.joined(observed)
    return Sandwich(lower, -inverse.estimate, inverse.error, back.acceptance, back.log_weights, observations)


class _Simulated(NamedTuple):
    """Data drawn from the model in place of a batch.

    Attributes:
        pair: The densities given these data.
        latents: The latents that they were drawn with, ``(1, B, numel)``.
        observations: The data by site, each ``(B, *plates, *event)``.
    """

    pair: UnconstrainedPair
    latents: Tensor
    observations: dict[str, Tensor]


def _simulate(particles: Particles, args: Args, *, from_prior: bool) -> _Simulated:
    trace = run(particles.model, args)
    factors = list(sites(trace, Role.FACTOR))
    if factors:
        raise ValueError(
            f"The model has the factors {factors}, which weigh its draws instead of drawing, so that no exact draw of "
            "its posterior can be simulated. Use ais for a lower bound."
        )

    drawn = particles.prior(args, 1)
    observed = {n: s["value"][0] for n, s in drawn.items() if was_observed(s)}
    before = UnconstrainedPair(particles, args, from_prior=from_prior, observed=observed)
    z = before.unconstrain(drawn)

    new_args = _show(args, sites(trace, Role.OBSERVED), observed, to_guide=not from_prior)
    pair = UnconstrainedPair(particles, new_args, from_prior=from_prior, observed=observed)
    if not torch.allclose(before.log_joint(z), pair.log_joint(z), rtol=1e-4, atol=1e-3, equal_nan=True):
        raise ValueError(
            "The model's density given its latents changes with the observations that its arguments hold: it looks at "
            "them otherwise than as data, so that running it forward does not draw from it. Pass what it conditions on "
            "as an argument of its own?"
        )
    return _Simulated(pair, z, {n: x[0] for n, x in particles.simulated(drawn).items()})


def _show(args: Args, sites: Sites, observed: dict[str, Tensor], *, to_guide: bool) -> Args:
    """The arguments with simulated values in the places of those that were observed."""
    new, found = list(args), set()

    for name, site in sites.items():
        value = site["value"]
        places = [i for i, a in holders(args, value).items() if a.shape == value.shape]
        if len(places) == 1:
            new[places[0]] = observed[name].reshape(value.shape)
            found.add(name)

    missing = sorted(observed.keys() - found)
    if missing and to_guide:
        raise ValueError(
            f"The observed sites {missing} are not arguments of the model as they are (but parts or functions of "
            "them), so that the guide cannot be shown simulated values. Use start='prior'?"
        )
    return tuple(new)
