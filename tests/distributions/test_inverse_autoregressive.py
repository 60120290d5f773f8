"""One inverse autoregressive step: exact in both directions, and a memory that never costs a gradient."""

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import ConditionalAutoRegressiveNN

from pyro_vaes.distributions import InverseAutoregressive

D, F, N = 4, 3, 5
ORDER = [2, 0, 3, 1]


class Counting(torch.nn.Module):
    """A masked network in float64 that counts its passes."""

    def __init__(self, order=ORDER):
        super().__init__()
        self.net, self.passes = ConditionalAutoRegressiveNN(D, F, [12], permutation=torch.tensor(order)).double(), 0

    def forward(self, x, context):
        self.passes += 1
        return self.net(x, context)


def real(*shape):
    return torch.randn(shape, dtype=torch.float64)


def step(network=None, order=ORDER):
    return InverseAutoregressive(network or Counting(order), real(N, F), order)


def flow(*steps):
    return dist.TransformedDistribution(dist.Normal(real(N, D), 1.0).to_event(1), list(steps))


def jacobian(transform, x):
    whole = torch.autograd.functional.jacobian(transform, x)  # (N, D, N, D)
    return torch.stack([whole[i, :, i] for i in range(N)])


def test_the_log_determinant_is_that_of_the_jacobian():
    transform, x = step(), real(N, D)
    matrix = jacobian(transform, x)
    log_det = torch.linalg.slogdet(matrix)[1]
    fresh = InverseAutoregressive(transform.network, transform.context, ORDER)
    for t in (transform, fresh):
        assert torch.allclose(t.log_abs_det_jacobian(x, t(x)), log_det, rtol=0, atol=1e-10)
    assert torch.allclose(fresh.log_abs_det_jacobian(x.clone(), fresh(x)), log_det, rtol=0, atol=1e-10)
    permuted = matrix[:, ORDER][:, :, ORDER]
    assert torch.equal(permuted, permuted.tril()), "triangular in the order of the step"
    assert (permuted.tril(-1).abs().amax(0)[tuple(torch.tril_indices(D, D, -1))] > 0).all(), "and dense below"


def test_either_direction_undoes_the_other():
    transform, z = step(), real(7, N, D)
    assert torch.allclose(transform.inv(transform(z).clone()), z, rtol=0, atol=1e-12)
    assert torch.allclose(transform(transform.inv(z).clone()), z, rtol=0, atol=1e-12)


def test_the_density_of_a_draw_costs_nothing_more_and_is_the_exact_one():
    networks = [Counting(), Counting(ORDER[::-1])]
    q = flow(step(networks[0]), step(networks[1], ORDER[::-1]))
    z = q.expand(torch.Size([3, N])).rsample((2,))
    remembered = q.expand(torch.Size([3, N])).log_prob(z)
    assert [n.passes for n in networks] == [1, 1]
    exact = q.log_prob(z.clone())
    assert [n.passes for n in networks] == [1 + D, 1 + D]
    assert torch.allclose(remembered, exact, rtol=0, atol=1e-10)
    leaves = [p for n in networks for p in n.parameters()]
    for one, two in zip(
        *(torch.autograd.grad(v.sum(), leaves, retain_graph=True) for v in (remembered, exact)), strict=True
    ):
        assert torch.allclose(one, two, rtol=0, atol=1e-9), "the total derivative through the noise"


def test_a_draw_without_gradients_has_a_density_with_them():
    """torch's own cache would return the noise of the draw, through which no gradient flows."""
    q = flow(step(), step())
    leaves = list(q.transforms[0].network.parameters())
    z = q.sample()
    one = torch.autograd.grad(q.log_prob(z).sum(), leaves)
    two = torch.autograd.grad(q.log_prob(z.clone()).sum(), leaves)
    assert all(torch.allclose(a, b) for a, b in zip(one, two, strict=True))
    assert any(a.abs().max() > 0 for a in one)


def test_the_score_of_a_copied_draw():
    q = flow(step(), step())
    z = q.sample().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: q.log_prob(z.clone()), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_default_dtype_does_not_matter(default, dtype):
    network = Counting().to(dtype)
    torch.set_default_dtype(default)
    base = dist.Normal(torch.zeros(N, D, dtype=dtype), 1.0).to_event(1)
    q = dist.TransformedDistribution(base, [InverseAutoregressive(network, real(N, F).to(dtype), ORDER)])
    assert q.log_prob(q.sample().clone()).dtype == dtype


def test_one_value_against_every_context():
    q = flow(step(), step())
    values = real(7, 1, D)
    each = torch.stack([q.log_prob(v.expand(N, D)) for v in values])
    assert torch.allclose(q.log_prob(values), each, rtol=0, atol=1e-12)
