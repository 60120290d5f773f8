"""Small pairs for the tests of mixtures: free normals as components, toys with known posteriors."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vaes.distributions import RecursiveMixture
from pyro_vaes.guides import AmortizedMixture

POSTERIOR = ((0.6, -1.5, 0.5), (0.4, 2.0, 0.8))  # weights, locations, scales
START = ((0.7, -1.2, 0.6), (0.3, 0.0, 1.5))


class FreeNormal(nn.Module):
    """The same normal for every datum, its parameters free."""

    def __init__(self, loc, scale):
        super().__init__()
        self.loc = nn.Parameter(torch.as_tensor(loc, dtype=torch.float64).reshape(-1).clone())
        self.log_scale = nn.Parameter(torch.as_tensor(scale, dtype=torch.float64).log().expand(self.loc.shape).clone())

    def forward(self, x):
        shape = (len(x), *self.loc.shape)
        return dist.Normal(self.loc.expand(shape), self.log_scale.exp().expand(shape)).to_event(1)


class FreeWeight(nn.Module):
    """The same raw weight for every datum."""

    def __init__(self, raw=0.0):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(raw, dtype=torch.float64))

    def forward(self, x):
        return self.raw.expand(len(x))


def square_model(x):
    """z ~ N(0, 1), x | z ~ N(z^2, 0.1^2): two modes for positive x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)


def square_log_joint(x, z, scale=0.1):
    return dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.square(), scale).log_prob(torch.as_tensor(x))


def normal_model(x):
    """z ~ N(0, 1), and data that say nothing about it: the posterior is N(0, 1)."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(x.new_zeros(1), 1.0).to_event(1), obs=x)


def free_guide(model, locs, scales, raws):
    return AmortizedMixture(
        model, [FreeNormal(*p) for p in zip(locs, scales, strict=True)], [FreeWeight(r) for r in raws]
    )


def grid(low=-20.0, high=20.0, nodes=40_001):
    """Nodes and weights of the trapezoidal rule, spectrally accurate for densities that vanish at the ends."""
    z = torch.linspace(low, high, nodes, dtype=torch.float64)
    return z, torch.full_like(z, (high - low) / (nodes - 1))


def normals(parts):
    """Unbatched scalar normals as a recursive mixture with the given flat weights."""
    alpha = np.array([p[0] for p in parts])
    eps = torch.tensor(alpha[1:] / np.cumsum(alpha)[1:], dtype=torch.float64)
    components = [dist.Normal(torch.tensor(p[1], dtype=torch.float64), p[2]) for p in parts]
    return RecursiveMixture(components, torch.logit(eps))


def expectation(q, f, nodes=None):
    """E_q[f] by quadrature in one dimension; f takes the nodes."""
    z, w = grid() if nodes is None else nodes
    return (w * q.log_prob(z).exp() * f(z)).sum()


def elbo(log_p, q, nodes=None):
    return expectation(q, lambda z: log_p(z) - q.log_prob(z), nodes)


def within(estimates, truth, sigmas=5.0):
    """Whether the mean of independent estimates is the truth, up to so many standard errors."""
    estimates = torch.as_tensor(estimates, dtype=torch.float64)
    error = estimates.std() / math.sqrt(len(estimates))
    return abs(estimates.mean().item() - float(truth)) < sigmas * error.item() + 1e-12
