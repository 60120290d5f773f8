"""Heads of flows: the features matter, orders alternate, masks are no weights."""

import pytest
import torch

from pyro_vaes.nn import HouseholderHead, IAFHead, NormalHead

F, D, N = 5, 4, 6


def features(*lead):
    return torch.randn(*lead, F, dtype=torch.float64)


def test_householder_head_without_flows_is_the_normal_head():
    torch.set_default_dtype(torch.float64)
    head, h = HouseholderHead(F, D, flows=0), features(N)
    plain = NormalHead(F, D)
    plain.load_state_dict(head.normal.state_dict())
    q, p = head(h), plain(h)
    assert torch.equal(q.mean, p.mean) and torch.allclose(q.stddev, p.stddev, rtol=0, atol=1e-15)
    z = q.sample((3,))
    assert torch.allclose(q.log_prob(z), p.log_prob(z), rtol=0, atol=1e-13)


def test_householder_vectors_are_a_chain_from_the_features():
    torch.set_default_dtype(torch.float64)
    head, h = HouseholderHead(F, D, flows=3), features(2, N)
    q = head(h)
    first = head.vectors[0](h)
    second = head.vectors[1](first)
    assert torch.equal(q.vectors, torch.stack([first, second, head.vectors[2](second)], -2))
    off_diagonal = q.covariance_matrix - torch.diag_embed(q.variance)
    assert (off_diagonal.abs().amax((-2, -1)) > 1e-3).all(), "a full covariance, and one of its own for each datum"
    assert (q.covariance_matrix[0, 0] - q.covariance_matrix[0, 1]).abs().max() > 1e-3


def test_the_features_are_a_real_context_of_every_step():
    """P2: a mask that covers the context too would leave (m, s) where they are."""
    head = IAFHead(F, D, flows=3, hidden=[16, 16]).double()
    z, one, two = torch.randn(N, D, dtype=torch.float64), features(N), features(N)
    for before, after in zip(head(one).transforms, head(two).transforms, strict=True):
        for m_or_s in zip(before.network(z, before.context), after.network(z, after.context), strict=True):
            assert ((m_or_s[0] - m_or_s[1]).abs() > 1e-6).all(), "of every dimension, the first in the order included"
        assert ((before(z) - after(z)).abs() > 1e-6).all()


def test_the_order_is_reversed_from_step_to_step():
    head, h = IAFHead(F, D, flows=4, hidden=[16]).double(), features(1)
    steps = head(h).transforms
    assert [s.order for s in steps] == [(0, 1, 2, 3), (3, 2, 1, 0)] * 2
    for k, step in enumerate(steps):
        z = torch.randn(1, D, dtype=torch.float64)
        matrix = torch.autograd.functional.jacobian(step, z)[0, :, 0]
        matrix = matrix.T if k % 2 else matrix
        assert torch.equal(matrix, matrix.tril()) and (matrix.diagonal() > 0).all()
        assert (matrix.tril(-1)[tuple(torch.tril_indices(D, D, -1))] != 0).all()


@pytest.mark.parametrize("d", [1, D])
@pytest.mark.parametrize("lead", [(), (N,), (2, N)])
def test_the_density_of_the_flow_is_exact(d, lead):
    """Against the whole Jacobian of noise to draw by autograd, in float64 with a default of float32."""
    head, h = IAFHead(F, d, flows=3, hidden=[12]).double(), features(*lead)
    q = head(h)
    noise = q.base_dist.sample()

    def forward(z):
        for step in q.transforms:
            z = step(z)
        return z

    z = forward(noise)
    count = noise.numel()
    matrix = torch.autograd.functional.jacobian(forward, noise).reshape(count, count)
    blocks = torch.stack([matrix[i : i + d, i : i + d] for i in range(0, count, d)])
    exact = q.base_dist.log_prob(noise).flatten() - torch.linalg.slogdet(blocks)[1]
    for value in (z, z.clone()):
        assert torch.allclose(q.log_prob(value).flatten(), exact, rtol=0, atol=1e-10)
    assert q.batch_shape == lead and q.event_shape == (d,) and q.has_rsample


def test_a_step_starts_with_open_gates():
    _, s = IAFHead(F, D).networks[0](torch.zeros(N, D), torch.zeros(N, F))
    assert (s.mean() - 2.0).abs() < 0.5


@pytest.mark.parametrize("make", [HouseholderHead, IAFHead])
def test_every_weight_learns_and_only_weights_are_saved(make):
    head = make(F, D)
    q = head(torch.randn(N, F))
    z = q.rsample()
    gradients = torch.autograd.grad((z.square().sum(-1) + q.log_prob(z)).sum(), list(head.parameters()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)
    assert head.state_dict().keys() == dict(head.named_parameters()).keys()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="0 or more"):
        HouseholderHead(F, D, flows=-1)
    with pytest.raises(ValueError, match="use NormalHead for none"):
        IAFHead(F, D, flows=0)
    for hidden in ([], [3], [8, 2]):
        with pytest.raises(ValueError, match="at least out_features=4"):
            IAFHead(F, D, hidden=hidden)
    for make in (HouseholderHead, IAFHead):
        with pytest.raises(ValueError, match="min_scale"):
            make(F, D, min_scale=2.0)
