"""P9: bounds with several particles on networks that take rows and features alone equal the one-by-one computation."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vaes.guides import AmortizedMixture
from pyro_vaes.infer import DReG_ELBO, ImportanceWeighted_ELBO, StratifiedMixture_ELBO
from pyro_vaes.nn import MLP, Chain, NormalHead, WeightHead
from pyro_vaes.programs import Findings, broadcasts, find_data_plate

B, D, K = 8, 5, 3  # as many rows as features would hide a misread dimension: D = 8 is tried too
X = torch.randn(B, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Pair(nn.Module):
    """A decoder with batch norm, which refuses or misreads a leading dimension."""

    def __init__(self, features, *, hidden=6, middle=None):
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(hidden) if middle is None else middle
        self.decoder = nn.Sequential(nn.Linear(2, hidden), middle, nn.ReLU(), nn.Linear(hidden, features)).double()
        self.encoder = NormalHead(features, 2).double()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", 3 * len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", 3 * len(x), subsample_size=len(x)):
            pyro.sample("z", self.encoder(x))


def by_hand(model, guide, x):
    """-L_K of 3 B data from K passes of Pyro's own handlers, one for each particle."""
    log_w = []
    for _ in range(K):
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
        density = {}
        for label, trace in (("p", model_trace), ("q", guide_trace)):
            sites = [s for n, s in trace.nodes.items() if s["type"] == "sample" and n != "data"]
            density[label] = sum(s["fn"].log_prob(s["value"]) for s in sites)
        log_w.append(density["p"] - density["q"])
    return -3 * (torch.stack(log_w).logsumexp(0) - math.log(K)).sum()


def gradients(module, loss):
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hidden", [6, B])
def test_p9_importance_weighted(training, hidden):
    pair, x = Pair(D, hidden=hidden).train(training), X[:, :D]
    start = {name: t.clone() for name, t in pair.state_dict().items()}
    pyro.set_rng_seed(1)
    loss = ImportanceWeighted_ELBO(K).differentiable_loss(pair.model, pair.guide, x)
    found, buffers = gradients(pair, loss), {n: b.clone() for n, b in pair.named_buffers()}

    pair.load_state_dict(start)
    pyro.set_rng_seed(1)
    wanted = by_hand(pair.model, pair.guide, x)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-9)
    for name, gradient in gradients(pair, wanted).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)
    for name, buffer in pair.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)


@pytest.mark.parametrize("training", [True, False])
def test_p9_doubly_reparameterised(training):
    """Its value, and the decoder's gradients, are those of the importance-weighted bound draw by draw."""
    pair, x = Pair(D).train(training), X[:, :D]
    results = []
    for bound in (DReG_ELBO(K), ImportanceWeighted_ELBO(K)):
        pyro.set_rng_seed(1)
        loss = bound.differentiable_loss(pair.model, pair.guide, x)
        results.append((loss.item(), gradients(pair.decoder, loss)))
    (value, found), (wanted, expected) = results
    assert value == pytest.approx(wanted, abs=1e-9)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def test_p9_doubly_reparameterised_encoder_one_by_one_and_together():
    """Where the decoder broadcasts, K passes have the gradients of one."""
    pair, x = Pair(D, middle=nn.Identity()), X[:, :D]
    plate = find_data_plate(pair.model, pair.guide, (x,))
    assert broadcasts(pair.model, pair.guide, (x,), plate)

    class OneByOne(DReG_ELBO):
        def _plate(self, model, guide, args):
            return dataclasses.replace(super()._plate(model, guide, args), broadcasts=False)

    results = []
    draws = torch.randn(K, B, 2, dtype=torch.float64)
    for bound in (DReG_ELBO(K), OneByOne(K)):
        given = Fixed(draws)
        loss = bound.differentiable_loss(pair.model, given(pair), x)
        results.append((loss.item(), gradients(pair, loss)))
    (value, found), (wanted, expected) = results
    assert value == pytest.approx(wanted, abs=1e-9)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


class Fixed:
    """A guide whose k-th draw has given noise, whether draws come together or in turn."""

    def __init__(self, noise):
        self.noise, self.turn = noise, 0

    def __call__(self, pair):
        def guide(x):
            q = pair.encoder(x)
            with pyro.plate("data", 3 * len(x), subsample_size=len(x)):
                pyro.sample("z", _Given(q.base_dist.loc, q.base_dist.scale, self))

        return guide


class _Given(dist.Normal):
    """A normal over vectors that takes its noise from a list."""

    def __init__(self, loc, scale, source):
        super().__init__(loc, scale)
        self.source = source

    @property
    def batch_shape(self):
        return self.loc.shape[:-1]

    @property
    def event_shape(self):
        return self.loc.shape[-1:]

    def expand(self, batch_shape, _instance=None):
        return _Given(self.loc.expand(*batch_shape, 2), self.scale.expand(*batch_shape, 2), self.source)

    def rsample(self, sample_shape=()):
        if self.loc.dim() == 3:
            noise = self.source.noise[: len(self.loc)]
        else:
            noise = self.source.noise[self.source.turn % K]
            self.source.turn += 1
        return self.loc + self.scale * noise

    def log_prob(self, value):
        return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)


@pytest.mark.parametrize("training", [True, False])
def test_p9_stratified(training):
    pair, x = Pair(D).train(training), X[:, :D]
    components = [NormalHead(D, 2).double() for _ in range(3)]
    weights = [Chain(MLP(D, [], 3), WeightHead(3)).double() for _ in range(2)]
    guide = AmortizedMixture(pair.model, components, weights)
    losses = []
    for vectorize in (True, False):
        pyro.set_rng_seed(1)
        bound = StratifiedMixture_ELBO(vectorize_components=vectorize)
        losses.append(bound.differentiable_loss(pair.model, guide, x).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_dropout_still_runs_in_one_pass():
    pair, x = Pair(D, middle=nn.Dropout(0.5)), X[:, :D]
    plate = find_data_plate(pair.model, pair.guide, (x,))
    assert broadcasts(pair.model, pair.guide, (x,), plate) and pair.decoder[1].training


def test_the_trial_leaves_no_trace():
    pair, x = Pair(D), X[:, :D]
    before = {name: t.clone() for name, t in pair.state_dict().items()}
    generator = torch.get_rng_state()
    plate = Findings().of((pair,), (x,), lambda: find_data_plate(pair.model, pair.guide, (x,)))
    assert not Findings().of((pair,), (x,), lambda: broadcasts(pair.model, pair.guide, (x,), plate))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(t, before[name]) for name, t in pair.decoder.named_buffers("decoder"))
