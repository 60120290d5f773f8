"""Sequences of different lengths with gaps: exact on a linear-Gaussian chain."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_vaes.models import Backward, DeepMarkovVAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead

SLOPE, SPREAD, NOISE, STEPS = 0.8, 0.6, 0.5, 5


class Transition(nn.Module):
    def forward(self, z):
        return SLOPE * z, torch.full_like(z, SPREAD)


class ExactContext(nn.Module):
    """The factors of the exact posterior, from the joint normal of each sequence: (B,
    T, 3)."""

    def forward(self, x, seen):
        steps = torch.arange(x.shape[1])
        ends = torch.minimum(steps[:, None], steps[None, :]) + 1
        lags = (steps[:, None] - steps[None, :]).abs()
        cov = SLOPE**lags * SPREAD**2 * (1 - SLOPE ** (2 * ends)) / (1 - SLOPE**2)

        rows = []
        for values, there in zip(x.squeeze(-1), seen, strict=True):
            noisy = cov[there][:, there] + NOISE**2 * torch.eye(int(there.sum()))
            gain = torch.linalg.solve(noisy, cov[there]).T
            mean, post = gain @ values[there], cov - gain @ cov[there]
            factors = [torch.stack([torch.zeros(()), mean[0], post[0, 0].sqrt()])]
            for t in range(1, len(values)):
                slope = post[t, t - 1] / post[t - 1, t - 1]
                scale = (post[t, t] - slope * post[t, t - 1]).sqrt()
                factors.append(torch.stack([slope, mean[t] - slope * mean[t - 1], scale]))
            rows.append(torch.stack(factors))
        return torch.stack(rows)

    def evidence(self, x, seen):
        steps = torch.arange(x.shape[1])
        ends = torch.minimum(steps[:, None], steps[None, :]) + 1
        lags = (steps[:, None] - steps[None, :]).abs()
        cov = SLOPE**lags * SPREAD**2 * (1 - SLOPE ** (2 * ends)) / (1 - SLOPE**2)
        cov = cov + NOISE**2 * torch.eye(x.shape[1])
        total = 0.0
        for values, there in zip(x.squeeze(-1), seen, strict=True):
            part = dist.MultivariateNormal(torch.zeros(int(there.sum())), cov[there][:, there])
            total = total + part.log_prob(values[there])
        return float(total)


class Combine(nn.Module):
    def forward(self, z, factors):
        slope, offset, scale = factors.unbind(-1)
        return (slope * z.squeeze(-1) + offset).unsqueeze(-1), scale.unsqueeze(-1)


@pytest.mark.parametrize("has_gaps", [False, True])
def test_the_exact_smoother_gives_the_evidence_at_every_length(has_gaps):
    torch.set_default_dtype(torch.float64)
    likelihood = GaussianLikelihood(NOISE)
    vae = DeepMarkovVAE(Transition(), nn.Identity(), likelihood, Combine(), ExactContext(), 1)
    x, lengths = torch.randn(5, STEPS, 1), torch.arange(1, 6)
    seen = None
    if has_gaps:
        seen = torch.rand(5, STEPS) < 0.6
        seen[range(5), lengths - 1] = True
    wanted = vae.context.evidence(x, vae.what_is_seen(x, lengths, seen))
    for _ in range(3):
        found = -Trace_ELBO().loss(vae.model, vae.guide, x, lengths, seen)
        assert found == pytest.approx(wanted, abs=1e-9)


def learnt():
    return DeepMarkovVAE(
        transition=Chain(MLP(2, [8], 8), NormalHead(8, 2)),
        decoder=MLP(2, [8], 3),
        likelihood=GaussianLikelihood(0.5),
        combiner=Chain(MLP(2 + 6, [8], 8), NormalHead(8, 2)),
        context=Backward(3, 6),
        latent_dim=2,
    )


def test_it_learns_and_draws_beyond_the_training_length():
    vae = learnt()
    x = torch.randn(6, 1, 3).expand(6, 4, 3) + 0.1 * torch.randn(6, 4, 3)
    lengths = torch.tensor([4, 3, 4, 2, 1, 4])
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x, lengths) for _ in range(150)]
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    assert Predictive(vae.model, num_samples=2)(size=5, steps=9)["x_9"].shape == (
        2,
        5,
        3,
    )
    assert vae.model(size=5, steps=9).shape == (5, 9, 3)


def test_padding_does_not_matter():
    vae, x, lengths = learnt(), torch.randn(3, 4, 3), torch.tensor([4, 2, 1])
    inside = torch.arange(4) < lengths.unsqueeze(-1)
    other = torch.where(inside.unsqueeze(-1), x, float("nan"))
    contexts = [vae.context(data, inside) for data in (x, other)]
    assert torch.equal(*contexts)


def test_lengths_of_training_may_differ_from_batch_to_batch():
    vae = learnt()
    for steps in (4, 6, 4):
        Trace_ELBO().loss(vae.model, vae.guide, torch.randn(5, steps, 3))
