"""Code lengths: T32 of the lossy auto-encoder, closed forms of the linear case, plates, and bits."""

import math

import pyro
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vaes.diagnostics import code_length, log_weights
from pyro_vaes.guides import AmortizedMixture, AmortizedMultivariateNormal
from pyro_vaes.models import VAE, HierarchicalVAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    GaussianLikelihood,
    MultivariateNormalHead,
    NormalHead,
    WeightHead,
)

D, K = 5, 2


def linear_vae():
    return VAE(NormalHead(D, K), MLP(K, [], D), GaussianLikelihood(scale=0.7), K).double()


def test_T32_the_two_part_code_less_the_entropy_is_the_negative_bound():
    """Closed forms of a linear Gaussian model against 4,000 draws at seed 0: 5.5 standard errors."""
    vae, x = linear_vae(), torch.randn(40, D, dtype=torch.float64)
    report = code_length(vae.model, vae.guide, x, num_particles=4000)
    q = vae.posterior(x).base_dist
    entropy = 0.5 * torch.log(2 * math.pi * math.e * q.scale.square()).sum(-1)
    torch.testing.assert_close(report.entropy, entropy.detach())
    torch.testing.assert_close(report.two_part - entropy.detach(), report.bits_back)
    latents = 0.5 * (math.log(2 * math.pi) + q.loc.square() + q.scale.square()).sum(-1)
    W, b = vae.decoder[0].weight, vae.decoder[0].bias
    residual = (x - q.loc @ W.T - b).square() + q.scale.square() @ W.T.square()
    reconstruction = (0.5 * residual / 0.49 + math.log(0.7) + 0.5 * math.log(2 * math.pi)).sum(-1)
    kl = kl_divergence(vae.posterior(x), vae.prior())
    with torch.no_grad():  # what one draw of each term scatters
        z = vae.posterior(x).sample((1000,))
        of_prior, of_x = vae.prior().log_prob(z).std(0), vae.likelihood(vae.decoder(z)).log_prob(x).std(0)
    for found, wanted, spread in [
        (report.latents, latents, of_prior),
        (report.reconstruction, reconstruction, of_x),
        (report.code, kl, of_prior),
        (report.bits_back, reconstruction + kl, of_prior + of_x),
    ]:
        assert ((found - wanted).abs() < 5.5 * spread / math.sqrt(4000)).all()


def hierarchical():
    encoders = [Chain(MLP(D, [4], 4), NormalHead(4, 3)), Chain(MLP(3, [4], 4), NormalHead(4, 2))]
    return HierarchicalVAE(encoders, MLP(3, [], D), BernoulliLikelihood(), [3, 2], priors=[NormalHead(2, 3)]).double()


def joint_guide(model):
    return AmortizedMultivariateNormal(model, Chain(MLP(D, [4], 4), MultivariateNormalHead(4, 5))).double()


def mixture_guide(model):
    components = [Chain(MLP(D, [4], 4), NormalHead(4, 5)) for _ in range(2)]
    return AmortizedMixture(model, components, [Chain(MLP(D, [4], 4), WeightHead(4))]).double()


@pytest.mark.parametrize("make", [lambda h: h.guide, lambda h: joint_guide(h.model), lambda h: mixture_guide(h.model)])
def test_any_pair(make):
    """Entropies that depend on other draws, of a joint density behind Deltas, and without a closed form."""
    hvae, x = hierarchical(), torch.bernoulli(torch.full((6, D), 0.4, dtype=torch.float64))
    guide = make(hvae)
    report = code_length(hvae.model, guide, x, num_particles=500, batch_size=4)
    assert report.bits_back.shape == (6,) and report.num_elements == D
    weights = log_weights(hvae.model, guide, x, 500, batch_size=4, seed=1)  # 500 draws each: 5.5 standard errors
    # a closed entropy changes the scatter of a draw: that of log q comes on top
    error = 5.5 * 2 * weights.std(0) * math.sqrt(2 / 500)
    assert ((report.bits_back + weights.mean(0)).abs() < error).all()


def test_programs_that_do_not_broadcast_are_measured_draw_by_draw():
    """Each draw of z_1 has its own q(z_2 | z_1)."""
    hvae, x = hierarchical(), torch.bernoulli(torch.full((4, D), 0.4, dtype=torch.float64))
    with torch.no_grad():
        for parameter in hvae.encoders[1].parameters():
            parameter.mul_(4.0)

    def stubborn(x):
        with pyro.plate("data", len(x)):
            z_2 = pyro.sample("z_2", hvae.top_prior())
            z_1 = pyro.sample("z_1", hvae.priors[0](z_2))
            if z_1.dim() > 2:
                raise RuntimeError("one particle at a time")
            pyro.sample("x", hvae.likelihood(hvae.decoder(z_1)), obs=x)

    one = code_length(stubborn, hvae.guide, x, num_particles=200)
    weights = log_weights(hvae.model, hvae.guide, x, 200, seed=1)
    error = 5.5 * 2 * weights.std(0) * math.sqrt(2 / 200)  # 200 draws each
    assert ((one.bits_back + weights.mean(0)).abs() < error).all()
    with torch.no_grad():
        q = hvae.encoders[0](x)
        entropies = q.entropy() + hvae.encoders[1](q.sample((5000,))).entropy()
    error = 5.5 * entropies.std(0) * math.sqrt(1 / 200 + 1 / 5000)
    assert ((one.entropy - entropies.mean(0)).abs() < error).all()


def test_the_table_is_in_nats_and_bits():
    vae, x = linear_vae(), torch.randn(8, D, dtype=torch.float64)
    report = code_length(vae.model, vae.guide, x, num_particles=2)
    line = next(text for text in str(report).splitlines() if text.startswith("bits-back"))
    nats, _, bits, per_dim = map(float, line.split()[-4:])
    assert nats == pytest.approx(report.bits_back.mean().item(), abs=1e-3)
    assert bits == pytest.approx(nats / math.log(2), abs=2e-3) and per_dim == pytest.approx(bits / D, abs=1e-3)
    with pytest.raises(ValueError, match="num_particles"):
        code_length(vae.model, vae.guide, x, num_particles=0)
