"""Replicates and reconstructions of a linear-Gaussian model against their exact moments."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaes.diagnostics import posterior_predictive, prior_predictive, reconstruct, take_means
from tests.diagnostics.linear import PPCA, D, X, decode, exact, model, noise, prior
from tests.theory.pairs import linear_hierarchical_pair

N, S = len(X), 2000


def assert_moments(draws, mean, variance):
    """S normal draws of each number: 5 standard errors, sd / sqrt(S) and var sqrt(2 / S)."""
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / S).sqrt()).all()
    assert ((draws.var(0) - variance).abs() < 5 * variance * (2 / S) ** 0.5).all()


def test_posterior_predictive_moments():
    x = posterior_predictive(model, exact, X, S)["x"]
    assert x.shape == (S, N, D) and x.device.type == "cpu" and x.dtype == torch.float64
    q = PPCA.posterior(X)
    variance = (PPCA.loadings @ q.covariance_matrix @ PPCA.loadings.T).diagonal(dim1=-2, dim2=-1) + 0.3
    assert_moments(x, decode(q.mean), variance)
    assert not (x == X).any(), "a replicate is not the datum"


def test_prior_predictive_moments():
    x = prior_predictive(model, exact, X, S)["x"]
    assert x.shape == (S, N, D)
    assert_moments(x, PPCA.mean, PPCA.loadings.square().sum(1) + 0.3)


def test_reconstruction_is_the_mean_of_the_decoder():
    x = reconstruct(model, exact, X, num_particles=S, batch_size=16)["x"]
    q = PPCA.posterior(X)
    variance = (PPCA.loadings @ q.covariance_matrix @ PPCA.loadings.T).diagonal(dim1=-2, dim2=-1)
    assert x.shape == (N, D)
    assert ((x - decode(q.mean)).abs() < 5 * (variance / S).sqrt()).all()


@pytest.mark.parametrize("function", [posterior_predictive, prior_predictive, reconstruct])
def test_seeds_and_state(function):
    rng = torch.get_rng_state()
    first = function(model, exact, X, 3, seed=1)["x"]
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled()
    assert torch.equal(first, function(model, exact, X, 3, seed=1)["x"])
    assert not torch.equal(first, function(model, exact, X, 3, seed=2)["x"])
    with pytest.raises(ValueError, match=r"num_(samples|particles) must be at least 1"):
        function(model, exact, X, 0)


def conditional(x, c):
    """Two observations, a covariate, a factor, and a deterministic site."""
    with pyro.plate("data", len(c)):
        z = pyro.sample("z", prior())
        loc = pyro.deterministic("loc", decode(z) + 100 * c.unsqueeze(-1))
        pyro.factor("nothing", torch.zeros(len(c), dtype=torch.float64))
        pyro.sample("x", noise(loc), obs=x)
        pyro.sample("size", dist.Poisson((z[..., 0] / 4).exp()), obs=x[:, 0].abs().floor())


def conditional_guide(x, c):
    exact(x - 100 * c.unsqueeze(-1))


def test_covariates_and_several_observations():
    c = torch.arange(N, dtype=torch.float64)
    data = (X + 100 * c.unsqueeze(-1), c)
    for function in (posterior_predictive, prior_predictive):
        drawn = function(conditional, conditional_guide, data, 50, batch_size=16)
        assert drawn.keys() == {"x", "size"}
        assert drawn["size"].shape == (50, N) and (drawn["size"] == drawn["size"].floor()).all()
        assert ((drawn["x"].mean(0) - data[0]).abs() < 20).all(), "each row has its own covariate"
    assert reconstruct(conditional, conditional_guide, data)["size"].shape == (N,)


@pytest.mark.parametrize("size", [16, 39])
def test_program_that_draws_its_own_rows(size):
    def rows(x, guide):
        with pyro.plate("data", N, subsample_size=size) as index:
            if guide:
                pyro.sample("z", PPCA.posterior(x[index]))
            else:
                pyro.sample("x", noise(decode(pyro.sample("z", prior()))), obs=x[index])

    x = posterior_predictive(lambda x: rows(x, False), lambda x: rows(x, True), X, S)["x"]
    q = PPCA.posterior(X)
    variance = (PPCA.loadings @ q.covariance_matrix @ PPCA.loadings.T).diagonal(dim1=-2, dim2=-1) + 0.3
    assert_moments(x, decode(q.mean), variance)


def test_nested_plates_put_the_data_first():
    def planted(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior())
            z = z.unsqueeze(-3) if z.dim() == 2 else z
            with pyro.plate("features", D, dim=-2):
                loc = (PPCA.loadings[:, None] * z).sum(-1) + PPCA.mean[:, None]
                pyro.sample("x", dist.Normal(loc, 0.3**0.5), obs=x.T)

    assert posterior_predictive(planted, exact, X, 4, batch_size=7)["x"].shape == (4, N, D)
    torch.testing.assert_close(
        reconstruct(planted, exact, X, num_particles=100)["x"], decode(PPCA.posterior(X).mean), rtol=0, atol=1.0
    )


def test_observations_without_a_mean_are_named():
    class Nameless(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    def meanless(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", Nameless(z[..., 0], 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"'x' .* has no mean"):
        reconstruct(meanless, exact, X)


def test_reconstruction_through_one_level_is_the_mean_of_the_models_own_program():
    """A linear hierarchy at the means of all latents: U1 W1 x, or U1 U2 W2 W1 x through z_2, or what p(z) says."""
    torch.manual_seed(0)
    vae, x = linear_hierarchical_pair(6, (4, 3), encoder_scales=(0.5, None)), torch.randn(20, 6, dtype=torch.float64)
    w1, w2 = (e.loc.weight.detach() for e in vae.encoders)
    u2, u1 = vae.priors[0].loc.weight.detach(), vae.decoder[0].weight.detach()
    programs = take_means()(vae.model), take_means()(vae.guide)
    for through, wanted in (
        (None, x @ w1.T @ u1.T),
        (["z_1"], x @ w1.T @ u1.T),
        (["z_2"], x @ w1.T @ w2.T @ u2.T @ u1.T),
        ([], torch.zeros_like(x)),
    ):
        torch.testing.assert_close(reconstruct(*programs, x, through=through)["x"], wanted)
    # with draws the same on average: S draws of U1 z_1, whose variance given x is that of both levels
    drawn = reconstruct(vae.model, vae.guide, x, through=["z_2"], num_particles=S)["x"]
    scale2 = vae.encoders[1].log_scale.detach().exp()
    z1 = 0.25 * w2 @ w2.T + scale2.square().diag()  # of z_2
    variance = (u1 @ (u2 @ z1 @ u2.T + torch.eye(4)) @ u1.T).diagonal()
    assert ((drawn - x @ w1.T @ w2.T @ u2.T @ u1.T).abs() < 5 * (variance / S).sqrt()).all()
    with pytest.raises(ValueError, match=r"through names \['z'\], but the latent sites are \['z_1', 'z_2'\]"):
        reconstruct(vae.model, vae.guide, x, through=["z"])


def test_means_of_latents_that_have_none_are_refused():
    class NoMean(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    for fn in (NoMean(0.0, 1.0), dist.Categorical(logits=torch.zeros(2)), dist.Bernoulli(0.3)):
        with pytest.raises(ValueError, match=rf"'z' \({type(fn).__name__}\) has no mean in its support"):
            with take_means():
                pyro.sample("z", fn)
    with take_means():
        assert pyro.sample("z", dist.Gamma(2.0, 4.0)) == 0.5
        assert pyro.sample("x", dist.Categorical(logits=torch.zeros(2)), obs=torch.tensor(1)) == 1
