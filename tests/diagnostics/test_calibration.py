"""Calibration of exact, narrow, wide and biased posteriors of a linear-Gaussian model: the shapes of the textbooks."""

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn

from pyro_vaes.diagnostics import Calibration, calibration
from pyro_vaes.diagnostics.posterior.calibration import _rank
from pyro_vaes.guides import AmortizedMultivariateNormal
from pyro_vaes.programs.pair import Pair
from tests.diagnostics.linear import PPCA, D, X, decode, exact, model, noise, prior

LEVELS = torch.linspace(0.05, 0.95, 19)
MANY = X.repeat(25, 1)  # N = 1000 simulations; the values of the data do not matter


def changed(scale=1.0, shift=0.0):
    def guide(x):
        q = PPCA.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(q.mean + shift, scale_tril=scale * q.scale_tril))

    return guide


def assert_calibrated(result):
    """p > 1e-3 for each of three quantities (seed 0), and each coverage within a binomial band of 1e-4 at its level."""
    assert (result.p_values() > 1e-3).all(), result
    n = result.num_simulations
    low, high = (torch.tensor(scipy.stats.binom.ppf(q, n, LEVELS.numpy())) / n for q in (5e-5, 1 - 5e-5))
    for curve in (result.coverage(LEVELS), *result.central_coverage(LEVELS)):
        assert ((curve >= low) & (curve <= high)).all(), result


def test_exact_posterior_is_calibrated():
    result = calibration(model, exact, MANY)
    assert result.names == ("z[0]", "z[1]", "log p(x, z)")
    assert result.ranks.shape == (1000, 3) and result.num_samples == 99
    assert result.ranks.min() >= 0 and result.ranks.max() <= 99
    assert_calibrated(result)
    assert "N = 1000 simulations, L = 99 draws" in str(result)


def test_narrow_posterior_has_a_valley_and_covers_too_little():
    result = calibration(model, changed(scale=0.5), MANY)
    assert (result.p_values() < 1e-6).all()
    for column in result.ranks[:, :2].T:
        outer = ((column < 10) | (column >= 90)).double().mean()
        assert outer > 0.4, "a fifth of uniform ranks"
    assert (result.coverage(LEVELS) < LEVELS - 0.02).all()


def test_wide_posterior_has_a_hump_and_covers_too_much():
    result = calibration(model, changed(scale=1.6), MANY)
    for column in result.ranks[:, :2].T:
        assert ((column >= 30) & (column < 70)).double().mean() > 0.5
    assert (result.p_values()[:2] < 1e-6).all()
    assert (result.coverage(LEVELS)[:-1] > LEVELS[:-1] + 0.02).all()


def test_biased_posterior_has_a_slope():
    result = calibration(model, changed(shift=0.3), MANY)
    thirds = [((result.ranks >= a) & (result.ranks < a + 33)).double().mean(0)[:2] for a in (0, 33, 66)]
    assert (thirds[0] > thirds[1] + 0.1).all() and (thirds[1] > thirds[2] + 0.05).all()
    assert (result.coverage(LEVELS[4:]) < LEVELS[4:] - 0.02).all()


def test_the_prior_passes_for_each_latent_but_not_for_the_joint_density():
    """Ranks of z alone are uniform for a guide that ignores the data; the joint density tells."""

    def ignorant(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior())

    p = calibration(model, ignorant, MANY).p_values()
    assert (p[:2] > 1e-3).all() and p[2] < 1e-6


def test_exact_coverage_at_any_level():
    """Uniform ranks have a coverage equal to the level, also between whole ranks."""
    ranks = torch.arange(8)
    result = Calibration(ranks.unsqueeze(-1), ranks, ("a",), 7)
    levels = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.77, 1.0], dtype=torch.float64)
    torch.testing.assert_close(result.coverage(levels), levels)
    torch.testing.assert_close(result.central_coverage(levels)[0], levels)
    with pytest.raises(ValueError, match="Are they percentages"):
        result.coverage([50.0])


def two_sites(x, c):
    """A covariate, a constrained site and a matrix-shaped one; the last is what the observation is about."""
    with pyro.plate("data", len(c)):
        rate = pyro.sample("rate", dist.LogNormal(torch.zeros_like(c), 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(1, 1, dtype=torch.float64), 1.0).to_event(2))
        every = torch.cat([rate.log().unsqueeze(-1).expand(*z.shape[:-1]), z[..., 0, :]], -1)
        pyro.sample("x", noise(decode(every) + c.unsqueeze(-1)), obs=x)


def test_constrained_sites_of_an_auxiliary_vector_given_a_covariate():
    class Exact(nn.Module):
        def forward(self, x, c):
            return PPCA.posterior(x - c.unsqueeze(-1))

    guide = AmortizedMultivariateNormal(two_sites, Exact())
    c = torch.linspace(-50, 50, len(MANY), dtype=torch.float64)
    result = calibration(two_sites, guide, (MANY, c))
    assert result.names == ("rate", "z[0,0]", "log p(x, z)")
    assert_calibrated(result)

    class Wrong(Exact):
        def forward(self, x, c):
            return PPCA.posterior(x)

    assert (calibration(two_sites, AmortizedMultivariateNormal(two_sites, Wrong()), (MANY, c)).p_values() < 1e-6).all()


@pytest.mark.parametrize("size", [16, 40])
def test_program_that_draws_its_own_rows(size):
    def rows(fn):
        def program(x):
            with pyro.plate("data", len(X), subsample_size=size) as index:
                z = pyro.sample("z", prior() if fn is None else fn(x[index]))
                if fn is None:
                    pyro.sample("x", noise(decode(z)), obs=x[index])

        return program

    result = calibration(rows(None), rows(PPCA.posterior), X, repeats=20)
    assert result.num_simulations == 20 * len(X)
    assert_calibrated(result)


def test_programs_that_do_not_broadcast():
    def rigid(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", noise(decode(z.view(len(x), -1))), obs=x)

    assert_calibrated(calibration(rigid, exact, MANY[:400], num_samples=19))


def test_observations_that_are_no_argument():
    def centred(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", noise(decode(pyro.sample("z", prior()))), obs=x - 3)

    def guide(x):
        exact(x - 3)

    with pytest.raises(ValueError, match=r"is none of the programs' arguments.*arguments=lambda"):
        calibration(centred, guide, X)
    assert_calibrated(calibration(centred, guide, MANY, arguments=lambda sites, args: (sites["x"] + 3,)))

    def twice(x, y):
        model(x.clone())

    with pytest.raises(ValueError, match="is several of"):
        calibration(twice, lambda x, y: exact(x), (X, X))


def test_an_observation_in_another_shape():
    def flattened(x):
        model(x.flatten(1))

    assert_calibrated(calibration(flattened, lambda x: exact(x.flatten(1)), MANY.reshape(-1, 1, D)))


def test_guides_whose_density_at_the_truth_is_out_of_reach():
    def guide(x):
        with pyro.plate("data", len(x)):
            noise = pyro.sample("noise", prior(), infer={"is_auxiliary": True})
            pyro.sample("z", dist.MultivariateNormal(PPCA.posterior(x).mean + noise, torch.eye(2).double()))

    with pytest.raises(ValueError, match="auxiliary sites"):
        calibration(model, guide, X)


def test_a_deterministic_site_beside_the_auxiliary_vector_changes_nothing():
    def by_vector(deterministic):
        def guide(x):
            with pyro.plate("data", len(x)):
                v = pyro.sample("v", PPCA.posterior(x), infer={"is_auxiliary": True})
                if deterministic:
                    pyro.deterministic("length", v.norm(dim=-1))
                pyro.sample("z", dist.Delta(v, event_dim=1))

        return guide

    plain, beside = (calibration(model, by_vector(d), X, num_samples=9) for d in (False, True))
    assert torch.equal(plain.ranks, beside.ranks)
    assert torch.equal(plain.density_ranks, beside.density_ranks)


def test_nothing_changes():
    encoder = nn.Linear(D, 2).double()

    def amortised(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    before, rng = {n: t.clone() for n, t in Pair(model, amortised).state().items()}, torch.get_rng_state()
    run = lambda seed: calibration(model, amortised, X, num_samples=9, seed=seed).ranks
    first = run(1)
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled() and encoder.training
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))
    assert all(torch.equal(t, before[n]) for n, t in Pair(model, amortised).state().items())
    for options in ({"num_samples": 0}, {"repeats": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            calibration(model, amortised, X, **options)


def test_ties_are_broken_at_random():
    """A truth among 9 draws that all equal it has each of the ten ranks: n = 2000, p > 1e-3 at seed 0."""
    ranks = _rank(torch.zeros(2000), torch.zeros(9, 2000))
    assert scipy.stats.chisquare(torch.bincount(ranks, minlength=10).numpy()).pvalue > 1e-3
    assert (_rank(torch.zeros(5), torch.tensor([-1.0, -2.0, 3.0]).unsqueeze(-1).expand(3, 5)) == 2).all()
