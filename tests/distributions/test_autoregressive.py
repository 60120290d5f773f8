"""Autoregressive distributions: T29, T30 and T34 of the lossy auto-encoder, and what the shared suite does not ask."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from scipy import stats
from torch import nn
from torch.autograd.functional import jacobian

from pyro_vaes.distributions import Autoregressive, AutoregressiveFlow
from pyro_vaes.nn import (
    MADE,
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    PixelCNN,
    gated_block,
    pixel_cnn_layers,
    pixel_cnn_window,
    plain_block,
)


def binary(shape, layers, **options):
    """p(x | F) for binary images, and F."""
    network = PixelCNN(shape, 8, layers, context_channels=2, **options)
    likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network).double()
    return likelihood(2 * torch.randn(3, *network.context_shape, dtype=torch.float64))


def images(shape):
    """All binary images, ``(2^n, *shape)``."""
    every = list(itertools.product([0.0, 1.0], repeat=math.prod(shape)))
    return torch.tensor(every, dtype=torch.float64).reshape(-1, *shape)


def p_value(x, p, shape):
    """Of Pearson's chi-squared: all images, those expected fewer than 10 times pooled."""
    n = math.prod(shape)
    index = (x.flatten(1) @ 2.0 ** torch.arange(n - 1, -1, -1).double()).long()
    observed = torch.bincount(index, minlength=2**n).double()
    expected = len(x) * p.log_prob(images(shape)).exp().detach()
    rare = expected < 10
    assert (~rare).sum() > 8
    cells = [torch.cat([a[~rare], a[rare].sum(0, keepdim=True)] if rare.any() else [a]) for a in (observed, expected)]
    return stats.chisquare(*(c.numpy() for c in cells)).pvalue


@pytest.mark.parametrize(
    ("shape", "layers", "options"),
    [
        ((1, 2, 3), pixel_cnn_layers(2), {}),
        ((1, 3, 4), pixel_cnn_layers(3), {"num_pointwise": 2}),
        ((1, 3, 4), pixel_cnn_layers(3), {"tied": True, "block": gated_block}),
        ((1, 3, 4), pixel_cnn_window(4, 2), {"num_pointwise": 2}),
        ((1, 2, 6), pixel_cnn_window(3, 1), {"block": plain_block}),
        ((3, 2, 2), pixel_cnn_layers(2), {}),
    ],
)
def test_T29_the_probabilities_of_all_images_sum_to_one(shape, layers, options):
    p = binary(shape, layers, **options)
    with torch.no_grad():
        total = p.log_prob(images(shape).unsqueeze(1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_T29_made():
    network = MADE(10, [32, 32], context_features=3)
    p = AutoregressiveLikelihood(BernoulliLikelihood(), network).double()(torch.randn(3, dtype=torch.float64))
    with torch.no_grad():
        assert p.log_prob(images((10,))).exp().sum().item() == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("layers", [pixel_cnn_layers(2), pixel_cnn_window(2, 1)], ids=["stack", "window"])
def test_T34_sequential_samples_follow_the_enumerated_probabilities(layers):
    """40,000 draws of 3 × 3 images at seed 0: chi-squared over all 512 images, those expected < 10 times pooled."""
    p = binary((1, 3, 3), layers)
    p = Autoregressive(p.conditionals, p.context[0], p.event_shape, p.support)
    x = p.sample((40_000,))
    assert p_value(x, p, (1, 3, 3)) > 1e-4


LIKELIHOODS = {
    "binary": lambda n: BernoulliLikelihood(event_dim=n),
    "256 classes": lambda n: CategoricalLikelihood(256, event_dim=n),
    "logistic": lambda n: DiscretizedLogisticMixtureLikelihood(5, event_dim=n),
    "gaussian": lambda n: GaussianLikelihood(0.3, event_dim=n),
}


@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 3, 2), (6,)])
@pytest.mark.parametrize("make", LIKELIHOODS.values(), ids=LIKELIHOODS.keys())
def test_T34_the_log_prob_of_a_sample_is_the_sum_over_the_steps_that_drew_it(make, shape):
    likelihood = make(len(shape))
    if len(shape) == 1:
        network = MADE(*shape, [16], likelihood.num_params, context_features=2)
    else:
        network = PixelCNN(shape, 6, pixel_cnn_layers(2), likelihood.num_params, context_channels=2, num_pointwise=1)
    both = AutoregressiveLikelihood(likelihood, network).double()
    p = both(torch.randn(2, *network.context_shape, dtype=torch.float64))
    steps = []

    class Recorded:
        def __call__(self, value, context):
            return p.conditionals(value, context)

        def walk(self, value, context):
            for view, fn in p.conditionals.walk(value, context):
                yield view, fn
                steps.append(fn.log_prob(view))

    recorded = Autoregressive(Recorded(), p.context, p.event_shape, p.support, context_dim=len(shape))
    x = recorded.sample((4,))
    assert len(steps) == math.prod(shape) and p.support.check(x).all() and both.hint(x) is None
    with torch.no_grad():
        parallel = p.log_prob(x)
    assert parallel.isfinite().all()
    torch.testing.assert_close(parallel, sum(steps), rtol=1e-10, atol=1e-10)


def test_the_slow_way_of_sampling_needs_no_walk():
    """Four bits at seed 0, 20,000 draws: chi-squared against the enumerated probabilities."""
    p = binary((1, 2, 2), pixel_cnn_layers(2))
    slow = Autoregressive(lambda *a: p.conditionals(*a), p.context[0], p.event_shape, p.support)
    assert p_value(slow.sample((20_000,)), slow, (1, 2, 2)) > 1e-4


def test_particles_lead():
    p = binary((1, 3, 3), pixel_cnn_layers(2)).expand((5, 3))
    x = p.sample()
    log_prob = p.log_prob(x[0])  # one set of images against five particles of contexts
    assert x.shape == (5, 3, 1, 3, 3) and log_prob.shape == (5, 3)
    torch.testing.assert_close(log_prob[2], p.log_prob(x[:1])[0])


def test_an_unconditional_network_still_has_batches():
    both = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), PixelCNN((1, 2, 2), 4, pixel_cnn_layers(1)))
    p = both(torch.zeros(0, 2, 2)).expand((4, 5))
    assert p.sample((2,)).shape == (2, 4, 5, 1, 2, 2) and p.log_prob(torch.zeros(1, 2, 2)).shape == (4, 5)


def test_constructor_errors():
    bits = dist.constraints.boolean
    with pytest.raises(ValueError, match="wrap it in constraints"):
        Autoregressive(lambda x, h: None, torch.zeros(3), (3,), bits)
    with pytest.raises(ValueError, match="context_dim=2"):
        Autoregressive(lambda x, h: None, torch.zeros(3), (3,), dist.constraints.independent(bits, 1), context_dim=2)
    network = PixelCNN((1, 4, 4), 4, pixel_cnn_layers(1), context_channels=2)
    with pytest.raises(ValueError, match="pass event_dim=3"):
        AutoregressiveLikelihood(BernoulliLikelihood(), network)
    with pytest.raises(ValueError, match="pass num_params=256 to the network"):
        AutoregressiveLikelihood(CategoricalLikelihood(256, event_dim=3), network)
    with pytest.raises(ValueError, match=r"takes \(likelihood, network\)"):
        AutoregressiveLikelihood(network, BernoulliLikelihood(event_dim=3))
    with pytest.raises(ValueError, match=r"the autoregressive network takes \(2, 4, 4\)"):
        AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)(torch.zeros(5, 1, 4, 4))
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        AutoregressiveFlow(torch.tensor(0.0), torch.tensor(1.0), [])
    with pytest.raises(ValueError, match="steps >= 1"):
        AutoregressivePrior(3, steps=0)


def flow(dim=5, **options):
    return AutoregressivePrior(dim, [16, 16], activation=nn.Tanh, **options).double()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_T30_the_jacobian_of_the_flow(affine, steps):
    p = flow(affine=affine, steps=steps)()
    z = torch.randn(5, dtype=torch.float64)
    rows = jacobian(lambda z: p.whiten(z)[0], z)
    _, log_det = p.whiten(z)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(rows).logabsdet, rtol=1e-10, atol=1e-10)
    upper = rows.triu(1)
    if steps == 1:  # triangular in the order, with the scales (or ones) on the diagonal
        assert (upper == 0).all() and (rows.tril(-1) != 0).any()
    else:
        assert (upper != 0).any()
    if not affine:
        assert log_det == 0
        assert steps > 1 or torch.equal(rows.diagonal(), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("affine", [False, True])
def test_T30_the_inverse_is_exact_after_d_sequential_steps(affine):
    module = flow(affine=affine, steps=4)
    z = module().sample((7, 3))
    torch.testing.assert_close(module().colour(module().whiten(z)[0]), z, rtol=0, atol=1e-10)
    calls = []
    p = AutoregressiveFlow(z.new_zeros(5), z.new_ones(5), [lambda y: calls.append(1) or module.steps[0](y)])
    p.colour(z)
    assert len(calls) == 5  # D of them, and one for the density
    p.log_prob(z)
    assert len(calls) == 6


@pytest.mark.parametrize("affine", [False, True])
def test_T30_a_two_dimensional_flow_integrates_to_one(affine):
    p = flow(2, affine=affine, steps=3)()
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    with torch.no_grad():
        density = p.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.sum().item() * 0.05**2 == pytest.approx(1.0, abs=1e-3)


def test_draws_of_a_flow_have_the_gradient_of_the_implicit_function():
    """whiten(rsample) is the noise, whatever the parameters: their total derivative through both vanishes."""
    module = flow(4, affine=True, steps=2)
    z = module().rsample((3,))
    assert z.requires_grad and not module().sample().requires_grad

    def largest(of):
        gradients = torch.autograd.grad(of.sum(), list(module.parameters()), retain_graph=True)
        return max(g.abs().max().item() for g in gradients)

    assert largest(z) > 1e-2
    assert largest(module().whiten(z)[0]) < 1e-10


def test_the_density_is_that_of_pyros_transform_inverted():
    net = AutoRegressiveNN(4, [16], permutation=torch.arange(4)).double()
    transform = AffineAutoregressive(net)
    base = dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1)
    theirs = dist.TransformedDistribution(base, [transform.inv])

    def step(y):  # their forward map y -> y exp(s) + m whitens: here it is (y - mu) / sigma
        m, s = net(y)
        return -m * torch.exp(-s), -s

    ours = AutoregressiveFlow(torch.zeros(4).double(), torch.ones(4).double(), [step])
    z = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))


def test_a_flow_keeps_no_state():
    """The same tensor scored again after an update of the parameters gets its new density."""
    module, z = flow(steps=2), torch.randn(5, dtype=torch.float64)
    before = module().log_prob(z).item()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    assert module().log_prob(z).item() != before
