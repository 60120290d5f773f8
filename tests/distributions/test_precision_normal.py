"""The normal held by its precision's factor, beside torch's own."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vaes.distributions import PrecisionNormal


def pair(*batch, d=3):
    a = torch.randn(*batch, d, d, dtype=torch.float64)
    precision = a @ a.mT + torch.eye(d, dtype=torch.float64)
    loc = torch.randn(*batch, d, dtype=torch.float64)
    return PrecisionNormal(loc, torch.linalg.cholesky(precision)), dist.MultivariateNormal(
        loc, precision_matrix=precision
    )


def test_it_is_the_multivariate_normal_of_that_precision():
    ours, theirs = pair(4, 2)
    x = torch.randn(5, 4, 2, 3, dtype=torch.float64)
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x))
    assert torch.allclose(ours.entropy(), theirs.entropy())
    assert torch.allclose(ours.variance, theirs.variance)
    assert torch.allclose(ours.covariance_matrix, theirs.covariance_matrix)
    assert torch.allclose(ours.precision_matrix, theirs.precision_matrix)
    assert torch.equal(ours.mode, ours.loc)


def test_the_quadratic_form_of_a_draw_is_the_noise():
    ours, _ = pair(4)
    torch.manual_seed(3)
    z = ours.rsample((6,))
    torch.manual_seed(3)
    eps = torch.randn(6, 4, 3, dtype=torch.float64)
    assert torch.allclose((ours.chol_precision.mT @ (z - ours.loc).unsqueeze(-1)).squeeze(-1), eps)


def test_expanded_dimensions_share_the_factor(monkeypatch):
    """500 particles of 4 data solve with 4 factors, not with 2,000 copies."""
    ours, theirs = pair(4)
    shapes, solve = [], torch.linalg.solve_triangular
    monkeypatch.setattr(
        torch.linalg, "solve_triangular", lambda a, *r, **k: shapes.append(a.shape) or solve(a, *r, **k)
    )
    wide = ours.expand(torch.Size([500, 4]))
    x = wide.rsample((2,))
    assert shapes == [(4, 3, 3)] and x.shape == (2, 500, 4, 3)
    assert torch.allclose(wide.log_prob(x), theirs.log_prob(x))


def test_kl_divergences():
    p, p_torch = pair(4)
    q, q_torch = pair(4)
    loc, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.5
    assert torch.allclose(kl_divergence(p, q), kl_divergence(p_torch, q_torch))
    assert torch.allclose(kl_divergence(p, q_torch), kl_divergence(p_torch, q_torch))
    wide = dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    assert torch.allclose(kl_divergence(p, dist.Normal(loc, scale).to_event(1)), kl_divergence(p_torch, wide))
    with pytest.raises(NotImplementedError, match="closed-form"):
        kl_divergence(p, dist.Laplace(loc, scale).to_event(1))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(5, 3, 3\)"):
        PrecisionNormal(torch.zeros(5, 2), torch.eye(3).expand(5, 3, 3))


def test_half_precision_around_it_changes_nothing():
    """Cᵀ (z - mu) cancels, so that bfloat16 products would leave errors of tenths of a nat."""
    (ours, _), (other, _) = pair(4, d=20), pair(4, d=20)
    ours, other = (PrecisionNormal(q.loc.float(), q.chol_precision.float()) for q in (ours, other))
    z = ours.sample((6,))

    def figures():
        return ours.log_prob(z), kl_divergence(ours, other), ours.covariance_matrix, ours.precision_matrix

    wanted = figures()
    with torch.autocast("cpu", torch.bfloat16):
        found = figures()
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
