"""Mutual posterior divergence: the spec's items T19 to T26, all families of posteriors, every way to wrap a bound."""

import functools
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.autograd import gradcheck
from torch.distributions import kl_divergence
from torch.distributions.transforms import AffineTransform, StickBreakingTransform
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vaes.distributions import PrecisionNormal, RecursiveMixture
from pyro_vaes.guides import AmortizedMixture, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vaes.infer import (
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    KLWarmup,
    MutualPosterior_ELBO,
    RecursiveMixture_ELBO,
    StratifiedMixture_ELBO,
    check,
    evaluate,
    fit,
)
from pyro_vaes.infer.bounds.global_batch import global_batch
from pyro_vaes.nn import MLP, Chain, MultivariateNormalHead, NormalHead, WeightHead
from pyro_vaes.ops import (
    multivariate_normal_pairwise_kl,
    normal_mean_kl,
    normal_mean_softplus,
    normal_pairwise_kl,
    off_diagonal,
    pairwise,
)
from tests.infer.pairs import D, binary, binary_vae, hierarchical_vae, weights

LN2 = math.log(2)
f64 = functools.partial(torch.randn, dtype=torch.float64)


def normals(n=8, d=5):
    return 2 * f64(n, d) + 3, (0.5 * f64(n, d)).exp()


def brute(loc, scale):
    """P_ijd by torch's own closed form, (n, n, d)."""
    one, other = (dist.Normal(loc.unsqueeze(k), scale.unsqueeze(k)).expand((len(loc), *loc.shape)) for k in (1, 0))
    return kl_divergence(one, other)


def pairs(*posteriors, bound=None, **options):
    """The bound's view of a guide that samples from these distributions, all in one plate."""

    def guide():
        with pyro.plate("data", posteriors[0].batch_shape[0]):
            for index, posterior in enumerate(posteriors):
                pyro.sample(f"z_{index}", posterior)

    return (bound or MutualPosterior_ELBO(eta=1.0, **options)).pairs(guide)


def pairs_of_normals(loc, scale):
    return pairs(dist.Normal(loc, scale).to_event(1))


def test_T19_pairwise_divergences():
    loc, scale = normals()
    truth = brute(loc, scale)
    found = pairs_of_normals(loc, scale)
    torch.testing.assert_close(found.total, truth.sum(-1), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(found.mean, off_diagonal(truth).mean(0), rtol=1e-12, atol=1e-10)
    assert (found.total - found.total.T).abs().max() > 0.1
    loc[1], scale[1] = loc[0], scale[0]  # zero if and only if two posteriors are equal
    zero = pairs_of_normals(loc, scale).total < 1e-10
    expected = torch.eye(8, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(zero, expected)


def test_T20_corrections_of_the_authors_estimators():
    n = 8
    loc, scale = normals(n)
    truth = brute(loc, scale)
    found = pairs_of_normals(loc, scale)
    mean = truth.mean((0, 1)) * n / (n - 1)  # the diagonal is zero
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    total = truth.sum(-1)
    filled = total + torch.eye(n, dtype=total.dtype) * total.sum() / (n * (n - 1))
    correction = math.sqrt((n**2 - 1) / (n**2 - n - 1))
    assert correction == pytest.approx(1.0702591, abs=1e-7)
    torch.testing.assert_close(found.smoothness(), filled.std() * correction, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("diverse", ["mean_then_softplus", "pairwise"])
def test_T21_identical_posteriors(dtype, diverse):
    loc = (1e9 * torch.randn(1, 40, dtype=dtype)).expand(7, 40).clone().requires_grad_()
    scale = torch.rand(1, 40, dtype=dtype).add(0.1).expand(7, 40).clone().requires_grad_()
    found = pairs_of_normals(loc, scale)
    assert (found.mean == 0).all() and (found.total == 0).all() and found.smoothness() == 0
    assert found.diversity(diverse).item() == pytest.approx(40 * LN2, rel=1e-6)
    gradients = torch.autograd.grad(found.diversity(diverse) + found.smoothness(), [loc, scale])
    assert all((g.abs() < 1e-6).all() for g in gradients)


def test_T22_bounds_and_jensen():
    for spread in (0.01, 0.3, 1.0, 3.0):
        loc, scale = normals()
        found = pairs_of_normals(spread * loc, scale**spread)
        as_released, as_printed = found.diversity(), found.diversity("pairwise")
        assert 0 < as_released < as_printed <= 5 * LN2
    loc = torch.tensor([[0.0, 1.0], [1.0, -3.0]], dtype=torch.float64)  # two posteriors, one variance: all pairs equal
    found = pairs_of_normals(loc, torch.ones_like(loc))
    torch.testing.assert_close(found.diversity(), found.diversity("pairwise"), rtol=1e-14, atol=0)
    assert found.smoothness() < 1e-12
    loc, scale = normals()
    truth = brute(loc, scale)
    found = pairs_of_normals(loc, scale)
    torch.testing.assert_close(found.diversity("pairwise"), off_diagonal(softplus(-truth)).mean(0).sum())
    torch.testing.assert_close(found.diversity(), softplus(-off_diagonal(truth).mean(0)).sum())


def test_T23_shared_variance():
    loc, _ = normals()
    scale = torch.tensor([0.1, 0.5, 1.0, 2.0, 7.0], dtype=torch.float64)
    found = pairs_of_normals(loc, scale.expand_as(loc))
    torch.testing.assert_close(found.mean, loc.var(0) / scale**2, rtol=1e-12, atol=0)


def test_T24_affine_change():
    loc, scale = normals()
    a, b = f64(5), 10 * f64(5)
    one, other = pairs_of_normals(loc, scale), pairs_of_normals(a * loc + b, a.abs() * scale)
    torch.testing.assert_close(other.total, one.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.mean, one.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.diversity("pairwise"), one.diversity("pairwise"), rtol=1e-12, atol=1e-12)
    flow = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [AffineTransform(b, a, event_dim=1)])
    torch.testing.assert_close(pairs(flow).total, one.total, rtol=1e-12, atol=1e-12)


def loss_and_gradients(vae, bound, x, seed=1):
    pyro.set_rng_seed(seed)
    vae.zero_grad()
    loss = bound.differentiable_loss(vae.model, vae.guide, x)
    return loss, torch.autograd.grad(loss, list(vae.parameters()))


def test_T25_without_weights_it_is_the_bound_and_the_loss_is_linear_in_them():
    torch.set_default_dtype(torch.float64)
    x, vae = binary(20).double(), binary_vae()
    plain, gradients = loss_and_gradients(vae, Trace_ELBO(), x)
    off, same = loss_and_gradients(vae, MutualPosterior_ELBO(), x)
    assert torch.equal(off, plain) and all(map(torch.equal, gradients, same))
    found = MutualPosterior_ELBO().pairs(vae.guide, x)
    for diverse in ("mean_then_softplus", "pairwise"):
        bound = MutualPosterior_ELBO(eta=0.7, diverse=diverse)
        loss, _ = loss_and_gradients(vae, bound, x)
        torch.testing.assert_close(loss - plain, 20 * 0.7 * found.diversity(diverse), rtol=1e-11, atol=0)
    bound.eta, bound.gamma = 0.0, 0.3  # weights may change between steps
    loss, _ = loss_and_gradients(vae, bound, x)
    torch.testing.assert_close(loss - plain, 20 * 0.3 * found.smoothness(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("diverse", ["mean_then_softplus", "pairwise"])
def test_T26_directions_and_batch_order(diverse):
    loc, scale = normals()
    shared = scale[:1].expand_as(scale)
    loc.requires_grad_()
    found = pairs_of_normals(loc, shared)
    (push,) = torch.autograd.grad(found.diversity(diverse), loc, retain_graph=True)
    (pull,) = torch.autograd.grad(found.smoothness(), loc)
    centred = (loc - loc.mean(0)).detach()
    if diverse == "mean_then_softplus":  # each dimension's pairs are weighted alike: every mean moves outwards
        assert ((push * centred).sum(1) < 0).all()
    assert (push * centred).sum() < 0 and (pull * centred).sum() > 0
    order = torch.randperm(8)
    one, other = pairs_of_normals(loc, scale), pairs_of_normals(loc[order], scale[order])
    torch.testing.assert_close(other.diversity(diverse), one.diversity(diverse), rtol=1e-12, atol=0)
    torch.testing.assert_close(other.smoothness(), one.smoothness(), rtol=1e-12, atol=0)


def test_gradients_by_finite_differences(monkeypatch):
    loc, log_scale = f64(4, 3, requires_grad=True), f64(4, 3, requires_grad=True)

    def terms(loc, log_scale, diverse):
        found = pairs_of_normals(loc, log_scale.exp())
        return found.diversity(diverse), found.smoothness()

    for diverse in ("mean_then_softplus", "pairwise"):
        assert gradcheck(functools.partial(terms, diverse=diverse), (loc, log_scale))
    whole = terms(loc, log_scale, "pairwise")[0]
    expected = torch.autograd.grad(whole, loc)[0]
    monkeypatch.setattr(pairwise, "MAX_ELEMENTS", 16)  # one dimension after the other
    assert gradcheck(lambda a, b: normal_mean_softplus(a, b.exp()), (loc, log_scale))
    parts = terms(loc, log_scale, "pairwise")[0]
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(parts, loc)[0], expected, rtol=1e-12, atol=1e-14)


def test_gradients_of_full_covariances_by_finite_differences():
    loc, raw = f64(4, 3, requires_grad=True), f64(4, 3, 3, requires_grad=True)

    def terms(loc, raw, kind):
        factor = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
        found = pairs(PrecisionNormal(loc, factor) if kind else dist.MultivariateNormal(loc, scale_tril=factor))
        return found.diversity(), found.smoothness()

    for kind in (0, 1):
        assert gradcheck(functools.partial(terms, kind=kind), (loc, raw))


def test_bounds_the_mutual_information():
    """I_q(x; z) <= (n - 1) / n MPD and log n: the mixture of n posteriors in one dimension, integrated on a grid."""
    grid = torch.linspace(-60, 60, 60_001, dtype=torch.float64).unsqueeze(1)
    for spread in (0.1, 1.0, 5.0):
        loc, scale = spread * f64(6, 1), (0.3 * f64(6, 1)).exp()
        log_q = dist.Normal(loc.squeeze(), scale.squeeze()).log_prob(grid)  # (G, n)
        log_mixture = log_q.logsumexp(1, keepdim=True) - math.log(6)
        information = (log_q.exp() * (log_q - log_mixture)).sum() * (120 / 60_000) / 6
        divergence = 5 / 6 * pairs_of_normals(loc, scale).mean.sum()
        assert 0 < information < min(divergence, math.log(6))
        torch.testing.assert_close(divergence, pairs_of_normals(loc, scale).total.mean())


def test_float32_is_safe_far_from_the_origin():
    """Means of 1e4 beside standard deviations of 1e-2, where squares expanded in float32 would lose everything."""
    loc = (1e4 + torch.randn(50, 6)).float()
    scale = 1e-2 * (0.3 * torch.randn(50, 6)).exp()
    truth = brute(loc.double(), scale.double())
    torch.testing.assert_close(normal_pairwise_kl(loc, scale).double(), truth.sum(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normal_mean_kl(loc, scale).double(), off_diagonal(truth).mean(0), rtol=1e-6, atol=1e-6)
    near = (1e4 + 1e-3 * torch.randint(-2, 3, (50, 6))).float()  # the divergences are small as well
    truth = brute(near.double(), torch.full((50, 6), 1e-2).double())
    found = normal_pairwise_kl(near, torch.full((50, 6), 1e-2))
    torch.testing.assert_close(found.double(), truth.sum(-1), rtol=1e-5, atol=1e-6)
    assert (found >= 0).all()


def test_no_tensor_of_pairs_and_dimensions(monkeypatch):
    n, d = 30, 40

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                self.seen = max(self.seen, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return result

    loc, scale = (t.requires_grad_() for t in normals(n, d))
    for function, allowed in ((normal_pairwise_kl, n * d), (normal_mean_kl, n * d)):
        with Largest() as largest:
            function(loc, scale).sum().backward()
        assert largest.seen <= allowed
    monkeypatch.setattr(pairwise, "MAX_ELEMENTS", 4 * n * n)
    with Largest() as largest:
        normal_mean_softplus(loc, scale).sum().backward()
    assert largest.seen == 4 * n * n
    raw = torch.linalg.cholesky(torch.eye(d).expand(n, d, d) + 0.1).double()
    with Largest() as largest:
        multivariate_normal_pairwise_kl(loc, raw, torch.linalg.inv(raw))
    assert largest.seen <= n * d * d


@pytest.mark.parametrize("n", [2, 3, 7])
def test_off_diagonal(n):
    matrix = torch.randn(n, n, 2)
    assert torch.equal(off_diagonal(matrix), matrix[~torch.eye(n, dtype=torch.bool)])


def full_covariances(n=6, d=4):
    factor = 0.5 * f64(n, d, d).tril(-1) + torch.diag_embed((0.3 * f64(n, d)).exp())
    return f64(n, d), factor


def row_by_row(fn):
    """KL of each ordered pair, built one pair at a time from single rows: an independent way."""
    n = fn.batch_shape[0]
    names = {
        dist.MultivariateNormal: ["loc", "scale_tril"], PrecisionNormal: ["loc", "chol_precision"],
        dist.Gamma: ["concentration", "rate"], dist.Beta: ["concentration1", "concentration0"],
        dist.Dirichlet: ["concentration"], dist.Categorical: ["logits"], dist.Bernoulli: ["logits"],
        dist.OneHotCategorical: ["logits"], dist.Laplace: ["loc", "scale"], dist.Gumbel: ["loc", "scale"],
    }  # fmt: skip
    base = fn.base_dist if hasattr(fn, "reinterpreted_batch_ndims") else fn
    make = lambda i: type(base)(**{k: getattr(base, k)[i] for k in names[type(base)]})
    return torch.stack([torch.stack([kl_divergence(make(i), make(j)) for j in range(n)]) for i in range(n)])


def test_full_covariances():
    loc, factor = full_covariances()
    fn = dist.MultivariateNormal(loc, scale_tril=factor)
    found = pairs(fn)
    torch.testing.assert_close(found.total, row_by_row(fn), rtol=1e-10, atol=1e-10)
    marginal = brute(loc, fn.variance.sqrt())
    torch.testing.assert_close(found.mean, off_diagonal(marginal).mean(0), rtol=1e-10, atol=1e-10)
    precise = PrecisionNormal(loc, factor)
    torch.testing.assert_close(pairs(precise).total, row_by_row(precise), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pairs(precise).mean, off_diagonal(brute(loc, precise.variance.sqrt())).mean(0))
    same = pairs(dist.MultivariateNormal(loc[:1].expand(5, 4), scale_tril=factor[:1].expand(5, 4, 4)))
    assert same.total.max() < 1e-12 and same.smoothness() < 1e-12


FAMILIES = {
    "gamma": lambda p: dist.Gamma(p[..., 0], p[..., 1]),
    "gamma_vector": lambda p: dist.Gamma(p, p.flip(-1)).to_event(1),
    "beta": lambda p: dist.Beta(p, p.flip(-1)).to_event(1),
    "dirichlet": dist.Dirichlet,
    "categorical": lambda p: dist.Categorical(logits=p),
    "categorical_probs": lambda p: dist.Categorical(probs=p),
    "bernoulli": lambda p: dist.Bernoulli(logits=p).to_event(1),
    "one_hot": lambda p: dist.OneHotCategorical(logits=p),
    "laplace": lambda p: dist.Laplace(p, p.flip(-1)).to_event(1),
    "gumbel": lambda p: dist.Gumbel(p, p.flip(-1)).to_event(1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_registered_families(family):
    fn = FAMILIES[family](f64(5, 3).exp() + 0.3)
    truth = row_by_row(fn)  # (n, n) or (n, n, units)
    truth = truth.reshape(5, 5, -1)
    found = pairs(fn)
    torch.testing.assert_close(found.total, truth.sum(-1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.mean, off_diagonal(truth).mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.diversity("pairwise"), off_diagonal(softplus(-truth)).mean(0).sum())


def test_maps_onto_a_support_change_nothing():
    loc, scale = normals(6, 3)
    plain = pairs_of_normals(loc, scale).total
    for fn in (
        dist.LogNormal(loc, scale).to_event(1),
        dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [StickBreakingTransform()]),
    ):
        torch.testing.assert_close(pairs(fn).total, plain, rtol=1e-12, atol=1e-12)


def test_several_sites_and_inner_plates_add_up():
    (loc, scale), (more, wide) = normals(6, 3), normals(6, 2)
    one, other = pairs_of_normals(loc, scale), pairs_of_normals(more, wide)
    both = pairs(dist.Normal(loc, scale).to_event(1), dist.Normal(more, wide).to_event(1))
    torch.testing.assert_close(both.total, one.total + other.total)
    torch.testing.assert_close(both.mean, torch.cat([one.mean, other.mean]))
    torch.testing.assert_close(both.diversity(), one.diversity() + other.diversity())

    def nested():
        with pyro.plate("data", 6, dim=-2), pyro.plate("units", 3, dim=-1):
            pyro.sample("z", dist.Normal(loc, scale))

    found = MutualPosterior_ELBO().pairs(nested)
    torch.testing.assert_close(found.total, one.total)
    torch.testing.assert_close(found.mean, one.mean)


def test_draws_where_no_divergence_is_closed():
    """A flow that differs between data: 20,000 draws of 4 data, 5 standard errors."""
    loc, scale = normals(4, 2)
    zeros = torch.zeros_like(loc)
    flow = dist.TransformedDistribution(dist.Normal(zeros, 1.0).to_event(1), [AffineTransform(loc, scale, event_dim=1)])
    number = 20_000
    found = pairs(flow, num_samples=number)
    truth = brute(loc, scale).sum(-1)
    z = loc + scale * f64(number, 4, 2)
    fn = dist.Normal(loc, scale).to_event(1)
    error = (fn.log_prob(z).unsqueeze(2) - fn.log_prob(z.unsqueeze(2))).std(0) / number**0.5
    assert ((found.total - truth).abs() <= 5 * error + 1e-12).all() and error.max() < 0.2 * truth.max()
    assert len(found.mean) == 1  # it does not factorise: one unit


def mixture_of(raw):
    """Two components for each of three data in one dimension, from 15 numbers."""
    loc, log_scale, logit = raw[:6].reshape(2, 3, 1), raw[6:12].reshape(2, 3, 1), raw[12:]
    return RecursiveMixture([dist.Normal(m, s.exp()).to_event(1) for m, s in zip(loc, log_scale, strict=True)], [logit])


def test_mixtures_and_their_gradients():
    """Against the integral on a grid, value and gradient of all 15 numbers: 100 times 400 draws, 5 standard errors."""
    raw = (0.5 * f64(15)).requires_grad_()
    grid = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
    log_q = mixture_of(raw).log_prob(grid.reshape(-1, 1, 1))  # (G, n)
    width = 50 / 20_000
    exact = (log_q.exp().unsqueeze(2) * (log_q.unsqueeze(2) - log_q.unsqueeze(1))).sum(0) * width
    (slope,) = torch.autograd.grad(off_diagonal(exact).mean(), raw)
    values, slopes = [], []
    for _ in range(100):
        mean = pairs(mixture_of(raw), num_samples=400).mean.squeeze()
        values.append(mean.detach())
        slopes.append(torch.autograd.grad(mean, raw)[0])
    values, slopes = torch.stack(values), torch.stack(slopes)
    assert (values.mean() - off_diagonal(exact).mean()).abs() < 5 * values.std() / 100**0.5
    assert ((slopes.mean(0) - slope).abs() < 5 * slopes.std(0) / 100**0.5 + 1e-12).all()


def test_heavy_tail():
    """Log variances spread by s = 1: the mean ratio is e beside a median of 1 (300 dimensions, 5 standard errors)."""
    log_scale = 0.5 * f64(400, 300)
    per_dimension = 2 * normal_mean_kl(torch.zeros_like(log_scale), log_scale.exp()) + 1  # mean of v_i / v_j
    error = per_dimension.std() / 300**0.5
    assert (per_dimension.mean() - math.e).abs() < 5 * error and error < 0.1
    ratio = off_diagonal((2 * (log_scale[:, :1] - log_scale[:, 0])).exp())
    assert 0.9 < ratio.median() < 1.1
    sharp = torch.ones(100, 2, dtype=torch.float64)
    sharp[7] = 1e-3  # one sharp posterior is far from all others, and they are not far from it
    total = pairs_of_normals(torch.zeros_like(sharp), sharp).total
    assert total[:7, 7].min() > 9e5 and total[7].max() < 20


# -- around other bounds ---------------------------------------------------------------------------------------------


def terms(bound, base, pair, x, seed=3):
    """What the bound adds to its base at the same noise."""
    values = []
    for loss in (bound, base):
        pyro.set_rng_seed(seed)
        values.append(loss.differentiable_loss(*pair, x))
    return values[0] - values[1]


@pytest.mark.parametrize(
    "make",
    [
        Trace_ELBO,
        lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        lambda: Trace_ELBO(num_particles=2),
        TraceMeanField_ELBO,
        lambda: TraceEnum_ELBO(strict_enumeration_warning=False, max_plate_nesting=1),
        lambda: ImportanceWeighted_ELBO(4),
        lambda: FreeBits_ELBO(0.5),
    ],
)
def test_any_bound_gets_the_same_terms(make):
    torch.set_default_dtype(torch.float64)
    x, vae = binary(20).double(), binary_vae()
    bound = MutualPosterior_ELBO(make(), eta=1.0, gamma=0.5)
    q = vae.encoder(x)
    found = pairs_of_normals(q.base_dist.loc, q.base_dist.scale)
    expected = 20 * (found.diversity() + 0.5 * found.smoothness())
    base = make()
    base.differentiable_loss(vae.model, vae.guide, x)  # the first call may draw more: plates are looked for
    bound.differentiable_loss(vae.model, vae.guide, x)
    torch.testing.assert_close(terms(bound, base, (vae.model, vae.guide), x), expected, rtol=1e-9, atol=1e-9)
    assert bound.loss(vae.model, vae.guide, x) == pytest.approx(base.loss(vae.model, vae.guide, x), rel=1.0)


def test_the_guide_runs_once_in_a_step():
    vae, calls = binary_vae(), []

    def guide(x):
        calls.append(len(x))
        return vae.guide(x)

    bound = MutualPosterior_ELBO(eta=1.0)
    bound.differentiable_loss(vae.model, guide, binary(6))
    calls.clear()
    bound.differentiable_loss(vae.model, guide, binary(6))
    assert calls == [6]
    assert bound._guides.recorder.found == {}  # nothing holds on to the step's graph


def test_subsampling_plates_scale_the_terms_like_the_bound():
    x = f64(40, 3)
    net = nn.Linear(3, 2).double()

    def plate(rows):
        return (
            pyro.plate("data", 40, subsample_size=10, dim=-1)
            if rows is None
            else pyro.plate("data", 40, subsample=rows)
        )

    def model(x, rows=None):
        with plate(rows):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.new_zeros(10))

    def guide(x, rows=None):
        with plate(rows) as index:
            pyro.sample("z", dist.Normal(net(x[index]), 0.5).to_event(1))

    rows = torch.randperm(40)[:10]
    bound = MutualPosterior_ELBO(eta=1.0, gamma=0.5)
    fixed = [functools.partial(program, rows=rows) for program in (model, guide)]
    loc = net(x[rows])
    found = pairs_of_normals(loc, torch.full_like(loc, 0.5))
    added = terms(bound, Trace_ELBO(), fixed, x)
    torch.testing.assert_close(added, 40 * (found.diversity() + 0.5 * found.smoothness()))
    assert bound.differentiable_loss(model, guide, x).isfinite()  # the program draws its rows itself


def test_one_row_has_no_pair():
    x, vae = binary(1), binary_vae()
    bound = MutualPosterior_ELBO(eta=1.0, gamma=1.0)
    bound.differentiable_loss(vae.model, vae.guide, x)
    assert terms(bound, Trace_ELBO(), (vae.model, vae.guide), x) == 0
    with pytest.raises(ValueError, match="at least two rows"):
        bound.pairs(vae.guide, x)
    history = fit(vae.model, vae.guide, binary(9), loss=bound, epochs=1, batch_size=4, seed=0, progress=False)
    assert math.isfinite(history.train[0])


def amortised(kind):
    vae = binary_vae(latent_dim=3)
    trunk = lambda: MLP(D, [8], 8)
    if kind == "mixture":
        heads = [Chain(trunk(), NormalHead(8, 3)) for _ in range(2)]
        return vae, AmortizedMixture(vae.model, heads, [Chain(trunk(), WeightHead(8))])
    return vae, AmortizedMultivariateNormal(vae.model, Chain(trunk(), MultivariateNormalHead(8, 3)))


@pytest.mark.parametrize("base", [Trace_ELBO, StratifiedMixture_ELBO, RecursiveMixture_ELBO])
def test_mixture_guides_train(base):
    vae, guide = amortised("mixture")
    bound = MutualPosterior_ELBO(base(), eta=1.0, gamma=0.1, num_samples=2)
    history = fit(vae.model, guide, binary(32), loss=bound, epochs=2, batch_size=16, seed=0, progress=False)
    assert all(map(math.isfinite, history.train))


def test_constrained_sites_of_one_joint_draw():
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + rate, 1.0), obs=x[:, 0])

    joint = AmortizedMultivariateNormal(model, MultivariateNormalHead(3, 2))
    x = torch.randn(7, 3)
    found, q = MutualPosterior_ELBO().pairs(joint, x), joint.posterior(x)
    torch.testing.assert_close(found.total, pairs(q).total, rtol=1e-4, atol=1e-5)
    apart = AmortizedNormal(model, NormalHead(3, 2))
    q = apart.posterior(x).base_dist
    found = MutualPosterior_ELBO().pairs(apart, x)
    torch.testing.assert_close(found.total, pairs_of_normals(q.loc, q.scale).total, rtol=1e-4, atol=1e-5)
    chosen = MutualPosterior_ELBO(sites=["rate"]).pairs(apart, x)
    torch.testing.assert_close(chosen.total, normal_pairwise_kl(q.loc[:, :1], q.scale[:, :1]), rtol=1e-4, atol=1e-5)


def test_marginalised_latents_of_the_model():
    """A discrete latent that the model sums out has no posterior in the guide, and none is needed."""
    net = NormalHead(3, 2)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(y.float().unsqueeze(-1).expand(*y.shape, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", net(x))

    x = torch.randn(6, 3)
    base = TraceEnum_ELBO(max_plate_nesting=1)
    added = terms(MutualPosterior_ELBO(base, eta=1.0), base, (model, guide), x)
    q = net(x).base_dist
    torch.testing.assert_close(added, 6 * pairs_of_normals(q.loc, q.scale).diversity(), rtol=1e-4, atol=1e-4)


def test_sites_drawn_given_others_are_refused():
    x = binary(6)
    for top_down, free in ((False, "z_1"), (True, "z_2")):
        vae = hierarchical_vae(top_down=top_down)
        with pytest.raises(ValueError, match=rf"given other latent sites.*sites=\['{free}'\]"):
            MutualPosterior_ELBO(eta=1.0).loss(vae.model, vae.guide, x)
        bound = MutualPosterior_ELBO(eta=1.0, sites=[free])
        encoder = vae.encoders[1] if top_down else vae.encoders[0]
        added = terms(bound, Trace_ELBO(), (vae.model, vae.guide), x)
        q = encoder(x).base_dist
        torch.testing.assert_close(added, 6 * pairs_of_normals(q.loc, q.scale).diversity(), rtol=1e-4, atol=1e-4)

    def guide():
        with pyro.plate("data", 5):
            y = pyro.sample("y", dist.Categorical(torch.eye(5) + 0.1))
            pyro.sample("z", dist.Normal(y.float(), 1.0))

    with pytest.raises(ValueError, match="draws 'z' given other latent sites"):
        MutualPosterior_ELBO().pairs(guide)
    assert MutualPosterior_ELBO(sites=["y"]).pairs(guide).mean.shape == (1,)


def test_refusals():
    with pytest.raises(ValueError, match="RenyiELBO has none"):
        MutualPosterior_ELBO(RenyiELBO())
    with pytest.raises(ValueError, match="TraceGraph_ELBO has none"):
        MutualPosterior_ELBO(TraceGraph_ELBO())
    with pytest.raises(ValueError, match="several optimiser steps"):
        MutualPosterior_ELBO(RecursiveMixture_ELBO(schedule="sequential"))
    for options, said in (
        ({"eta": -1.0}, "eta is the weight"),
        ({"gamma": math.nan}, "gamma is the weight"),
        ({"diverse": "mean"}, "diverse must be one of"),
        ({"sites": "z"}, "sites is a list"),
        ({"num_samples": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            MutualPosterior_ELBO(**options)
    loc, scale = normals(4, 2)
    with pytest.raises(ValueError, match=r"sites \['w'\] cannot be compared.*\['z_0'\]"):
        pairs(dist.Normal(loc, scale).to_event(1), sites=["w"])
    with pytest.raises(ValueError, match="is a point"):
        pairs(dist.Delta(loc, event_dim=1))
    with pytest.raises(ValueError, match="is masked"):
        with pyro.poutine.mask(mask=torch.tensor([True, False, True, True])):
            pairs(dist.Normal(loc, scale).to_event(1))
    poisson = dist.Poisson(scale).to_event(1)
    assert pairs(poisson).total.shape == (4, 4)
    negative_binomial = dist.NegativeBinomial(torch.tensor(3.0), logits=loc).to_event(1)  # no KL, no rsample
    with pytest.raises(ValueError, match="neither a closed KL"):
        pairs(negative_binomial)
    with torch.no_grad():
        assert pairs(negative_binomial).total.shape == (4, 4)

    def outside():
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="outside every plate"):
        MutualPosterior_ELBO().pairs(outside)


def test_the_wrapped_bound_is_checked_as_ever():
    vae = hierarchical_vae(top_down=False)
    report = check(vae.model, vae.guide, binary(6), loss=MutualPosterior_ELBO(TraceMeanField_ELBO(), sites=["z_1"]))
    assert not report.ok and "TraceMeanField_ELBO is wrong for this pair" in str(report)
    vae = binary_vae()
    with pytest.raises(ValueError, match="KLWarmup weighs the KL"):
        bound = MutualPosterior_ELBO(ImportanceWeighted_ELBO(2), eta=1.0)
        fit(vae.model, vae.guide, binary(8), loss=bound, callbacks=[KLWarmup(4)], progress=False)


def test_training_spreads_posteriors_and_evaluation_changes_nothing():
    x = binary(64)
    ends = {}
    for eta in (0.0, 5.0):
        vae = binary_vae()
        bound = MutualPosterior_ELBO(eta=eta)
        fit(vae.model, vae.guide, x, loss=bound, epochs=30, batch_size=32, seed=0, progress=False)
        before = weights(vae)
        assert evaluate(vae.model, vae.guide, x, loss=bound) == evaluate(vae.model, vae.guide, x, loss=bound)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(vae).values(), strict=True))
        ends[eta] = bound.pairs(vae.guide, x).mean.sum().item()
    assert ends[5.0] > 2 * ends[0.0]


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: dist.Normal(*(t[rows] for t in normals(6, 3))).to_event(1),
        lambda rows: dist.MultivariateNormal(f64(6, 4)[rows], scale_tril=full_covariances()[1][rows]),
        lambda rows: dist.Gamma(*(t[rows].abs() + 0.1 for t in normals(6, 3))).to_event(1),
        lambda rows: dist.Categorical(probs=normals(6, 3)[1][rows]),
    ],
)
def test_rows_of_all_processes(make):
    """Two processes in turn: each contributes its rows, and both see the matrix of all rows."""

    def posteriors(rows):
        pyro.set_rng_seed(5)
        return make(rows)

    whole = pairs(posteriors(slice(None)))
    shares = [slice(0, 3), slice(3, 6)]
    sent = []
    for rows in shares:
        mine = []
        with global_batch(lambda t, mine=mine: (mine.append(t), torch.stack([t, t]))[1]):
            pairs(posteriors(rows))
        sent.append(mine)
    for rank, rows in enumerate(shares):
        queue = iter(zip(*sent, strict=True))
        with global_batch(lambda t, queue=queue: torch.stack(next(queue))):
            found = pairs(posteriors(rows))
        torch.testing.assert_close(found.total, whole.total)
        torch.testing.assert_close(found.mean, whole.mean)
        assert rank < 2


def test_flows_of_each_datum_cannot_be_exchanged():
    loc, scale = normals(4, 2)
    base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [AffineTransform(loc, scale, event_dim=1)])
    with global_batch(lambda t: torch.stack([t, t])), pytest.raises(ValueError, match="exchanged between processes"):
        pairs(flow)


def fit_without_noise(diverse, **options):
    """Three steps on 12 data whose likelihood leaves z alone; the weights and losses at the end."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, net, offset = torch.randn(12, 3), nn.Linear(3, 4), nn.Linear(3, 1)

    def model(x):
        pyro.module("offset", offset)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(offset(x).squeeze(-1), 1.0), obs=x[:, 0])

    def guide(x):
        pyro.module("net", net)
        loc, raw = net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.tanh().exp()).to_event(1))

    bound = MutualPosterior_ELBO(TraceMeanField_ELBO(), eta=3.0, gamma=0.7, diverse=diverse)
    history = fit(
        model, guide, x, loss=bound, optim=functools.partial(torch.optim.SGD, lr=0.02), epochs=3, batch_size=12, seed=1,
        valid=x[:5], progress=False, **options,
    )  # fmt: skip
    return {"weights": [p.detach() for p in net.parameters()], "train": history.train}


SCRIPT = """
    import sys
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()  # before the other imports, so that both processes import at once

    import torch
    from tests.infer.test_mutual_posterior import MutualPosterior_ELBO, amortised, binary, fit, fit_without_noise

    torch.set_num_threads(1)
    results = {d: fit_without_noise(d, fabric=fabric) for d in ("mean_then_softplus", "pairwise")}
    vae, mixture = amortised("mixture")
    bound = MutualPosterior_ELBO(eta=1.0, gamma=0.1)
    options = dict(epochs=2, batch_size=8, seed=1, fabric=fabric, progress=False)
    results["mixture"] = fit(vae.model, mixture, binary(24).double(), loss=bound, **options).train
    torch.save(results, f"{sys.argv[1]}/rank{fabric.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_find_the_gradient_of_the_global_batch(tmp_path):
    pytest.importorskip("lightning_fabric")
    root = pathlib.Path(__file__).parents[2]
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "NODE_", "WORLD_", "MASTER_"))}
    environment |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for diverse in ("mean_then_softplus", "pairwise"):
        alone = fit_without_noise(diverse)
        for rank in ranks:
            for found, wanted in zip(rank[diverse]["weights"], alone["weights"], strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
            assert rank[diverse]["train"] == pytest.approx(alone["train"], rel=1e-10)
    assert ranks[0]["mixture"] == ranks[1]["mixture"] and all(map(math.isfinite, ranks[0]["mixture"]))
