"""The report of the aggregate posterior: the spec's item R4, and what it says of pairs whose answers are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import nn
from torch.distributions import kl_divergence

from pyro_vaes.diagnostics import aggregate_report, collapse_report, draw_from_aggregate, kl_decomposition
from pyro_vaes.distributions import AggregateGaussian, MixturePosterior
from pyro_vaes.guides import AmortizedMultivariateNormal
from pyro_vaes.models import VAE, ConditionalVAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    ConvDecoder,
    ConvEncoder,
    GaussianLikelihood,
    MultivariateNormalHead,
    NormalHead,
)


def posteriors(n=20, d=4, spread=1.0):
    return spread * torch.randn(n, d, dtype=torch.float64), (0.5 * torch.randn(n, d, dtype=torch.float64)).exp()


def standard(d=4):
    return dist.Normal(torch.zeros(d, dtype=torch.float64), 1.0).to_event(1)


def test_R4_decomposition():
    loc, scale = posteriors()
    found = kl_decomposition(loc, scale)
    mean_kl = kl_divergence(dist.Normal(loc, scale).to_event(1), standard()).mean().item()
    variance = loc.var(0, correction=0) + scale.square().mean(0)
    spread = 0.5 * (variance.log() - scale.square().log().mean(0)).sum().item()
    gaussian = kl_divergence(dist.Normal(loc.mean(0), variance.sqrt()).to_event(1), standard()).item()
    assert (found.mean_kl, found.aggregate_kl, found.spread) == pytest.approx((mean_kl, gaussian, spread), abs=1e-10)
    assert found.mean_kl == pytest.approx(found.aggregate_kl + found.spread, abs=1e-8)


def test_R4_decomposition_of_full_covariances():
    loc, raw = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 3, 3, dtype=torch.float64)
    factor = 0.5 * raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
    q = dist.MultivariateNormal(loc, scale_tril=factor)
    identity = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    found = kl_decomposition(loc, q.stddev, q.entropy())
    assert found.mean_kl == pytest.approx(kl_divergence(q, identity).mean().item(), abs=1e-10)
    assert found.mean_kl == pytest.approx(found.aggregate_kl + found.spread, abs=1e-8)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_R4_order_of_the_divergences(spread):
    """100 draws of each of 20 posteriors; 4 standard errors."""
    loc, scale = posteriors(spread=spread)
    parts, mixture = kl_decomposition(loc, scale), MixturePosterior(loc, scale)
    divergence, error = (t.item() for t in mixture.kl_estimate(standard(), 100))
    assert parts.aggregate_kl - 4 * error <= divergence <= parts.mean_kl + 4 * error
    information, its_error = (t.item() for t in mixture.information(100))
    assert -4 * its_error <= information <= math.log(20)
    assert parts.mean_kl - divergence == pytest.approx(information, abs=4 * (error + its_error))


def linear_vae(latent_dim=3, features=5):
    """Known means W x + b and scales; the decoder sees the first unit only."""
    torch.set_default_dtype(torch.float64)
    vae = VAE(NormalHead(features, latent_dim), MLP(latent_dim, [], features), GaussianLikelihood(0.5), latent_dim)
    (layer,) = (m for m in vae.decoder.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        layer.weight[:, 1:] = 0
    return vae, layer.weight.detach()


def test_units_of_a_linear_pair():
    vae, weight = linear_vae()
    x = torch.randn(70, 5)
    report = aggregate_report(vae.model, vae.guide, x, num_sensitivity=30, batch_size=32, num_particles=50)
    q = vae.posterior(x).base_dist
    loc, scale = q.loc.detach(), q.scale.detach()
    torch.testing.assert_close(report.loc, loc.mean(0))
    torch.testing.assert_close(report.mean_variance, loc.var(0, correction=0))
    torch.testing.assert_close(report.mean_scale, scale.mean(0))
    torch.testing.assert_close(report.variance, loc.var(0, correction=0) + scale.square().mean(0))
    torch.testing.assert_close(report.sensitivity, weight.abs().mean(0))
    assert (report.sensitivity[1:] == 0).all() and report.num_dead == 0
    parts = kl_decomposition(loc, scale)
    assert report.decomposition.mean_kl == pytest.approx(parts.mean_kl)
    means = kl_divergence(AggregateGaussian(loc, scale), dist.Normal(torch.zeros(3), 1.0).to_event(1))
    assert report.means_kl == pytest.approx(means.item())
    assert report.mixture_kl == pytest.approx(parts.mean_kl - report.mutual_information)
    other = collapse_report(vae.model, vae.guide, x)["z"]
    error = math.hypot(report.mutual_information_error, other.mutual_information_error)
    assert report.mutual_information == pytest.approx(other.mutual_information, abs=5 * error)
    assert "0 of 3 units" in str(report) and "N = 70" in repr(report)
    silent = aggregate_report(vae.model, vae.guide, x, num_sensitivity=0)
    assert silent.sensitivity.isnan().all() and "nan" in str(silent)


def test_dead_units_are_those_whose_means_do_not_vary():
    vae, _ = linear_vae()
    with torch.no_grad():
        vae.encoder.loc.weight[1] = 0
    report = aggregate_report(vae.model, vae.guide, torch.randn(40, 5))
    assert report.num_dead == 1 and report.mean_variance[1] == 0 and report.means_kl < 100


def test_images_and_conditional_priors():
    torch.set_default_dtype(torch.float64)
    shape = (1, 5, 6)
    encoder = Chain(ConvEncoder(shape, [2], 4), NormalHead(4, 2))
    conv = VAE(encoder, ConvDecoder(2, [2], shape), BernoulliLikelihood(event_dim=3), 2)
    x = torch.bernoulli(torch.full((20, *shape), 0.4))
    report = aggregate_report(conv.model, conv.guide, x, num_sensitivity=7, batch_size=8)
    with torch.no_grad():
        z = conv.posterior(x[:7]).mean
        base = conv.likelihood(conv.decoder(z)).mean
        moved = [(conv.likelihood(conv.decoder(z + e)).mean - base).abs().mean() for e in torch.eye(2)]
    torch.testing.assert_close(report.sensitivity, torch.stack(moved))
    cvae = ConditionalVAE(NormalHead(5 + 3, 2), MLP(2 + 3, [4], 5), GaussianLikelihood(0.5), 2, prior=NormalHead(3, 2))
    c, y = torch.randn(20, 3), torch.randn(20, 5)
    report = aggregate_report(cvae.model, cvae.guide, (y, c), num_sensitivity=6)
    with torch.no_grad():
        q, p = cvae.posterior(y, c).base_dist, cvae.prior(c).base_dist
        torch.testing.assert_close(report.loc, ((q.loc - p.loc) / p.scale).mean(0))
        z, step = q.loc[:6], p.scale[:6]
        base = cvae.decoder(z, c[:6])
        moved = [(cvae.decoder(z + e * step, c[:6]) - base).abs().mean() for e in torch.eye(2)]
    torch.testing.assert_close(report.sensitivity, torch.stack(moved))
    pyro.set_rng_seed(0)
    many = c[:1].expand(20_000, 3)
    with draw_from_aggregate(report):
        trace = pyro.poutine.trace(cvae.model).get_trace(None, many)
    prior, z = cvae.prior(c[:1]).base_dist, trace.nodes["z"]["value"].detach()
    standardised = ((z - prior.loc) / prior.scale).detach()
    error = (report.variance / 20_000).sqrt()  # 5 standard errors of the mean; the variance's are sqrt(2 / n) of it
    assert ((standardised.mean(0) - report.loc).abs() < 5 * error).all()
    assert ((standardised.var(0) / report.variance - 1).abs() < 5 * math.sqrt(2 / 20_000)).all()


def test_draws_from_the_aggregate():
    vae, _ = linear_vae()
    with torch.no_grad():
        vae.encoder.loc.weight.mul_(3)
        vae.encoder.loc.bias.fill_(2.0)
    report = aggregate_report(vae.model, vae.guide, torch.randn(500, 5), num_sensitivity=0)
    fitted = draw_from_aggregate(report)(vae.model)
    assert fitted(size=7).shape == (7, 5)
    assert Predictive(fitted, num_samples=2)(size=7)["z"].shape == (2, 7, 3)
    draws = pyro.poutine.trace(fitted).get_trace(size=4000).nodes["z"]["value"]
    assert ((draws.mean(0) - report.loc).abs() < 5 * (report.variance / 4000).sqrt()).all()
    x = torch.randn(6, 5)
    pyro.set_rng_seed(1)
    wanted = vae.guide(x)
    pyro.set_rng_seed(1)
    with draw_from_aggregate(report):  # a value that is given stays
        trace = pyro.poutine.trace(pyro.poutine.condition(vae.model, data={"z": wanted})).get_trace(x)
    assert torch.equal(trace.nodes["z"]["value"], wanted)
    other, _ = linear_vae(latent_dim=2)
    with pytest.raises(ValueError, match="events of shape"):
        draw_from_aggregate(report)(other.model)(size=2)


def test_joint_draws_and_bad_input():
    vae, _ = linear_vae()
    guide = AmortizedMultivariateNormal(vae.model, MultivariateNormalHead(5, 3))
    report = aggregate_report(vae.model, guide, torch.randn(20, 5))
    assert math.isnan(report.mutual_information) and report.decomposition.spread > 0
    for options in ({"num_particles": 1}, {"max_mixture": 1}, {"num_sensitivity": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            aggregate_report(vae.model, vae.guide, torch.randn(9, 5), **options)
    with pytest.raises(ValueError, match="at least two"):
        aggregate_report(vae.model, vae.guide, torch.randn(1, 5))
