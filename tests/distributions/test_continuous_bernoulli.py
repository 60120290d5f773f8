"""The corners in which torch's ContinuousBernoulli is wrong, against 50-digit arithmetic."""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vaes.distributions import ContinuousBernoulli

LOGITS = [0.0, 1e-6, 0.0041, 0.0199, 0.0201, 0.3, 0.599, 0.601, 1.0, 5.0, 15.0, 17.0, 30.0, 100.0, 1000.0]
SIGNED = [s * logit for logit in LOGITS for s in (1, -1)]


def exact(logit: float) -> dict[str, mpmath.mpf]:
    """Log normaliser, mean, variance in closed form."""
    with mpmath.workdps(50):
        eta = mpmath.mpf(logit if logit else 1e-12)
        a = mpmath.log(mpmath.expm1(eta) / eta)
        mean = 1 / (1 - mpmath.exp(-eta)) - 1 / eta
        variance = 1 / eta**2 - 1 / (4 * mpmath.sinh(eta / 2) ** 2)
        return {"a": a, "mean": mean, "variance": variance, "entropy": a - eta * mean}


# float32: 1 / a^2 cancels to about 1e-6 in the variance, and log p is a difference of numbers as large as the
# logit
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-11, 1e-11), (torch.float32, 3e-6, 2e-6)])
@pytest.mark.parametrize("logit", SIGNED)
def test_closed_forms(logit: float, dtype: torch.dtype, rtol: float, atol: float):
    d = ContinuousBernoulli(logits=torch.tensor(logit, dtype=dtype))
    truth = exact(d.logits.item())
    x = torch.tensor(0.25, dtype=dtype)
    for ours, theirs in [
        (d.log_prob(x), d.logits.item() * 0.25 - truth["a"]),
        (d.mean, truth["mean"]),
        (d.variance, truth["variance"]),
        (d.entropy(), truth["entropy"]),
    ]:
        assert ours.dtype == dtype
        tolerance = atol + 2 * torch.finfo(dtype).eps * abs(logit)
        assert ours.item() == pytest.approx(float(theirs), rel=rtol, abs=tolerance)


def test_torch_is_still_wrong():
    """The reason for the class; when this fails, torch has been mended and the class can go."""
    theirs = dist.ContinuousBernoulli(logits=torch.tensor([0.0041, 30.0]))
    assert abs(theirs.variance[0] - 1 / 12) > 0.1
    assert abs(theirs.log_prob(torch.tensor(1.0))[1] - math.log(30)) > 0.5


@pytest.mark.parametrize("logit", SIGNED)
def test_cdf_and_icdf_are_inverse(logit: float):
    d = ContinuousBernoulli(logits=torch.tensor(logit, dtype=torch.float64))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(d.cdf(ends), ends)
    torch.testing.assert_close(d.icdf(ends), ends)
    u = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    torch.testing.assert_close(d.cdf(d.icdf(u)), u, rtol=0, atol=1e-11)


def test_cdf_is_the_integral_of_the_density():
    d = ContinuousBernoulli(logits=torch.tensor([-3.0, 0.01, 3.0], dtype=torch.float64))
    x = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    for i in range(3):
        (density,) = torch.autograd.grad(d.cdf(x)[i], x)
        torch.testing.assert_close(density, d.log_prob(x)[i].exp().detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_continuous_for_every_logit(dtype: torch.dtype):
    logits = torch.tensor(SIGNED, dtype=dtype, requires_grad=True)
    d = ContinuousBernoulli(logits=logits)
    u = torch.tensor([0.0, 1e-7, 0.3, 0.999999], dtype=dtype)[:, None]
    u = torch.cat([u, torch.ones_like(u[:1])])
    total = d.log_prob(u).sum() + d.mean.sum() + d.variance.sum() + d.entropy().sum()
    total = total + d.icdf(u).sum() + d.cdf(u).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    # the gradient of the log normaliser is the mean, on both sides of each threshold
    (gradient,) = torch.autograd.grad(-d.log_prob(torch.zeros((), dtype=dtype)).sum(), logits)
    torch.testing.assert_close(gradient, d.mean.detach(), rtol=0, atol=1e-9 if dtype == torch.float64 else 3e-6)


def test_probs_and_logits_agree():
    probs = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    x = torch.tensor(0.3, dtype=torch.float64)
    expected = ContinuousBernoulli(logits=probs.logit()).log_prob(x)
    torch.testing.assert_close(ContinuousBernoulli(probs=probs).log_prob(x), expected)


def test_kl_divergence():
    p = ContinuousBernoulli(logits=torch.tensor([-2.0, 0.0, 40.0], dtype=torch.float64))
    q = ContinuousBernoulli(logits=torch.tensor([1.0, 0.5, 20.0], dtype=torch.float64))
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    x = x[:, None]
    brute = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).mean(0)  # the midpoint rule, error O(1e-9)
    torch.testing.assert_close(kl_divergence(p, q), brute, rtol=1e-6, atol=1e-6)
