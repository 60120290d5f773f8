"""The MMD variant of the ladder's objective, and of any pair's with a reparameterised guide."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vaes.guides import AmortizedMixture, AmortizedMultivariateNormal
from pyro_vaes.infer import MMD_ELBO, fit, scale_latents
from pyro_vaes.infer.bounds.mmd import gaussian_kernel, maximum_mean_discrepancy
from pyro_vaes.models import VAE, LadderVAE
from pyro_vaes.nn import (
    MLP,
    Chain,
    GaussianLikelihood,
    LaplaceLikelihood,
    MultivariateNormalHead,
    NormalHead,
    WeightHead,
    mlp_ladder,
)
from tests.infer.pairs import D, binary, binary_vae, hierarchical_vae, linear_vae


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def authors_mmd(x, y):
    """Their three loops, over pairs: the mean over dimensions and a division by the dimension, diagonal kept."""

    def mean_kernel(a, b):
        pairs = [math.exp(-((p - q) ** 2).mean().item() / len(p)) for p in a for q in b]
        return sum(pairs) / len(pairs)

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def replay(model, guide, x, seed):
    """The values of the sites that a loss with this seed sees, and the prior draws that it then makes."""
    pyro.set_rng_seed(seed)
    q = poutine.trace(guide).get_trace(x)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
    sites = {n: s for n, s in p.nodes.items() if s["type"] == "sample" and not s["is_observed"] and n != "data"}
    return p, {n: (s["value"], s["fn"].rsample()) for n, s in sites.items()}


def test_mmd_is_the_authors_estimate():
    x, y = torch.randn(7, 3), 1 + 0.5 * torch.randn(7, 3)
    assert maximum_mean_discrepancy(x, y).item() == pytest.approx(authors_mmd(x, y), abs=1e-12)
    assert maximum_mean_discrepancy(x, x).item() == pytest.approx(0, abs=1e-14)


def test_weights_of_rows_count_them():
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    weight = torch.tensor([2.0, 0.0, 1.0])
    whole = maximum_mean_discrepancy(x[[0, 0, 2]], y[[0, 0, 2]])
    torch.testing.assert_close(maximum_mean_discrepancy(x, y, weight=weight), whole)


def test_mmd_of_normals_has_its_closed_form_in_expectation():
    """E k(x, y) = (1 + 2v)^(-1/2) exp(-m² / (1 + 2v)) for x - y ~ N(m, v), d = 1. n = 500 repeats of 50, 4 errors."""

    def expected(m, v):
        return math.exp(-(m**2) / (1 + 2 * v)) / math.sqrt(1 + 2 * v)

    loc, scale, rows = 0.7, 0.5, 50
    within, prior = expected(0, 2 * scale**2), expected(0, 2)
    mmd = within + prior - 2 * expected(loc, scale**2 + 1)
    biased = mmd + ((1 - within) + (1 - prior)) / rows  # the diagonals are 1
    draws = torch.stack(
        [maximum_mean_discrepancy(loc + scale * torch.randn(rows, 1), torch.randn(rows, 1)) for _ in range(500)]
    )
    assert (draws.mean() - biased).abs() < 4 * draws.std() / math.sqrt(len(draws))


def test_the_bound_is_the_authors_loss_on_a_ladder():
    """100 mean|x - mean| + 100 sum_l MMD²(q(z_l), N(0, I)), per batch, from ours per sum."""
    scale, dims = 0.125, [2, 3, 2]
    ladder = LadderVAE(*mlp_ladder(D, dims, width=8), LaplaceLikelihood(scale), dims)
    x = torch.rand(9, D)
    trace, sites = replay(ladder.model, ladder.guide, x, seed=4)
    error = (x - trace.nodes["x"]["fn"].base_dist.loc).abs().mean()
    assert list(sites) == ["z_1", "z_2", "z_3"]
    code = 100 * error.item() + 100 * sum(authors_mmd(z, prior) for z, prior in sites.values())
    pyro.set_rng_seed(4)
    loss = MMD_ELBO(D / scale).loss(ladder.model, ladder.guide, x) / len(x)
    assert 100 * scale / D * (loss - D * math.log(2 * scale)) == pytest.approx(code, abs=1e-9)


def test_factors_of_the_guide_are_a_part_of_its_density():
    vae, x = linear_vae(), torch.randn(6, D)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.encoder(x))
            pyro.factor("weight", torch.full((len(x),), 2.0), has_rsample=True)

    losses = []
    for bound in (Trace_ELBO(), MMD_ELBO(0.0, kl_weight=1.0)):
        pyro.set_rng_seed(4)
        losses.append(bound.loss(vae.model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_info_vae_mixes_discrepancy_and_divergence(kl_weight):
    vae, x, weight = hierarchical_vae(top_down=True), binary().double(), 7.0
    trace, sites = replay(vae.model, vae.guide, x, seed=2)
    mmd = sum(maximum_mean_discrepancy(z, prior) for z, prior in sites.values())
    pyro.set_rng_seed(2)
    elbo = Trace_ELBO().loss(vae.model, vae.guide, x)  # the same draws come first
    trace.compute_log_prob()
    log_px = trace.nodes["x"]["log_prob_sum"].item()
    expected = -log_px + kl_weight * (elbo + log_px) + weight * len(x) * mmd.item()
    pyro.set_rng_seed(2)
    bound = MMD_ELBO(weight, kl_weight=kl_weight)
    assert bound.loss(vae.model, vae.guide, x) == pytest.approx(expected, rel=1e-12)


def test_scales_weigh_and_masks_take_rows_out():
    encoder, decoder = NormalHead(D, 2), nn.Linear(2, D)
    x, keep = torch.randn(8, D), torch.arange(8) < 5

    def loss(mask=True, scale=1.0, beta=None):
        def model(x):
            with pyro.plate("data", len(x)), poutine.mask(mask=mask), poutine.scale(scale=scale):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)), poutine.mask(mask=mask), poutine.scale(scale=scale):
                pyro.sample("z", encoder(x))

        pyro.set_rng_seed(1)
        with contextlib.nullcontext() if beta is None else scale_latents(beta):
            return MMD_ELBO(3.0).loss(model, guide, x)

    pyro.set_rng_seed(1)
    z, prior = encoder(x).rsample(), torch.randn(8, 2)
    log_px = dist.Normal(decoder(z), 1.0).to_event(1).log_prob(x)

    def by_hand(rows, weight):
        mmd = maximum_mean_discrepancy(z[rows], prior[rows])
        return pytest.approx((-log_px[rows].sum() + weight * len(z[rows]) * mmd).item(), rel=1e-12)

    every = slice(None)
    assert loss() == by_hand(every, 3.0)
    assert loss(mask=keep) == by_hand(keep, 3.0)
    assert loss(beta=0.5) == by_hand(every, 1.5)
    assert loss(scale=4.0) / 4 == by_hand(every, 3.0), "a subsampling plate scales all"


def test_a_learned_prior_gets_its_gradient_from_the_discrepancy():
    prior = Prior()
    vae = VAE(NormalHead(D, 2), nn.Linear(2, D), GaussianLikelihood(), 2, prior=prior)
    MMD_ELBO(1.0).loss_and_grads(vae.model, vae.guide, torch.randn(6, D))
    assert prior.loc.grad.abs().min() > 0


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_guides_without_reparameterisation_and_wrong_weights_are_refused():
    vae, x = binary_vae().double(), binary().double()
    guide = AmortizedMixture(vae.model, [NormalHead(D, 2), NormalHead(D, 2)], [WeightHead(D)])
    with pytest.raises(ValueError, match=r"MMD_ELBO needs reparameterised draws.* Use Trace_ELBO"):
        MMD_ELBO(1.0).differentiable_loss(vae.model, guide, x)
    for weights in ({"weight": -1.0}, {"weight": 1.0, "kl_weight": -0.1}, {"weight": math.nan}):
        with pytest.raises(ValueError, match="0 or more"):
            MMD_ELBO(**weights)


@pytest.mark.parametrize("guide", ["own", "multivariate_normal"])
def test_training_brings_the_aggregate_posterior_to_the_prior(guide):
    """Without the discrepancy the code drifts from the prior; with it the code has the prior's mean and variance.

    n = 2000 data on a plane, seed 0: mean within 0.15 of 0 and standard deviation within 0.2 of 1, where the
    unregularised one is off by more than half.
    """
    x = torch.randn(2000, 2) @ (3 * torch.randn(2, D)) + 2

    def spread(weight):
        torch.manual_seed(0)
        vae = VAE(NormalHead(D, 2), MLP(2, [], D), GaussianLikelihood(0.5), 2)
        q = vae.guide
        if guide != "own":
            q = AmortizedMultivariateNormal(vae.model, Chain(nn.Identity(), MultivariateNormalHead(D, 2)))
        optim = lambda parameters: torch.optim.Adam(parameters, lr=1e-2)
        fit(vae.model, q, x, loss=MMD_ELBO(weight), epochs=8, batch_size=200, seed=0, progress=False, optim=optim)
        z = poutine.trace(q).get_trace(x).nodes["z"]["value"]
        return z.mean(0).abs().max(), (z.std(0) - 1).abs().max()

    mean, deviation = spread(2000.0)
    assert mean < 0.15 and deviation < 0.2
    free_mean, free_deviation = spread(0.0)
    assert max(free_mean, free_deviation) > 0.5


def test_the_kernel_is_that_of_all_pairs():
    x, y = torch.randn(4, 3), torch.randn(5, 3)
    by_hand = torch.exp(-(x[:, None] - y[None]).square().sum(-1) / 9)
    torch.testing.assert_close(gaussian_kernel(x, y), by_hand, rtol=0, atol=1e-14)
