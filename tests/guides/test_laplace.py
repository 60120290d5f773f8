"""The amortised Laplace guide: identities V1 to V15 of the variational Laplace autoencoder, and any program at all.

On a linear decoder everything is exact, so most of these hold to rounding in float64.
"""

import copy
import functools
import gc
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_vaes.data import load_data
from pyro_vaes.diagnostics import log_likelihood, to_datatree
from pyro_vaes.distributions import DiscretizedLogisticMixture, PrecisionNormal
from pyro_vaes.guides import AmortizedLaplace, AmortizedNormal, decaying, register_fisher
from pyro_vaes.guides.given import Given
from pyro_vaes.guides.joint import Joint
from pyro_vaes.guides.laplace import linear_region
from pyro_vaes.guides.laplace.eigenvalues import FloorEigenvalues
from pyro_vaes.guides.laplace.fisher import find_fisher
from pyro_vaes.guides.laplace.linearise import Lineariser
from pyro_vaes.guides.laplace.relu_chain import find_chain, record_chains
from pyro_vaes.infer import (
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    StickingTheLanding_ELBO,
    check,
    evaluate,
    fit,
    scale_latents,
)
from pyro_vaes.models import VAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    NormalHead,
)
from pyro_vaes.theory import ProbabilisticPCA, probabilistic_pca

D, K, N = 7, 3, 6
full_step = functools.partial(decaying, first=1.0)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def gaussian_vae(hidden=(8, 9), scale=0.4, **kwargs):
    return VAE(NormalHead(D, K), MLP(K, list(hidden), D), GaussianLikelihood(scale, **kwargs), K)


def bernoulli_vae(hidden=(8, 9)):
    return VAE(NormalHead(D, K), MLP(K, list(hidden), D), BernoulliLikelihood(), K)


def linear_vae(scale=0.4):
    vae = gaussian_vae((), scale)
    layer = vae.decoder[0]
    return vae, ProbabilisticPCA(layer.bias.detach(), layer.weight.detach(), torch.tensor(scale**2))


def real(n=N):
    return torch.randn(n, D)


def binary(n=N):
    return torch.bernoulli(torch.full((n, D), 0.4))


def joint_of(guide, *args):
    return Joint(guide._model[0], guide.latents(*args), Given(args, {}))


def jacobian(net, z):
    return torch.func.vmap(torch.func.jacrev(net))(z)


def prepared(vae, x, z, **kwargs):
    """The hand-written path at z."""
    joint = joint_of(AmortizedLaplace(vae.model, vae.encoder), x)
    with record_chains() as calls:
        sites = joint.sites(z)
    chain = find_chain(calls, sites, z)
    assert not isinstance(chain, str), chain
    return chain.prepare(**kwargs)


def elbo(vae, guide, x):
    """A single-sample ELBO per datum."""
    trace = poutine.trace(guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=trace)).get_trace(x)
    for t in (trace, model):
        t.compute_log_prob()
    q = sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample")
    return sum(s["log_prob"] for s in model.nodes.values() if s["type"] == "sample") - q


@pytest.mark.parametrize("hidden", [(), (8,), (8, 9)])
def test_V1_three_ways_to_the_jacobian_agree(hidden):
    vae, x, z = gaussian_vae(hidden), real(), torch.randn(N, K)
    w = jacobian(vae.decoder, z)  # (N, D, K)
    wanted = w.mT @ w / 0.4**2 + torch.eye(K)
    generic = Lineariser(joint_of(AmortizedLaplace(vae.model, vae.encoder), x))(z)
    by_hand = prepared(vae, x, z)(z)
    score = (w.mT @ (x - vae.decoder(z)).unsqueeze(-1)).squeeze(-1) / 0.4**2 - z
    for local in (generic, by_hand):
        assert torch.allclose(local.precision, wanted, rtol=0, atol=1e-12)
        assert torch.allclose(local.score, score, rtol=0, atol=1e-12)
    shift = 1e-7 * torch.randn(N, K)  # within the region the network is linear
    linear = (w @ (z + shift).unsqueeze(-1)).squeeze(-1) + vae.decoder(z) - (w @ z.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(vae.decoder(z + shift), linear, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_V2_a_full_step_is_exact_on_a_linear_decoder(path):
    vae, ppca = linear_vae()
    x = real()
    guide = AmortizedLaplace(vae.model, nn.Linear(D, K), steps=1, schedule=full_step, path=path)
    exact, q = ppca.posterior(x), guide.posterior(x)
    assert torch.allclose(q.mean, exact.mean, rtol=0, atol=1e-12)
    assert torch.allclose(q.covariance_matrix, exact.covariance_matrix, rtol=0, atol=1e-12)
    for _ in range(5):
        assert torch.allclose(elbo(vae, guide, x), ppca.log_prob(x), rtol=0, atol=1e-11)
    assert torch.allclose(log_likelihood(vae.model, guide, x, 1).log_likelihood, ppca.log_prob(x), atol=1e-10)


@pytest.mark.parametrize(("first", "factors"), [(0.5, [1, 0.5, 0.375, 0.2734375, 0.19638061]), (1.0, [1, 0, 0, 0, 0])])
def test_V3_the_distance_to_the_mode_shrinks_by_known_factors(first, factors):
    vae, ppca = linear_vae()
    x, start = real(), nn.Linear(D, K)
    mode, schedule = ppca.posterior(x).mean, functools.partial(decaying, first=first)
    for steps, factor in zip([0, 1, 2, 4, 8], factors, strict=True):
        mean = AmortizedLaplace(vae.model, start, steps, schedule=schedule).posterior(x).mean
        assert torch.allclose(mean - mode, factor * (start(x) - mode), rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [0, 4])
def test_V4_the_gap_is_the_mahalanobis_distance_to_the_mode(steps):
    vae, ppca = linear_vae()
    x, start = real(), nn.Linear(D, K)
    q, exact = AmortizedLaplace(vae.model, start, steps).posterior(x), ppca.posterior(x)
    precision = exact.precision_matrix
    delta = (q.mean - exact.mean).unsqueeze(-1)
    gap = 0.5 * (delta.mT @ precision @ delta).flatten()
    decoder, noise = vae.decoder[0], 0.4**2
    spread = (decoder.weight @ q.covariance_matrix @ decoder.weight.T).diagonal(dim1=-2, dim2=-1).sum(-1)
    error = (x - vae.decoder(q.mean)).square().sum(-1) + spread
    expected = -0.5 * (D * math.log(2 * math.pi * noise) + error / noise)
    expected = expected - kl_divergence(q, dist.Normal(torch.zeros(N, K), 1.0).to_event(1))
    assert torch.allclose(ppca.log_prob(x) - expected, gap, rtol=0, atol=1e-11)
    if steps == 4:
        initial = (start(x) - exact.mean).unsqueeze(-1)
        first = 0.5 * (initial.mT @ precision @ initial).flatten()
        assert torch.allclose(gap / first, torch.full((N,), 0.0748), atol=1e-4)


@pytest.mark.parametrize("jitter", [0.0, 1e-5])
def test_V5_bernoulli_curvature_is_the_hessian_and_the_step_is_newtons(jitter):
    """To rounding; with the authors' jitter up to what it adds to the curvature, which changes the step as it must."""
    vae, x = bernoulli_vae(), binary()
    start = nn.Linear(D, K)
    z = start(x).detach()

    def energy(z, x):
        logits = vae.decoder(z)
        return nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum") + 0.5 * z.square().sum()

    hessian = torch.func.vmap(torch.func.hessian(energy))(z, x)
    gradient = torch.func.vmap(torch.func.grad(energy))(z, x)
    at_start = AmortizedLaplace(vae.model, start, 0, s_jitter=jitter).posterior(x)
    difference = (at_start.precision_matrix - hessian).abs().max()
    w = jacobian(vae.decoder, z)
    assert difference <= (jitter * (w.mT @ w).abs().max() + 3e-6 * jitter if jitter else 1e-10)
    assert jitter == 0 or difference > 0
    stepped = AmortizedLaplace(vae.model, start, 1, schedule=full_step, s_jitter=jitter).posterior(x).mean
    step = -torch.linalg.solve(hessian, gradient.unsqueeze(-1))
    extra = at_start.precision_matrix - hessian
    shorter = torch.linalg.solve(at_start.precision_matrix, extra @ step)  # of (H + extra)⁻¹ s against H⁻¹ s
    assert torch.allclose(stepped, z + (step - shorter).squeeze(-1), rtol=0, atol=1e-10)
    assert shorter.abs().max() <= (20 * jitter + 1e-10) * step.abs().max()


def test_V6_a_mode_stays_where_it_is():
    vae, x = bernoulli_vae(), binary()
    with torch.no_grad():
        mode = (
            AmortizedLaplace(vae.model, nn.Linear(D, K), 40, schedule=lambda t: 0.5 if t < 30 else 1.0)
            .posterior(x)
            .mean
        )

    class Mode(nn.Module):
        def forward(self, x):
            return mode

    guide = AmortizedLaplace(vae.model, Mode(), 3)
    assert Lineariser(joint_of(guide, x))(mode).score.abs().max() < 1e-9
    assert torch.allclose(guide.posterior(x).mean, mode, rtol=0, atol=1e-9)


def test_V7_without_steps_the_mean_is_the_encoders():
    vae, x = gaussian_vae(), real()
    q = AmortizedLaplace(vae.model, vae.encoder, steps=0).posterior(x)
    assert torch.equal(q.mean, vae.encoder(x).mean)
    w = jacobian(vae.decoder, q.mean.detach())
    assert torch.allclose(q.precision_matrix, w.mT @ w / 0.4**2 + torch.eye(K), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_V8_the_posterior_is_no_wider_than_the_prior(make):
    vae, x = make(), binary()
    q = AmortizedLaplace(vae.model, vae.encoder).posterior(x)
    assert torch.linalg.eigvalsh(q.precision_matrix).min() >= 1 - 1e-12
    assert (kl_divergence(q, dist.Normal(torch.zeros(N, K), 1.0).to_event(1)) >= 0).all()


def test_V8_without_information_the_start_shrinks_and_the_covariance_is_the_priors():
    vae, x = gaussian_vae(scale=1e8), real()
    start = nn.Linear(D, K)
    q = AmortizedLaplace(vae.model, start, 4).posterior(x)
    assert torch.allclose(q.mean, 0.2734375 * start(x), atol=1e-10)
    assert torch.allclose(q.covariance_matrix, torch.eye(K).expand(N, K, K), atol=1e-10)
    prior = AmortizedLaplace(vae.model, start, 1, schedule=full_step).posterior(x)
    assert torch.allclose(prior.mean, torch.zeros(N, K), atol=1e-10)


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_V9_gradients_agree_with_finite_differences(path):
    vae = gaussian_vae((5,), learn_scale=True)
    x, start = real(3), NormalHead(D, K)
    guide = AmortizedLaplace(vae.model, start, steps=2, path=path)

    def loss(q=None):
        pyro.set_rng_seed(5)
        return Trace_ELBO().differentiable_loss(vae.model, q or guide, x)

    leaves = {
        "first weights": vae.decoder[0].weight,
        "last weights": vae.decoder[2].weight,
        "noise": vae.likelihood._scale.raw,
        "start": start.loc.weight,
    }
    gradients = torch.autograd.grad(loss(), list(leaves.values()))
    detached = AmortizedLaplace(vae.model, start, steps=2, path=path, detach_updates=True)
    partial = torch.autograd.grad(loss(detached), list(leaves.values()))
    for (name, leaf), gradient, other in zip(leaves.items(), gradients, partial, strict=True):
        direction, eps = torch.randn_like(leaf), 1e-6
        with torch.no_grad():
            leaf += eps * direction
            above = loss()
            leaf -= 2 * eps * direction
            below = loss()
            leaf += eps * direction
        wanted = (above - below) / (2 * eps)
        assert torch.isclose((gradient * direction).sum(), wanted, rtol=1e-6), name
        assert not torch.isclose((other * direction).sum(), wanted, rtol=1e-3), f"{name} sees the updates"
    loss().backward()
    assert start.loc.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in start.raw_scale.parameters()), "only the encoder's mean is used"


def test_V10_a_rotation_of_the_latent_space_changes_nothing():
    """ELBO and log-likelihood keep their law: q rotates along, so a rotated draw has the same weight."""
    vae, x, start = gaussian_vae(), real(), nn.Linear(D, K)
    rotation = torch.linalg.qr(torch.randn(K, K))[0]
    one = AmortizedLaplace(vae.model, start).posterior(x)
    z = one.sample()

    def weight(z, q):
        return joint_of(guide, x).log_prob(joint_of(guide, x).sites(z), N) - q.log_prob(z)

    guide = AmortizedLaplace(vae.model, start)
    before = weight(z, one)
    with torch.no_grad():
        vae.decoder[0].weight.copy_(vae.decoder[0].weight @ rotation)
        start.weight.copy_(rotation.T @ start.weight)
        start.bias.copy_(rotation.T @ start.bias)
    two = AmortizedLaplace(vae.model, start).posterior(x)
    assert torch.allclose(two.mean, one.mean @ rotation, rtol=0, atol=1e-10)
    after = weight(z @ rotation, two)
    assert torch.allclose(before, after, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_V11_a_datum_does_not_see_its_batch_mates(make):
    vae, x = make(), binary()
    guide = AmortizedLaplace(vae.model, vae.encoder)
    together = guide.posterior(x)
    for i in range(N):
        alone = guide.posterior(x[i : i + 1])
        assert torch.allclose(alone.mean[0], together.mean[i], rtol=0, atol=1e-12)
        assert torch.allclose(alone.chol_precision[0], together.chol_precision[i], rtol=0, atol=1e-12)


@pytest.mark.slow
def trained_elbo(x, k, iterations, start=None):
    """The ELBO per datum of a linear decoder and the exact posterior after so many iterations of L-BFGS."""
    vae = VAE(NormalHead(x.shape[1], k), MLP(k, [], x.shape[1]), GaussianLikelihood(0.3, learn_scale=True), k)
    if start is not None:
        vae.decoder[0].weight.data.copy_(start)
        vae.decoder[0].bias.data.copy_(x.mean(0) + 0.01 * torch.randn(x.shape[1]))
    guide = AmortizedLaplace(vae.model, nn.Linear(x.shape[1], k), steps=1, schedule=full_step)
    parameters = [*vae.decoder.parameters(), *vae.likelihood.parameters()]
    optimizer = torch.optim.LBFGS(parameters, lr=1, max_iter=iterations, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = Trace_ELBO().differentiable_loss(vae.model, guide, x) / len(x)
        loss.backward()
        return loss

    with pyro.validation_enabled(False):
        optimizer.step(closure)
    return -closure().item()


def test_V12_a_linear_decoder_reaches_the_optimum_of_probabilistic_pca():
    """Digits, k = 10: with the exact posterior the ELBO is log p(x), and training it ends at 17.452 nats."""
    x = load_data("digits", split=(0, 0)).train[:].double()
    reached, optimum = trained_elbo(x, 10, 300), probabilistic_pca(x, 10).log_likelihood
    assert reached <= optimum + 1e-9 and abs(reached - 17.452) < 0.01


@pytest.mark.slow
def test_V12_on_mnist(data_root):
    """k = 50, from near by; the mean ELBO depends on the data's mean and covariance alone: 1,568 rows stand for all."""
    x = load_data("mnist", data_root, split=(0, 0)).train[:].double()
    mean = x.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
    away = (784 * eigenvalues.clamp(min=0)).sqrt().unsqueeze(1) * vectors.mT
    rows = torch.cat([mean + away, mean - away])
    optimal = vectors[:, -50:] * (eigenvalues[-50:] - 0.0126).sqrt()
    start = 0.9 * optimal + 0.01 * torch.randn(784, 50)
    reached, optimum = trained_elbo(rows, 50, 30, start), probabilistic_pca(rows, 50).log_likelihood
    assert abs(optimum - 507.905) < 1e-3 and reached <= optimum + 1e-9 and abs(reached - 507.905) < 0.05


def test_V13_gram_form_and_explicit_form_agree():
    torch.set_default_dtype(torch.float32)
    vae, x, z = gaussian_vae((20, 30)), real(), torch.randn(N, K)
    gram, explicit = (prepared(vae, x, z, use_gram=g)(z) for g in (True, False))
    assert (gram.precision - explicit.precision).norm() <= 1e-6 * explicit.precision.norm()
    assert (gram.score - explicit.score).norm() <= 1e-6 * explicit.precision.norm()


def test_V13_draws_have_the_claimed_covariance():
    """n = 40,000 draws: a covariance has a standard error below 2 sqrt(s_ii s_jj / n), of which 5 are allowed."""
    vae, x = gaussian_vae(), real(2)
    q = AmortizedLaplace(vae.model, vae.encoder).posterior(x)
    for draws in (q.sample((200, 200)).flatten(0, 1), q.expand(torch.Size([100, 2])).sample((400,)).flatten(0, 1)):
        centred = draws - q.mean
        covariance = torch.einsum("nbi,nbj->bij", centred, centred) / len(draws)
        spread = q.stddev.unsqueeze(-1) * q.stddev.unsqueeze(-2)
        assert ((covariance - q.covariance_matrix).abs() < 5 * 2 * spread / len(draws) ** 0.5).all()


def test_V14_the_estimate_grows_with_the_number_of_samples_and_stays_below_the_evidence():
    """The guide is inexact (no steps): 400 repetitions, differences of means against 4 of their standard errors."""
    vae, ppca = linear_vae()
    x = real(4)
    q = AmortizedLaplace(vae.model, nn.Linear(D, K), steps=0).posterior(x)
    z = q.sample((400, 16)).detach()
    joint = dist.Normal(vae.decoder(z), 0.4).to_event(1).log_prob(x) + dist.Normal(0.0, 1.0).expand([K]).to_event(
        1
    ).log_prob(z)
    weights = (joint - q.log_prob(z)).detach()  # (400, 16, 4)
    means = [(weights[:, :k].logsumexp(1) - math.log(k)).mean(1) for k in (1, 4, 16)]
    for low, high in zip(means, [*means[1:], ppca.log_prob(x).mean().expand(400)], strict=True):
        difference = high - low
        assert difference.mean() > -4 * difference.std() / 20
    assert (means[2] - means[0]).mean() > 0


def trained_vae():
    """Digits as black and white pixels, 4 epochs, float32."""
    torch.set_default_dtype(torch.float32)
    x = (load_data("digits", split=(0, 0)).train[:] > 0.5).float()
    vae = VAE(
        Chain(MLP(64, [32], 32, activate_output=True), NormalHead(32, 4)), MLP(4, [32], 64), BernoulliLikelihood(), 4
    )
    fit(vae.model, vae.guide, x, epochs=4, seed=0, progress=False, optim=functools.partial(torch.optim.Adam, lr=3e-3))
    return vae, x[:100]


def test_V15_refinement_of_a_trained_model_closes_its_gap():
    """As a drop-in at test time: the decoder stays, q becomes better, log p(x) is the same."""
    vae, x = trained_vae()
    before = [p.clone() for p in vae.parameters()]
    plain = log_likelihood(vae.model, vae.guide, x, 100, seed=0)
    refined = log_likelihood(vae.model, AmortizedLaplace(vae.model, start=vae.encoder), x, 100, seed=0)
    gap, better = ((r.log_likelihood - r.elbo).mean() for r in (plain, refined))
    assert better < 0.7 * gap
    assert refined.elbo.mean() > plain.elbo.mean()
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


# any program


def two_level(x, scale=0.5):
    """A linear-Gaussian hierarchy: exact joint posterior by algebra."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        a = pyro.sample("a", dist.Normal(b @ LEVEL.T, 0.7).to_event(1))
        pyro.sample("x", dist.Normal(a @ OUT.T, scale).to_event(1), obs=x)


LEVEL = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, 0.1]], dtype=torch.float64)
OUT = torch.linspace(-1, 1, D * 3, dtype=torch.float64).reshape(D, 3).sin()


def test_a_hierarchy_has_its_exact_joint_posterior():
    x = real()
    guide = AmortizedLaplace(two_level, nn.Linear(D, 5), steps=1, schedule=full_step)
    q = guide.posterior(x)
    exact = torch.zeros(5, 5)
    exact[:2, :2] = torch.eye(2) + LEVEL.T @ LEVEL / 0.49
    exact[:2, 2:] = -LEVEL.T / 0.49
    exact[2:, :2] = exact[:2, 2:].T
    exact[2:, 2:] = torch.eye(3) / 0.49 + OUT.T @ OUT / 0.25
    assert torch.allclose(q.precision_matrix, exact.expand(N, 5, 5), rtol=0, atol=1e-12)
    evidence = dist.MultivariateNormal(
        torch.zeros(D), 0.25 * torch.eye(D) + OUT @ (0.49 * torch.eye(3) + LEVEL @ LEVEL.T) @ OUT.T
    ).log_prob(x)
    for _ in range(3):
        assert abs(Trace_ELBO().loss(two_level, guide, x) + evidence.sum().item()) < 1e-9
    assert torch.allclose(log_likelihood(two_level, guide, x, 1).log_likelihood, evidence, atol=1e-9)


FAMILIES = {
    "normal_scale": lambda e: dist.Normal(e, (0.3 * e).exp()),
    "normal_expanded": lambda e: dist.Normal(e[..., :1], 0.5).expand(e.shape),
    "laplace": lambda e: dist.Laplace(e, 0.5),
    "student_t": lambda e: dist.StudentT(4.0, e, 0.5),
    "bernoulli": lambda e: dist.Bernoulli(logits=e),
    "bernoulli_probs": lambda e: dist.Bernoulli(torch.sigmoid(e)),
    "continuous_bernoulli": lambda e: dist.ContinuousBernoulli(logits=e),
    "poisson": lambda e: dist.Poisson(e.exp()),
    "binomial": lambda e: dist.Binomial(5, logits=e),
    "negative_binomial": lambda e: dist.NegativeBinomial(2.5, logits=e),
    "categorical": lambda e: dist.Categorical(logits=e.reshape(*e.shape[:-1], 2, 3)),
}


@pytest.mark.parametrize("name", [*FAMILIES, "one_hot", "multivariate_normal"])
def test_the_fisher_information_is_the_covariance_of_the_score(name):
    """E[s sᵀ] of 40,000 data drawn given z, 6 standard errors; the prior N(0, I) adds the identity."""
    torch.manual_seed(1)
    weight, n, width = 0.5 * torch.randn(6, 2), 40_000, 6
    family = {
        **{k: lambda e, f=f: f(e).to_event(1) for k, f in FAMILIES.items()},
        "one_hot": lambda e: dist.OneHotCategorical(logits=e),
        "multivariate_normal": lambda e: dist.MultivariateNormal(e, torch.eye(6) + 0.3),
    }[name]
    z = torch.tensor([0.4, -0.7])
    x = family((z @ weight.T).expand(n, width)).sample()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", family(z @ weight.T), obs=x)

    class Start(nn.Module):
        def forward(self, x):
            return z.expand(len(x), 2)

    joint = joint_of(AmortizedLaplace(model, Start()), x)
    local = Lineariser(joint)(z.expand(n, 2))
    score = local.score + z  # without the prior's
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - (local.precision[0] - torch.eye(2))).abs() < 6 * error + 1e-9).all()
    assert (score.mean(0).abs() < 6 * score.std(0) / n**0.5 + 1e-9).all()


def observed(make):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", make(z), obs=x)

    return model


def test_unknown_families_are_refused_registered_or_given_their_hessian():
    def mixture(z):
        shape = (*z.shape[:-1], D, 2)
        loc = (z @ OUT[:, :2].T).unsqueeze(-1) + torch.tensor([0.2, 0.7])
        return DiscretizedLogisticMixture(torch.zeros(shape), loc.expand(shape), torch.full(shape, 0.2), 16).to_event(1)

    x = torch.randint(0, 16, (N, D)) / 15.0
    model = observed(mixture)
    with pytest.raises(
        NotImplementedError, match=r"'x', a DiscretizedLogisticMixture.*register_fisher.*fallback='hessian'"
    ):
        AmortizedLaplace(model, nn.Linear(D, 2)).posterior(x)
    guide = AmortizedLaplace(model, nn.Linear(D, 2), steps=0, fallback="hessian")
    z = guide.mean_at_start(x).detach()

    def energy(z, x):
        return -mixture(z).log_prob(x) + 0.5 * z.square().sum()

    with pyro.validation_enabled(False):
        hessian = torch.func.vmap(torch.func.hessian(energy))(z, x)
    concave = torch.linalg.eigvalsh(hessian).min(-1)[0] >= 1
    assert concave.any()
    with pytest.warns(UserWarning, match="not concave") if not concave.all() else pyro.validation_enabled(True):
        q = guide.posterior(x)
    assert torch.allclose(q.precision_matrix[concave], hessian[concave], atol=1e-10)
    assert torch.linalg.eigvalsh(q.precision_matrix).min() >= 1 - 1e-10


def test_users_register_families():
    class HalfGaussian(dist.HalfNormal):
        """A family of this test's own, so that it stays out of other tests."""

    def scaled(z):
        return HalfGaussian((z @ OUT[:, :2].T).exp()).to_event(1)

    guide = AmortizedLaplace(observed(scaled), nn.Linear(D, 2), steps=0)
    x = torch.rand(N, D)
    assert find_fisher(HalfGaussian(1.0)) is None
    with pytest.raises(NotImplementedError, match="HalfGaussian"):
        guide.posterior(x)
    register_fisher(HalfGaussian, lambda fn, value: (fn.scale.log(),), lambda fn, tangents: (2 * tangents[0],))
    assert torch.allclose(guide.posterior(x).precision_matrix[0], torch.eye(2) + 2 * OUT[:, :2].T @ OUT[:, :2])
    with pytest.raises(ValueError, match="class of distributions"):
        register_fisher("HalfGaussian", None, None)


def test_a_parameter_taken_as_constant_must_be_constant():
    def heavy(z):
        return dist.NegativeBinomial(z[..., :1].exp().expand(*z.shape[:-1], D), logits=torch.zeros(D)).to_event(1)

    with pytest.raises(NotImplementedError, match="takes as constant"):
        AmortizedLaplace(observed(heavy), nn.Linear(D, 2)).posterior(torch.ones(N, D))


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).to_event(1), obs=x)


def test_a_constrained_latent_gets_the_mode_in_its_unconstrained_space():
    """Gamma(3, 1) and a Poisson count: log rate has mode log((3 + x) / 2) and curvature 3 + x there."""
    x = torch.tensor([[0.0], [2.0], [9.0]])
    guide = AmortizedLaplace(gamma_poisson, nn.Linear(1, 1), steps=12, schedule=lambda t: 1.0)
    nn.init.zeros_(guide.encoder.weight)
    q = guide.posterior(x)
    assert torch.allclose(q.mean, ((3 + x) / 2).log(), atol=1e-9)
    assert torch.allclose(q.precision_matrix.flatten(), (3 + x).flatten(), atol=1e-7)
    draws = torch.stack([guide(x)["rate"] for _ in range(3)])
    assert (draws > 0).all() and draws.shape == (3, 3)
    result = log_likelihood(gamma_poisson, guide, x, 2000, seed=0)
    exact = dist.GammaPoisson(3.0, torch.tensor(1.0)).log_prob(x.flatten())
    assert torch.allclose(result.log_likelihood, exact, atol=0.01)


def test_a_bad_start_of_a_constrained_site_cannot_throw_the_steps_off():
    """From log rate = -12 Newton's step is 5e5 long; steps of at most 2 reach the mode."""
    x = torch.tensor([[0.0], [2.0], [9.0]])
    guide = AmortizedLaplace(gamma_poisson, nn.Linear(1, 1), steps=14, schedule=lambda t: 1.0)
    nn.init.zeros_(guide.encoder.weight)
    nn.init.constant_(guide.encoder.bias, -12.0)
    assert torch.allclose(guide.posterior(x).mean, ((3 + x) / 2).log(), atol=1e-6)
    once = AmortizedLaplace(gamma_poisson, guide.encoder, steps=1, schedule=full_step).posterior(x).mean
    assert torch.allclose(once, torch.full((3, 1), -10.0))


def test_a_log_density_that_is_not_concave_is_floored_with_a_warning():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Cauchy(torch.zeros(2), 0.1).to_event(1))
            z = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = AmortizedLaplace(model, nn.Linear(2, 4), steps=0)
    with torch.no_grad():
        guide.encoder.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        guide.encoder.weight.zero_()
    with pytest.warns(UserWarning, match="not concave"), pytest.raises(ValueError, match="singular"):
        guide.posterior(torch.randn(3, 2))


def test_eigenvalue_floor_has_the_right_gradient_where_eigenvalues_repeat():
    a = torch.randn(4, 4)
    a = (a + a.T).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: FloorEigenvalues.apply(0.5 * (m + m.mT))[0], a)
    zero = torch.diag(torch.tensor([2.0, 0.0, 0.0])).requires_grad_()
    FloorEigenvalues.apply(zero)[0].sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("where", ["around", "wrapped", "context"])
@pytest.mark.parametrize("path", ["fast", "generic"])
def test_a_kl_weight_flattens_the_likelihood(where, path):
    """The optimum of E log p(x | z) - beta KL on a linear decoder: precision I + Wᵀ W / (beta s2)."""
    vae, _ = linear_vae()
    x, beta = real(), 2.5
    guide = AmortizedLaplace(vae.model, nn.Linear(D, K), steps=1, schedule=full_step, path=path)
    handler = scale_latents(beta)
    if where == "context":
        with handler:
            trace = poutine.trace(guide).get_trace(x)
    elif where == "wrapped":
        trace = poutine.trace(handler(guide)).get_trace(x)
    else:
        trace = poutine.trace(poutine.scale(handler(guide), scale=0.1)).get_trace(x)
    w = vae.decoder[0].weight
    wanted = torch.eye(K) + w.T @ w / (beta * 0.4**2)
    assert torch.allclose(trace.nodes["z"]["fn"].precision_matrix[0], wanted, rtol=0, atol=1e-12)
    assert torch.allclose(
        trace.nodes["z"]["scale"] * torch.ones(()), torch.tensor(beta * (0.1 if where == "around" else 1))
    )


def test_different_kl_weights_are_refused():
    guide = AmortizedLaplace(two_level, nn.Linear(D, 5))
    with pytest.raises(ValueError, match="different scales"), scale_latents({"a": 0.5}):
        guide(real())


def test_masks_and_missing_values_are_left_out():
    vae, _ = linear_vae()
    x, mask = real(), torch.rand(N, D) > 0.4
    w, b = vae.decoder[0].weight, vae.decoder[0].bias

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, 0.4).mask(mask).to_event(1), obs=x)

    q = AmortizedLaplace(model, nn.Linear(D, K), steps=0).posterior(x)
    for i in range(N):
        seen = w[mask[i]]
        assert torch.allclose(q.precision_matrix[i], torch.eye(K) + seen.T @ seen / 0.4**2, rtol=0, atol=1e-12)


def test_rows_that_are_masked_as_a_whole_count_for_nothing():
    rows, x = torch.arange(N) % 2 == 0, real()
    model = poutine.mask(two_level, mask=rows)
    guide = AmortizedLaplace(model, nn.Linear(D, 5), steps=1, schedule=full_step, path="generic")
    trace = poutine.trace(guide).get_trace(x)
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)

    weights = 0.0
    for found, sign in ((trace, -1), (replayed, 1)):
        found.compute_log_prob()
        for site in found.nodes.values():
            if site["type"] == "sample" and site["name"] != "data":
                weights = weights + sign * site["log_prob"]
    assert torch.equal(weights[~rows], torch.zeros(int((~rows).sum())))

    # the others weigh what their evidence is: the hierarchy is linear and Gaussian
    cov = OUT @ (LEVEL @ LEVEL.T + 0.7**2 * torch.eye(3)) @ OUT.T + 0.5**2 * torch.eye(D)
    evidence = dist.MultivariateNormal(torch.zeros(D), cov).log_prob(x)
    torch.testing.assert_close(weights[rows], evidence[rows], rtol=0, atol=1e-9)


def test_plates_that_subsample():
    vae, ppca = linear_vae()
    w, b, x = vae.decoder[0].weight, vae.decoder[0].bias, real(20)

    def own_rows(x):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, 0.4).to_event(1), obs=x[rows])

    def minibatch(x):
        with pyro.plate("data", 20, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, 0.4).to_event(1), obs=x)

    guide = AmortizedLaplace(own_rows, nn.Linear(D, K), steps=1, schedule=full_step)
    trace = poutine.trace(guide).get_trace(x)
    rows = trace.nodes["data"]["value"]
    assert torch.allclose(trace.nodes["z"]["fn"].mean, ppca.posterior(x[rows]).mean)
    model = poutine.trace(poutine.replay(own_rows, trace=trace)).get_trace(x)
    assert abs((model.log_prob_sum() - trace.log_prob_sum()).item() - 4 * ppca.log_prob(x[rows]).sum().item()) < 1e-8
    with pytest.raises(ValueError, match="which: pass rows"):
        guide.posterior(x)
    assert torch.allclose(guide.posterior(x, rows=torch.arange(5)).mean, ppca.posterior(x[:5]).mean)
    guide = AmortizedLaplace(minibatch, nn.Linear(D, K), steps=1, schedule=full_step)
    for part in (x[:5], x[5:12]):
        assert abs(Trace_ELBO().loss(minibatch, guide, part) + 20 / len(part) * ppca.log_prob(part).sum().item()) < 1e-8
        assert torch.allclose(guide.posterior(part).mean, ppca.posterior(part).mean)


def test_terms_of_the_objective_alone_bend_neither_mode_nor_curvature():
    vae, ppca = linear_vae()
    x = real()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", vae.likelihood(vae.decoder(z)), obs=x)
            with poutine.infer_config(config_fn=lambda site: {"objective_only": site["name"] == "term"}):
                pyro.factor("term", 5.0 * z.sum(-1))

    q = AmortizedLaplace(model, vae.encoder, steps=1, schedule=full_step).posterior(x)
    assert torch.allclose(q.mean, ppca.posterior(x).mean)
    assert torch.allclose(q.precision_matrix, ppca.posterior(x).precision_matrix)


def test_a_plate_of_pixels_inside_the_plate_of_data():
    vae, ppca = linear_vae()
    w, b, x = vae.decoder[0].weight, vae.decoder[0].bias, real()

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))  # (N, 1, K)
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("x", dist.Normal((z @ w.T + b).squeeze(-2), 0.4), obs=x)

    guide = AmortizedLaplace(model, nn.Linear(D, K), steps=1, schedule=full_step)
    assert torch.allclose(guide.posterior(x).mean, ppca.posterior(x).mean)
    assert guide(x)["z"].shape == (N, 1, K)
    assert abs(Trace_ELBO().loss(model, guide, x) + ppca.log_prob(x).sum().item()) < 1e-8


# how it is used


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_gradients_on_or_off_give_the_same_posterior(make):
    vae, x = make(), binary()
    guide = AmortizedLaplace(vae.model, vae.encoder)
    with torch.no_grad():
        off = guide.posterior(x)
        wanted = guide.posterior(x).mean
    on = guide.posterior(x)
    assert on.mean.requires_grad and not off.mean.requires_grad
    assert torch.equal(on.mean.detach(), wanted) and torch.equal(on.chol_precision.detach(), off.chol_precision)
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
@pytest.mark.parametrize("path", ["auto", "generic"])
def test_inference_mode_gives_the_same_posterior(make, path):
    """Also where the guide, and the batch, are first met in it; training goes on afterwards."""
    vae, x = make(), binary()
    with torch.no_grad():
        wanted = AmortizedLaplace(vae.model, vae.encoder, path=path).posterior(x)
    guide = AmortizedLaplace(vae.model, vae.encoder, path=path)
    with torch.inference_mode():
        for batch in (x, x.clone()):
            found = guide.posterior(batch)
            assert torch.equal(found.mean, wanted.mean) and torch.equal(found.chol_precision, wanted.chol_precision)
            assert math.isfinite(Trace_ELBO().loss(vae.model, guide, batch))
    Trace_ELBO().differentiable_loss(vae.model, guide, x).backward()
    assert vae.encoder.loc.weight.grad is not None


def test_chunks_change_nothing():
    vae, x = bernoulli_vae(), binary()
    one, two = (AmortizedLaplace(vae.model, vae.encoder, chunk_size=c).posterior(x) for c in (None, 2))
    assert torch.allclose(one.chol_precision, two.chol_precision, rtol=0, atol=1e-12)


def test_options_that_change_the_algorithm():
    vae, x = bernoulli_vae(), binary()
    exact = AmortizedLaplace(vae.model, vae.encoder)
    straight = AmortizedLaplace(vae.model, vae.encoder, detach_updates=True)
    reused = AmortizedLaplace(vae.model, vae.encoder, reuse_precision=True)
    assert torch.allclose(straight.posterior(x).mean, exact.posterior(x).mean, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(straight.posterior(x).mean.sum(), vae.encoder.loc.bias)
    assert torch.allclose(gradient, torch.full((K,), float(N))), "the mean itself"
    previous = AmortizedLaplace(vae.model, vae.encoder, steps=3).posterior(x)
    assert torch.allclose(reused.posterior(x).chol_precision, previous.chol_precision, rtol=0, atol=1e-12)
    assert torch.equal(reused.posterior(x).mean, exact.posterior(x).mean)


@pytest.mark.parametrize(
    "bound",
    [Trace_ELBO(2), ImportanceWeighted_ELBO(3), FreeBits_ELBO(0.1), StickingTheLanding_ELBO(), DReG_ELBO(3)],
    ids=lambda bound: type(bound).__name__,
)
@pytest.mark.parametrize("total", [N, 4 * N])
def test_the_start_can_be_trained_towards_the_mode(bound, total):
    """A full step on a linear decoder leaves the start no gradient but that of its own term; nothing else changes."""
    vae, ppca = linear_vae()
    layer, x, start = vae.decoder[0], real(), nn.Linear(D, K)

    def model(x):
        with pyro.plate("data", total, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(layer(z), 0.4).to_event(1), obs=x)

    def at_seed(weight):
        guide = AmortizedLaplace(model, start, steps=1, schedule=full_step, start_weight=weight)
        guide.latents(x)  # whose first run draws
        pyro.set_rng_seed(5)
        loss = bound.differentiable_loss(model, guide, x)
        return loss, torch.autograd.grad(loss, [*start.parameters(), *layer.parameters()])

    loss, gradients = at_seed(1.5)
    without, others = at_seed(0.0)
    assert torch.equal(loss, without)
    for gradient, other in zip(gradients[2:], others[2:], strict=True):
        assert torch.allclose(gradient, other, rtol=0, atol=1e-10)
    exact = ppca.posterior(x)
    distance = exact.mean - start(x)
    missed = 0.5 * torch.einsum("bi,bij,bj->", distance, exact.precision_matrix, distance)
    wanted = torch.autograd.grad(1.5 * total / N * missed, [*start.parameters()])
    for gradient, other, own in zip(gradients[:2], others[:2], wanted, strict=True):
        assert torch.allclose(gradient, own, rtol=1e-9, atol=1e-9) and other.abs().max() < 1e-9


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_halved_updates_never_lower_the_log_joint(make):
    """From far away whole steps hop over the mode for some data; with halvings every update climbs, or rests."""
    vae, x, start = make((30, 30)), binary(30), nn.Linear(D, K)
    for layer in (*vae.decoder, start):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=1.0)

    @torch.no_grad()
    def heights(halvings):
        found = []
        for steps in range(6):
            guide = AmortizedLaplace(vae.model, start, steps, schedule=lambda t: 1.0, halvings=halvings)
            joint = joint_of(guide, x)
            found.append(joint.log_prob(joint.sites(guide.posterior(x).mean), len(x)))
        return torch.stack(found)

    assert (heights(None).diff(dim=0) < -1.0).any()
    halved = heights(5)
    assert (halved.diff(dim=0) >= -1e-9).all() and (halved[-1] > halved[0] + 1).all()


def test_halvings_leave_good_steps_and_their_gradients_alone():
    vae, ppca = linear_vae()
    x = real()
    whole, halved = (AmortizedLaplace(vae.model, vae.encoder, 1, schedule=full_step, halvings=h) for h in (None, 3))
    assert torch.equal(halved.posterior(x).mean, whole.posterior(x).mean)
    parameters = [*vae.encoder.loc.parameters(), *vae.decoder.parameters()]
    one, other = (torch.autograd.grad(g.posterior(x).mean.square().sum(), parameters) for g in (whole, halved))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    twice = AmortizedLaplace(vae.model, vae.encoder, 1, schedule=lambda t: 2.0, halvings=1)
    assert torch.allclose(twice.posterior(x).mean, ppca.posterior(x).mean), "half of twice the step"


@pytest.mark.parametrize("case", ["several sites", "a constrained site"])
def test_a_trained_start_comes_near_the_modes(case):
    if case == "several sites":
        program, x, numel = two_level, real(40), 5
    else:
        program, x, numel = gamma_poisson, torch.poisson(real(40)[:, :1].exp()), 1
    start = MLP(x.shape[1], [16], numel)
    guide = AmortizedLaplace(program, start, steps=3, schedule=full_step, start_weight=1.0)
    nn.init.constant_(start[-1].bias, 1.0)

    def missed():
        q = guide.posterior(x)
        return (q.chol_precision.mT @ (q.mean - start(x)).unsqueeze(-1)).square().sum((1, 2)).mean().item()

    before = missed()
    optim = functools.partial(torch.optim.Adam, lr=2e-2)
    fit(program, guide, x, optim=optim, epochs=30, batch_size=40, seed=0, progress=False)
    assert missed() < 0.2 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_svi_fit_evaluation_and_the_datatree(dtype):
    torch.set_default_dtype(dtype)
    vae, x = gaussian_vae((8,), learn_scale=True), real(12)
    guide = AmortizedLaplace(vae.model, MLP(D, [8], K), steps=2)
    q = guide.posterior(x)
    assert q.mean.dtype == q.chol_precision.dtype == dtype
    svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    history = fit(vae.model, guide, x, valid=x, epochs=3, batch_size=5, seed=0, progress=False)
    assert history.skipped == 0 and math.isfinite(evaluate(vae.model, guide, x, seed=0))
    tree = to_datatree(vae.model, guide, x, num_samples=5)
    assert tree["posterior"]["z"].shape == (1, 5, 12, K)
    for bound in (Trace_ELBO(4, vectorize_particles=True), ImportanceWeighted_ELBO(4), FreeBits_ELBO(0.1)):
        assert math.isfinite(bound.loss(vae.model, guide, x))


def test_analytic_kls_are_refused():
    vae, x = gaussian_vae(), real()
    for guide, args, model in (
        (AmortizedLaplace(vae.model, vae.encoder), x, vae.model),
        (AmortizedLaplace(two_level, nn.Linear(D, 5)), x, two_level),
    ):
        report = check(model, guide, args, loss=TraceMeanField_ELBO())
        assert not report.ok and "Use Trace_ELBO" in str(report)


def test_another_guide_may_be_the_start():
    vae, x = gaussian_vae(), real()
    first = AmortizedNormal(vae.model, vae.encoder)
    assert torch.equal(AmortizedLaplace(vae.model, first, steps=0).posterior(x).mean, vae.encoder(x).mean)
    twice = AmortizedLaplace(vae.model, AmortizedLaplace(vae.model, vae.encoder, steps=1), steps=0)
    assert torch.equal(twice.posterior(x).mean, AmortizedLaplace(vae.model, vae.encoder, steps=1).posterior(x).mean)


def test_the_fast_path_is_found_checked_and_left_where_it_is_wrong():
    vae, x = gaussian_vae(), real()
    guide = AmortizedLaplace(vae.model, vae.encoder)
    generic = AmortizedLaplace(vae.model, vae.encoder, path="generic")
    assert torch.allclose(guide.posterior(x).chol_precision, generic.posterior(x).chol_precision, rtol=0, atol=1e-11)
    assert guide._curvature.verdicts == {vae.decoder: True} and not generic._curvature.verdicts
    leaky = VAE(
        NormalHead(D, K), nn.Sequential(nn.Linear(K, 8), nn.LeakyReLU(0.1), nn.Linear(8, D)), GaussianLikelihood(0.4), K
    )
    guide = AmortizedLaplace(leaky.model, leaky.encoder)
    other = AmortizedLaplace(leaky.model, leaky.encoder, path="generic")
    assert torch.allclose(guide.posterior(x).chol_precision, other.posterior(x).chol_precision, rtol=0, atol=1e-11)
    assert guide._curvature.verdicts == {leaky.decoder: True}
    tanh = VAE(NormalHead(D, K), MLP(K, [8], D, activation=nn.Tanh), GaussianLikelihood(0.4), K)
    AmortizedLaplace(tanh.model, tanh.encoder).posterior(x)
    for vae, reason in (
        (tanh, "one chain of Linear and ReLU layers"),
        (VAE(NormalHead(D, K), MLP(K, [8], D), ContinuousBernoulliLikelihood(), K), r"neither that nor Bernoulli"),
        (
            VAE(NormalHead(D, K), MLP(K, [8], 2 * D), GaussianLikelihood(1.0, amortize_scale=True), K),
            "not shared by all data",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            AmortizedLaplace(vae.model, vae.encoder, path="fast").posterior(binary())


@pytest.mark.parametrize("hidden", [(), (8,), (8, 9)])
@pytest.mark.parametrize("cache", [1, 2**18])
@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_the_fast_path_agrees_with_the_generic_one(monkeypatch, make, hidden, cache):
    """Whether the data pass one by one or at once, under a weight of the latent site."""
    monkeypatch.setattr(linear_region, "CACHE", cache)
    vae, x, z = make(hidden), binary(), torch.randn(N, K)
    guide = AmortizedLaplace(scale_latents({"z": 0.5})(vae.model), vae.encoder)
    joint = joint_of(guide, x)
    with record_chains() as calls:
        sites = joint.sites(z)
    by_hand, generic = find_chain(calls, sites, z).prepare()(z), Lineariser(joint)(z)
    step = torch.randn(N, K)
    for one, two in (
        (by_hand.score, generic.score),
        (by_hand.precision, generic.precision),
        (by_hand.residual(step), generic.residual(step)),
    ):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_a_mask_of_rows_is_no_obstacle(make):
    """Missing rows leave the closed form, and none of their data enter."""
    vae, x, seen = make(), binary(), torch.arange(N) > 1

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            with poutine.mask(mask=seen):
                pyro.sample("x", vae.likelihood(vae.decoder(z)), obs=x)

    q = AmortizedLaplace(model, vae.encoder).posterior(x)
    wanted = AmortizedLaplace(model, vae.encoder, path="generic").posterior(x)
    assert torch.equal(q.chol_precision, wanted.chol_precision)
    whole = AmortizedLaplace(vae.model, vae.encoder).posterior(x)
    assert torch.allclose(q.chol_precision[2:], whole.chol_precision[2:], rtol=1e-10)
    assert torch.allclose(q.covariance_matrix[:2], torch.eye(K).expand(2, K, K), rtol=1e-10)


def test_one_activation_module_may_serve_several_layers():
    relu = nn.ReLU()
    decoder = nn.Sequential(nn.Linear(K, 8), relu, nn.Linear(8, 9), relu, nn.Linear(9, D))
    vae, x = VAE(NormalHead(D, K), decoder, GaussianLikelihood(0.4), K), real()
    guide = AmortizedLaplace(vae.model, vae.encoder)
    wanted = AmortizedLaplace(vae.model, vae.encoder, path="generic").posterior(x)
    assert torch.allclose(guide.posterior(x).chol_precision, wanted.chol_precision, rtol=0, atol=1e-11)
    assert guide._curvature.verdicts == {decoder: True}


@pytest.mark.parametrize("rows", [N, 1])
@pytest.mark.parametrize("make", [gaussian_vae, bernoulli_vae])
def test_the_program_runs_a_few_times_at_first_and_once_later(make, rows):
    """Once for its latent sites; at the point, and for the tangents of the comparison; then at the point."""
    vae, x = make(), binary()[:rows]
    guide = AmortizedLaplace(vae.model, vae.encoder, steps=2)
    runs = []

    def count(module, _, __):
        runs.extend([module] * (module is vae.decoder))

    def runs_of(function):
        runs.clear()
        function(x)
        return len(runs)

    handle = nn.modules.module.register_module_forward_hook(count)  # one of the decoder's own ends the closed form
    try:
        assert [runs_of(f) for f in (guide.latents, guide.posterior, guide.posterior)] == [1, 2, 1]
        generic = AmortizedLaplace(vae.model, vae.encoder, steps=2, path="generic")
        assert [runs_of(f) for f in (generic.posterior, generic.posterior)] == [9, 8]
    finally:
        handle.remove()


def test_verdicts_end_with_their_networks_and_stay_out_of_copies():
    vae, x = gaussian_vae(), real()

    def fresh(x):
        """A network of its own for each call, of which none may inherit the verdict on another."""
        decoder = copy.deepcopy(vae.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.4).to_event(1), obs=x)

    guide = AmortizedLaplace(vae.model, vae.encoder)
    wanted = guide.posterior(x)
    for copied in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert not copied._curvature.verdicts and not copied._curvature.independent
        assert torch.equal(copied.posterior(x).mean, wanted.mean)
        assert copied._curvature.verdicts == {copied._model[0].__self__.decoder: True}

    guide = AmortizedLaplace(fresh, nn.Linear(D, K), path="fast")
    guide.posterior(x)
    gc.collect()
    assert not guide._curvature.verdicts


def test_a_decoder_that_starts_at_zero_is_looked_at_again():
    """Its curvature is the prior's, whatever lies before its last layer."""
    vae, x = gaussian_vae((8,)), real()
    vae.decoder[1].forward = torch.tanh  # a ReLU by type only
    nn.init.zeros_(vae.decoder[2].weight)
    guide = AmortizedLaplace(vae.model, vae.encoder)
    guide.posterior(x)
    nn.init.normal_(vae.decoder[2].weight)
    with pytest.warns(UserWarning, match="disagrees with the generic curvature"):
        guide.posterior(x)


def test_outputs_changed_in_place_leave_the_fast_path():
    net, x = MLP(K, [8], D), binary()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z).clamp_(-9.0, 9.0)).to_event(1), obs=x)

    with pytest.raises(ValueError, match="not the output of one chain"):
        AmortizedLaplace(model, nn.Linear(D, K), path="fast").posterior(x)


def test_a_batch_of_one_does_not_hide_a_scale_that_moves_with_z():
    net, scale, x = MLP(K, [8], D), nn.Linear(K, D), real(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), scale(z).exp()).to_event(1), obs=x)

    with pytest.raises(ValueError, match="scale of its observation depends on the latents"):
        AmortizedLaplace(model, nn.Linear(D, K), path="fast").posterior(x)
    vae = gaussian_vae()
    AmortizedLaplace(vae.model, vae.encoder, path="fast").posterior(x)


@pytest.mark.parametrize(("used", "width"), [(250, 256), (100, 112), (1, 16), (0, 0)])
def test_idle_units_are_left_out_by_sixteens(used, width):
    """All units in use are kept, in order, and as many others as make a width that matrix products like."""
    units = torch.zeros(256, dtype=torch.bool)
    units[torch.randperm(256)[:used]] = True
    kept = linear_region.used_units(units)
    if width == 256:
        assert kept is None
    else:
        assert len(kept) == width and int(units[kept].sum()) == used and (kept.diff() > 0).all()


class Single(nn.Linear):
    def forward(self, x):
        return super().forward(x.float())


def test_slopes_and_data_of_other_dtypes():
    torch.set_default_dtype(torch.float32)
    vae, x = leaky_vae().double(), real().double()
    fast, generic = (AmortizedLaplace(vae.model, vae.encoder, path=p).posterior(x) for p in ("fast", "generic"))
    assert torch.allclose(fast.chol_precision, generic.chol_precision, rtol=0, atol=1e-12)
    single, start = bernoulli_vae(), Single(D, K)
    fast, generic = (
        AmortizedLaplace(single.model, start, path=p).posterior((x > 0).double()) for p in ("auto", "generic")
    )
    assert torch.equal(fast.chol_precision, generic.chol_precision)
    with pytest.raises(ValueError, match=r"dtype torch\.float64"):
        AmortizedLaplace(single.model, start, path="fast").posterior((x > 0).double())


def test_clipped_probabilities_leave_the_fast_path():
    x, vae = binary(), bernoulli_vae()
    with pytest.raises(ValueError, match="clipped"):
        AmortizedLaplace(vae.model, vae.encoder, path="fast", s_jitter=1e-5).posterior(x)


def test_a_layer_that_lies_about_its_type_falls_back_with_a_warning():
    vae, x = gaussian_vae((8,)), real()
    vae.decoder[1].forward = torch.tanh  # a ReLU by type only
    guide = AmortizedLaplace(vae.model, vae.encoder)
    with pytest.warns(UserWarning, match="disagrees with the generic curvature"):
        q = guide.posterior(x)
    generic = AmortizedLaplace(vae.model, vae.encoder, path="generic").posterior(x)
    assert torch.allclose(q.chol_precision, generic.chol_precision)


class Noisy(nn.Module):
    def forward(self, z):
        return z @ OUT.T + 0.1 * torch.randn(len(z), D)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(K, 8), nn.BatchNorm1d(8), nn.Linear(8, D)), "BatchNorm1d.*GroupNorm"),
        (lambda: nn.Sequential(nn.Linear(K, 8), nn.Dropout(0.1), nn.Linear(8, D)), "Dropout.*eval"),
        (Noisy, "from one evaluation to the next"),
    ],
)
def test_models_that_tie_data_together_or_are_random_are_refused(decoder, message):
    vae = VAE(NormalHead(D, K), decoder(), GaussianLikelihood(0.4), K)
    guide = AmortizedLaplace(vae.model, vae.encoder)
    with pytest.raises(ValueError, match=message):
        guide.posterior(real())
    if not isinstance(vae.decoder, Noisy):
        vae.eval()
        assert isinstance(guide.posterior(real()), PrecisionNormal)


def test_refusals_name_the_cure():
    def discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(3)))

    def outside(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        two_level(x)

    def observed_outside(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)

    for model, message in (
        (discrete, "discrete"),
        (outside, "outside the data plate"),
        (observed_outside, "'x' lies outside the plate"),
    ):
        with pytest.raises(ValueError, match=message):
            AmortizedLaplace(model, nn.Linear(D, 2))(real())
    vae = gaussian_vae()
    with pytest.raises(ValueError, match=r"need 3 numbers per datum: z \(3,\)"):
        AmortizedLaplace(vae.model, nn.Linear(D, 2)).posterior(real())
    for kwargs, message in (
        ({"steps": -1}, "number of updates"),
        ({"start_weight": -1.0}, "start_weight is a finite weight"),
        ({"halvings": -1}, "number of halvings"),
        ({"halvings": 0.5}, "number of halvings"),
        ({"start_weight": math.nan}, "start_weight is a finite weight"),
        ({"path": "quick"}, "'auto'"),
        ({"fallback": True}, "'hessian'"),
        ({"s_jitter": 0.7}, "1e-5"),
        ({"schedule": 1.0}, "lambda t"),
    ):
        with pytest.raises(ValueError, match=message):
            AmortizedLaplace(vae.model, vae.encoder, **kwargs)


# the gradient of the steps


def through_everything(guide, x):
    """The posterior by autograd through every score, Jacobian and solve, on the generic path."""
    joint = joint_of(guide, x)
    mu = guide.mean_at_start(x)
    for t in range(guide.steps):
        (score,) = torch.autograd.grad(joint.log_prob(joint.sites(mu), len(mu)).sum(), mu, create_graph=True)
        step = torch.linalg.solve(Lineariser(joint)(mu).precision, score.unsqueeze(-1)).squeeze(-1)
        mu = mu + guide.schedule(t) * guide._bounded(step, joint.latents)
    return PrecisionNormal(mu, torch.linalg.cholesky(Lineariser(joint)(mu).precision))


def gradients(value, leaves):
    return torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)


def leaky_vae():
    decoder = nn.Sequential(nn.Linear(K, 8), nn.LeakyReLU(0.1), nn.ReLU(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, D))
    return VAE(NormalHead(D, K), decoder, GaussianLikelihood(0.4, learn_scale=True), K)


def wide_vae():
    """More hidden units than data dimensions: no Gram trick."""
    return gaussian_vae((8, 20), learn_scale=True)


class PlacedPrior(VAE):
    """A prior that learns where it lies."""

    def __init__(self, *args):
        super().__init__(*args)
        self.at, self.raw = nn.Parameter(torch.randn(K)), nn.Parameter(torch.randn(K))

    def prior(self):
        return dist.Normal(self.at, self.raw.exp()).to_event(1)


def placed_vae():
    """Layers without biases, too."""
    decoder = nn.Sequential(nn.Linear(K, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU())
    decoder.append(nn.Linear(6, D, bias=False))
    return PlacedPrior(NormalHead(D, K), decoder, GaussianLikelihood(0.4, learn_scale=True), K)


def with_idle_units(vae):
    """Many units that are off for all data, which the closed form leaves out."""
    with torch.no_grad():
        vae.decoder[0].bias[::2] = -100.0
        vae.decoder[2].bias[::3] = -100.0
    return vae


def half_off_vae():
    return with_idle_units(gaussian_vae((20, 7), learn_scale=True))


def half_off_bernoulli_vae():
    return with_idle_units(bernoulli_vae((20, 7)))


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: gaussian_vae((8, 6), learn_scale=True), "fast"),
        (lambda: gaussian_vae((8, 6), learn_scale=True), "generic"),
        (lambda: gaussian_vae((), learn_scale=True), "fast"),
        (leaky_vae, "fast"),
        (wide_vae, "fast"),
        (placed_vae, "fast"),
        (half_off_vae, "fast"),
        (bernoulli_vae, "generic"),
        (bernoulli_vae, "fast"),
        (half_off_bernoulli_vae, "fast"),
        (lambda: VAE(NormalHead(D, K), MLP(K, [8], D, activation=nn.Tanh), BernoulliLikelihood(), K), "generic"),
        (lambda: VAE(NormalHead(D, K), MLP(K, [8], 2 * D), GaussianLikelihood(1.0, amortize_scale=True), K), "generic"),
    ],
)
@pytest.mark.parametrize("reuse", [False, True])
def test_gradients_of_the_steps_are_those_through_everything(make, path, reuse):
    """To rounding, autograd's own through all Jacobians, also where the Fisher information moves with z."""
    vae, x = make(), binary()
    guide = AmortizedLaplace(vae.model, vae.encoder, steps=3, path=path)
    wanted = through_everything(guide, x)
    q = AmortizedLaplace(vae.model, vae.encoder, steps=3, path=path, reuse_precision=reuse).posterior(x)
    assert torch.allclose(q.mean, wanted.mean, rtol=0, atol=1e-12)
    leaves = [p for name, p in vae.named_parameters() if "raw_scale" not in name or "encoder" not in name]
    towards, spread = torch.randn(N, K), torch.randn(N, K, K)
    mean = [gradients((p.mean * towards).sum(), leaves) for p in (q, wanted)]
    if reuse:
        wanted = through_everything(AmortizedLaplace(vae.model, vae.encoder, steps=2, path=path), x)
    pairs = [(p.chol_precision * spread).sum() for p in (q, wanted)]
    whole = [gradients(value, leaves) for value in pairs]
    for one, two in (mean, whole):
        for a, b in zip(one, two, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * (1 + b.abs().max()))


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_frozen_layers_leave_the_gradients_of_the_others_as_they_are(layer):
    vae, x = gaussian_vae((8, 6)).eval(), real()
    guide = AmortizedLaplace(vae.model, vae.encoder, steps=3, path="fast")
    for name in ("weight", "bias"):
        others = [p for key, p in vae.named_parameters() if key != f"decoder.{layer}.{name}" and "raw" not in key]
        wanted = gradients(guide.posterior(x).mean.square().sum(), others)
        frozen = getattr(vae.decoder[layer], name).requires_grad_(False)
        found = gradients(guide.posterior(x).mean.square().sum(), others)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        frozen.requires_grad_(True)


def test_gradients_of_the_steps_at_a_constrained_site_are_those_through_everything():
    """The curvature of the gamma prior is a Hessian, of the Poisson a Fisher information; the first step is cut."""
    x = torch.tensor([[0.0], [2.0], [9.0]])
    guide = AmortizedLaplace(gamma_poisson, nn.Linear(1, 1), steps=3)
    nn.init.constant_(guide.encoder.bias, -3.0)
    q, wanted = guide.posterior(x), through_everything(guide, x)
    leaves = list(guide.encoder.parameters())
    for one, two in ((q.mean, wanted.mean), (q.chol_precision, wanted.chol_precision)):
        both = [gradients(p.square().sum(), leaves) for p in (one, two)]
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_second_derivatives_are_refused_rather_than_wrong(path):
    vae, x = gaussian_vae((8, 6)), real()
    mean = AmortizedLaplace(vae.model, vae.encoder, steps=1, path=path).posterior(x).mean
    with pytest.raises(NotImplementedError, match=r"first order only.*detach_updates"):
        torch.autograd.grad(mean.sum(), vae.encoder.loc.weight, create_graph=True)


def test_the_covariance_alone_has_second_derivatives():
    """Against central differences of the first: 1e-6 of a third derivative, and 1e-10 of rounding."""
    vae, x = gaussian_vae((5, 6)), real(2)
    guide, weight = AmortizedLaplace(vae.model, nn.Linear(D, K), steps=0, path="fast"), vae.decoder[0].weight
    direction, eps = torch.randn_like(weight), 1e-6

    def first(**kwargs):
        value = guide.posterior(x).precision_matrix.square().sum()
        return torch.autograd.grad(value, weight, **kwargs)[0]

    (second,) = torch.autograd.grad((first(create_graph=True) * direction).sum(), weight)
    with torch.no_grad():
        weight += eps * direction
    above = first()
    with torch.no_grad():
        weight -= 2 * eps * direction
    wanted = (above - first()) / (2 * eps)
    assert torch.allclose(second, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max())
