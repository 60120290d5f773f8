"""The aggregate of a batch's posteriors: the spec's item R11, and the estimates of the mixture by quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import kl_divergence

from pyro_vaes.distributions import AggregateGaussian, MixturePosterior


def posteriors(n=6, d=3):
    return torch.randn(n, d, dtype=torch.float64), (0.4 * torch.randn(n, d, dtype=torch.float64)).exp()


def prior(d=3):
    return dist.Normal(torch.zeros(d, dtype=torch.float64), 1.0).to_event(1)


def test_R11_moments_of_the_mixture():
    """1e5 draws: within 4 standard errors in mean and variance."""
    loc, scale = posteriors()
    gaussian, draws = AggregateGaussian(loc, scale, "mixture"), MixturePosterior(loc, scale).sample((100_000,))
    variance = loc.var(0, correction=0) + scale.square().mean(0)
    torch.testing.assert_close(gaussian.variance, variance)
    squares = (draws - draws.mean(0)).square()
    for found, wanted, spread in ((draws, gaussian.mean, draws), (squares, gaussian.variance, squares)):
        assert ((found.mean(0) - wanted).abs() < 4 * spread.std(0) / math.sqrt(1e5)).all()


def test_R11_divergence_of_the_means_is_k_g():
    loc, scale = posteriors()
    m, v = loc.mean(0), loc.var(0, correction=0)
    k_g = (-0.5 * (1 + v.log() - m**2 - v)).sum()
    aggregate = AggregateGaussian(loc, scale, "means")
    torch.testing.assert_close(kl_divergence(aggregate, prior()), k_g, rtol=1e-12, atol=0)
    torch.testing.assert_close(kl_divergence(aggregate, prior().base_dist), k_g, rtol=1e-12, atol=0)
    other = dist.Normal(torch.randn(3).double(), torch.rand(3).double() + 0.5).to_event(1)
    for moment in ("means", "mixture"):
        aggregate = AggregateGaussian(loc, scale, moment)
        same = dist.Normal(aggregate.mean, aggregate.variance.sqrt()).to_event(1)
        torch.testing.assert_close(kl_divergence(aggregate, other), kl_divergence(same, other))
        torch.testing.assert_close(aggregate.entropy(), same.entropy())
    with pytest.raises(NotImplementedError, match="estimate it from draws"):
        kl_divergence(aggregate, dist.Laplace(torch.zeros(3), 1.0).to_event(1))


def test_divergence_of_means_that_coincide():
    loc = (1e-5 * torch.randn(5, 2, dtype=torch.float64)).requires_grad_()  # a variance of 1e-10, below the floor

    def divergence(loc):
        return AggregateGaussian(loc, torch.ones_like(loc)).kl_units()

    assert divergence(loc.detach() * 0).isfinite().all()
    assert gradcheck(divergence, loc, eps=1e-8, atol=1e-3)
    small = torch.tensor([[-1.0], [1.0]], dtype=torch.float64) * 1e-4  # just at it: value and slope go on
    below, above = (divergence(small * math.sqrt(1 + e)) for e in (-1e-6, 1e-6))
    assert (below - above).item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_estimates_of_the_mixture_by_quadrature(spread):
    """Five standard errors of 400 draws of each of 6 posteriors, in one dimension."""
    loc, scale = posteriors(d=1)
    mixture = MixturePosterior(spread * loc, scale)
    grid = torch.linspace(-40, 40, 80_001, dtype=torch.float64).unsqueeze(1)
    log_q, log_p = mixture.log_prob(grid), prior(1).log_prob(grid)
    own = dist.Normal(spread * loc.squeeze(), scale.squeeze()).log_prob(grid)  # (G, n)
    divergence = (log_q.exp() * (log_q - log_p)).sum() * 1e-3
    information = (own.exp() * (own - log_q.unsqueeze(1))).sum() * 1e-3 / 6
    for (found, error), wanted in (
        (mixture.kl_estimate(prior(1), 400), divergence),
        (mixture.information(400), information),
    ):
        assert 0 < error < 0.2 and (found - wanted).abs() < 5 * error
    assert mixture.information(400)[0] <= math.log(6)


def test_bad_input():
    loc, scale = posteriors()
    for cls in (AggregateGaussian, MixturePosterior):
        with pytest.raises(ValueError, match=r"shape \(..., n, d\).*\(6, 3\) and \(3,\)"):
            cls(loc, scale[0])
    with pytest.raises(ValueError, match="moment must be one of"):
        AggregateGaussian(loc, scale, "both")
    with pytest.raises(ValueError, match="means of 1 posterior is 0"):
        AggregateGaussian(loc[:1], scale[:1])
    assert AggregateGaussian(loc[:1], scale[:1], "mixture").variance.equal(scale[0].square())
    with pytest.raises(ValueError, match="at least 2 draws"):
        MixturePosterior(loc, scale).information(1)
