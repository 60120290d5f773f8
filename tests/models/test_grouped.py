"""Groups and their members: exact on a linear-Gaussian model, members that are missing
count for nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_vaes.models import GroupedVAE, MeanOfMembers
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead

P, V, NOISE = 4, 3, 0.5


class Sum(nn.Module):
    def forward(self, u, z):
        return u + z


class OfGroup(nn.Module):
    """q(u | x) of x = u + z + noise, over the members that are there."""

    def forward(self, x, mask=None):
        mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        within = 1 + NOISE**2
        precision = 1 + mask.sum(1, keepdim=True) / within
        total = torch.where(mask.unsqueeze(-1), x, 0.0).sum(1)
        return total / within / precision, precision**-0.5


class OfMember(nn.Module):
    def forward(self, x, u):
        precision = 1 + NOISE**-2
        return (x - u) / NOISE**2 / precision, torch.full_like(x, precision**-0.5)


@pytest.fixture
def linear():
    torch.set_default_dtype(torch.float64)
    return GroupedVAE(OfGroup(), OfMember(), Sum(), GaussianLikelihood(NOISE), (1, 1))


def evidence(x, mask):
    total = 0.0
    for row, there in zip(x.squeeze(-1), mask, strict=True):
        seen = row[there]
        cov = torch.ones(len(seen), len(seen)) + (1 + NOISE**2) * torch.eye(len(seen))
        if len(seen):
            total = total + dist.MultivariateNormal(torch.zeros(len(seen)), cov).log_prob(seen)
    return float(total)


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_exact_posterior_gives_the_evidence(linear, is_masked):
    x, mask = torch.randn(P, V, 1), torch.ones(P, V, dtype=torch.bool)
    args = (x,)
    if is_masked:
        mask = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]).bool()
        args = (x, mask)
    for _ in range(3):
        found = -Trace_ELBO().loss(linear.model, linear.guide, *args)
        assert found == pytest.approx(evidence(x, mask), abs=1e-9)


def test_what_stands_at_a_missing_member_does_not_matter(linear):
    x, mask = torch.randn(P, V, 1), torch.rand(P, V) < 0.5
    other = torch.where(mask.unsqueeze(-1), x, 77.0)
    losses = []
    for data in (x, other):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(linear.model, linear.guide, data, mask))
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def learnt():
    group = MeanOfMembers(MLP(6, [8], 8), NormalHead(8, 2))
    member = Chain(MLP(6 + 2, [8], 8), NormalHead(8, 3))
    return GroupedVAE(group, member, MLP(2 + 3, [8], 6), GaussianLikelihood(0.5), (2, 3))


def test_it_learns_and_draws():
    vae, x = learnt(), torch.randn(8, 1, 6) + 0.1 * torch.randn(8, 5, 6)
    mask = torch.rand(8, 5) < 0.8
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x, mask) for _ in range(200)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert Predictive(vae.model, num_samples=3)(size=(4, 7))["x"].shape == (3, 4, 7, 6)
    particles = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=2)
    particles.loss(vae.model, vae.guide, x, mask)


def test_a_masked_member_is_masked_in_both_programs():
    vae, x = learnt(), torch.randn(2, 3, 6)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()
    for program in (vae.model, vae.guide):
        site = poutine.trace(program).get_trace(x, mask).nodes["z"]
        assert torch.equal(site["mask"], mask)


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)])
def test_masks_that_do_not_fit_are_named(mask):
    with pytest.raises(ValueError, match=r"mask says which members are there: boolean, shape \(2, 3\)"):
        learnt().model(torch.randn(2, 3, 6), mask)


def test_an_encoder_without_pooling_is_named():
    vae = GroupedVAE(
        Chain(MLP(6, [8], 8), NormalHead(8, 2)),
        MLP(6, [], 2),
        nn.Identity(),
        nn.Identity(),
        (2, 3),
    )
    vae.group_encoder = Unpooled(vae.group_encoder)
    with pytest.raises(ValueError, match=r"batch shape \(2, 3\).*MeanOfMembers"):
        vae.guide(torch.randn(2, 3, 6))


class Unpooled(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, mask=None):
        return self.network(x)


def test_two_latent_dims_are_wanted():
    with pytest.raises(ValueError, match="latent_dims are two dimensions, that of u"):
        GroupedVAE(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity(), (2,))
