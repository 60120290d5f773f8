"""What all bounds share: the scale of the batch at hand, keywords for both programs, one look at a pair."""

import functools
import gc
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
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


def pair(name, keywords=False):
    guide = mixture_guide if name in ("stratified", "recursive") else normal_guide
    if not keywords:
        return minibatch, guide
    return lambda x, shift=0.0: minibatch(x + shift), lambda x, shift=0.0: guide(x + shift)


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


@pytest.mark.parametrize("name", BOUNDS)
def test_keywords_are_those_of_each_call(name):
    """By loss, its gradients and SVI as by position; a bound keeps no keyword of an earlier call."""
    model, guide = pair(name, keywords=True)
    bound, x = BOUNDS[name](), torch.randn(12, 3)
    for shift in (torch.ones(12, 3), torch.zeros(12, 3), torch.randn(12, 3)):
        losses = []
        for args, kwargs in (((x, shift), {}), ((x,), {"shift": shift}), ((), {"x": x, "shift": shift})):
            for call in (bound.loss, bound.differentiable_loss, bound.loss_and_grads):
                pyro.set_rng_seed(1)
                call(model, guide, *args, **kwargs)
                pyro.set_rng_seed(1)
                losses.append(torch.as_tensor(call(model, guide, *args, **kwargs)).item())
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)
    held = weakref.ref(shift)
    del shift, args, kwargs
    if "adversarial" not in name:  # which holds the images of its latest run for the discriminator
        gc.collect()
        assert held() is None


def test_keywords_under_svi():
    """A step of SVI by keywords is that by position."""
    x, shift, found = torch.randn(12, 3), torch.randn(12, 3), []
    for args, kwargs in (((x, shift), {}), ((x,), {"shift": shift})):
        pyro.clear_param_store()
        pyro.set_rng_seed(4)

        def model(x, shift=0.0):
            minibatch(x + pyro.param("bias", torch.zeros(3)) + shift)

        def guide(x, shift=0.0):
            normal_guide(x + shift)

        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), ImportanceWeighted_ELBO(2))
        found.append([svi.step(*args, **kwargs), svi.step(*args, **kwargs), svi.evaluate_loss(*args, **kwargs)])
        found[-1].append(pyro.param("bias").detach())
    assert found[0][:3] == found[1][:3] and torch.equal(found[0][3], found[1][3])


def test_keywords_make_no_bound_look_again():
    runs = []

    def model(x, shift=0.0):
        runs.append(1)
        minibatch(x + shift)

    def guide(x, shift=0.0):
        normal_guide(x + shift)

    bound = ImportanceWeighted_ELBO(2)
    for _ in range(3):
        bound.loss(model, guide, torch.randn(12, 3), shift=torch.randn(12, 3))
    looks = 1 + 3  # to find the plate, and to try several particles
    assert len(runs) == looks + 3


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


def test_a_copy_of_a_bound_takes_no_programs_along():
    bound = ImportanceWeighted_ELBO(2)
    guide = nn.Linear(3, 2)

    def draw(x):
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(guide(x), 1.0).to_event(1))

    bound.loss(minibatch, draw, torch.randn(4, 3))
    again = pickle.loads(pickle.dumps(bound))  # a local program could not be pickled
    assert len(again._found_plate) == 0 and len(bound._found_plate) == 1
    assert isinstance(again.loss(minibatch, draw, torch.randn(4, 3)), float)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_look_leaves_the_statistics_of_a_batch_norm_alone(name):
    """Two bounds, one of which has looked at the pair before, leave the same statistics after one step."""
    model, guide = pair(name)
    norm, x = nn.BatchNorm1d(3), torch.randn(8, 3)

    def normalised(x):
        norm(x)
        return model(x)

    found = []
    for looked in (False, True):
        bound = BOUNDS[name]()
        if looked:
            bound.loss(normalised, guide, x)
        norm.reset_running_stats()
        pyro.set_rng_seed(1)
        bound.loss(normalised, guide, x)
        found.append(int(norm.num_batches_tracked))
    assert found[0] == found[1] > 0
