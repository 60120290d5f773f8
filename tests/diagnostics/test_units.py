"""Diagnostics per unit: globals, masks, points, pairs the wrong way round; exact values in float64."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger

from pyro_vaes.diagnostics import (
    code_length,
    collapse_report,
    log_likelihood,
    log_weights,
    posterior_predictive,
    prior_predictive,
    to_datatree,
)
from pyro_vaes.infer import evaluate
from tests.programs.test_units import (
    EVIDENCE,
    NOISE,
    N,
    R,
    S,
    T,
    X,
    by_column,
    by_column_guide,
    crossed,
    crossed_exact,
    exact,
    global_and_local,
    looped,
    looped_guide,
)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


# globals: two numbers, never mixed


def test_the_likelihood_given_globals_and_the_bound_with_their_kl():
    """With the exact guide each pass has sum_n log p(x_n | w), and its KL off the sum is the evidence."""
    found = log_likelihood(global_and_local, exact, X, 4, num_globals=200, batch_size=15)
    precision = 1 + N / NOISE
    loc, var = X.sum() / NOISE / precision, 1 / precision
    wanted = dist.Normal(loc, NOISE**0.5).log_prob(X) - 0.5 * var / NOISE
    error = 4 * found.standard_error
    assert (found.log_likelihood - wanted).abs().le(error).all() and error.max() < 0.2
    assert found.global_sites == ("w",) and found.num_globals == 200
    assert found.whole_elbo == pytest.approx(EVIDENCE.item(), abs=1e-8)
    assert "given w, averaged over 200 draws" in repr(found)
    assert evaluate(global_and_local, exact, X) * N == pytest.approx(-EVIDENCE.item(), abs=1e-9)


def test_point_estimates_of_globals_are_conditioned_on_and_said():
    def point(x):
        exact_trace = poutine.block(poutine.condition(exact, data={"w": X.new_tensor(0.4)}), hide=["w"])
        pyro.sample("w", dist.Delta(X.new_tensor(0.4)))
        exact_trace(x)

    found = log_likelihood(global_and_local, point, X, 30, batch_size=7)
    wanted = dist.Normal(0.4, X.new_tensor(NOISE).sqrt()).log_prob(X)
    torch.testing.assert_close(found.log_likelihood, wanted, rtol=0, atol=1e-9)
    assert found.num_globals == 1 and "given the point estimates of w" in repr(found)


@pytest.mark.parametrize("use", [log_weights, collapse_report, code_length, to_datatree])
def test_what_is_not_defined_with_globals_is_refused_in_words(use):
    with pytest.raises(ValueError, match="'w' lies outside the data plate, so it is global"):
        use(global_and_local, exact, X)


# what is no proposal, and what is the wrong way round


def test_a_point_is_no_proposal():
    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x / 2))

    for use in (log_likelihood, log_weights):
        with pytest.raises(ValueError, match=r"'z' is a point \(Delta\), which has no density"):
            use(model, point, X)


@pytest.mark.parametrize("use", [log_likelihood, log_weights, collapse_report, to_datatree, posterior_predictive])
def test_model_and_guide_the_wrong_way_round_are_refused(use):
    with pytest.raises(ValueError, match=r"wrong way round"):
        use(guide, model, X)


class RunsTheModel(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Normal(X / 2, 0.5**0.5)


def test_what_a_guide_observes_is_no_part_of_its_density():
    found = log_weights(model, RunsTheModel(model), X, 5, batch_size=N)
    wanted = dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X).expand(5, N)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


# plates of other kinds


def test_data_along_another_dimension():
    found = log_weights(by_column, by_column_guide, X, 5, batch_size=7)
    wanted = dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X).expand(5, N)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_loops_over_rows_are_refused_in_words():
    with pytest.raises(ValueError, match="loop over the rows of the plate 'data'"):
        log_weights(looped, looped_guide, X)


# masks

SEEN = torch.arange(N) % 2 == 0


def masked(program):
    def within(x):
        with poutine.mask(mask=SEEN[: len(x)]):
            program(x)

    return within


def test_masked_rows_have_weight_zero():
    found = log_weights(masked(model), masked(guide), X, 5, batch_size=N)
    wanted = dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X) * SEEN
    torch.testing.assert_close(found, wanted.expand(5, N), rtol=0, atol=1e-9)
    assert (found[:, ~SEEN] == 0).all()


def kl():
    """KL(N(x / 2, 1 / 2) || N(0, 1)) of each row, 0 where it is masked."""
    return 0.5 * (0.5 + (X / 2) ** 2 - 1 + torch.tensor(2.0).log()) * SEEN


def test_masks_count_in_the_collapse_report():
    report = collapse_report(masked(model), masked(guide), X, batch_size=N)
    (site,) = report.sites.values()
    assert site.analytic
    torch.testing.assert_close(site.kl_draws.mean(0).squeeze(-1), kl(), rtol=0, atol=1e-7)


def test_masks_count_in_code_lengths():
    report = code_length(masked(model), masked(guide), X, 3, batch_size=N)
    for part in (report.reconstruction, report.latents, report.entropy):
        assert (part[~SEEN] == 0).all() and (part[SEEN] != 0).all()
    assert report.entropy[SEEN].tolist() == pytest.approx([dist.Normal(0.0, 0.5**0.5).entropy().item()] * 15)


def test_masks_count_in_the_tree():
    tree = to_datatree(masked(model), masked(guide), X, 5, batch_size=N)
    weights = torch.tensor(tree.sample_stats.log_weight.values[0])
    scores = torch.tensor(tree.log_likelihood.x.values[0])
    assert (weights[:, ~SEEN] == 0).all() and (scores[:, ~SEEN] == 0).all()
    wanted = dist.Normal(0.0, X.new_tensor(2.0).sqrt()).log_prob(X) * SEEN
    torch.testing.assert_close(weights, wanted.expand(5, N), rtol=0, atol=1e-9)


# predictive checks


def test_prior_predictive_needs_no_guide():
    found = prior_predictive(global_and_local, None, X, 2000)["x"]
    assert found.shape == (2000, N)
    wanted = 1 + NOISE  # Var x = Var w + S² + T²
    assert found.var(0).mean().item() == pytest.approx(wanted, rel=4 * 2**0.5 / 2000**0.5)
    together = found.mean(1).var().item()  # one w for all data of a draw
    assert together == pytest.approx(1 + NOISE / N, rel=4 * (2 / 2000) ** 0.5)


def test_posterior_predictive_draws_globals_with_each_replicate():
    found = posterior_predictive(global_and_local, exact, X, 300, batch_size=N)["x"]
    assert found.shape == (300, N)
    precision = 1 + N / NOISE
    local = S**-2 + T**-2
    loc_w, var_w = X.sum() / NOISE / precision, 1 / precision
    wanted = (loc_w / S**2 + X / T**2) / local
    spread = (var_w / S**4 / local**2 + 1 / local + T**2) ** 0.5
    assert (found.mean(0) - wanted).abs().max().item() < 4.5 * spread / 300**0.5


def test_diagnostics_of_crossed_plates_want_a_unit():
    def users_alone(r):
        users, items = pyro.plate("users", len(r), dim=-2), pyro.plate("items", r.shape[1], dim=-1)
        with users:
            u = pyro.sample("u", dist.Normal(r.new_zeros(()), 1.0))
        with users, items:
            pyro.sample("r", dist.Normal(u, 1.0), obs=r)

    def users_guide(r):
        precision = 1 + r.shape[1]
        with pyro.plate("users", len(r), dim=-2):
            pyro.sample("u", dist.Normal(r.sum(1, keepdim=True) / precision, precision**-0.5))

    r = X.reshape(6, 5)
    covariance = torch.ones(5, 5).double() + torch.eye(5)
    wanted = dist.MultivariateNormal(torch.zeros(5).double(), covariance).log_prob(r)
    for unit in (None, "users"):
        found = log_weights(users_alone, users_guide, r, 3, batch_size=4, unit=unit)
        torch.testing.assert_close(found, wanted.expand(3, 6), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="'u' lies outside the data plate"):
        log_weights(users_alone, users_guide, r, 3, unit="items")
    with pytest.raises(ValueError, match=r"Pass unit='users', or pass unit='items'"):
        log_weights(crossed, crossed_exact, R, 3)
