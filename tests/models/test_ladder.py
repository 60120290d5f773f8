"""The variational ladder: items T1-T9 of its specification, and what the model promises besides."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Laplace, MultivariateNormal
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_vaes.data import load_data
from pyro_vaes.guides import AmortizedLaplace, AmortizedMixture, AmortizedMultivariateNormal
from pyro_vaes.infer import ImportanceWeighted_ELBO, KLWarmup, StratifiedMixture_ELBO, scale_latents
from pyro_vaes.models import VAE, LadderVAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    Concatenate,
    GatedAdd,
    GaussianLikelihood,
    LaplaceLikelihood,
    SigmoidNormalHead,
    StandardNormal,
    WeightHead,
    mlp_ladder,
    small_ladder,
)
from pyro_vaes.theory import ProbabilisticPCA, gibbs_chain

D, DIMS = 12, [2, 3, 2]
LIKELIHOODS = {
    "gaussian": lambda: GaussianLikelihood(0.3),
    "laplace": lambda: LaplaceLikelihood(0.125),
    "bernoulli": BernoulliLikelihood,
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def make_ladder(dims=DIMS, *, merge=GatedAdd, likelihood=None, **options):
    networks = mlp_ladder(D, dims, width=8, merge=merge, activation=nn.LeakyReLU)  # narrow ReLU layers may be dead
    return LadderVAE(*networks, likelihood or BernoulliLikelihood(), dims, **options)


def binary(rows=20):
    return torch.bernoulli(torch.full((rows, D), 0.4))


def loss(bound, ladder, x, seed=3):
    pyro.set_rng_seed(seed)
    return bound.loss(ladder.model, ladder.guide, x)


def draws(ladder, x, seed=3):
    """z_1 .. z_L as the guide draws them with this seed, and their posteriors."""
    pyro.set_rng_seed(seed)
    sites = poutine.trace(ladder.guide).get_trace(x).nodes
    names = [f"z_{level}" for level in range(1, len(ladder.latent_dims) + 1)]
    return [sites[n]["value"] for n in names], [sites[n]["fn"] for n in names]


# ---------------------------------------------------------------------------------------------- T1-T9


def test_T1_a_ladder_of_one_rung_is_a_vae():
    networks = mlp_ladder(D, [3], width=8)
    ladder = LadderVAE(*networks, BernoulliLikelihood(), [3])
    vae = VAE(networks.rungs[0], networks.decoders[0], BernoulliLikelihood(), 3)
    x = binary()
    for bound in (Trace_ELBO(), TraceMeanField_ELBO(), ImportanceWeighted_ELBO(5)):
        assert loss(bound, ladder, x) == pytest.approx(loss(bound, vae, x), abs=1e-10)


@pytest.mark.parametrize("merge", [GatedAdd, Concatenate])
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace", "bernoulli"])
def test_T2_the_bounds_are_the_sums_of_log_probabilities(merge, likelihood):
    ladder, x = make_ladder(merge=merge, likelihood=LIKELIHOODS[likelihood]()), binary()
    z, q = draws(ladder, x)
    t3 = ladder.decoders[2](z[2])
    t2 = ladder.decoders[1](ladder.merges[1](t3, z[1]))
    loc = ladder.decoders[0](ladder.merges[0](t2, z[0]))
    if likelihood == "bernoulli":
        log_px = x * loc - nn.functional.softplus(loc)
    elif likelihood == "laplace":
        log_px = -8 * (x - loc).abs() + math.log(4)
    else:
        log_px = -0.5 * ((x - loc) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))
    m, s, z = (torch.cat(t, -1) for t in ([r.base_dist.loc for r in q], [r.base_dist.scale for r in q], z))
    log_pz = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum()
    log_qz = (-0.5 * ((z - m) / s) ** 2 - s.log() - 0.5 * math.log(2 * math.pi)).sum()
    kl = (-s.log() + s**2 / 2 + m**2 / 2 - 0.5).sum()
    assert loss(Trace_ELBO(), ladder, x) == pytest.approx((log_qz - log_pz - log_px.sum()).item(), abs=1e-10)
    assert loss(TraceMeanField_ELBO(), ladder, x) == pytest.approx((kl - log_px.sum()).item(), abs=1e-10)


def test_T3_rungs_are_independent_given_x():
    ladder, x = make_ladder(), binary()
    _, before = draws(ladder, x)
    with torch.no_grad():
        ladder.rungs[1][-1].loc.bias += 1.0
    _, after = draws(ladder, x)
    same = [torch.equal(a.base_dist.loc, b.base_dist.loc) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True]

    values = {f"z_{i}": torch.randn(len(x), d, requires_grad=True) for i, d in enumerate(DIMS, 1)}
    trace = poutine.trace(poutine.condition(ladder.guide, data=values)).get_trace(x)
    for name in values:
        base = trace.nodes[name]["fn"].base_dist
        parameters = (base.loc + base.scale).sum()
        gradients = torch.autograd.grad(parameters, list(values.values()), allow_unused=True, retain_graph=True)
        assert gradients == (None, None, None)


@pytest.mark.parametrize("level", [1, 2])
def test_T4_a_gate_of_zero_closes_its_rung_and_no_other(level):
    ladder, x = make_ladder(), binary()

    def gradients():
        z = [torch.randn(len(x), d, requires_grad=True) for d in DIMS]
        return torch.autograd.grad(ladder.likelihood(ladder.decode(z)).log_prob(x).sum(), z)

    assert all(g.abs().max() > 0 for g in gradients())
    with torch.no_grad():
        ladder.merges[level - 1].gate.zero_()
    reached = [bool((g != 0).any()) for g in gradients()]
    assert reached == [i != level for i in (1, 2, 3)]


def test_T5_the_laplace_bound_is_the_authors_loss_up_to_a_constant():
    a, pixels = 8.0, 784
    x, loc = torch.rand(5, pixels), torch.rand(5, pixels)
    log_prob = LaplaceLikelihood(1 / a)(loc).log_prob(x)
    code = a * (x - loc).abs().sum(-1)
    assert pixels * math.log(a / 2) == pytest.approx(1086.8548, abs=1e-4)
    torch.testing.assert_close(-log_prob, code - pixels * math.log(a / 2), rtol=0, atol=1e-10)

    networks = mlp_ladder(pixels, [2, 2], width=8)
    ladder = LadderVAE(*networks, LaplaceLikelihood(1 / a), [2, 2])
    z, q = draws(ladder, x)
    kl = sum(
        (-s.log() + s**2 / 2 + m**2 / 2 - 0.5).sum(-1) for m, s in ((r.base_dist.loc, r.base_dist.scale) for r in q)
    )
    code = (a * (x - ladder.decode(z)).abs().sum(-1) + kl).mean()
    bound = loss(TraceMeanField_ELBO(), ladder, x) / len(x)
    assert bound == pytest.approx(code.item() - 1086.8548, abs=1e-4)
    assert bound == pytest.approx(code.item() - pixels * math.log(a / 2), abs=1e-10)


def test_T6_the_warm_up_weighs_the_kl_and_nothing_else():
    warmup = KLWarmup(10_000, start=1 - math.exp(-1 / 2000), exponential=True)
    for iteration in (1, 10, 1000, 2000):  # the authors count from 1, KLWarmup from 0
        assert warmup.beta(iteration - 1) == pytest.approx(1 - math.exp(-iteration / 2000), abs=1e-12)
    assert warmup.beta(0) == pytest.approx(4.9988e-4, abs=1e-8)
    assert warmup.beta(999) == pytest.approx(0.39347, abs=1e-5)
    assert warmup.beta(1999) == pytest.approx(0.63212, abs=1e-5)

    ladder, x, c = make_ladder(), binary(), warmup.beta(999)
    z, q = draws(ladder, x)
    reconstruction = ladder.likelihood(ladder.decode(z)).log_prob(x).sum()
    priors = [prior() for prior in ladder.priors]
    analytic = sum(kl_divergence(r, p.expand(r.batch_shape)).sum() for r, p in zip(q, priors, strict=True))
    sampled = sum((r.log_prob(v) - p.log_prob(v)).sum() for r, p, v in zip(q, priors, z, strict=True))
    with scale_latents(c):
        assert loss(TraceMeanField_ELBO(), ladder, x) == pytest.approx((c * analytic - reconstruction).item(), abs=1e-9)
        assert loss(Trace_ELBO(), ladder, x) == pytest.approx((c * sampled - reconstruction).item(), abs=1e-9)


def test_T7_the_gibbs_chain_of_finite_tables_has_the_data_as_its_stationary_distribution():
    def table(*shape):
        return torch.randn(*shape).softmax(-1)

    p2, p1, px = table(4), table(4, 5), table(5, 7)
    chain = gibbs_chain(p2, p1, px)
    marginal = torch.einsum("a,ab,bx->x", p2, p1, px)
    torch.testing.assert_close(chain.marginal, marginal, rtol=0, atol=1e-14)
    assert (chain.marginal @ chain.transition - marginal).abs().max() < 1e-12
    values, vectors = torch.linalg.eig(chain.transition.mT)
    stationary = (values - 1).abs() < 1e-9
    assert stationary.sum() == 1 and chain.num_classes == 1, "unique"
    vector = vectors[:, stationary][:, 0].real
    torch.testing.assert_close(vector / vector.sum(), marginal, rtol=0, atol=1e-10)

    blocks = torch.block_diag(table(2, 3), table(3, 4))
    chain = gibbs_chain(p2, p1, blocks)
    assert (chain.marginal @ chain.transition - chain.marginal).abs().max() < 1e-12
    values = torch.linalg.eigvals(chain.transition)
    assert ((values - 1).abs() < 1e-9).sum() == chain.num_classes == 2, "not unique"
    stuck = chain.run(torch.eye(7)[0], 1000)
    assert stuck[3:].abs().max() == 0 and (stuck - chain.marginal).abs().max() > 0.1


def linear_ladder(scale=0.7, *, orthogonal=False):
    """A linear-Gaussian ladder and its exact counterpart with the effective loadings W = [W_1 .. W_L]."""
    networks = mlp_ladder(D, DIMS, width=6)
    decoders = [nn.Linear(i, o) for i, o in ((6, D), (6, 6), (2, 6))]
    merges = [GatedAdd(nn.Linear(d, 6, bias=False), (6,), gate=0.8) for d in DIMS[:2]]
    if orthogonal:
        # z_l enters through its own coordinates of t, and u_l and f keep these apart
        decoders = [nn.Linear(7, D), nn.Linear(7, 7), nn.Linear(2, 7)]
        merges = [GatedAdd(nn.Linear(d, 7, bias=False), (7,), gate=0.8) for d in DIMS[:2]]
        place, rows = torch.eye(7), torch.linalg.qr(torch.randn(D, 7)).Q
        with torch.no_grad():
            for layer, weight in zip(
                [decoders[0], decoders[1], decoders[2], merges[0].network, merges[1].network],
                [rows * torch.linspace(0.5, 2, 7), place * 1.5, place[:, 5:], place[:, :2], place[:, 2:5]],
                strict=True,
            ):
                layer.weight.copy_(weight)
    ladder = LadderVAE(networks.encoders, networks.rungs, merges, decoders, GaussianLikelihood(scale), DIMS)
    zeros = torch.zeros(sum(DIMS))

    def flat(z):
        return ladder.decode(z.split(DIMS, -1))

    loadings = torch.autograd.functional.jacobian(flat, zeros)
    first, second, third = (d.weight for d in decoders)
    gates = [m.gate.unsqueeze(-1) * m.network.weight for m in merges]
    by_hand = torch.cat([first @ gates[0], first @ second @ gates[1], first @ second @ third], dim=1)
    torch.testing.assert_close(loadings, by_hand.detach())
    return ladder, ProbabilisticPCA(flat(zeros).detach(), loadings, scale**2)


class DiagonalExact(nn.Module):
    """The ladder's diagonal guide at its optimum: exact means, variances 1 / Lam_dd."""

    def __init__(self, truth):
        super().__init__()
        self.truth = truth

    def forward(self, x):
        q = self.truth.posterior(x)
        return q.mean, q.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()


class FullExact(DiagonalExact):
    def forward(self, x):
        q = self.truth.posterior(x)
        return MultivariateNormal(q.loc, precision_matrix=q.precision_matrix)


class Part(nn.Module):
    """The diagonal guide of one rung."""

    def __init__(self, whole, start, size):
        super().__init__()
        self.whole, self.start, self.size = whole, start, size

    def forward(self, x):
        return tuple(t.narrow(-1, self.start, self.size) for t in self.whole(x))


def with_exact_rungs(ladder, truth):
    starts = [0, DIMS[0], DIMS[0] + DIMS[1]]
    rungs = [Part(DiagonalExact(truth), start, size) for start, size in zip(starts, DIMS, strict=True)]
    identity = [nn.Identity()] * 2
    return LadderVAE(identity, rungs, ladder.merges, ladder.decoders, ladder.likelihood, DIMS)


def test_T8_the_importance_weighted_bound_climbs_to_the_exact_evidence():
    """n = 20 seeds with 100 copies of each of 5 data; steps up exceed 4 standard errors, no bound the truth by more."""
    ladder, truth = linear_ladder(scale=0.3)
    ladder = with_exact_rungs(ladder, truth)
    x = ladder.model(size=5).detach()
    exact = truth.log_prob(x).sum()
    bounds = []
    for k in (1, 4, 32):
        repeats = torch.tensor([loss(ImportanceWeighted_ELBO(k), ladder, x.repeat(100, 1), s) / 100 for s in range(20)])
        bounds.append((-repeats.mean(), repeats.std() / math.sqrt(len(repeats))))
    for (low, low_error), (high, high_error) in itertools.pairwise(bounds):
        assert high - low > 4 * (low_error**2 + high_error**2).sqrt()
    assert all(bound < exact + 4 * error for bound, error in bounds)
    assert exact - bounds[-1][0] < 0.3 * (exact - bounds[0][0])


@pytest.mark.parametrize("guide", ["multivariate_normal", "laplace", "mixture"])
def test_T9_a_joint_guide_of_full_covariance_is_tight(guide):
    ladder, truth = linear_ladder()
    x = ladder.model(size=6).detach()
    exact = truth.log_prob(x).sum().item()
    if guide == "mixture":
        q = AmortizedMixture(ladder.model, [FullExact(truth), FullExact(truth)], [WeightHead(D)])
        value = StratifiedMixture_ELBO().loss(ladder.model, q, x)
    else:
        if guide == "laplace":  # one full Newton step from anywhere
            q = AmortizedLaplace(ladder.model, MLP(D, [5], sum(DIMS)), steps=1, schedule=lambda t: 1.0)
        else:
            q = AmortizedMultivariateNormal(ladder.model, FullExact(truth))
        value = Trace_ELBO().loss(ladder.model, q, x)
    assert -value == pytest.approx(exact, abs=1e-10 * max(1, abs(exact)))


@pytest.mark.parametrize("orthogonal", [False, True])
def test_T9_the_diagonal_guide_loses_what_the_precision_says(orthogonal):
    """n = 4000 draws for each of 6 data where the bound is an estimate, within 4 standard errors."""
    ladder, truth = linear_ladder(orthogonal=orthogonal)
    ladder = with_exact_rungs(ladder, truth)
    x = ladder.model(size=6).detach()
    precision = truth.posterior(x[:1]).precision_matrix[0]
    gram = truth.loadings.mT @ truth.loadings
    torch.testing.assert_close(precision, torch.eye(sum(DIMS)) + gram / truth.noise_var)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))

    # E log p(x|z) - KL in closed form: E|x - b - W z|² = |x - b - W m|² + sum_d |w_d|² s_d²
    q = [r.base_dist for r in ladder.posteriors(x)]
    m, s = torch.cat([r.loc for r in q], -1), torch.cat([r.scale for r in q], -1)
    errors = (x - truth.mean - m @ truth.loadings.mT).square().sum(-1) + (gram.diagonal() * s**2).sum(-1)
    log_px = -0.5 * errors / truth.noise_var - 0.5 * D * math.log(2 * math.pi * truth.noise_var)
    elbo = log_px - (-s.log() + s**2 / 2 + m**2 / 2 - 0.5).sum(-1)
    torch.testing.assert_close(truth.log_prob(x) - elbo, gap.expand(6), rtol=0, atol=1e-10)
    if orthogonal:
        assert gap.abs() < 1e-12
        assert -loss(Trace_ELBO(), ladder, x) == pytest.approx(truth.log_prob(x).sum().item(), abs=1e-9)
        return
    assert gap > 0.1
    bounds = torch.tensor([-loss(TraceMeanField_ELBO(), ladder, x.repeat(100, 1), seed) for seed in range(40)]) / 100
    assert (bounds.mean() - elbo.sum()).abs() < 4 * bounds.std() / math.sqrt(len(bounds))


# ---------------------------------------------------------------------------------------------- the model itself


@pytest.mark.parametrize("merge", [GatedAdd, Concatenate])
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_any_number_of_rungs(levels, merge):
    dims = list(range(1, levels + 1))
    ladder, x = make_ladder(dims, merge=merge), binary(4)
    names = [f"z_{i}" for i in range(1, levels + 1)]
    for program in (ladder.guide, ladder.model):
        sites = poutine.trace(program).get_trace(x).nodes
        assert [n for n in sites if n.startswith("z_")] == names
        for name, dim in zip(names, dims, strict=True):
            assert sites[name]["value"].shape == (4, dim) and sites[name]["fn"].event_shape == (dim,)
            assert [f.name for f in sites[name]["cond_indep_stack"]] == ["data"]
    assert ladder.model(size=3).shape == (3, D)
    assert Predictive(ladder.model, num_samples=7)()["x"].shape == (7, 1, D)


def test_leading_dimensions_of_the_latents_broadcast():
    networks = small_ladder((1, 6, 6), [2, 2, 2], channels=(2, 3), width=4)
    for ladder in (
        make_ladder([2, 2, 2]),
        make_ladder([2, 2, 2], merge=Concatenate),
        LadderVAE(*networks, BernoulliLikelihood(event_dim=3), [2, 2, 2]).eval(),
    ):
        z = [torch.randn(3, 1, 2), torch.randn(5, 2), torch.randn(3, 5, 2)]
        every = ladder.decode([v.expand(3, 5, 2) for v in z])
        torch.testing.assert_close(ladder.decode(z), every)
        one_by_one = torch.stack([ladder.decode([v.expand(3, 5, 2)[i] for v in z]) for i in range(3)])
        torch.testing.assert_close(every, one_by_one)


def test_each_rung_reads_its_own_depth_of_the_path():
    ladder, x = make_ladder(), binary()
    first, second = ladder.encoders
    depths = [x, first(x), second(first(x))]
    for q, rung, h in zip(ladder.posteriors(x), ladder.rungs, depths, strict=True):
        assert torch.equal(q.mean, rung(h).mean) and torch.equal(q.stddev, rung(h).stddev)


def test_priors_are_free():
    priors = [StandardNormal(d, scale=s) for d, s in zip(DIMS, (1.0, 2.0, 3.0), strict=True)]
    sites = poutine.trace(make_ladder(priors=priors).model).get_trace(binary()).nodes
    assert [sites[f"z_{i}"]["fn"].stddev.unique().item() for i in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_wrong_numbers_of_networks_are_counted():
    encoders, rungs, merges, decoders = mlp_ladder(D, DIMS, width=4)
    with pytest.raises(ValueError, match=r"3 latent_dims need 3 rungs.* but got 3 rungs, 3 decoders, 3 priors, 1 enc"):
        LadderVAE(encoders[:1], rungs, merges, decoders, BernoulliLikelihood(), DIMS)
    with pytest.raises(ValueError, match="but got 0 rungs"):
        LadderVAE([], [], [], [], BernoulliLikelihood(), [])
    with pytest.raises(ValueError, match="each of the 3 rungs, but got 2"):
        make_ladder().decode([torch.zeros(1, 2)] * 2)


def test_a_rung_of_another_length_than_latent_dims_is_named():
    ladder = LadderVAE(*mlp_ladder(D, [2, 3, 2], width=8), BernoulliLikelihood(), [2, 4, 2])
    said = r"^The rung of z_2 returns .* vectors of length 3, but latent_dims\[1\] is 4: .*SigmoidNormalHead\(8, 4\)\.$"
    with pytest.raises(ValueError, match=said):
        ladder.posteriors(binary())


def test_a_rung_that_returns_no_distribution_is_named():
    ladder = make_ladder()
    ladder.rungs[1] = MLP(8, [], 3)
    with pytest.raises(ValueError, match="the rung of z_2 returned Tensor"):
        ladder.guide(binary())


def test_laplace_guide_runs_through_a_normalised_ladder_in_evaluation_mode_only():
    ladder = LadderVAE(*small_ladder((1, 6, 6), channels=(2, 3), width=4), LaplaceLikelihood(0.2, event_dim=3), [2] * 3)
    guide = AmortizedLaplace(ladder.model, Chain(nn.Flatten(), nn.Linear(36, 6)), steps=2)
    x = torch.rand(5, 1, 6, 6)
    with pytest.raises(ValueError, match="uses BatchNorm1d"):
        guide.posterior(x)
    ladder.eval()
    precision = guide.posterior(x).precision_matrix
    assert precision.shape == (5, 6, 6)

    def means(z):
        return torch.cat([ladder.decode([v[None] for v in z.split(2)]).flatten(), z])

    mode = guide.posterior(x).loc[0]
    jacobian = torch.autograd.functional.jacobian(means, mode)
    by_hand = jacobian[:36].mT @ jacobian[:36] / 0.2**2 + torch.eye(6)  # the information of a Laplace's mean is 1 / b²
    torch.testing.assert_close(precision[0], by_hand)


@pytest.mark.slow
def test_the_default_small_ladder_starts_where_the_authors_code_does(data_root):
    """Unseeded single figures of theirs: 2931 (8 sum |x - mean|) and 6.5 (KL) before the first update.

    Within 3 standard deviations of ours over seeds, which are 95 and 1.2.
    """
    torch.set_default_dtype(torch.float32)
    x = load_data("mnist", data_root, flatten=False).train[:100]
    ladder = LadderVAE(*small_ladder(), LaplaceLikelihood(1 / 8, event_dim=3), [2, 2, 2])
    z, q = draws(ladder, x)
    with torch.no_grad():
        reconstruction = 8 * (x - ladder.decode(z)).abs().sum() / len(x)
        kl = sum(kl_divergence(r, p().expand(r.batch_shape)).sum() for r, p in zip(q, ladder.priors, strict=True))
    assert reconstruction.item() == pytest.approx(2931, abs=3 * 95)
    assert kl.item() / len(x) == pytest.approx(6.5, abs=3 * 1.2)
    assert all(isinstance(r[-1], SigmoidNormalHead) for r in ladder.rungs)
    assert isinstance(ladder.likelihood(ladder.decode(z)).base_dist, Laplace)
