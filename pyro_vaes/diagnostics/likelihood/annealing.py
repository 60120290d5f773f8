"""Annealing between two densities with Hamiltonian Monte Carlo, for many chains and data at once.

    f_b(z) = q(z) (p(x, z) / q(z))^b,    0 = b_0 < b_1 < .. < b_T = 1
    log w  = sum_t (b_t - b_{t-1}) log p(x, z_{t-1}) / q(z_{t-1}),    z_0 ~ q,    z_t ~ K_{b_t}(z_{t-1})

Each kernel K_b leaves f_b invariant, so that E[w] is the evidence p(x). The same steps taken from b_T down to b_0, from
a draw of p(z | x), give a w with E[1 / w] = 1 / p(x). Step sizes that follow the chain would break both: they are found
by a pilot run of chains of their own, in which a datum's step grows or shrinks by a factor after each temperature
according to whether more or less than 65 % of its proposals were accepted (Wu et al. take 1.02 and 0.98), and are then
fixed for every chain in either direction.

References:
    | Annealed Importance Sampling (Neal, 2001)
    | https://arxiv.org/abs/physics/9803008
    | MCMC Using Hamiltonian Dynamics (Neal, 2011)
    | https://arxiv.org/abs/1206.1901
    | On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda, Salakhutdinov & Grosse, 2017)
    | https://arxiv.org/abs/1611.04273
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From ``z`` with shape ``(C, B, d)`` to log q(z) and log p(x, z) - log q(z), each ``(C, B)``."""

Schedule = Callable[[Tensor], Tensor]

TARGET = 0.65  # the acceptance at which HMC is cheapest (Neal, 2011), and that of Wu et al.
JITTER = 0.2  # step sizes vary by that share, or a trajectory could be a whole turn of a Gaussian's orbit (Neal, 2011)
SEARCH = 20  # transitions in which the pilot looks for the first step size, by factors that start at e
ADAPT = 50  # transitions, at least, in which it follows the temperatures
FACTOR, REACH = 1.02, 10.0  # Wu et al.'s factor; with few temperatures a larger one, so that all of them reach e^10


def sigmoidal(t: Tensor) -> Tensor:
    """Wu et al.'s schedule: ``sigmoid(4 (2 t - 1))``, moved and scaled so that it runs from 0 to 1.

    Example:
        >>> sigmoidal(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    low, high = (1 / (1 + math.exp(-4 * side)) for side in (-1, 1))
    return (torch.sigmoid(4 * (2 * t - 1)) - low) / (high - low)


class Point(NamedTuple):
    """A state and what is known there: log f_b and its gradient, and log p(x, z) - log q(z)."""

    z: Tensor  # (C, B, d)
    log_density: Tensor  # (C, B)
    gradient: Tensor  # (C, B, d)
    log_ratio: Tensor  # (C, B)


@dataclass(frozen=True)
class Walk:
    """What chains between two densities leave: weights, and how often they moved.

    Attributes:
        log_weights: log w in float64, shape ``(C, B)``.
        acceptance: Acceptance rates for b_1 .. b_{T-1}, shape ``(T - 1, B)``.
    """

    log_weights: Tensor
    acceptance: Tensor


def tempered(density: Density, beta: float) -> Callable[[Tensor], Point]:
    """The function that evaluates f_beta and its gradient; parameters get no gradient."""

    def at(z: Tensor) -> Point:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_q, log_ratio = density(z)
            log_density = log_q + beta * log_ratio
            (gradient,) = torch.autograd.grad(log_density.sum(), z)
        return Point(z.detach(), log_density.detach(), gradient, log_ratio.detach())

    return at


def leapfrog(
    at: Callable[[Tensor], Point], start: Point, velocity: Tensor, step: Tensor, num: int
) -> tuple[Point, Tensor]:
    """``num`` leapfrog steps: volume-preserving, and reversed by a change of sign of the velocity.

    Arguments:
        at: The density and its gradient.
        start: Where to start.
        velocity: Shape ``(C, B, d)``; masses are 1.
        step: Step sizes, shape ``(C, B, 1)``.
        num: Number of steps, each of which takes one gradient.
    """
    point, velocity = start, velocity + 0.5 * step * start.gradient
    for i in range(num):
        point = at(point.z + step * velocity)
        velocity = velocity + (1.0 if i < num - 1 else 0.5) * step * point.gradient
    return point, velocity


def transition(at: Callable[[Tensor], Point], start: Point, step: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """One transition of Hamiltonian Monte Carlo for every chain and datum by itself.

    Arguments:
        at: The density and its gradient.
        start: Where the chains are.
        step: Step size of each datum, shape ``(B,)``.
        num: Leapfrog steps.

    Returns:
        The new states ``(C, B, d)``, and the probabilities ``(C, B)`` with which they were accepted.
    """
    velocity = torch.randn_like(start.z)
    jitter = 1 + JITTER * (2 * torch.rand_like(start.z[..., :1]) - 1)
    end, final = leapfrog(at, start, velocity, step.unsqueeze(-1) * jitter, num)
    gain = end.log_density - start.log_density + 0.5 * (velocity.square() - final.square()).sum(-1)
    accepted = torch.rand_like(gain).log() < gain  # a trajectory that ran off to NaN is not
    z = torch.where(accepted.unsqueeze(-1), end.z, start.z)
    return z, gain.exp().clamp(max=1).nan_to_num(0.0)


def _rises_from_zero_to_one(betas: object, number: int) -> bool:
    if not isinstance(betas, Tensor) or betas.shape != (number,):
        return False
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.allclose(betas[[0, -1]].double(), ends) and bool((betas.diff() >= 0).all())


@dataclass(frozen=True)
class Annealing:
    """How to anneal; the arguments of :func:`~pyro_vaes.diagnostics.ais` by these names.

    Raises:
        ValueError: A number is out of range, or the schedule is no schedule.
    """

    num_chains: int
    num_steps: int
    leapfrog_steps: int
    num_pilot_chains: int
    schedule: str | Schedule
    betas: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_steps", "leapfrog_steps", "num_pilot_chains"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number and at least 1, but got {number!r}.")

        named = {"sigmoidal": sigmoidal, "linear": lambda t: t}
        schedule = named.get(self.schedule) if isinstance(self.schedule, str) else self.schedule
        if not callable(schedule):
            raise ValueError(
                f"schedule must be one of {sorted(named)} or map numbers in [0, 1] to inverse temperatures, but got "
                f"{self.schedule!r}; lambda t: t**2?"
            )

        betas = schedule(torch.linspace(0, 1, self.num_steps + 1, dtype=torch.float64))
        if not _rises_from_zero_to_one(betas, self.num_steps + 1):
            raise ValueError(
                f"schedule must map {self.num_steps + 1} equally spaced numbers from 0 to 1, in a tensor, to as many "
                f"inverse temperatures that rise from 0 to 1, but they went to {betas}."
            )
        object.__setattr__(self, "betas", tuple(betas.tolist()))

    def transitions(self, runs: int) -> int:
        """Transitions of a pilot run and of so many runs with fixed steps."""
        return (SEARCH + (self._repeats() + runs) * (self.num_steps - 1)) * (self.num_steps > 1)

    def _repeats(self) -> int:
        """Transitions of the pilot run at each temperature."""
        return -(-ADAPT // max(self.num_steps - 1, 1))

    def find_steps(self, density: Density, z: Tensor, tick: Callable[[], object] = lambda: None) -> Tensor:
        """The pilot run: step sizes ``(T - 1, B)``, from chains that start at ``z`` with shape ``(P, B, d)``."""
        step = z.new_full(z.shape[1:2], 0.5 * z.shape[-1] ** -0.25)
        if self.num_steps == 1:
            return step.new_zeros((0, *step.shape))

        repeats = self._repeats()
        rate = max(math.log(FACTOR), REACH / (repeats * (self.num_steps - 1)))
        search = [(self.betas[1], (i + 1) ** -0.5) for i in range(SEARCH)]
        follow = [(beta, rate) for beta in self.betas[1:-1] for _ in range(repeats)]

        found = []
        for beta, log_factor in [*search, *follow]:
            at = tempered(density, beta)
            z, probability = transition(at, at(z), step, self.leapfrog_steps)
            step = step * (log_factor * (probability.mean(0) - TARGET).sign()).exp()
            found.append(step)
            tick()
        return torch.stack(found[SEARCH + repeats - 1 :: repeats])

    def walk(
        self,
        density: Density,
        z: Tensor,
        steps: Tensor,
        *,
        reverse: bool = False,
        tick: Callable[[], object] = lambda: None,
    ) -> Walk:
        """Chains from q to the posterior, or in reverse from the posterior to q.

        Arguments:
            density: log q and log p - log q.
            z: Where the chains start, shape ``(C, B, d)``: draws of q, or of the posterior.
            steps: Step sizes for b_1 .. b_{T-1}, shape ``(T - 1, B)``; fixed before these chains were drawn.
            reverse: The direction.
            tick: Called after each transition.

        """
        betas, fixed = self.betas, steps
        if reverse:
            betas, fixed = betas[::-1], fixed.flip(0)
        increments = [abs(after - before) for before, after in pairwise(betas)]

        log_w = z.new_zeros(z.shape[:2], dtype=torch.float64)
        rates = []
        for increment, beta, step in zip(increments[:-1], betas[1:-1], fixed, strict=True):
            at = tempered(density, beta)
            point = at(z)
            log_w = log_w + increment * point.log_ratio
            z, probability = transition(at, point, step, self.leapfrog_steps)
            rates.append(probability.mean(0))
            tick()
        log_w = log_w + increments[-1] * density(z)[1]

        acceptance = torch.stack(rates) if rates else steps
        return Walk(log_w, acceptance.flip(0) if reverse else acceptance)
