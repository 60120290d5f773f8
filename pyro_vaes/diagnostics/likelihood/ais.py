"""Held-out log-likelihood by annealed importance sampling, per datum: a stochastic lower bound without a guide.

    log p(x) >= E[log 1/C sum_c w_c],    E[w_c] = p(x)

Each of C chains walks from the prior, or from the guide, to the posterior by Hamiltonian Monte Carlo and carries a
weight; :mod:`~pyro_vaes.diagnostics.likelihood.annealing` has the formulae. With one step it is importance sampling.

References:
    | Annealed Importance Sampling (Neal, 2001)
    | https://arxiv.org/abs/physics/9803008
    | On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov & Grosse, 2017)
    | https://arxiv.org/abs/1611.04273
"""

from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

from pyro_vaes.programs import Program

from ..handlers import prior_of
from ..importance_weights import average_weights
from ..particles import Particles
from ..sites import Args
from ..summaries import mean_and_error
from .annealing import Annealing, Schedule, Walk
from .unconstrained import UnconstrainedPair


def share(rates: Tensor) -> str:
    """The mean of rates, if there are any."""
    return f"{rates.mean().item():.0%}" if rates.numel() else "none"


@dataclass(frozen=True)
class AnnealedLikelihood:
    """Estimates of log p(x) by annealed importance sampling, in nats, on the CPU.

    Attributes:
        log_likelihood: The log of the mean weight, a lower bound of log p(x) in expectation, shape ``(N,)``.
        standard_error: Its Monte-Carlo standard error by the delta method, ``(N,)``; nan with one chain.
        ess: Effective sample size of the chains' weights, between 1 and C, ``(N,)``.
        acceptance: Acceptance rate of the transitions at each inverse temperature between 0 and 1, ``(T - 1, N)``.
        log_weights: ``(C, N)``.
        start: Where the chains start, "prior" or "guide".
    """

    log_likelihood: Tensor
    standard_error: Tensor
    ess: Tensor
    acceptance: Tensor
    log_weights: Tensor
    start: str

    @property
    def num_chains(self) -> int:
        """C."""
        return len(self.log_weights)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.acceptance) + 1

    def __repr__(self) -> str:
        return (
            f"AIS with {self.num_chains} chains of {self.num_steps} steps from the {self.start}: "
            f"{mean_and_error(self.log_likelihood)} nats per datum (N = {len(self.ess)}), "
            f"Monte-Carlo error per datum {self.standard_error.median().item():.3f}, "
            f"median ESS {self.ess.median().item():.1f}, acceptance {share(self.acceptance)}"
        )


def ais(
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
) -> AnnealedLikelihood:
    """Estimate log p(x) of each datum by annealed importance sampling with Hamiltonian Monte Carlo.

    Works for any program whose latents are continuous and lie in one data plate, in their unconstrained space. All
    chains of a batch run in one pass, ``num_chains * batch_size`` rows. Scales of sites do not enter; masks of
    observations do. Each datum has its own step size at each temperature, found by a pilot run and then fixed: chains
    that adapted their own steps would give no bound. All masses are 1, so latents of very different widths take more
    leapfrog steps. No parameter, buffer, gradient, mode or generator changes.

    Arguments:
        model: The model.
        guide: The guide; None will do with ``start="prior"``, which does not use it.
        data: The programs' arguments: a tensor, a tuple of tensors, a data set's part, or a loader.
        num_chains: Chains C per datum.
        num_steps: Steps T from one inverse temperature to the next, T - 1 of them followed by a transition.
        leapfrog_steps: Leapfrog steps of a transition, each of which takes one gradient of the model.
        schedule: "sigmoidal" (Wu et al.), "linear", or a function from T + 1 equally spaced numbers in [0, 1] to
            inverse temperatures that rise from 0 to 1.
        start: "prior", through p(z) p(x | z)^b, or "guide", through q(z | x)^(1-b) p(x, z)^b, which takes fewer steps
            where the guide covers the posterior.
        num_pilot_chains: Chains per datum of the pilot run.
        batch_size: Rows per pass.
        seed: Seed of the chains; the generators' states come back afterwards.
        progress: Whether to show a progress bar.

    Returns:
        The estimates, which print themselves.

    Raises:
        ValueError: A number is out of range; a latent site is discrete, masked or outside the data plate; the guide is
            missing, or has no density; or data lie outside a support.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> x = torch.tensor([0.0, 1.0, 2.0])
        >>> estimate = ais(model, None, x, num_steps=50)
        >>> exact = dist.Normal(torch.tensor(0.0), 2**0.5).log_prob(x)
        >>> bool(((estimate.log_likelihood - exact).abs() < 0.2).all())
        True
    """
    annealing = Annealing(num_chains, num_steps, leapfrog_steps, num_pilot_chains, schedule)
    particles = annealed_particles(model, guide, data, start, batch_size, seed)

    with progress_bar(particles, annealing, runs=1, shown=progress) as bar:

        def walk(args: Args) -> Walk:
            pair = UnconstrainedPair(particles, args, from_prior=start == "prior")
            steps = annealing.find_steps(pair, pair.draw(num_pilot_chains), bar.update)
            return annealing.walk(pair, pair.draw(num_chains), steps, tick=bar.update)

        walks = particles.for_each_pass(walk)
    return annealed_likelihood(particles.joined(walks, dim=1), start)


def annealed_likelihood(walk: Walk, start: str) -> AnnealedLikelihood:
    """The estimates from the chains."""
    return AnnealedLikelihood(*average_weights(walk.log_weights), walk.acceptance, walk.log_weights, start)


def annealed_particles(
    model: Program, guide: Program | None, data: object, start: str, batch_size: int, seed: int
) -> Particles:
    """Draws from the pair to anneal between: the model, and the guide or the model's prior."""
    if start not in ("prior", "guide"):
        raise ValueError(f"start must be 'prior' or 'guide', but got {start!r}.")
    if start == "guide" and guide is None:
        raise ValueError("start='guide' needs a guide, but got None. Pass one, or use start='prior'?")
    q = guide if start == "guide" and guide is not None else prior_of(model)
    return Particles(model, q, data, batch_size=batch_size, seed=seed)


def progress_bar(particles: Particles, annealing: Annealing, *, runs: int, shown: bool) -> tqdm:
    """A bar over the transitions of all batches."""
    total = len(particles.batches) * annealing.transitions(runs) or None
    return tqdm(total=total, disable=not shown, unit="transition", dynamic_ncols=True)
