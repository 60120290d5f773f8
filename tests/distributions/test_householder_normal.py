"""The reflected normal, beside torch's full-covariance normal."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vaes.distributions import HouseholderNormal


def pair(*batch, d=3, k=4):
    """The distribution, and the same with all its matrices written out."""
    loc, vectors = torch.randn(*batch, d, dtype=torch.float64), torch.randn(*batch, k, d, dtype=torch.float64)
    scale = torch.rand(*batch, d, dtype=torch.float64) + 0.5
    turn = torch.eye(d, dtype=torch.float64).expand(*batch, d, d)
    for v in vectors.unbind(-2):
        square = v.square().sum(-1)[..., None, None]
        turn = (torch.eye(d, dtype=torch.float64) - 2 * v.unsqueeze(-1) * v.unsqueeze(-2) / square) @ turn
    mean = (turn @ loc.unsqueeze(-1)).squeeze(-1)
    covariance = turn @ torch.diag_embed(scale.square()) @ turn.mT
    return HouseholderNormal(loc, scale, vectors), dist.MultivariateNormal(mean, covariance), turn


@pytest.mark.parametrize("k", [0, 1, 4])
def test_it_is_the_normal_with_that_covariance(k):
    ours, theirs, turn = pair(4, 2, k=k)
    assert torch.allclose(turn @ turn.mT, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)
    x = torch.randn(5, 4, 2, 3, dtype=torch.float64)
    for one, two in (
        (ours.log_prob(x), theirs.log_prob(x)),
        (ours.entropy(), theirs.entropy()),
        (ours.mean, theirs.mean),
        (ours.variance, theirs.variance),
        (ours.covariance_matrix, theirs.covariance_matrix),
    ):
        assert torch.allclose(one, two, rtol=0, atol=1e-10)
    assert torch.equal(ours.mode, ours.mean)


def test_a_draw_is_the_turned_noise_and_has_the_density_of_the_noise():
    ours, _, turn = pair(4)
    torch.manual_seed(3)
    z = ours.rsample((6,))
    torch.manual_seed(3)
    before = ours.loc + ours.scale * torch.randn(6, 4, 3, dtype=torch.float64)
    assert torch.allclose(z, (turn @ before.unsqueeze(-1)).squeeze(-1), rtol=0, atol=1e-13)
    base = dist.Normal(ours.loc, ours.scale).to_event(1).log_prob(before)
    assert torch.allclose(ours.log_prob(z), base, rtol=0, atol=1e-12)


def test_a_vector_of_zeros_reflects_nothing():
    loc, scale = torch.randn(3), torch.rand(3) + 0.5
    vectors = torch.zeros(2, 3, requires_grad=True)
    q = HouseholderNormal(loc, scale, vectors)
    assert torch.equal(q.mean, loc)
    (gradient,) = torch.autograd.grad(q.rsample().sum(), vectors)
    assert gradient.isfinite().all()


def test_kl_divergences():
    p, p_torch, _ = pair(4)
    loc, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.5
    wide = dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    assert torch.allclose(kl_divergence(p, dist.Normal(loc, scale).to_event(1)), kl_divergence(p_torch, wide))
    with pytest.raises(NotImplementedError, match="closed-form"):
        kl_divergence(p, dist.Laplace(loc, scale).to_event(1))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(5, 3\), \(5, 3\) and \(3,\).*unsqueeze"):
        HouseholderNormal(torch.zeros(5, 3), torch.ones(5, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"\(5, 2\), \(5, 3\)"):
        HouseholderNormal(torch.zeros(5, 2), torch.ones(5, 3), torch.ones(5, 4, 3))
