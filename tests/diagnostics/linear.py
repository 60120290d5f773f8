"""A linear-Gaussian model whose evidence and posterior are known, with an exact and a wide guide."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vaes.theory import ProbabilisticPCA

D, K = 5, 2
_source = torch.Generator().manual_seed(1)


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_source, dtype=torch.float64)


PPCA = ProbabilisticPCA(_randn(D), _randn(D, K), torch.tensor(0.3, dtype=torch.float64))
X = PPCA.mean + _randn(40, K) @ PPCA.loadings.T + 0.3**0.5 * _randn(40, D)
EVIDENCE = PPCA.log_prob(X)


def decode(z: Tensor) -> Tensor:
    return z @ PPCA.loadings.T + PPCA.mean


def prior() -> dist.Distribution:
    return dist.Normal(torch.zeros(K, dtype=torch.float64), 1.0).to_event(1)


def noise(loc: Tensor) -> dist.Distribution:
    return dist.Normal(loc, 0.3**0.5).to_event(1)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior())
        pyro.sample("x", noise(decode(z)), obs=x)


def exact(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", PPCA.posterior(x))


def wide_posterior(x: Tensor) -> dist.Distribution:
    posterior = PPCA.posterior(x)
    return dist.Normal(posterior.mean, 1.3 * posterior.variance.sqrt()).to_event(1)


def wide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", wide_posterior(x))
