"""What all bounds share: the scale of the batch at hand."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaes.distributions import RecursiveMixture
from pyro_vaes.infer import (
    MMD_ELBO,
    Adversarial_ELBO,
    AggregatePosterior_ELBO,
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    MutualPosterior_ELBO,
    RecursiveMixture_ELBO,
    StickingTheLanding_ELBO,
    StratifiedMixture_ELBO,
    evaluate,
    fit,
)

N = 40
W = torch.tensor([[1.0, 0.5, -0.3], [0.2, -1.0, 0.7]])
BOUNDS = {
    "importance": lambda: ImportanceWeighted_ELBO(4),
    "dreg": lambda: DReG_ELBO(4),
    "landing": StickingTheLanding_ELBO,
    "free bits": lambda: FreeBits_ELBO(0.1),
    "mmd": lambda: MMD_ELBO(10.0),
    "aggregate": AggregatePosterior_ELBO,
    "stratified": StratifiedMixture_ELBO,
    "recursive": RecursiveMixture_ELBO,
    "mutual": lambda: MutualPosterior_ELBO(Trace_ELBO(), eta=0.1, gamma=0.1),
    "mutual of importance": lambda: MutualPosterior_ELBO(ImportanceWeighted_ELBO(2), eta=0.1),
    "adversarial": lambda: Adversarial_ELBO(Trace_ELBO(), nn.Linear(3, 1), weight=1.0),
    "adversarial of importance": lambda: Adversarial_ELBO(ImportanceWeighted_ELBO(2), nn.Linear(3, 1)),
}


def minibatch(x):
    with pyro.plate("data", N, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ W, 1.0).to_event(1), obs=x)


def normal_guide(x):
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(x[:, :2] * 0.5, 0.8).to_event(1))


def mixture_guide(x):
    with pyro.plate("data", N, subsample_size=len(x)):
        normals = [dist.Normal(x[:, :2] * a, 0.8).to_event(1) for a in (0.5, -0.5)]
        pyro.sample("z", RecursiveMixture(normals, torch.zeros(len(x), 1)))


def pair(name):
    return minibatch, mixture_guide if name in ("stratified", "recursive") else normal_guide


@pytest.mark.parametrize("name", BOUNDS)
def test_the_scale_is_that_of_the_batch_at_hand(name):
    """A plate of N data subsamples a mini-batch, and does not for all of them, whichever a bound has seen first."""
    x, (model, guide) = torch.randn(N, 3), pair(name)
    for first, second in ((N, 8), (8, N)):
        bounds = []
        for _ in range(2):
            torch.manual_seed(2)  # of a discriminator
            bounds.append(BOUNDS[name]())
        used, fresh = bounds
        used.loss(model, guide, x[:first])
        losses = []
        for bound in (fresh, fresh, used):  # the first run is a fresh bound's look at the pair
            pyro.set_rng_seed(1)
            losses.append(bound.loss(model, guide, x[:second]))
        assert losses[2] == losses[1]


def exact_guide(x):
    covariance = torch.linalg.inv(torch.eye(2) + W @ W.T)
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("z", dist.MultivariateNormal(x @ W.T @ covariance, covariance))


def log_evidence(x):
    return dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + W.T @ W).log_prob(x)


@pytest.mark.parametrize("batch_size", [N, 16])
def test_evaluation_knows_how_many_data_each_batch_stands_for(batch_size):
    x = torch.randn(N + 8, 3)
    loss = evaluate(minibatch, exact_guide, x, batch_size=batch_size)
    assert loss == pytest.approx(-log_evidence(x).mean().item(), rel=1e-5)


@pytest.mark.parametrize("sizes", [(N, 8, 8), (8, N, 8)])
def test_training_knows_how_many_data_each_batch_stands_for(sizes):
    """Losses are per datum, also where some batch holds all N data."""
    loc, batches = nn.Parameter(torch.zeros(3)), [torch.randn(size, 3) for size in sizes]

    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = loc

        def forward(self, x):
            minibatch(x - self.loc)

    history = fit(
        Moved(), exact_guide, batches, epochs=1, optim=functools.partial(torch.optim.SGD, lr=0.0), progress=False
    )
    assert history.train[0] == pytest.approx(-log_evidence(torch.cat(batches)).mean().item(), rel=1e-5)
