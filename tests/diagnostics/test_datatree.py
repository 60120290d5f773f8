"""ArviZ groups: dimensions, values that agree with each other, files, and ArviZ's own functions at work on them."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from pyro import poutine

from pyro_vaes.diagnostics import log_weights, pareto_khat, summary, to_datatree, to_inference_data
from tests.diagnostics.linear import D, X, decode, exact, model, noise, prior, wide, wide_posterior
from tests.zoo import MODELS, B

pytestmark = pytest.mark.arviz

N = len(X)
NEW = int(az.__version__.split(".")[0]) >= 1
old_line = pytest.mark.skipif(NEW, reason="ArviZ 1 and later have no InferenceData")
new_line = pytest.mark.skipif(not NEW, reason="ArviZ 0.23 takes InferenceData")


def sizes(tree):
    return {name: {k: v.dims for k, v in node.data_vars.items()} for name, node in tree.children.items()}


def test_groups_and_dimensions():
    tree = to_datatree(model, wide, X, 30, dims={"x": ["feature"]}, coords={"feature": list("abcde")}, batch_size=16)
    x, z = ("chain", "draw", "data", "feature"), ("chain", "draw", "data", "z_dim_0")
    assert sizes(tree) == {
        "posterior": {"z": z},
        "prior": {"z": z},
        "posterior_predictive": {"x": x},
        "prior_predictive": {"x": x},
        "log_likelihood": {"x": x[:3]},
        "sample_stats": {"log_weight": x[:3], "khat": ("data",)},
        "observed_data": {"x": x[2:]},
    }
    assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 30, "data": N, "z_dim_0": 2}
    assert list(tree.observed_data.feature.values) == list("abcde")
    assert tree.posterior.attrs == {"inference_library": "pyro", "data_plate": "data"}


@pytest.mark.parametrize("options", [{}, {"batch_size": 7}])
def test_values_agree(options):
    tree = to_datatree(model, wide, X, 30, chunk_size=8, **options)
    np.testing.assert_array_equal(tree.observed_data.x, X)
    z = torch.tensor(tree.posterior.z.values[0])
    likelihood = noise(decode(z)).log_prob(X)
    np.testing.assert_allclose(tree.log_likelihood.x[0], likelihood)
    log_q = poutine.trace(wide).get_trace(X).nodes["z"]["fn"].log_prob(z)
    np.testing.assert_allclose(tree.sample_stats.log_weight[0], likelihood + prior().log_prob(z) - log_q)
    np.testing.assert_array_equal(
        tree.sample_stats.khat, pareto_khat(torch.tensor(tree.sample_stats.log_weight.values[0]))
    )
    for group in ("posterior_predictive", "prior_predictive"):
        assert not (tree[group].x == tree.observed_data.x).any()
    assert abs(tree.prior.z.mean().item()) < 5 / (30 * N * 2) ** 0.5
    again = to_datatree(model, wide, X, 30, chunk_size=8, **options)
    assert tree.identical(again)


def test_weights_are_those_of_log_weights():
    """With a guide that draws nothing at random, to the last bit."""
    weights = log_weights(model, exact, X, 9)
    np.testing.assert_allclose(to_datatree(model, exact, X, 9).sample_stats.log_weight[0], weights, atol=1e-10)


def test_pointwise_log_likelihood_sums_to_that_of_the_datum():
    options = {"num_samples": 12, "batch_size": 16, "groups": ["log_likelihood"]}
    pointwise = to_datatree(model, wide, X, pointwise=True, **options)
    assert pointwise.log_likelihood.x.dims == ("chain", "draw", "data", "x_dim_0")
    whole = to_datatree(model, wide, X, **options)
    assert list(whole.children) == ["log_likelihood"]
    np.testing.assert_allclose(pointwise.log_likelihood.x.sum("x_dim_0"), whole.log_likelihood.x)


@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_masks(pointwise, inside):
    """Masked data have log-likelihood 0, by a handler or in the distribution."""
    seen = torch.arange(N) % 2 > 0

    def masked(x):
        with pyro.plate("data", len(x)):
            fn = noise(decode(pyro.sample("z", prior())))
            if inside:
                pyro.sample("x", fn.mask(seen), obs=x)
            else:
                with poutine.mask(mask=seen):
                    pyro.sample("x", fn, obs=x)

    found = to_datatree(masked, wide, X, 3, pointwise=pointwise).log_likelihood.x
    plain = to_datatree(model, wide, X, 3, pointwise=pointwise).log_likelihood.x
    assert found.dims == plain.dims
    np.testing.assert_allclose(found.isel(data=seen.numpy()), plain.isel(data=seen.numpy()))
    assert (found.isel(data=~seen.numpy()) == 0).all()


def test_images():
    built = MODELS["conv_vae"]()
    names = ["channel", "row", "column"]
    tree = to_datatree(built.model, built.guide, built.args, 4, dims={"x": names}, pointwise=True)
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert tree[group].x.dims == ("chain", "draw", "data", *names) and tree[group].x.shape == (1, 4, B, 1, 5, 6)


def test_covariates_are_constant_data():
    built = MODELS["conditional_vae"]()
    tree = to_datatree(built.model, built.guide, built.args, 4, batch_size=4)
    np.testing.assert_array_equal(tree.constant_data.covariate, built.args[1])
    assert list(tree.constant_data.data_vars) == ["covariate"]


def test_hierarchies_and_several_observations():
    built = MODELS["hierarchical_markovian_bottom_up"]()
    tree = to_datatree(built.model, built.guide, built.args, 4)
    assert {n: v.shape[-1] for n, v in tree.posterior.data_vars.items()} == {"z_1": 4, "z_2": 3, "z_3": 2}
    assert set(tree.prior.data_vars) == {"z_1", "z_2", "z_3"}

    def two(x):
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", noise(decode(z)), obs=x)
            pyro.sample("count", dist.Poisson((z[..., 0] / 4).exp()), obs=x[:, 0].abs().floor())
            pyro.factor("nothing", torch.zeros(len(x), dtype=torch.float64))

    def guide(x):
        with pyro.plate("cells", len(x)):
            pyro.sample("z", prior())

    tree = to_datatree(two, guide, X, 4)
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert set(tree[group].data_vars) == {"x", "count"}
        assert tree[group]["count"].dims[-1] == "cells"
    assert "constant_data" not in tree.children
    assert len(summary(tree)) == 2


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("broadcasts", [True, False])
def test_nested_plates(data_dim, broadcasts):
    """The data plate first, the inner one behind it, whichever way the programs are run."""

    def planted(x):
        with pyro.plate("data", len(x), dim=data_dim):
            z = pyro.sample("z", prior())
            if not broadcasts and z.dim() > (2 if data_dim == -1 else 3):
                raise RuntimeError("one particle only")
            loc = decode(z)  # (..., B, D) or (..., B, 1, D)
            loc = loc.squeeze(-2) if data_dim == -2 else loc.reshape(*z.shape[:-2], -1, D).transpose(-1, -2)
            if data_dim == -1 and loc.dim() > 2:
                loc = loc.squeeze(-3)
            with pyro.plate("features", D, dim=-3 - data_dim):
                pyro.sample("x", dist.Normal(loc, 0.3**0.5), obs=x if data_dim == -2 else x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=data_dim):
            q = wide_posterior(x).base_dist
            loc, scale = (t if data_dim == -1 else t.unsqueeze(1) for t in (q.loc, q.scale))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    tree = to_datatree(planted, guide, X, 5, batch_size=16)
    assert tree.posterior.z.dims == ("chain", "draw", "data", "z_dim_0")
    for group in ("posterior_predictive", "log_likelihood", "prior_predictive"):
        assert tree[group].x.dims == ("chain", "draw", "data", "features")
    np.testing.assert_array_equal(tree.observed_data.x, X)
    loc = decode(torch.tensor(tree.posterior.z.values[0]))
    np.testing.assert_allclose(tree.log_likelihood.x[0], dist.Normal(loc, 0.3**0.5).log_prob(X))


def test_programs_that_do_not_broadcast():
    def rigid(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", noise(decode(z.view(z.shape[0], -1))), obs=x)

    tree = to_datatree(rigid, wide, X, 6, batch_size=16, pointwise=True)
    assert sizes(tree) == sizes(to_datatree(model, wide, X, 6, batch_size=16, pointwise=True))
    loc = decode(torch.tensor(tree.posterior.z.values[0]))
    np.testing.assert_allclose(tree.log_likelihood.x[0], noise(loc).base_dist.log_prob(X))


def test_program_that_draws_its_own_rows():
    weight = torch.arange(N)

    def rows(x, w, guide=None):
        with pyro.plate("data", N, subsample_size=16) as index:
            if guide is not None:
                pyro.sample("z", guide)
            else:
                pyro.sample("x", noise(decode(pyro.sample("z", prior()))), obs=x[index])

    tree = to_datatree(rows, lambda x, w: rows(x, w, prior()), (X, weight), 3)
    np.testing.assert_array_equal(tree.observed_data.x, X)
    np.testing.assert_array_equal(tree.constant_data.w, weight)
    loc = decode(torch.tensor(tree.posterior.z.values[0]))
    np.testing.assert_allclose(tree.log_likelihood.x[0], noise(loc).log_prob(X))


def test_netcdf(tmp_path):
    tree = to_datatree(model, wide, X, 5)
    tree.to_netcdf(tmp_path / "pair.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "pair.nc", engine="h5netcdf") as loaded:
        assert loaded.equals(tree)
        assert summary(loaded).equals(summary(tree))


def test_summary():
    tree = to_datatree(model, exact, X, 300)
    pooled, one = summary(tree), summary(tree, datum=3)
    for table in (pooled, one, summary(tree, group="prior")):
        assert list(table.index) == ["z[0]", "z[1]"]
        assert {"mean", "sd"} <= set(table.columns) and not {"r_hat", "ess_bulk"} & set(table.columns)
    q = poutine.trace(exact).get_trace(X).nodes["z"]["fn"]
    np.testing.assert_allclose(one["mean"].astype(float), q.mean[3], atol=5 * q.stddev[3].max() / 300**0.5 + 0.01)
    np.testing.assert_allclose(one["sd"].astype(float), q.stddev[3], rtol=5 / 600**0.5 + 0.02)
    assert (pooled["sd"].astype(float) > 1.5 * one["sd"].astype(float)).all(), "the spread between data is in it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"x": ["row", "column"]}}, "names 2 dimensions .* but its events have 1"),
        ({"dims": {"y": ["row"]}}, r"names the sites \['y'\]"),
        ({"dims": {"x": ["data"]}}, "must have different names"),
        ({"dims": {"x": ["x"]}}, "must have different names"),
        ({"coords": {"data": [1, 2]}}, r"coords have lengths \{'data': 2\}"),
        ({"groups": ["posteriors"]}, r"\['posteriors'\]"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        to_datatree(model, wide, X, **{"num_samples": 2, **options})


@old_line
@pytest.mark.filterwarnings("ignore")  # ArviZ's own opinions on the numbers
def test_arviz_0_23():
    data = to_inference_data(to_datatree(model, wide, X, 60))
    assert isinstance(data, az.InferenceData)
    assert len(az.summary(data, kind="stats")) == 2 * N
    assert np.isfinite(az.loo(data).elpd_loo) and np.isfinite(az.waic(data).elpd_waic)
    az.plot_ppc(data, num_pp_samples=5)
    az.plot_posterior(data, coords={"data": [0]})
    az.plot_khat(az.loo(data, pointwise=True))
    assert az.extract(data, num_samples=4).sizes["sample"] == 4
    pointwise = to_inference_data(to_datatree(model, wide, X, 60, pointwise=True))
    az.plot_loo_pit(pointwise, y="x")


@new_line
@pytest.mark.filterwarnings("ignore")  # ArviZ's own opinions on the numbers
def test_arviz_1():
    tree = to_datatree(model, wide, X, 60, pointwise=True)
    assert len(az.summary(tree, kind="stats")) == 2 * N
    assert np.isfinite(az.loo(tree).elpd)
    az.plot_ppc_dist(tree, num_samples=5)
    az.plot_dist(tree, coords={"data": [0]})
    az.plot_khat(az.loo(tree, pointwise=True))
    az.plot_loo_pit(tree)
    assert az.extract(tree, num_samples=4).sizes["sample"] == 4


@new_line
def test_arviz_1_has_no_inference_data():
    with pytest.raises(ImportError, match="take the tree itself"):
        to_inference_data(to_datatree(model, wide, X))
