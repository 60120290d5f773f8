"""The semi-amortised guide: on a linear-Gaussian model its steps are known in closed form, and so is their limit.

There -log p(x, z) is quadratic, so noise from all sign patterns (mean 0, covariance I exactly) turns the estimate of a
step's gradient into the gradient itself.
"""

import functools
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

from pyro_vaes.data import load_data
from pyro_vaes.diagnostics import log_likelihood, to_datatree
from pyro_vaes.guides import AmortizedLaplace, AmortizedMultivariateNormal, AmortizedNormal, SemiAmortized
from pyro_vaes.infer import FreeBits_ELBO, ImportanceWeighted_ELBO, check, evaluate, fit, scale_latents
from pyro_vaes.infer import load_weights as load_pair
from pyro_vaes.infer import save_weights as save_pair
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, MultivariateNormalHead, NormalHead
from pyro_vaes.theory import ProbabilisticPCA

D, K, N, NOISE = 7, 3, 6, 0.4


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def signs(template):
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=template.shape[-1])))
    return patterns.unsqueeze(1).expand(template.shape)


EXACT = {"num_samples": 2**K, "noise": signs, "max_norm": None}


def linear_vae():
    vae = VAE(NormalHead(D, K), MLP(K, [], D), GaussianLikelihood(NOISE), K)
    layer = vae.decoder[0]
    return vae, ProbabilisticPCA(layer.bias.detach(), layer.weight.detach(), torch.tensor(NOISE**2)), torch.randn(N, D)


def mlp_vae(likelihood=None):
    return VAE(NormalHead(D, K), MLP(K, [8], D, activation=torch.nn.Tanh), likelihood or GaussianLikelihood(NOISE), K)


def semi(vae, *args, **kwargs):
    return SemiAmortized(AmortizedNormal(vae.model, vae.encoder), *args, **kwargs)


def elbo(q, ppca, x):
    """log p(x) - KL(q || p(z | x)) per datum, in closed form."""
    exact = ppca.posterior(x)
    precision, delta = exact.precision_matrix, (q.mean - exact.mean).unsqueeze(-1)
    trace = (q.variance * precision.diagonal(dim1=-2, dim2=-1)).sum(-1)
    mahalanobis = (delta.mT @ precision @ delta).flatten()
    kl = 0.5 * (trace + mahalanobis - K - q.variance.log().sum(-1) - torch.logdet(precision))
    return ppca.log_prob(x) - kl


def spread(q):
    return q.base_dist.scale


def test_each_step_raises_the_bound_of_every_datum():
    """P1: the steps go up. A sign turned round, as in the authors' code of another method, lowers it at once."""
    vae, ppca, x = linear_vae()
    with torch.no_grad():
        bounds = torch.stack([elbo(semi(vae, t, 0.02, **EXACT).posterior(x), ppca, x) for t in range(9)])
    assert (bounds.diff(dim=0) > 1e-6).all()


def test_the_steps_end_at_the_best_diagonal_normal():
    """Its mean is the posterior's, its precisions are the diagonal of the posterior's precision matrix."""
    vae, ppca, x = linear_vae()
    with torch.no_grad():
        q = semi(vae, 120, 0.15, **EXACT).posterior(x)
    exact = ppca.posterior(x)
    best = exact.precision_matrix.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(q.mean, exact.mean, rtol=0, atol=1e-7)
    assert torch.allclose(q.variance, 1 / best, rtol=0, atol=1e-7)
    gap = 0.5 * (best.log().sum(-1) - torch.logdet(exact.precision_matrix))
    assert torch.allclose(ppca.log_prob(x) - elbo(q, ppca, x), gap, rtol=0, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("max_norm", [None, 8.0])
def test_the_steps_are_those_of_the_closed_form(momentum, max_norm):
    """lambda' = lambda + lr v, v' = momentum v + g, g = (P (m - loc), 1 - P_ii scale²), no longer than the limit."""
    vae, ppca, x = linear_vae()
    exact, lr = ppca.posterior(x), 0.05
    precision, start = exact.precision_matrix, vae.encoder(x)
    loc, log_scale, velocity = start.mean, spread(start).log(), 0.0
    lengths = []
    for _ in range(4):
        up = (precision @ (exact.mean - loc).unsqueeze(-1)).squeeze(-1)
        slope = torch.cat([up, 1 - precision.diagonal(dim1=-2, dim2=-1) * (2 * log_scale).exp()], -1)
        lengths.append(slope.norm(dim=-1, keepdim=True))
        slope = slope if max_norm is None else torch.where(lengths[-1] > 8, 8 * slope / lengths[-1], slope)
        velocity = momentum * velocity + slope
        loc, log_scale = loc + lr * velocity[:, :K], log_scale + lr * velocity[:, K:]
    assert torch.cat(lengths).min() < 8 < torch.cat(lengths).max(), "some are shortened, some are not"
    q = semi(vae, 4, lr, momentum=momentum, **{**EXACT, "max_norm": max_norm}).posterior(x)
    assert torch.allclose(q.mean, loc, rtol=0, atol=1e-12)
    assert torch.allclose(spread(q).log(), log_scale, rtol=0, atol=1e-12)


def test_a_step_is_the_gradient_of_the_estimated_bound():
    """With one draw of noise, by finite differences of log p(x, loc + scale eps) + sum log scale for each number."""
    vae, x, eps = mlp_vae(BernoulliLikelihood()), torch.bernoulli(torch.full((N, D), 0.4)), torch.randn(N, K)
    start = vae.encoder(x)
    guide = semi(vae, 1, 0.1, noise=lambda like: eps.expand(like.shape), max_norm=None)
    first = torch.cat([start.mean, spread(start).log()], -1).detach()

    def bound(point):
        loc, log_scale = point.chunk(2, -1)
        z = loc + log_scale.exp() * eps
        log_p = vae.likelihood(vae.decoder(z)).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        return log_p + log_scale.sum(-1)

    with torch.no_grad():
        q = guide.posterior(x)
        moved = torch.cat([q.mean, spread(q).log()], -1)
        for i in range(2 * K):
            step = 1e-6 * torch.eye(2 * K)[i]
            slope = (bound(first + step) - bound(first - step)) / 2e-6
            assert torch.allclose((moved - first)[:, i], 0.1 * slope, rtol=1e-6, atol=1e-8)


def test_each_step_draws_its_own_noise():
    vae, x, seen = mlp_vae(), torch.randn(N, D), []

    def spy(like):
        seen.append(torch.randn_like(like))
        return seen[-1]

    semi(vae, 3, num_samples=2, noise=spy).posterior(x)
    assert [s.shape for s in seen] == [(2, N, K)] * 3
    assert not torch.equal(seen[0], seen[1])


def test_without_steps_it_is_the_base_guide():
    vae, _, x = linear_vae()
    scale = torch.rand(N, K) + 0.1
    assert not torch.equal(scale.log().exp(), scale)

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x[:, :K], scale

    base = AmortizedNormal(vae.model, Pair())
    guide = SemiAmortized(base, 0)
    assert torch.equal(guide.posterior(x).mean, base.posterior(x).mean)
    assert torch.equal(spread(guide.posterior(x)), spread(base.posterior(x)))
    losses = []
    for g in (base, guide):
        pyro.set_rng_seed(2)
        losses.append(Trace_ELBO().loss(vae.model, g, x))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("max_norm", [None, 3.0])
def test_gradients_through_the_steps_agree_with_finite_differences(max_norm):
    vae = mlp_vae(GaussianLikelihood(NOISE, learn_scale=True))
    x = torch.randn(3, D)
    options = {"steps": 3, "lr": 0.02, "momentum": 0.5, "max_norm": max_norm}
    guide, first_order = semi(vae, **options), semi(vae, second_order=False, **options)

    def loss(q=guide):
        pyro.set_rng_seed(5)
        return Trace_ELBO().differentiable_loss(vae.model, q, x)

    leaves = {
        "decoder's first weights": vae.decoder[0].weight,
        "decoder's last weights": vae.decoder[2].weight,
        "noise": vae.likelihood._scale.raw,
        "encoder's mean": vae.encoder.loc.weight,
        "encoder's scale": vae.encoder.raw_scale.weight,
    }
    gradients = torch.autograd.grad(loss(), list(leaves.values()))
    past = torch.autograd.grad(loss(first_order), list(leaves.values()))
    assert torch.equal(loss(), loss(first_order)), "the same posterior, other gradients"
    for (name, leaf), gradient, other in zip(leaves.items(), gradients, past, strict=True):
        direction, eps = torch.randn_like(leaf), 1e-6
        with torch.no_grad():
            leaf += eps * direction
            above = loss()
            leaf -= 2 * eps * direction
            below = loss()
            leaf += eps * direction
        wanted = (above - below) / (2 * eps)
        assert torch.isclose((gradient * direction).sum(), wanted, rtol=1e-6), name
        assert not torch.isclose((other * direction).sum(), wanted, rtol=1e-3), f"{name} sees the steps"


def test_first_order_hands_the_refined_gradient_to_the_encoder():
    vae, x = mlp_vae(), torch.randn(N, D)
    q = semi(vae, 3, second_order=False).posterior(x)
    (gradient,) = torch.autograd.grad(q.mean.sum(), vae.encoder.loc.bias, retain_graph=True)
    assert torch.allclose(gradient, torch.full((K,), float(N)))
    assert all(g is None for g in torch.autograd.grad(q.mean.sum(), list(vae.decoder.parameters()), allow_unused=True))


def test_a_frozen_encoder_leaves_the_models_gradient():
    """Test-time steps from a fixed start still let the decoder see them."""
    vae, x = mlp_vae(), torch.randn(N, D)
    weight = vae.decoder[0].weight

    def gradient():
        pyro.set_rng_seed(1)
        return torch.autograd.grad(semi(vae, 2).posterior(x).mean.square().sum(), weight)[0]

    wanted = gradient()
    vae.encoder.requires_grad_(False)
    assert torch.equal(gradient(), wanted) and wanted.abs().max() > 0


@pytest.mark.parametrize("second_order", [True, False])
def test_evaluation_gives_the_same_posterior_and_touches_nothing(second_order):
    vae, x = mlp_vae(), torch.randn(N, D)
    guide = semi(vae, 3, second_order=second_order)
    before = [p.clone() for p in vae.parameters()]
    pyro.set_rng_seed(1)
    on = guide.posterior(x)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        off = guide.posterior(x)
    assert on.mean.requires_grad and not off.mean.requires_grad
    assert torch.equal(on.mean, off.mean) and torch.equal(spread(on), spread(off))
    pyro.set_rng_seed(1)
    assert not torch.equal(semi(vae, 0).posterior(x).mean, off.mean)
    assert math.isfinite(evaluate(vae.model, guide, x, seed=0))
    log_likelihood(vae.model, guide, x, 5)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("noise", [signs, None])
def test_a_datum_sees_neither_its_batch_mates_nor_their_number(noise):
    """The bound is summed, not averaged: the authors of the wrong sign also had steps of 1 / B."""
    vae, x = mlp_vae(), torch.randn(N, D)
    guide = semi(vae, 3, 0.05, noise=noise, num_samples=2**K).eval()
    together = guide.posterior(x)
    for i in range(N):
        alone = guide.posterior(x[i : i + 1])
        assert torch.allclose(alone.mean[0], together.mean[i], rtol=0, atol=1e-12)
        assert torch.allclose(spread(alone)[0], spread(together)[i], rtol=0, atol=1e-12)


def test_inference_mode_gives_the_same_posterior():
    """Also where the guide, and the batch, are first met in it; training goes on afterwards."""
    vae, _, x = linear_vae()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(2.0, 2.0).expand([K]).to_event(1))
            pyro.sample("x", dist.Normal(vae.decoder(z), NOISE).to_event(1), obs=x)

    base = AmortizedNormal(model, vae.encoder)
    with torch.no_grad():
        wanted = SemiAmortized(base, 3).eval().posterior(x).mean
    guide = SemiAmortized(AmortizedNormal(model, vae.encoder), 3).eval()
    with torch.inference_mode():
        for batch in (x, x.clone()):
            assert torch.equal(guide.posterior(batch).mean, wanted)
            assert math.isfinite(Trace_ELBO().loss(model, guide, batch))
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    assert vae.encoder.loc.weight.grad is not None


def test_in_evaluation_mode_the_posterior_is_a_function_of_the_datum(monkeypatch):
    """So many draws share one climb; were it random, each draw would have to make its own."""
    vae, x = mlp_vae(), torch.randn(N, D)
    guide = semi(vae, 3)
    assert not torch.equal(guide.posterior(x).mean, guide.posterior(x).mean)
    guide.eval()
    state = torch.get_rng_state()
    once = guide.posterior(x).mean
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(guide.posterior(x).mean, once)
    climbs, climb = [], SemiAmortized._climb
    monkeypatch.setattr(SemiAmortized, "_climb", lambda *args: climbs.append(1) or climb(*args))
    log_likelihood(vae.model, guide, x, 500)
    assert len(climbs) < 20


def test_a_datum_whose_density_overflows_stays_where_it_is():
    vae, _, x = linear_vae()
    x[0] = 1e308  # times a weight over the noise's variance is infinite
    with torch.no_grad():
        vae.encoder.loc.weight.zero_()
        q = semi(vae, 2).posterior(x)
        start = vae.encoder(x)
    assert torch.equal(q.mean[0], start.mean[0]) and q.mean.isfinite().all()
    assert not torch.isclose(q.mean[1:], start.mean[1:]).any()


# any program


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).to_event(1), obs=x)


def test_a_constrained_latent_ends_at_its_best_normal():
    """u = log rate: the bound (3 + x) m - 2 E exp(m + s eps) + log s is largest where its two slopes vanish.

    With normal noise that is at s² = 1 / (3 + x), m = log((3 + x) / 2) - s² / 2; the 12 quantiles that stand for it
    here, made to have variance 1, have thinner tails and move it a little.
    """
    x = torch.tensor([[0.0], [2.0], [9.0]])
    levels = torch.special.ndtri((torch.arange(12.0) + 0.5) / 12)
    levels = (levels / levels.square().mean().sqrt())[:, None, None]
    head = NormalHead(1, 1)
    torch.nn.init.zeros_(head.loc.weight)
    base = AmortizedNormal(gamma_poisson, head)
    guide = SemiAmortized(base, 60, 0.1, num_samples=12, noise=lambda like: levels.expand(like.shape))
    with torch.no_grad():
        q = guide.posterior(x)
    weight = 2 * (q.mean + q.stddev * levels).exp()
    assert torch.allclose(weight.mean(0), 3 + x, rtol=0, atol=1e-3)
    assert torch.allclose((levels * weight).mean(0), 1 / q.stddev, rtol=0, atol=1e-3)
    assert torch.allclose(q.variance, 1 / (3 + x), rtol=6e-2)
    assert torch.allclose(q.mean, ((3 + x) / 2).log() - 0.5 / (3 + x), rtol=0, atol=1e-2)
    assert (guide(x)["rate"] > 0).all()


def test_several_sites_are_one_vector_with_a_site_of_its_own_each():
    vae, _, x = linear_vae()
    w, b = vae.decoder[0].weight, vae.decoder[0].bias

    def model(x):
        with pyro.plate("rows", len(x)):
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            rest = pyro.sample("rest", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = torch.cat([first.unsqueeze(-1), rest], -1)
            pyro.sample("x", dist.Normal(z @ w.T + b, NOISE).to_event(1), obs=x)

    guide = SemiAmortized(AmortizedNormal(model, vae.encoder), 3, **EXACT)
    same = semi(vae, 3, **EXACT).posterior(x)
    assert torch.allclose(guide.posterior(x).mean, same.mean, rtol=0, atol=1e-12)
    trace = poutine.trace(guide).get_trace(x)
    assert torch.allclose(trace.nodes["first"]["fn"].mean, same.mean[:, 0])
    assert torch.allclose(trace.nodes["rest"]["fn"].mean, same.mean[:, 1:])
    assert check(model, guide, x, loss=TraceMeanField_ELBO()).ok


@pytest.mark.parametrize("where", ["around", "wrapped", "context"])
def test_a_kl_weight_flattens_the_likelihood(where):
    """With normal noise, beta times the KL is beta times the noise variance: the steps of two models are the same."""
    beta, x = 2.5, torch.randn(N, D)
    vae, flat = mlp_vae(), mlp_vae(GaussianLikelihood(NOISE * beta**0.5))
    flat.decoder, flat.encoder = vae.decoder, vae.encoder
    guide, handler = semi(vae, 3, **EXACT), scale_latents(beta)
    if where == "context":
        with handler:
            trace = poutine.trace(guide).get_trace(x)
    elif where == "wrapped":
        trace = poutine.trace(handler(guide)).get_trace(x)
    else:
        trace = poutine.trace(poutine.scale(handler(guide), scale=0.1)).get_trace(x)
    q, wanted = trace.nodes["z"]["fn"], semi(flat, 3, **EXACT).posterior(x)
    assert torch.allclose(q.mean, wanted.mean, rtol=0, atol=1e-12)
    assert torch.allclose(q.variance, wanted.variance, rtol=0, atol=1e-12)
    assert not torch.allclose(q.mean, guide.posterior(x).mean, rtol=0, atol=1e-3)


def test_plates_that_subsample():
    vae, _, _ = linear_vae()
    w, b, x = vae.decoder[0].weight, vae.decoder[0].bias, torch.randn(20, D)

    def own_rows(x):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, NOISE).to_event(1), obs=x[rows])

    def minibatch(x):
        with pyro.plate("data", 20, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, NOISE).to_event(1), obs=x)

    wanted = semi(vae, 3, **EXACT).posterior(x).mean
    guide = SemiAmortized(AmortizedNormal(own_rows, vae.encoder), 3, **EXACT)
    trace = poutine.trace(guide).get_trace(x)
    assert torch.allclose(trace.nodes["z"]["fn"].mean, wanted[trace.nodes["data"]["value"]], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="which: pass rows"):
        guide.posterior(x)
    assert torch.allclose(guide.posterior(x, rows=torch.arange(5)).mean, wanted[:5], rtol=0, atol=1e-12)
    guide = SemiAmortized(AmortizedNormal(minibatch, vae.encoder), 3, **EXACT)
    assert torch.allclose(guide.posterior(x[5:12]).mean, wanted[5:12], rtol=0, atol=1e-12)
    assert math.isfinite(Trace_ELBO().loss(minibatch, guide, x[5:12]))


def test_a_plate_of_pixels_inside_the_plate_of_data():
    vae, _, x = linear_vae()
    w, b = vae.decoder[0].weight, vae.decoder[0].bias

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))  # (N, 1, K)
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("x", dist.Normal((z @ w.T + b).squeeze(-2), NOISE), obs=x)

    guide = SemiAmortized(AmortizedNormal(model, vae.encoder), 3, **EXACT)
    assert torch.allclose(guide.posterior(x).mean, semi(vae, 3, **EXACT).posterior(x).mean, rtol=0, atol=1e-12)
    assert guide(x)["z"].shape == (N, 1, K)


# how it is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("second_order", [True, False])
def test_svi_fit_evaluation_and_the_datatree(dtype, second_order, tmp_path):
    torch.set_default_dtype(dtype)
    vae, x = mlp_vae(GaussianLikelihood(NOISE, learn_scale=True)), torch.randn(12, D)
    guide = semi(vae, 2, second_order=second_order)
    q = guide.posterior(x)
    assert q.mean.dtype == q.variance.dtype == dtype
    svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    history = fit(vae.model, guide, x, valid=x, epochs=2, batch_size=5, seed=0, progress=False)
    assert history.skipped == 0
    value = evaluate(vae.model, guide, x, seed=0)
    save_pair(tmp_path / "pair", vae.model, guide)
    other = mlp_vae(GaussianLikelihood(NOISE, learn_scale=True))
    copy = semi(other, 2, second_order=second_order)
    copy(x)
    load_pair(tmp_path / "pair", other.model, copy)
    assert evaluate(other.model, copy, x, seed=0) == value
    assert to_datatree(vae.model, guide, x, num_samples=5)["posterior"]["z"].shape == (1, 5, 12, K)
    assert Predictive(vae.model, guide=guide, num_samples=2)(x)["z"].shape[0] == 2
    for bound in (TraceMeanField_ELBO(), ImportanceWeighted_ELBO(4), FreeBits_ELBO(0.1)):
        assert math.isfinite(bound.loss(vae.model, guide, x))


def test_refinement_of_a_trained_model_raises_its_bound():
    """As a drop-in at test time: digits, 4 epochs; the decoder stays as it is.

    100 data, 100 draws each from both posteriors; the mean gain exceeds 5 standard errors over the data.
    """
    torch.set_default_dtype(torch.float32)
    x = load_data("digits", split=(0, 0)).train[:].float()
    encoder = Chain(MLP(64, [32], 32, activate_output=True), NormalHead(32, 4))
    vae = VAE(encoder, MLP(4, [32], 64), GaussianLikelihood(0.3, learn_scale=True), 4)
    fit(vae.model, vae.guide, x, epochs=4, seed=0, progress=False, optim=functools.partial(torch.optim.Adam, lr=3e-3))
    before = [p.clone() for p in vae.parameters()]
    plain = log_likelihood(vae.model, vae.guide, x[:100], 100, seed=0)
    refined = log_likelihood(vae.model, semi(vae, 10, num_samples=8), x[:100], 100, seed=0)
    gain = refined.elbo - plain.elbo
    assert gain.mean() > 5 * gain.std() / 10
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_a_refined_guide_may_be_another_guides_start():
    vae, _, x = linear_vae()
    guide = semi(vae, 2, **EXACT)
    laplace = AmortizedLaplace(vae.model, start=guide, steps=0)
    assert torch.equal(laplace.posterior(x).mean, guide.posterior(x).mean)


def test_refusals_name_the_cure():
    vae, _, x = linear_vae()
    base = AmortizedNormal(vae.model, vae.encoder)
    with pytest.raises(ValueError, match=r"SemiAmortized\(AmortizedNormal\(vae.model, vae.encoder\)\)"):
        SemiAmortized(vae.encoder)
    with pytest.raises(ValueError, match="starts from an AmortizedNormal, but got AmortizedMultivariateNormal"):
        SemiAmortized(AmortizedMultivariateNormal(vae.model, MultivariateNormalHead(D, K)))
    with pytest.raises(ValueError, match="diagonal normal"):
        SemiAmortized(AmortizedNormal(vae.model, MultivariateNormalHead(D, K)))(x)
    for kwargs, message in (
        ({"steps": -1}, "number of gradient steps"),
        ({"lr": 0.0}, "must be positive"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"max_norm": -5.0}, "positive or None"),
        ({"num_samples": 0}, "1 or more"),
        ({"noise": 0.3}, "lambda template"),
    ):
        with pytest.raises(ValueError, match=message):
            SemiAmortized(base, **kwargs)

    def outside(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        vae.model(x)

    with pytest.raises(ValueError, match="outside the data plate"):
        SemiAmortized(AmortizedNormal(outside, NormalHead(D, K)))(x)
