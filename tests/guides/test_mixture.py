"""Recursive mixture estimation: the identities R1 to R15 of the method, and the guide for any program."""

import copy
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.diagnostics import log_weights as importance_log_weights
from pyro_vaes.distributions import RecursiveMixture, log_weights
from pyro_vaes.guides import (
    AmortizedLaplace,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    SemiAmortized,
)
from pyro_vaes.infer import (
    ClipGradNorm,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    NonFiniteError,
    RecursiveMixture_ELBO,
    StratifiedMixture_ELBO,
    fit,
    scale_latents,
)
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, IAFHead, NormalHead, WeightHead
from pyro_vaes.theory import ProbabilisticPCA
from tests.guides.mixtures import (
    POSTERIOR,
    START,
    FreeWeight,
    elbo,
    expectation,
    free_guide,
    grid,
    normal_model,
    normals,
    square_log_joint,
    square_model,
    within,
)

D = 6


def small_pair(components=3, *, dtype=torch.float64, likelihood=None):
    """A VAE and a mixture guide of it with networks for all parts, and data."""
    torch.set_default_dtype(dtype)
    vae = VAE(NormalHead(D, 2), MLP(2, [5], D), likelihood or GaussianLikelihood(scale=0.7, learn_scale=True), 2)
    encoders = [Chain(MLP(D, [5], 5), NormalHead(5, 2)) for _ in range(components)]
    weights = [MLP(D, [4], 1) for _ in range(components - 1)]
    return vae, AmortizedMixture(vae.model, encoders, weights), torch.randn(9, D)


def trunk_pair():
    """The same with a network that all parts share."""
    torch.set_default_dtype(torch.float64)
    vae = VAE(NormalHead(D, 2), MLP(2, [5], D), GaussianLikelihood(scale=0.7, learn_scale=True), 2)
    heads = [NormalHead(5, 2), Chain(MLP(5, [4], 4), NormalHead(4, 2)), NormalHead(5, 2)]
    weights = [MLP(5, [], 1), MLP(5, [4], 1)]
    return vae, AmortizedMixture(vae.model, heads, weights, trunk=MLP(D, [5], 5)), torch.randn(9, D)


def named(vae, guide):
    """All parameters by block: model, component m, weight m; a shared trunk is component 0's."""
    blocks = {"model": [*vae.decoder.parameters(), *vae.likelihood.parameters()]}
    blocks |= {f"component {m}": list(c.parameters()) for m, c in enumerate(guide.encoder.components)}
    if guide.encoder.trunk is not None:
        blocks["component 0"] += guide.encoder.trunk.parameters()
    blocks |= {f"weight {m}": list(w.parameters()) for m, w in enumerate(guide.encoder.weights, start=1)}
    return blocks


def gradients(blocks):
    return {name: [p.grad for p in parameters] for name, parameters in blocks.items()}


def same_gradients(one, other, parameters):
    for a, b in zip(torch.autograd.grad(one, parameters), torch.autograd.grad(other, parameters), strict=True):
        torch.testing.assert_close(a, b)


def sequence(components):
    later = [f"{kind} {m}" for m in range(1, components) for kind in ("component", "weight")]
    return ["component 0", *later, "model"]


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_R1_one_component_is_the_vae_to_the_last_bit(bound):
    torch.set_default_dtype(torch.float64)  # in float32 Trace_ELBO adds the sites in Python's double precision
    vae = VAE(Chain(MLP(D, [5], 5), NormalHead(5, 2)), MLP(2, [5], D), GaussianLikelihood(scale=0.7), 2)
    guide, x = AmortizedMixture(vae.model, [vae.encoder], []), torch.randn(9, D)
    results = []
    for loss, q in ((bound(), guide), (Trace_ELBO(), vae.guide)):
        pyro.set_rng_seed(1)
        value = loss.differentiable_loss(vae.model, q, x)
        parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
        pyro.set_rng_seed(1)
        results.append((value, loss.loss(vae.model, q, x), torch.autograd.grad(value, parameters)))
    (ours, plain, ours_grad), (theirs, theirs_plain, theirs_grad) = results
    assert torch.equal(ours.detach(), theirs.detach()) and plain == theirs_plain
    for a, b in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(a, b)


def test_R2_identical_components_are_one_whatever_the_weights():
    """L(Q) = ELBO(q_0) and E dL/d eta = 0, over 400 estimates from 50 draws each."""
    guide = free_guide(square_model, [1.2] * 3, [0.4] * 3, [0.7, -1.1])
    x = torch.full((50, 1), 2.0, dtype=torch.float64)
    truth = elbo(lambda z: square_log_joint(2.0, z), dist.Normal(torch.tensor(1.2).double(), 0.4))
    for bound in (StratifiedMixture_ELBO(), RecursiveMixture_ELBO()):
        values, slopes = [], []
        for _ in range(400):
            loss = bound.differentiable_loss(square_model, guide, x) / 50
            raws = [w.raw for w in guide.encoder.weights]
            values.append(-loss.item())
            slopes.append(torch.stack(torch.autograd.grad(loss, raws)))
        assert within(values, truth)
        assert all(within(torch.stack(slopes)[:, i], 0.0) for i in range(2))


def test_R3_weights_are_on_the_simplex_and_the_recursion_is_the_flat_mixture():
    torch.set_default_dtype(torch.float64)
    a = 3 * torch.randn(5, 4)
    eps = torch.cat([torch.ones(5, 1), a.sigmoid()], -1)
    alpha = log_weights(a).exp()
    flat = torch.stack([eps[:, m] * (1 - eps[:, m + 1 :]).prod(-1) for m in range(5)], -1)
    torch.testing.assert_close(alpha, flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(5), rtol=1e-12, atol=1e-12)
    uniform = log_weights(torch.logit(1 / torch.arange(2.0, 6.0)))
    torch.testing.assert_close(uniform.exp(), torch.full((5,), 0.2), rtol=1e-12, atol=1e-12)
    q = RecursiveMixture([dist.Normal(torch.randn(5, 2), 0.3 + torch.rand(5, 2)).to_event(1) for _ in range(5)], a)
    z = 2 * torch.randn(7, 5, 2)
    recursion = q.components[0].log_prob(z).exp()
    for m in range(1, 5):
        torch.testing.assert_close(q.level(m - 1).log_prob(z).exp(), recursion, rtol=1e-12, atol=1e-12)
        recursion = (1 - eps[:, m]) * recursion + eps[:, m] * q.components[m].log_prob(z).exp()
    torch.testing.assert_close(q.log_prob(z).exp(), recursion, rtol=1e-12, atol=1e-12)
    saturated = RecursiveMixture(q.components[:2], torch.full((5, 1), -1e4))
    assert saturated.log_prob(z).isfinite().all() and saturated.log_alpha.isfinite().all()


def test_R3_weights_start_uniform_and_stay_learnable():
    _, guide, x = small_pair(4)
    for weight in guide.encoder.weights:
        for parameter in weight.parameters():
            nn.init.zeros_(parameter)
    torch.testing.assert_close(guide.posterior(x).log_alpha.exp(), torch.full((9, 4), 0.25), rtol=1e-12, atol=1e-12)
    raw = torch.tensor([40.0], requires_grad=True)
    logit = guide.encoder._logit(1, raw)
    assert 9.9 < logit.item() < 10 and torch.autograd.grad(logit, raw)[0] > 0


def test_R4_gain_over_the_components_is_a_divergence_below_the_entropy_of_the_weights():
    target = normals(POSTERIOR)
    old, new = normals(START), normals([(1.0, 2.1, 0.7)])
    parts = [normals([(1.0, *p[1:])]) for p in START]
    for e in (0.1, 0.5, 0.9):
        q = normals([(w * (1 - e), *p) for w, *p in START] + [(e, 2.1, 0.7)])
        gain = elbo(target.log_prob, q) - (1 - e) * elbo(target.log_prob, old) - e * elbo(target.log_prob, new)
        assert 0 <= gain <= -e * math.log(e) - (1 - e) * math.log(1 - e)
        if e == 0.5:
            assert abs(gain - 0.522) < 5e-4
        alpha = q.log_alpha.exp()
        each = torch.stack([elbo(target.log_prob, p) for p in (*parts, new)])
        divergence = elbo(target.log_prob, q) - (alpha * each).sum()
        entropy = -(alpha * alpha.log()).sum()
        assert 0 <= divergence <= entropy <= math.log(3) + 1e-12


def _direction(e):
    q = normals([(w * (1 - e), *p) for w, *p in START] + ([(e, 2.1, 0.7)] if e else []))
    return q, normals([(1.0, 2.1, 0.7)]), normals(START)


def test_R5_the_slope_in_the_weight_is_the_functional_gradient():
    """Central differences with step 1e-4: error of order 1e-8."""
    target, h = normals(POSTERIOR), 1e-4
    for e in (0.05, 0.3, 0.8):
        slope = (elbo(target.log_prob, _direction(e + h)[0]) - elbo(target.log_prob, _direction(e - h)[0])) / (2 * h)
        q, new, old = _direction(e)
        integrand = lambda z, q=q: target.log_prob(z) - q.log_prob(z)
        assert abs(slope - expectation(new, integrand) + expectation(old, integrand)) < 1e-6


def test_R6_bound_plus_divergence_is_the_functional_gradient():
    target, new, old = normals(POSTERIOR), normals([(1.0, 2.1, 0.7)]), normals(START)
    divergence = expectation(new, lambda z: new.log_prob(z) - old.log_prob(z))
    together = expectation(new, lambda z: target.log_prob(z) - old.log_prob(z))
    assert abs(elbo(target.log_prob, new) + divergence - together) < 1e-10


def orthogonal_ppca():
    """A linear decoder with orthogonal columns, so that the exact posterior is a diagonal normal."""
    torch.set_default_dtype(torch.float64)
    vae = VAE(NormalHead(D, 2), MLP(2, [], D), GaussianLikelihood(scale=0.5), 2)
    with torch.no_grad():
        vae.decoder[0].weight.copy_(torch.linalg.qr(torch.randn(D, 2))[0] * torch.tensor([1.5, 0.7]))
    ppca = ProbabilisticPCA(vae.decoder[0].bias.detach(), vae.decoder[0].weight.detach(), torch.tensor(0.25))
    return vae, ppca, torch.randn(8, D)


class Exact(nn.Module):
    def __init__(self, ppca):
        super().__init__()
        self.ppca = ppca

    def forward(self, x):
        q = self.ppca.posterior(x)
        return dist.Normal(q.mean, q.variance.sqrt()).to_event(1)


def test_R7_behind_the_exact_posterior_the_objective_is_the_evidence_for_every_draw():
    vae, ppca, x = orthogonal_ppca()
    new = NormalHead(D, 2)
    guide = AmortizedMixture(vae.model, [Exact(ppca), new], [FreeWeight()])
    bound = RecursiveMixture_ELBO(math.inf, schedule="sequential")
    for seed in range(3):
        pyro.set_rng_seed(seed)
        loss = bound.sub_losses(vae.model, guide, x)[1]()
        assert abs(loss.item() + ppca.log_prob(x).sum().item()) < 1e-9
        assert all(g.abs().max() < 1e-9 for g in torch.autograd.grad(loss, list(new.parameters())))
        every = bound.differentiable_loss(vae.model, guide, x)
        assert all(g.abs().max() < 1e-9 for g in torch.autograd.grad(every, list(new.parameters())))


def test_laplace_components_are_exact_where_the_posterior_is_normal():
    """Two Laplace posteriors with different starts, each exact after one full step: every draw gives the evidence."""
    vae, ppca, x = orthogonal_ppca()
    laplace = [AmortizedLaplace(vae.model, nn.Linear(D, 2), steps=1, schedule=lambda t: 1.0) for _ in range(2)]
    guide = AmortizedMixture(vae.model, laplace, [FreeWeight()])
    for bound in (StratifiedMixture_ELBO(), RecursiveMixture_ELBO()):
        assert abs(bound.loss(vae.model, guide, x) + ppca.log_prob(x).sum().item()) < 1e-9
    torch.testing.assert_close(log_likelihood(vae.model, guide, x, 2).elbo, ppca.log_prob(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO, Trace_ELBO])
def test_laplace_and_semi_amortised_components_train_with_the_others(bound):
    vae, _, x = small_pair(1)
    laplace = AmortizedLaplace(vae.model, nn.Linear(D, 2), steps=2)
    climbing = SemiAmortized(AmortizedNormal(vae.model, NormalHead(D, 2)), steps=2)
    guide = AmortizedMixture(vae.model, [vae.encoder, laplace, climbing], [MLP(D, [4], 1) for _ in range(2)])
    before = [p.clone() for p in guide.parameters()]
    fit(vae.model, guide, x, loss=bound(), epochs=1, progress=False)
    unmoved = {n for (n, p), b in zip(guide.named_parameters(), before, strict=True) if torch.equal(p, b)}
    assert not unmoved


def test_R8_without_the_divergence_a_component_is_a_vae_of_its_own():
    vae, guide, x = small_pair()
    component = guide.encoder.components[1]
    plain = AmortizedNormal(vae.model, component)
    plain(x)
    results = []
    for loss in (
        RecursiveMixture_ELBO(0.0, schedule="sequential").sub_losses(vae.model, guide, x)[1],
        lambda: Trace_ELBO().differentiable_loss(vae.model, plain, x),
    ):
        pyro.set_rng_seed(3)
        value = loss()
        results.append((value.detach(), *torch.autograd.grad(value, list(component.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_R8_without_the_cap_the_entropy_cancels():
    """With C = infinity J = log p(x, z) - log Q(z) draw by draw; the value and its gradient, by plain autograd."""
    vae, guide, x = small_pair()
    pyro.set_rng_seed(3)
    loss = RecursiveMixture_ELBO(math.inf, schedule="sequential").sub_losses(vae.model, guide, x)[1]()
    pyro.set_rng_seed(3)
    component = guide.encoder.components[1]
    z = component(x).rsample()
    with torch.no_grad():
        below = guide.posterior(x).level(0)
    expected = -(log_joint(vae, x, z) - below.log_prob(z)).sum()
    torch.testing.assert_close(loss, expected)
    parameters = list(component.parameters())
    same_gradients(loss, expected, parameters)


@pytest.mark.parametrize("scale", [1.3, 0.8])
def test_R8_the_cap_holds_the_divergence_where_it_would_run_away(scale):
    """Posterior N(0, 1), Q_0 wider or narrower: unbounded, q_1 collapses or explodes; with C = 3 its KL stays near."""
    guide = free_guide(normal_model, [0.5, 0.5], [scale, 0.9], [0.0])
    x, new = torch.zeros(100, 1, dtype=torch.float64), guide.encoder.components[1]
    optimizer = torch.optim.Adam(new.parameters(), lr=0.02)
    # all data are alike: the cap applies to the mean over 100 draws of each
    bound = RecursiveMixture_ELBO(3.0, 100, schedule="sequential")
    for _ in range(500):
        optimizer.zero_grad()
        bound.sub_losses(normal_model, guide, x)[1]().backward()
        optimizer.step()
    q, old = (dist.Normal(c.loc.detach(), c.log_scale.detach().exp()) for c in (new, guide.encoder.components[0]))
    assert 2.0 < torch.distributions.kl_divergence(q, old).item() < 3.3


def log_joint(vae, x, z):
    """log p(x, z) per datum, without Pyro."""
    return vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x)


@pytest.mark.parametrize(
    ("cap", "pair"),
    [(0.0, small_pair), (0.5, small_pair), (500.0, small_pair), (math.inf, small_pair), (0.5, trunk_pair)],
)
def test_R10_every_block_has_the_gradient_of_its_own_objective(cap, pair):
    """The routed gradients of one backward pass against plain autograd, on copies whose other parts are constants."""
    vae, guide, x = pair()
    blocks = named(vae, guide)
    pyro.set_rng_seed(5)
    RecursiveMixture_ELBO(cap).differentiable_loss(vae.model, guide, x).backward()
    routed = gradients(blocks)
    with torch.no_grad():
        q0, p0 = copy.deepcopy(guide).posterior(x), copy.deepcopy(vae)
    for p in p0.parameters():
        p.requires_grad_(False)
    pyro.set_rng_seed(5)
    q = guide.posterior(x)
    z = q.stratified_rsample((1,))[:, 0]
    objectives = {}
    for m in range(3):
        log_q = q.components[m].log_prob(z[m])
        objective = log_joint(p0, x, z[m]) - log_q
        if m:
            objective = objective + (log_q - q0.level(m - 1).log_prob(z[m])).clamp(max=cap) * (cap > 0)
        objectives[f"component {m}"] = objective.sum()
    points = z.detach()
    for m in range(1, 3):
        logits = torch.cat([q0.eps_logits[:, : m - 1], q.eps_logits[:, m - 1 : m]], -1)
        level = RecursiveMixture(q0.components[: m + 1], logits)
        terms = log_joint(p0, x, points[: m + 1]) - level.log_prob(points[: m + 1])
        objectives[f"weight {m}"] = (level.log_alpha.exp().movedim(-1, 0) * terms).sum()
    objectives["model"] = (q0.log_alpha.exp().movedim(-1, 0) * log_joint(vae, x, points)).sum()
    for name, objective in objectives.items():
        wanted = torch.autograd.grad(-objective, blocks[name], retain_graph=True)
        for ours, theirs in zip(routed[name], wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        # not even a zero: what a sub-step does not train has no gradient
    thunks = RecursiveMixture_ELBO(cap, schedule="sequential").sub_losses(vae.model, guide, x)
    for name, loss in zip(sequence(3), thunks, strict=True):
        for parameter in (p for ps in blocks.values() for p in ps):
            parameter.grad = None
        loss().backward()
        for other, grads in gradients(blocks).items():
            assert all((g is not None) == (other == name) for g in grads), (name, other)


def test_R10_the_entropy_regulariser_of_boosting():
    vae, guide, x = small_pair()
    pyro.set_rng_seed(5)
    loss = RecursiveMixture_ELBO(schedule="sequential", entropy=0.3).sub_losses(vae.model, guide, x)[3]()
    pyro.set_rng_seed(5)
    component = guide.encoder.components[2]
    with torch.no_grad():
        below = guide.posterior(x).level(1)
    q = component(x)
    z = q.rsample()
    expected = -(log_joint(vae, x, z) - below.log_prob(z) - 0.3 * q.log_prob(z)).sum()
    parameters = list(component.parameters())
    torch.testing.assert_close(loss, expected)
    same_gradients(loss, expected, parameters)


def changes(blocks, step):
    """Names of the blocks of which a step moved a parameter."""
    before = {n: [p.detach().clone() for p in ps] for n, ps in blocks.items()}
    step()
    return {n for n, ps in blocks.items() if any(not torch.equal(p, b) for p, b in zip(ps, before[n], strict=True))}


class WatchedSVI(pyro.optim.PyroOptim):
    def __init__(self, blocks):
        super().__init__(torch.optim.Adam, {"lr": 0.01})
        self.blocks, self.moved = blocks, []

    def __call__(self, params, *args, **kwargs):
        self.moved.append(changes(self.blocks, lambda: super(WatchedSVI, self).__call__(params, *args, **kwargs)))


@pytest.mark.parametrize("pair", [small_pair, trunk_pair])
def test_R9_every_sub_step_moves_its_own_parameters_only_under_svi(pair):
    """Bit by bit and over three steps, so that momentum has built up."""
    vae, guide, x = pair()
    optim = WatchedSVI(named(vae, guide))
    svi = SVI(vae.model, guide, optim, RecursiveMixture_ELBO(schedule="sequential", optim=optim))
    for _ in range(3):
        assert math.isfinite(svi.step(x))
    sweep = [{name} for name in sequence(3)]
    assert [m for m in optim.moved if m] == 3 * sweep


@pytest.mark.parametrize("callbacks", [[], [ClipGradNorm(0.1)]])
def test_R9_every_sub_step_moves_its_own_parameters_only_under_fit(callbacks):
    vae, guide, x = small_pair()
    blocks, moved = named(vae, guide), []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            moved.append(changes(blocks, lambda: super(Watched, self).step(closure)))

    loss = RecursiveMixture_ELBO(schedule="sequential")
    optim = functools.partial(Watched, lr=0.01)
    history = fit(
        vae.model, guide, x, loss=loss, optim=optim, epochs=2, batch_size=5, callbacks=callbacks, seed=0, progress=False
    )
    assert moved == 4 * [{name} for name in sequence(3)]
    assert all(map(math.isfinite, history.train))


def test_the_sequential_schedule_stops_at_a_sub_step_that_is_not_finite():
    vae, guide, x = small_pair()
    blocks = named(vae, guide)

    class Explodes(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.calls = net, 0

        def forward(self, x):
            self.calls += 1
            return self.net(x) * (math.nan if self.calls > 8 else 1.0)

    guide.encoder.weights[0] = Explodes(guide.encoder.weights[0])
    before = [p.detach().clone() for p in blocks["model"]]
    with pytest.raises(NonFiniteError):
        fit(vae.model, guide, x, loss=RecursiveMixture_ELBO(schedule="sequential"), epochs=3, seed=0, progress=False)
    assert all(p.isfinite().all() for ps in blocks.values() for p in ps) and len(before) == len(blocks["model"])


def test_sequential_steps_under_svi_need_the_optimiser():
    vae, guide, x = small_pair()
    svi = SVI(vae.model, guide, pyro.optim.Adam({"lr": 1e-3}), RecursiveMixture_ELBO(schedule="sequential"))
    with pytest.raises(ValueError, match="optim=optim"):
        svi.step(x)


def test_R11_importance_weights_are_unbiased_and_exact_for_the_posterior():
    """E p^ = p(x): 20000 weights per datum within 5 standard errors."""
    vae, ppca, x = orthogonal_ppca()
    exact = AmortizedMixture(vae.model, [Exact(ppca), Exact(ppca)], [FreeWeight(0.8)])
    torch.testing.assert_close(
        log_likelihood(vae.model, exact, x, 1).log_likelihood, ppca.log_prob(x), rtol=0, atol=1e-9
    )

    class Wide(Exact):
        def forward(self, x):
            q = super().forward(x).base_dist
            return dist.Normal(q.loc + 0.3, 1.5 * q.scale).to_event(1)

    guide = AmortizedMixture(vae.model, [Wide(ppca), Exact(ppca)], [FreeWeight(-0.4)])
    ratio = (importance_log_weights(vae.model, guide, x, 20_000, chunk_size=5000) - ppca.log_prob(x)).exp()  # (K, N)
    assert all(within(ratio[:, n], 1.0) for n in range(len(x)))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["simultaneous", "sequential"])
def test_R12_a_second_component_finds_the_second_mode(schedule):
    """z ~ N(0, 1), x = 2 from N(z^2, 0.1^2): from one mode across 200 nats of barrier, the bound rising by log 2.

    The barrier is crossed while the capped term is alive, so the cap lies above it. The optimiser starts afresh three
    times: on its way the new component has next to no weight, and Adam remembers the large gradients of that time
    for long.
    """
    guide = free_guide(square_model, [1.2, 1.0], [0.2, 0.2], [0.0])
    x = torch.full((16, 1), 2.0, dtype=torch.float64)
    loss = RecursiveMixture_ELBO(2000.0, schedule=schedule)
    for lr, epochs in ((0.03, 600), (0.03, 200), (0.03, 200), (0.01, 200)):
        optim = functools.partial(torch.optim.Adam, lr=lr)
        fit(square_model, guide, x, loss=loss, optim=optim, epochs=epochs, batch_size=16, seed=0, progress=False)
    with torch.no_grad():
        q = guide.posterior(x[:1])
    nodes = grid(-4.0, 4.0)
    q1 = RecursiveMixture(
        [dist.Normal(c.base_dist.loc[0, 0], c.base_dist.scale[0, 0]) for c in q.components], q.eps_logits[0]
    )
    reached = elbo(lambda z: square_log_joint(2.0, z), q1, nodes)
    assert abs(reached - -2.2630) < 0.02
    assert abs(q.log_alpha.exp()[0, 1] - 0.5) < 0.05
    best = elbo(lambda z: square_log_joint(2.0, z), dist.Normal(torch.tensor(1.412).double(), 0.035), nodes)
    assert abs(best - -2.9561) < 1e-3 and abs(reached - best - math.log(2)) < 0.02


def test_R13_the_stratified_estimate_is_unbiased_in_value_and_weight_gradient():
    """Over 300 estimates from 100 draws each, against quadrature and its central differences."""
    locs, scales, raws = [1.2, -1.3, 0.5], [0.3, 0.4, 0.8], [0.4, -0.7]
    guide = free_guide(square_model, locs, scales, raws)
    x = torch.full((100, 1), 2.0, dtype=torch.float64)

    def exact(raws):
        logits = torch.stack(
            [guide.encoder._logit(m, torch.tensor([r]).double())[0] for m, r in enumerate(raws, start=1)]
        )
        parts = [dist.Normal(torch.tensor(a).double(), b) for a, b in zip(locs, scales, strict=True)]
        return elbo(lambda z: square_log_joint(2.0, z), RecursiveMixture(parts, logits)).item()

    h = 1e-4
    slopes = [
        (
            exact([raws[0] + h * (i == 0), raws[1] + h * (i == 1)])
            - exact([raws[0] - h * (i == 0), raws[1] - h * (i == 1)])
        )
        / (2 * h)
        for i in range(2)
    ]
    values, found = [], []
    for _ in range(300):
        value = -StratifiedMixture_ELBO().differentiable_loss(square_model, guide, x) / 100
        values.append(value.item())
        found.append(torch.stack(torch.autograd.grad(value, [w.raw for w in guide.encoder.weights])))
    assert within(values, exact(raws))
    assert all(within(torch.stack(found)[:, i], slopes[i]) for i in range(2))


def test_R13_agrees_with_the_score_function_estimate_of_pyro():
    """The gradients of all parameters by both bounds, up to 5 standard errors of the difference."""
    guide = free_guide(square_model, [1.2, -1.0], [0.5, 0.6], [0.3])
    x = torch.full((500, 1), 1.0, dtype=torch.float64)
    parameters = list(guide.parameters())
    estimates = {}
    for bound in (StratifiedMixture_ELBO(2), Trace_ELBO()):
        draws = [
            torch.autograd.grad(bound.differentiable_loss(square_model, guide, x) / 500, parameters) for _ in range(150)
        ]
        estimates[type(bound)] = torch.stack([torch.cat([g.reshape(-1) for g in d]) for d in draws])
    ours, theirs = estimates.values()
    error = ((ours.var(0) + theirs.var(0)) / 150).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()


def test_R13_the_order_of_the_components_does_not_matter():
    parts = [(0.2, -1.0, 0.5), (0.5, 0.3, 1.0), (0.3, 2.0, 0.4)]
    z, _ = grid(-8, 8, 201)
    one, other = normals(parts), normals([parts[i] for i in (2, 0, 1)])
    torch.testing.assert_close(one.log_prob(z), other.log_prob(z), rtol=1e-12, atol=1e-12)
    target = normals(POSTERIOR)
    assert abs(elbo(target.log_prob, one) - elbo(target.log_prob, other)) < 1e-12


def test_R14_a_direction_of_ascent_raises_the_bound():
    """The best of a family of normals under J, then any of them with a positive slope."""
    target, old = normals(POSTERIOR), normals(START)
    base, raised, lowered = elbo(target.log_prob, old), 0, 0
    candidates = [(1.0, loc, s) for loc in (-2.0, 0.0, 1.0, 2.0, 3.0) for s in (0.3, 0.7, 1.5)]
    objectives = []
    for part in candidates:
        new = normals([part])
        slope = expectation(new, lambda z: target.log_prob(z) - old.log_prob(z))
        objectives.append(slope)
        mixed = elbo(target.log_prob, normals([(0.999 * w, *p) for w, *p in START] + [(0.001, *part[1:])]))
        if slope > base + 0.01:
            assert mixed > base
            raised += 1
        elif slope < base - 0.01:
            assert mixed < base
            lowered += 1
    assert raised > 2 and lowered > 2 and max(objectives) > base


def test_components_may_be_guides_and_several_sites_share_the_mixture():
    """Two sites, one of them positive: constrained supports through the guide's own maps, densities included."""
    torch.set_default_dtype(torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
            shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(rate.log().unsqueeze(-1) + shift, 1.0).to_event(1), obs=x)

    x = torch.randn(4, 2)
    first, second = AmortizedNormal(model, NormalHead(2, 3)), AmortizedMultivariateNormal(model, FullNormal())
    guide = AmortizedMixture(model, [first, second], [MLP(2, [], 1)])
    drawn = guide(x)
    assert drawn["rate"].shape == (4,) and drawn["shift"].shape == (4, 2) and (drawn["rate"] > 0).all()
    pyro.set_rng_seed(2)
    loss = StratifiedMixture_ELBO().loss(model, guide, x)
    pyro.set_rng_seed(2)
    with torch.no_grad():
        q = guide.posterior(x)
        z = q.stratified_rsample((1,))[:, 0]
        rate = z[..., 0].exp()
        log_p = dist.Gamma(3.0, 1.0).log_prob(rate) + z[..., 0]  # density of the logarithm
        log_p = log_p + dist.Normal(0.0, 1.0).log_prob(z[..., 1:]).sum(-1)
        log_p = log_p + dist.Normal(z[..., :1] + z[..., 1:], 1.0).log_prob(x).sum(-1)
        expected = -(q.log_alpha.exp().movedim(-1, 0) * (log_p - q.log_prob(z))).sum().item()
    assert abs(loss - expected) < 1e-9


def test_keywords_reach_components_that_run_the_model():
    torch.set_default_dtype(torch.float64)

    def model(x, scale=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    laplace = AmortizedLaplace(model, nn.Linear(2, 2))
    guide = AmortizedMixture(model, [laplace, NormalHead(2, 2)], [MLP(2, [], 1)])
    x = torch.randn(4, 2)
    found = guide.posterior(x, scale=0.1).components[0].precision_matrix
    assert torch.allclose(found, 101 * torch.eye(2).expand(4, 2, 2))


def test_components_may_be_guides_of_guides_under_a_plate_that_draws_its_rows():
    """Each component sees the rows that the plate has drawn, however deep it is."""
    vae, ppca, x = orthogonal_ppca()
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()

    def own_rows(x):
        with pyro.plate("data", 8, subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, 0.5).to_event(1), obs=x[rows])

    deep = [
        SemiAmortized(AmortizedNormal(own_rows, Exact(ppca)), steps=1).eval(),
        AmortizedLaplace(own_rows, AmortizedNormal(own_rows, Exact(ppca)), steps=1),
        AmortizedMixture(own_rows, [Exact(ppca), AmortizedLaplace(own_rows, Exact(ppca))], [FreeWeight()]),
    ]
    guide = AmortizedMixture(own_rows, [Exact(ppca), *deep[:2]], [FreeWeight(), FreeWeight()])
    trace = poutine.trace(guide).get_trace(x)
    rows, q = trace.nodes["data"]["value"], trace.nodes["z"]["fn"]
    for component in (q.components[0], q.components[2]):
        assert torch.allclose(component.mean, ppca.posterior(x[rows]).mean)
    wanted = deep[0].posterior(x, rows=rows).mean
    assert torch.allclose(q.components[1].mean, wanted)
    for bound in (StratifiedMixture_ELBO(), RecursiveMixture_ELBO(), Trace_ELBO()):
        assert math.isfinite(bound.loss(own_rows, guide, x))
    assert torch.allclose(guide.posterior(x, rows=rows).mean, q.mean)
    nested = AmortizedMixture(own_rows, [Exact(ppca), deep[2]], [FreeWeight()])
    trace = poutine.trace(nested).get_trace(x)
    assert torch.allclose(trace.nodes["z"]["fn"].mean, ppca.posterior(x[trace.nodes["data"]["value"]]).mean)


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_a_plate_of_pixels_inside_the_plate_of_data(bound):
    """The loss is that of the same program with its pixels in an event."""
    vae, guide, x = small_pair()

    def nested(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))  # (B, 1, 2)
            with pyro.plate("pixels", D, dim=-1):
                scale = vae.likelihood.scale
                pyro.sample("x", dist.Normal(vae.decoder(z).squeeze(-2), scale), obs=x)

    flows = [NormalHead(D, 2), Chain(MLP(D, [5], 5), IAFHead(5, 2, flows=2, hidden=[4]))]
    for components, weights in ((guide.encoder.components, guide.encoder.weights), (flows, [MLP(D, [], 1)])):
        found = []
        for model in (vae.model, nested):
            mixture = AmortizedMixture(model, components, weights)
            loss = bound()
            loss.loss(model, mixture, x)
            pyro.set_rng_seed(1)
            found.append(loss.differentiable_loss(model, mixture, x))
            found.append(torch.autograd.grad(found[-1], list(mixture.parameters())))
        torch.testing.assert_close(found[2], found[0])
        torch.testing.assert_close(found[3], found[1])
        assert mixture(x)["z"].shape == (9, 1, 2)


@pytest.mark.parametrize("bound", [RecursiveMixture_ELBO(schedule="sequential"), StratifiedMixture_ELBO()])
def test_one_bound_serves_one_pair_after_another(bound):
    """Every component moves whatever the bound has seen before."""
    for number in (2, 3, 2):
        vae, guide, x = small_pair(number)
        before = [p.clone() for p in guide.encoder.parameters()]
        fit(vae.model, guide, x, loss=bound, epochs=2, seed=0, progress=False)
        assert not any(torch.equal(a, b) for a, b in zip(before, guide.encoder.parameters(), strict=True))


class FullNormal(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)

    def forward(self, x):
        return dist.MultivariateNormal(super().forward(x), scale_tril=torch.eye(3) + 0.3 * torch.ones(3, 3).tril(-1))


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_models_that_do_not_broadcast_run_component_by_component(bound):
    vae, guide, x = small_pair(3, likelihood=BernoulliLikelihood())
    x = (x > 0).double()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            assert z.dim() == 2
            pyro.sample("x", dist.Bernoulli(logits=pyro.module("decoder", vae.decoder)(z)).to_event(1), obs=x)

    results = []
    for program, vectorize in ((vae.model, True), (model, False)):
        pyro.set_rng_seed(1)
        results.append(bound(vectorize_components=vectorize).differentiable_loss(program, guide, x))
        results.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(results[-1], list(guide.parameters()))]))
    torch.testing.assert_close(results[0], results[2])
    torch.testing.assert_close(results[1], results[3])


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_a_flow_may_be_the_first_component(bound):
    vae, _, x = small_pair(2)
    flow, normal = Chain(nn.Linear(D, 4), IAFHead(4, 2, flows=1, hidden=[8])), NormalHead(D, 2)
    guide = AmortizedMixture(vae.model, [flow, normal], [Chain(nn.Linear(D, 4), WeightHead(4))])
    assert bound().differentiable_loss(vae.model, guide, x).isfinite()
    fit(vae.model, guide, x, loss=bound(), epochs=1, progress=False)


@pytest.mark.parametrize("bound", [StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_what_the_guide_draws_beside_the_mixture_belongs_to_every_component(bound):
    x = torch.randn(6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 5 * w, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.deterministic("mean", x.mean())
        with pyro.plate("data", len(x)):
            components = [dist.Normal(torch.full((len(x), 2), loc), 0.1).to_event(1) for loc in (0.0, 1.0)]
            pyro.sample("z", RecursiveMixture(components, torch.zeros(len(x), 1)))
            pyro.sample("w", dist.Normal(4 * x, 1e-3).to_event(1))

    losses = []
    for vectorize in (True, False):
        pyro.set_rng_seed(1)
        losses.append(bound(vectorize_components=vectorize).loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_scales_masks_and_subsampling_weigh_the_objectives():
    """A KL weight and a subsampling plate act as in Trace_ELBO: at the exact posterior both losses are known."""
    vae, ppca, x = orthogonal_ppca()
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()

    def minibatch(x):
        with pyro.plate("data", 40, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, 0.5).to_event(1), obs=x)

    guide = AmortizedMixture(minibatch, [Exact(ppca), Exact(ppca)], [FreeWeight(0.3)])
    for bound in (StratifiedMixture_ELBO(), RecursiveMixture_ELBO()):
        assert abs(-bound.loss(minibatch, guide, x) - 5 * ppca.log_prob(x).sum().item()) < 1e-8
    one = AmortizedMixture(vae.model, [vae.encoder], [])
    with scale_latents(0.3):
        values = []
        for bound, q in ((StratifiedMixture_ELBO(), one), (RecursiveMixture_ELBO(), one), (Trace_ELBO(), vae.guide)):
            pyro.set_rng_seed(0)
            values.append(bound.loss(vae.model, q, x))
    assert values[0] == values[1] == pytest.approx(values[2], abs=1e-10)
    keep = torch.arange(8) < 5
    masked = lambda program: poutine.mask(program, mask=keep)
    pair = AmortizedMixture(vae.model, [Exact(ppca), Exact(ppca)], [FreeWeight(0.3)])
    loss = StratifiedMixture_ELBO().loss(masked(vae.model), masked(pair), x)
    assert abs(-loss - ppca.log_prob(x[:5]).sum().item()) < 1e-8


def test_refusals_name_the_cure():
    vae, guide, x = small_pair()
    for bound in (StratifiedMixture_ELBO, RecursiveMixture_ELBO):
        with pytest.raises(ValueError, match=r"none among its sites.*'z'.*Use Trace_ELBO, or a mixture guide"):
            bound().loss(vae.model, vae.guide, x)
    for bound in (ImportanceWeighted_ELBO(3), FreeBits_ELBO(0.1)):
        with pytest.raises(ValueError, match=r"needs reparameterised draws.*StratifiedMixture_ELBO"):
            bound.differentiable_loss(vae.model, guide, x)
        assert math.isfinite(bound.loss(vae.model, guide, x)), "evaluation takes no gradient"
    with pytest.raises(ValueError, match="needs 2 weight networks"):
        AmortizedMixture(vae.model, [NormalHead(D, 2)] * 3, [WeightHead(D)])
    with pytest.raises(ValueError, match="components of a mixture must be networks"):
        AmortizedMixture(vae.model, [lambda x: x], [])
    with pytest.raises(ValueError, match=r"need 2 numbers per datum"):
        AmortizedMixture(vae.model, [NormalHead(D, 3), NormalHead(D, 3)], [WeightHead(D)])(x)
    with pytest.raises(ValueError, match="component 1 returned Tensor"):
        AmortizedMixture(vae.model, [NormalHead(D, 2), nn.Linear(D, 2)], [WeightHead(D)])(x)
    for arguments, message in [
        ({"cap": -1.0}, "cap=-1.0"),
        ({"num_kl_samples": 0}, "num_kl_samples"),
        ({"schedule": "both"}, "schedule must be one of"),
        ({"entropy": 0.0}, "must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            RecursiveMixture_ELBO(**arguments)
    with pytest.raises(ValueError, match="num_particles"):
        StratifiedMixture_ELBO(0)


def test_a_trunk_runs_once_and_takes_no_guides():
    vae, guide, x = trunk_pair()
    calls = []
    guide.encoder.trunk.register_forward_hook(lambda *_: calls.append(1))
    apart = [Chain(guide.encoder.trunk, head) for head in guide.encoder.components]
    q = guide.posterior(x)
    assert len(calls) == 1
    for component, part in zip(q.components, apart, strict=True):
        torch.testing.assert_close(component.mean, part(x).mean)
    with pytest.raises(ValueError, match=r"components \[0\] are guides"):
        AmortizedMixture(vae.model, [AmortizedNormal(vae.model, NormalHead(5, 2))], [], trunk=MLP(D, [5], 5))


def test_a_mixture_says_what_does_not_fit_together():
    normal = dist.Normal(torch.zeros(3, 2), 1.0)
    with pytest.raises(ValueError, match=r"2 components need 1 logits.*but got 2"):
        RecursiveMixture([normal, normal], torch.zeros(3, 2))
    with pytest.raises(ValueError, match="one event shape"):
        RecursiveMixture([normal, normal.to_event(1)], torch.zeros(3, 1))
    q = RecursiveMixture([normal.to_event(1)] * 2, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="levels 0 to 1"):
        q.level(2)
    with pytest.raises(ValueError, match=r"\['RecursiveMixture'\] have no rsample"):
        RecursiveMixture([q, normal.to_event(1)], torch.zeros(3, 1)).stratified_rsample()


def test_stratified_draws_pair_each_draw_with_its_own_datum():
    """More, as many and fewer draws than data: torch's own mixtures have been wrong here."""
    loc = torch.arange(4.0).unsqueeze(-1) * 100
    q = RecursiveMixture([FreeAt(loc), FreeAt(-loc)], torch.zeros(4, 1))
    for size in (2, 4, 7):
        z = q.stratified_rsample((size,))
        assert z.shape == (2, size, 4, 1)
        assert ((z - torch.stack([loc, -loc]).unsqueeze(1)).abs() < 1).all()
        assert ((q.sample((size,)).abs() - loc).abs() < 1).all()


def FreeAt(loc):
    return dist.Normal(loc, 0.1).to_event(1)
