"""Collapse measures against the closed forms of linear-Gaussian models."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaes.diagnostics import collapse_report
from tests.diagnostics.linear import D, K, X, decode, model, noise, prior
from tests.zoo import GUIDES, MODELS, B

N, BETA, NOISE_SD = 3000, 1.0, 0.8
THETA = torch.tensor([2.5, 1.6, 1.1, 0.6], dtype=torch.float64)  # root second moments of x along its directions
_z = torch.linalg.qr(torch.randn(N, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0] * N**0.5
LINEAR_X = (_z - _z.mean(0)) * THETA  # E[x xᵀ] = diag(theta²), up to the centring

ACTIVE = (THETA**2 - BETA * NOISE_SD**2).clamp(min=0).sqrt()
SHRINK = ACTIVE / THETA**2  # the encoder at the optimum: lambda = theta * shrink = sqrt(1 - eta²/theta²)
SCALE = torch.where(ACTIVE > 0, BETA**0.5 * NOISE_SD / THETA, 1.0)


def linear_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * ACTIVE, NOISE_SD).to_event(1), obs=x)


def linear_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x * SHRINK, SCALE).to_event(1))


def test_linear_vae_at_its_optimum():
    """KL_i = (1/2 log theta²/(beta eta²))_+, Var_x E[z_i|x] = lambda_i², sum KL = mutual information."""
    site = collapse_report(linear_model, linear_guide, LINEAR_X)["z"]
    moments = LINEAR_X.square().mean(0)
    kl = (SHRINK**2 * moments + SCALE**2 - 1).div(2) - SCALE.log()  # exact for these data
    torch.testing.assert_close(site.kl, kl)
    theory = (0.5 * (THETA**2 / (BETA * NOISE_SD**2)).log()).clamp(min=0)
    torch.testing.assert_close(site.kl, theory, rtol=0, atol=2e-3)  # the centring
    torch.testing.assert_close(site.mean_variance, (SHRINK * THETA) ** 2, rtol=0, atol=2e-3)
    assert site.analytic and site.active_units == 3
    assert site.total_kl == pytest.approx(theory.sum().item(), abs=4e-3)
    # I_q = sum KL for this many data from the aggregate posterior N(0, I); the cap log 2000 is far above it
    assert site.mutual_information == pytest.approx(theory.sum().item(), abs=4 * site.mutual_information_error + 0.05)
    assert abs(site.aggregate_kl) < 4 * site.mutual_information_error + 0.05
    assert site.mixture_size <= 2000 + 256
    torch.testing.assert_close(site.kl_error, site.kl_per_datum.std(0) / N**0.5)


def test_share_of_pairs_and_curve():
    """(epsilon, delta)-collapse read off the sorted KLs, against counting."""
    site = collapse_report(linear_model, linear_guide, LINEAR_X, num_particles=1)["z"]
    assert site.active_pairs == pytest.approx((site.kl_per_datum >= 0.01).double().mean().item())
    epsilon = torch.tensor([0.0, 0.05, 0.2, 0.5, 2.0, 50.0], dtype=torch.float64)
    last = torch.zeros(len(epsilon), dtype=torch.float64)
    for delta in (0.0, 0.05, 0.5, 0.9, 0.999):
        _, share = site.collapse_curve(epsilon, delta)
        below = (site.kl_per_datum < epsilon[:, None, None]).double().mean(1)
        torch.testing.assert_close(share, (below >= 1 - delta - 1e-12).double().mean(1))
        assert (share.diff() >= 0).all() and (share >= last).all(), "monotone in epsilon and in delta"
        last = share
    assert len(site.collapse_curve()[0]) == 100
    with pytest.raises(ValueError, match="share of the data"):
        site.collapse_curve(delta=1.0)


def test_collapsed_guide():
    """q = p: everything is collapsed, nothing is active, nothing is known."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior())

    report = collapse_report(model, guide, X)
    site = report["z"]
    assert (site.kl == 0).all() and site.active_units == 0 and site.active_pairs == 0
    assert site.collapse_curve()[1].eq(1).all()
    assert abs(site.mutual_information) < 1e-12 and abs(site.aggregate_kl) < 1e-12
    assert "100.0%" in str(report) and f"exceed {math.log(len(X)):.2f}" in repr(report)


def test_posteriors_far_apart_reach_the_cap():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1e3 * torch.arange(2 * len(x)).reshape(-1, 2).double(), 1.0).to_event(1))

    site = collapse_report(model, guide, X, batch_size=len(X))["z"]
    assert site.mutual_information == pytest.approx(math.log(len(X)), abs=1e-6) and site.mutual_information_error < 1e-6


def test_units_without_a_closed_mean():
    """A posterior that is the prior has no active unit, though its mean must be estimated from draws."""

    def positive(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(K), 0.3).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), K), 0.3).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]))

    site = collapse_report(positive, guide, torch.zeros(2000, K), num_particles=8)["z"]
    # Var z = 0.1: the uncorrected variance of averages over 8 draws would be 0.0125 > 0.01
    assert site.active_units == 0 and (site.mean_variance.abs() < 0.002).all()
    assert not site.analytic and abs(site.total_kl) < 1e-5


def chain(x, *, guide=False):
    """z_2 -> z_1 -> x, with a guide from the bottom up."""
    with pyro.plate("data", len(x)):
        if guide:
            z_1 = pyro.sample("z_1", dist.Normal(x[:, :1], 1.0).to_event(1))
            pyro.sample("z_2", dist.Normal(0.8 * z_1, 0.6).to_event(1))
            return
        z_2 = pyro.sample("z_2", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        z_1 = pyro.sample("z_1", dist.Normal(z_2, 1.5).to_event(1))
        pyro.sample("x", dist.Normal(z_1, 1.0).to_event(1), obs=x)


def test_bottom_up_hierarchy():
    """E log q(z_1|x)/p(z_1|z_2) is estimated, and negative here; KL(q(z_2|z_1) || p(z_2)) has a closed form."""
    x = torch.zeros(2000, 1, dtype=torch.float64)
    report = collapse_report(chain, lambda x: chain(x, guide=True), x, num_particles=16)
    # z_1 ~ N(0, 1), z_2 = 0.8 z_1 + 0.6 e: z_1 - z_2 ~ N(0, 0.2² + 0.6²)
    first = -0.5 + math.log(1.5) + 0.4 / (2 * 1.5**2)
    second = 0.5 * (0.64 + 0.36 - 1) - math.log(0.6)
    z_1, z_2 = report["z_1"], report["z_2"]
    assert not z_1.analytic and first < 0
    assert z_1.total_kl == pytest.approx(first, abs=4 * z_1.total_kl_error)
    assert z_2.analytic and z_2.total_kl == pytest.approx(second, abs=4 * z_2.total_kl_error)
    assert z_2.kl_draws.shape == (16, 2000, 1) and z_1.kl_draws.shape == (1, 2000, 1)
    assert abs(z_1.mutual_information) < 1e-9 and math.isnan(z_1.aggregate_kl), "its prior depends on z_2"
    assert math.isnan(z_2.mutual_information)
    # over z_1 as well: KL < log(1/0.6) - 0.32 + epsilon where z_1² is small
    z_squared = 2 * (0.2 - (0.18 - 0.5 - math.log(0.6))) / 0.64
    below = torch.distributions.Normal(0, 1).cdf(torch.tensor(z_squared**0.5)) * 2 - 1 if z_squared > 0 else 0.0
    share = (z_2.kl_draws < 0.2).double().mean().item()
    assert share == pytest.approx(float(below), abs=4 * (0.25 / 32000) ** 0.5)
    assert z_2.mean_variance.abs().max() < 0.01, "x is the same for all"


@pytest.mark.parametrize("name", ["conditional_vae", "mlp_vae", "conv_vae"])
def test_mutual_information_is_within_its_bounds(name):
    built = MODELS[name]()
    site = collapse_report(built.model, built.guide, built.args)["z"]
    assert -4 * site.mutual_information_error < site.mutual_information < math.log(B) + 1e-9
    conditional = name == "conditional_vae"  # a prior of its own for each datum: I_q is no part of the KL
    assert math.isnan(site.aggregate_kl) == conditional
    if not conditional:
        assert site.mutual_information < site.total_kl + 4 * site.mutual_information_error


@pytest.mark.parametrize("name", ["user_constrained", "user_poisson", "hierarchical_markovian_bottom_up"])
def test_joint_guides_have_one_entry(name):
    """log q(aux) - log det - log p over all sites: its mean is the negative ELBO's KL."""
    built = MODELS[name]()
    guide = GUIDES["multivariate_normal"](built)
    report = collapse_report(built.model, guide, built.args, num_particles=100)
    (site,) = report.sites.values()
    assert site.name.count(",") == {"user_constrained": 1, "user_poisson": 1}.get(name, 2)
    assert not site.analytic and math.isfinite(site.mutual_information)
    assert len(site.mean_variance) >= built.latent_numel and site.kl_draws.shape == (1, B, 1)
    with torch.no_grad(), pyro.plate("_particles", 4000, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace(*built.args)
        replayed = pyro.poutine.trace(pyro.poutine.replay(built.model, trace=trace)).get_trace(*built.args)
    sites = [
        s for s in trace.nodes.values() if s["type"] == "sample" and s["name"] not in ("data", "cells", "_particles")
    ]
    log_q = sum(s["fn"].log_prob(s["value"]) for s in sites)
    log_p = sum(replayed.nodes[s["name"]]["fn"].log_prob(s["value"]) for s in sites if s["name"] in replayed.nodes)
    wanted, spread = (log_q - log_p).mean(0), (log_q - log_p).std(0)
    error = spread * (1 / 4000 + 1 / 100) ** 0.5
    assert ((site.kl_per_datum[:, 0] - wanted).abs() < 5 * error).all()


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_latents_in_a_nested_plate(data_dim):
    """Every part of a datum has its own latent: the parts are units, whichever dimension is the data's."""
    inner, parts = -3 - data_dim, 3
    shift = torch.arange(float(parts)) if data_dim == -2 else torch.arange(float(parts)).unsqueeze(-1)

    def nested(x, guide=False):
        x = x if data_dim == -2 else x.T
        with pyro.plate("data", x.shape[data_dim], dim=data_dim), pyro.plate("parts", parts, dim=inner):
            z = pyro.sample("z", dist.Normal(x + shift if guide else torch.zeros_like(x), 1.0))
            if not guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(50, parts)
    site = collapse_report(nested, lambda x: nested(x, guide=True), x)["z"]
    wanted = 0.5 * (x + torch.arange(float(parts))).square()
    torch.testing.assert_close(site.kl_per_datum, wanted.double())
    torch.testing.assert_close(site.mean_variance, x.double().var(0, correction=0), rtol=1e-4, atol=1e-5)
    assert 0 < site.mutual_information < math.log(50)


def test_rows_and_seeds():
    """Batches, and a program that draws its own rows, give the same closed forms."""

    def rows(x, guide):
        with pyro.plate("data", len(X), subsample_size=16) as index:
            if guide:
                pyro.sample("z", dist.Normal(x[index, :K], 0.5).to_event(1))
            else:
                pyro.sample("x", noise(decode(pyro.sample("z", prior()))), obs=x[index])

    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :K], 0.5).to_event(1))

    whole = collapse_report(model, plain, X)["z"]
    blocks = collapse_report(lambda x: rows(x, False), lambda x: rows(x, True), X)["z"]
    batches = collapse_report(model, plain, X, batch_size=7)["z"]
    for other in (blocks, batches):
        torch.testing.assert_close(other.kl_per_datum, whole.kl_per_datum)
        torch.testing.assert_close(other.mean_variance, whole.mean_variance)
        assert other.mixture_size == len(X)
    again = collapse_report(model, plain, X)["z"]
    assert again.mutual_information == whole.mutual_information
    assert collapse_report(model, plain, X, seed=5)["z"].mutual_information != whole.mutual_information


def test_mixture_of_sorted_data():
    """With more data than the mixture takes, batches come from everywhere: posteriors in two groups give I = log 2."""
    x = torch.zeros(400, D, dtype=torch.float64)
    x[200:] = 100.0

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :K], 1.0).to_event(1))

    site = collapse_report(model, guide, x, batch_size=20, max_mixture=100)["z"]
    assert site.mixture_size == 100 and site.mutual_information == pytest.approx(math.log(100 / 40), abs=0.25)


@pytest.mark.parametrize("name", ["num_particles", "max_mixture"])
def test_bad_numbers(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        collapse_report(model, lambda x: None, X, **{name: 0})
