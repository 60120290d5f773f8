"""Importance weights against the exact evidence of a linear-Gaussian model, however the programs are written."""

import logging

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import nn

from pyro_vaes.diagnostics import log_likelihood, log_weights, pareto_khat
from pyro_vaes.infer import scale_latents
from pyro_vaes.programs.pair import Pair
from pyro_vaes.theory import ProbabilisticPCA
from tests.diagnostics.linear import EVIDENCE, PPCA, D, K, X, decode, exact, model, noise, prior, wide, wide_posterior

N = len(X)


def assert_is_evidence(model, guide, data=X, evidence=EVIDENCE, particles=400, **options):
    """Within 4 standard errors per datum; those of N = 40 data, so a false alarm has probability 0.3 %."""
    result = log_likelihood(model, guide, data, particles, **options)
    z_scores = (result.log_likelihood - evidence) / result.standard_error
    assert result.log_likelihood.shape == evidence.shape
    assert z_scores.abs().max() < 4
    assert (result.standard_error < 0.1).all(), "the comparison says something"
    return result


@pytest.mark.parametrize("particles", [1, 7])
def test_every_weight_of_the_exact_posterior_is_the_evidence(particles):
    weights = log_weights(model, exact, X, particles)
    torch.testing.assert_close(weights, EVIDENCE.expand(particles, N), rtol=0, atol=1e-10)
    result = log_likelihood(model, exact, X, particles)
    torch.testing.assert_close(result.log_likelihood, EVIDENCE, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.elbo, EVIDENCE, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.ess, torch.full_like(EVIDENCE, particles))


def test_wide_guide():
    result = assert_is_evidence(model, wide)
    gap = result.log_likelihood - result.elbo
    assert (gap > 0).all() and (result.ess > 1).all() and (result.ess < 400).all()
    assert "k-hat > 0.7 for 0.0%" in str(result) and "IW-400" in repr(result)
    assert "needs 25 particles" in str(log_likelihood(model, wide, X, 5))


def test_standard_error_is_the_spread_over_seeds():
    """40 seeds, K = 50: the ratio of the two deviations has a standard error of 1/sqrt(2 * 40), less over 40 data."""
    runs = [log_likelihood(model, wide, X, 50, seed=s) for s in range(40)]
    spread = torch.stack([r.log_likelihood for r in runs]).std(0)
    stated = torch.stack([r.standard_error for r in runs]).mean(0)
    assert (spread / stated).mean().item() == pytest.approx(1, abs=4 / (80 * N) ** 0.5 + 0.02)  # 0.02: delta method


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"chunk_size": 3}, {"batch_size": 1, "chunk_size": 1000}])
def test_splits_do_not_matter(options):
    torch.testing.assert_close(log_weights(model, exact, X, 10, **options), EVIDENCE.expand(10, N), rtol=0, atol=1e-10)
    assert_is_evidence(model, wide, **options)


def test_seeds():
    first = log_weights(model, wide, X, 30, seed=3)
    assert torch.equal(first, log_weights(model, wide, X, 30, seed=3))
    assert not torch.equal(first, log_weights(model, wide, X, 30, seed=4))


def plated(fn, *, decoder=decode, **options):
    """The model or the guide under another data plate; ``fn(x)`` is None for the model."""

    def program(x):
        with pyro.plate(options.get("name", "data"), **{k: v for k, v in options.items() if k != "name"}) as index:
            rows = x[index] if len(index) < len(x) else x
            if fn is not None:
                pyro.sample("z", fn(rows))
                return
            z = pyro.sample("z", prior())
            pyro.sample("x", noise(decoder(z)), obs=rows)

    return program


def test_plate_size_and_name():
    """A mini-batch that stands for 1000 data, under another name."""
    for guide in (PPCA.posterior, wide_posterior):
        pair = [plated(f, name="rows", size=1000, subsample_size=N) for f in (None, guide)]
        assert_is_evidence(*pair) if guide is wide_posterior else torch.testing.assert_close(
            log_weights(*pair, X, 3), EVIDENCE.expand(3, N), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("batch_size", [128, 16, 11])
@pytest.mark.parametrize("size", [11, 16, 20, 39])
def test_program_that_draws_its_own_rows(size, batch_size):
    """plate("data", N, subsample_size=B) and x[index]: every datum has its turn, whatever B and the batch size are."""
    pair = [plated(f, size=N, subsample_size=size) for f in (None, PPCA.posterior)]
    torch.testing.assert_close(
        log_weights(*pair, X, 3, batch_size=batch_size), EVIDENCE.expand(3, N), rtol=0, atol=1e-10
    )
    pair = [plated(f, size=N, subsample_size=size) for f in (None, wide_posterior)]
    assert_is_evidence(*pair, batch_size=batch_size)


def test_program_that_draws_its_own_rows_of_something_else_too():
    """The rows of a tensor in the closure belong to the rows of the data."""
    shift = torch.arange(N, dtype=torch.float64).unsqueeze(-1)

    def shifted(program):
        def run(x):
            with pyro.plate("data", N, subsample_size=16) as index:
                rows = x[index] - shift[index]
                if program is exact:
                    pyro.sample("z", PPCA.posterior(rows))
                else:
                    z = pyro.sample("z", prior())
                    pyro.sample("x", noise(decode(z) + shift[index]), obs=x[index])

        return run

    weights = log_weights(shifted(model), shifted(exact), X + shift, 2)
    torch.testing.assert_close(weights, EVIDENCE.expand(2, N), rtol=0, atol=1e-10)


def test_minibatch_under_a_subsampling_plate_in_several_batches():
    def rows(x, guide):
        with pyro.plate("data", N, subsample_size=len(x)):
            if guide is not None:
                pyro.sample("z", guide(x))
                return
            pyro.sample("x", noise(decode(pyro.sample("z", prior()))), obs=x)

    weights = log_weights(lambda x: rows(x, None), lambda x: rows(x, PPCA.posterior), X, 2, batch_size=16)
    torch.testing.assert_close(weights, EVIDENCE.expand(2, N), rtol=0, atol=1e-10)


def test_scales_do_not_matter():
    reference = log_weights(model, wide, X, 20)
    for handler in (poutine.scale(scale=0.01), scale_latents(0.3)):
        assert torch.equal(log_weights(handler(model), handler(wide), X, 20), reference)
    with poutine.scale(scale=7.0):
        assert torch.equal(log_weights(model, wide, X, 20), reference)


def test_masks_matter():
    """Masked observations are left out: the evidence of those rows is that of no data."""
    seen = torch.arange(N) % 3 > 0

    def partly(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            with poutine.mask(mask=mask):
                pyro.sample("x", noise(decode(z)), obs=x)

    def guide(x, mask):
        q = PPCA.posterior(x)
        loc = torch.where(mask.unsqueeze(-1), q.mean, 0.0)
        scale_tril = torch.where(mask[:, None, None], q.scale_tril, torch.eye(K, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    weights = log_weights(partly, guide, (X, seen), 4)
    torch.testing.assert_close(weights, torch.where(seen, EVIDENCE, 0.0).expand(4, N), rtol=0, atol=1e-10)


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("broadcasts", [True, False])
def test_nested_plate(data_dim, broadcasts):
    """Features in a plate inside the data's, on either side of it: their log-densities are summed per datum."""
    inner = -3 - data_dim

    def planted(x):
        with pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", prior())
            if not broadcasts and z.dim() > 3:
                raise RuntimeError("one particle only")
            if data_dim == -1:  # z is (..., B, K) and the features come first
                z = z.unsqueeze(-3) if z.dim() == 2 else z
                loc = (PPCA.loadings[:, None] * z).sum(-1) + PPCA.mean[:, None]
                with pyro.plate("features", D, dim=inner):
                    pyro.sample("x", dist.Normal(loc, 0.3**0.5), obs=x.T)
            else:  # z is (..., B, 1, K)
                with pyro.plate("features", D, dim=inner):
                    pyro.sample("x", dist.Normal(decode(z).squeeze(-2), 0.3**0.5), obs=x)

    def guide(x):
        q = PPCA.posterior(x)
        with pyro.plate("data", len(x), dim=data_dim):
            if data_dim == -1:
                pyro.sample("z", q)
            else:
                pyro.sample("z", dist.MultivariateNormal(q.mean.unsqueeze(1), scale_tril=q.scale_tril.unsqueeze(1)))

    weights = log_weights(planted, guide, X, 3)
    torch.testing.assert_close(weights, EVIDENCE.expand(3, N), rtol=0, atol=1e-10)


def test_data_plate_is_the_outermost_one():
    """All sites in two plates: the data are those of the plate entered first, whatever its dimension."""

    def both(x, guide=False):
        with pyro.plate("data", len(x)), pyro.plate("parts", 3):
            z = pyro.sample("z", dist.Normal(x.T if guide else torch.zeros_like(x.T), 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    assert log_weights(both, lambda x: both(x, guide=True), X[:, :3], 2).shape == (2, N)


def rigid(z):
    """A decoder for exactly one leading dimension."""
    return decode(z.view(z.shape[0], -1))


class Mixing(nn.Module):
    """BatchNorm normalises dimension 1, which under particles is that of the data: as many as latents here."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(K, dtype=torch.float64)
        self.norm.running_mean += torch.arange(K)

    def forward(self, z):
        return decode(self.norm(z))


def asserting(z):
    assert z.dim() == 2
    return decode(z)


@pytest.mark.parametrize("decoder", [rigid, asserting])
def test_programs_that_do_not_broadcast(decoder, caplog):
    caplog.set_level(logging.INFO, "pyro_vaes")
    pair = plated(None, decoder=decoder, size=N), plated(PPCA.posterior, size=N)
    torch.testing.assert_close(log_weights(*pair, X, 3), EVIDENCE.expand(3, N), rtol=0, atol=1e-10)
    assert "one by one" in caplog.text
    assert_is_evidence(plated(None, decoder=decoder, size=N), plated(wide_posterior, size=N), particles=100)


def test_programs_that_broadcast_to_wrong_numbers(caplog):
    caplog.set_level(logging.INFO, "pyro_vaes")
    decoder, x = Mixing(), X[:K]
    scale = (decoder.norm.running_var + decoder.norm.eps).rsqrt()
    loc = PPCA.mean - PPCA.loadings @ (scale * decoder.norm.running_mean)
    normalised = ProbabilisticPCA(loc, PPCA.loadings * scale, PPCA.noise_var)  # the evaluated BatchNorm is linear
    weights = log_weights(plated(None, decoder=decoder, size=K), plated(normalised.posterior, size=K), x, 3)
    torch.testing.assert_close(weights, normalised.log_prob(x).expand(3, K), rtol=0, atol=1e-10)
    assert "other densities" in caplog.text


def test_guides_that_do_not_broadcast():
    """A chain q(z_1 | x) q(z_2 | z_1) whose second network takes exactly one leading dimension."""
    link = nn.Linear(1, 1).double()

    def chain(x, guide):
        with pyro.plate("data", len(x)):
            z_1 = pyro.sample("z_1", dist.Normal(x[:, :1] if guide else 0.0 * x[:, :1], 1.0).to_event(1))
            loc = link(z_1.view(z_1.shape[0], -1)) if guide else 0.5 * z_1
            z_2 = pyro.sample("z_2", dist.Normal(loc, 1.0).to_event(1))
            if not guide:
                pyro.sample("x", dist.Normal(z_1 + z_2, 1.0).to_event(1), obs=x)

    x = X[:1, :1]  # with one row the view goes through, with the particles as rows
    weights = log_weights(lambda x: chain(x, False), lambda x: chain(x, True), x, 5)
    assert weights.shape == (5, 1) and len(weights.unique()) == 5


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, K)).double()

    def forward(self, x):
        return self.net(x)


def test_nothing_changes():
    network = Network()

    def guide(x):
        pyro.module("network", network)
        scale = pyro.param("scale", torch.ones(K, dtype=torch.float64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x), scale).to_event(1))

    guide(X)
    network.net[2].eval()
    modes = [m.training for m in network.modules()]
    pair = Pair(model, guide)
    before = {n: t.clone() for n, t in pair.state().items()}
    store = {n: p.clone() for n, p in pyro.get_param_store().items()}
    rng = pyro.util.get_rng_state()
    log_likelihood(model, guide, X, 30)
    after = pyro.util.get_rng_state()
    assert torch.equal(rng["torch"], after["torch"]) and rng["random"] == after["random"]
    assert all(np.array_equal(a, b) for a, b in zip(rng["numpy"], after["numpy"], strict=True))
    assert all(torch.equal(t, before[n]) for n, t in pair.state().items())
    assert store.keys() == dict(pyro.get_param_store().items()).keys() and len(store) > 3
    assert all(torch.equal(p, store[n]) for n, p in pyro.get_param_store().items())
    assert [m.training for m in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())


def test_an_error_leaves_no_trace():
    """Whoever keeps the exception (as a notebook does) does not keep gradients switched off."""

    calls = []

    def failing(x):
        calls.append(len(x))
        if len(calls) > 12:
            raise KeyboardInterrupt
        wide(x)

    rng = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as kept:
        log_likelihood(model, failing, X, 30, batch_size=4)
    assert torch.is_grad_enabled() and torch.equal(rng, torch.get_rng_state()) and not pyro.poutine.runtime._PYRO_STACK
    del kept


def test_global_latent_is_refused():
    def global_model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), D]).to_event(1), obs=x)

    def global_guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="latent site 'w' lies outside the data plate"):
        log_weights(global_model, global_guide, X)


def test_what_the_guide_lacks_is_refused():
    def two(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
            pyro.sample("x", noise(decode(z) + y.unsqueeze(-1)), obs=x)

    with pytest.raises(ValueError, match=r"does not draw the model's latent sites \['y'\]"):
        log_weights(two, wide, X)


def test_plates_without_a_common_one_are_refused():
    def apart(x):
        with pyro.plate("a", len(x)):
            pyro.sample("z", prior())
        with pyro.plate("b", len(x)):
            pyro.sample("x", noise(x), obs=x)

    def guide(x):
        with pyro.plate("a", len(x)):
            pyro.sample("z", prior())

    with pytest.raises(ValueError, match="share no plate"):
        log_weights(apart, guide, X)


def test_data_outside_the_support_are_refused():
    def binary(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=decode(pyro.sample("z", prior()))).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"outside the support .*binarise"):
        log_likelihood(binary, wide, X.sigmoid(), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_numbers(options, message):
    for function in (log_weights, log_likelihood):
        with pytest.raises(ValueError, match=message):
            function(model, wide, X, **options)


def test_loaders_and_labels():
    """Batches of (x, label) from a loader: the model takes what it takes."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.arange(N)), batch_size=9)
    torch.testing.assert_close(log_weights(model, exact, loader, 2), EVIDENCE.expand(2, N), rtol=0, atol=1e-10)


def test_factors_count():
    def with_factor(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.deterministic("twice", 2 * z)
            pyro.factor("bonus", torch.full((len(x),), 1.5, dtype=torch.float64))
            pyro.sample("x", noise(decode(z)), obs=x)

    torch.testing.assert_close(log_weights(with_factor, exact, X, 2), EVIDENCE.expand(2, N) + 1.5, rtol=0, atol=1e-10)


def psislw_khat(log_w):
    """ArviZ's own k-hat: ``az.psislw`` on the 0.23 line, ``arviz_stats`` from 1.0 on."""
    if hasattr(az, "psislw"):
        return az.psislw(log_w)[1]
    from arviz_stats.base import array_stats

    return array_stats.psislw(-log_w, axis=-1)[1]  # it takes log-likelihoods, whose weights are their inverses


@pytest.mark.arviz
@pytest.mark.parametrize("num", [100, 400, 2500])  # where the tail's size is a whole number in both lines
def test_khat_is_that_of_arviz(num):
    rng = np.random.default_rng(0)
    columns = [stats.genpareto.rvs(k, size=num, random_state=rng) for k in (-0.3, 0.2, 0.5, 0.9, 1.5)]
    log_w = np.stack([np.log(c) for c in columns] + [3 * rng.standard_normal(num) - 400])
    np.testing.assert_allclose(pareto_khat(torch.tensor(log_w.T)), psislw_khat(log_w), rtol=1e-6, atol=1e-8)


def test_khat_finds_heavy_tails():
    """Weights with a Pareto tail of shape k, 4000 of each: standard error (1 + k)/sqrt(190) < 0.15."""
    shapes = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    log_w = -torch.rand(4000, 3, dtype=torch.float64).log() * shapes
    found = pareto_khat(log_w)
    assert ((found - shapes).abs() < 4 * (1 + shapes) / 190**0.5).all()
    torch.testing.assert_close(pareto_khat(log_w + 500), found)


def test_khat_corners():
    alike = torch.zeros(100, 1)
    assert pareto_khat(alike).item() == -torch.inf
    assert pareto_khat(alike - 500 + 1e-4 * torch.randn(100, 1)).item() == -torch.inf, "rounding is no tail"
    one = alike.clone()
    one[3] = 50.0
    assert pareto_khat(one).item() == torch.inf, "one weight holds everything"
    assert pareto_khat(torch.randn(24, 3)).isnan().all()
    broken = torch.randn(100, 3)
    broken[5, 0], broken[:, 1] = torch.nan, -torch.inf
    assert pareto_khat(broken).isnan().tolist() == [True, True, False]
    assert pareto_khat(torch.randn(30, 4)).dtype == torch.float32


def test_effective_sample_size():
    """Two values of the weights: (sum w)^2 / sum w^2 by hand."""
    flip = torch.tensor([0.0, 2.0], dtype=torch.float64)

    def two_values(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
            pyro.factor("weight", flip[z.long()])
            pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0).expand([len(x)]), obs=x)

    def coin(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))

    x = torch.zeros(6, dtype=torch.float64)
    w = log_weights(two_values, coin, x, 50).exp()
    result = log_likelihood(two_values, coin, x, 50)
    torch.testing.assert_close(result.ess, w.sum(0) ** 2 / (w**2).sum(0))
    torch.testing.assert_close(result.log_likelihood, w.mean(0).log())
