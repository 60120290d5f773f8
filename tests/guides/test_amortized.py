"""Amortised guides: exact on linear-Gaussian models, right densities under constraints, clear refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.guides import (
    AmortizedHouseholder,
    AmortizedIAF,
    AmortizedLaplace,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    SemiAmortized,
)
from pyro_vaes.guides.amortized import AmortizedGuide
from pyro_vaes.infer import ImportanceWeighted_ELBO
from pyro_vaes.models import VAE
from pyro_vaes.nn import (
    MLP,
    Chain,
    GaussianLikelihood,
    HouseholderHead,
    IAFHead,
    MultivariateNormalHead,
    NormalHead,
)
from pyro_vaes.theory import ProbabilisticPCA


class Exact(nn.Module):
    """The exact posterior of a linear-Gaussian model as an encoder."""

    def __init__(self, ppca):
        super().__init__()
        self.ppca = ppca

    def forward(self, x):
        return self.ppca.posterior(x)


def linear_gaussian():
    torch.set_default_dtype(torch.float64)
    vae = VAE(NormalHead(6, 3), MLP(3, [], 6), GaussianLikelihood(scale=0.4), 3)
    ppca = ProbabilisticPCA(vae.decoder[0].bias.detach(), vae.decoder[0].weight.detach(), torch.tensor(0.4**2))
    return vae, ppca, torch.randn(20, 6)


def test_with_the_exact_posterior_every_single_draw_gives_the_evidence():
    vae, ppca, x = linear_gaussian()
    guide = AmortizedMultivariateNormal(vae.model, Exact(ppca))
    for seed in range(5):
        pyro.set_rng_seed(seed)
        assert abs(-Trace_ELBO().loss(vae.model, guide, x) - ppca.log_prob(x).sum().item()) < 1e-8
    estimate = log_likelihood(vae.model, guide, x, 1)
    assert torch.allclose(estimate.log_likelihood, ppca.log_prob(x), atol=1e-9)
    assert torch.allclose(guide.posterior(x).mean, ppca.posterior(x).mean)


def test_several_sites_share_one_joint_density():
    """Two latent sites of one linear-Gaussian model: the full-covariance guide over both is still exact."""
    vae, ppca, x = linear_gaussian()
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()

    def model(x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = torch.cat([a.unsqueeze(-1), b], -1)
            pyro.sample("x", dist.Normal(z @ weight.T + bias, 0.4).to_event(1), obs=x)

    guide = AmortizedMultivariateNormal(model, Exact(ppca))
    assert abs(-Trace_ELBO().loss(model, guide, x) - ppca.log_prob(x).sum().item()) < 1e-8
    drawn = guide(x)
    assert drawn["a"].shape == (20,) and drawn["b"].shape == (20, 2)


@pytest.mark.parametrize("make", [AmortizedNormal, AmortizedMultivariateNormal])
@pytest.mark.parametrize("name", ["gamma", "beta", "uniform", "dirichlet", "lognormal", "cholesky"])
def test_density_on_the_support_is_a_change_of_variables(make, name):
    """log q of the drawn value equals the base density minus log |det| of the map, by autograd on the map."""
    torch.set_default_dtype(torch.float64)
    prior = {
        "gamma": dist.Gamma(2.0, 1.0),
        "beta": dist.Beta(2.0, 2.0).expand([2]).to_event(1),
        "uniform": dist.Uniform(torch.full((2,), -1.0), torch.full((2,), 2.0)).to_event(1),
        "dirichlet": dist.Dirichlet(torch.ones(3)),
        "lognormal": dist.LogNormal(0.0, 1.0).expand([2]).to_event(1),
        "cholesky": dist.LKJCholesky(3, 1.0),
    }[name]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("theta", prior)
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 4)
    numel = {"gamma": 1, "beta": 2, "uniform": 2, "dirichlet": 2, "lognormal": 2, "cholesky": 3}[name]
    head = NormalHead(4, numel) if make is AmortizedNormal else MultivariateNormalHead(4, numel)
    guide = make(model, head)
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    total = sum(s["log_prob"] for s in trace.nodes.values() if s["type"] == "sample")
    q, site = guide.posterior(x), guide.latents(x).sites[0]
    value = trace.nodes["theta"]["value"]
    assert prior.support.check(value).all()
    base = site.transform.inv(value).reshape(5, numel)
    _, log_det = site.constrain(base)
    assert torch.allclose(total, q.log_prob(base) - log_det)
    if name in ("gamma", "beta", "uniform", "lognormal"):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda u: site.constrain(u)[0].reshape(-1)))(base)
        assert torch.allclose(log_det, torch.linalg.slogdet(jacobian)[1])


def test_a_constrained_posterior_is_learnt():
    """Gamma-Poisson with a single count: q(rate | x) approaches Gamma(a + x, b + 1); compare means."""
    x = torch.poisson(dist.Gamma(3.0, 1.0).sample((400,))).unsqueeze(-1)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).to_event(1), obs=x)

    guide = AmortizedNormal(model, Chain(MLP(1, [16], 16), NormalHead(16, 1)))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(num_particles=4, vectorize_particles=True))
    for _ in range(600):
        svi.step(x)
    with torch.no_grad():
        rates = torch.stack([guide(x)["rate"] for _ in range(500)]).mean(0)
    exact = (3.0 + x.squeeze(-1)) / 2.0
    assert ((rates - exact).abs() / exact.sqrt()).mean() < 0.15


def test_subsampling_plates():
    """A plate that draws its own rows: the guide encodes those rows, and the loss stands for the full data."""
    vae, ppca, x = linear_gaussian()
    weight, bias = vae.decoder[0].weight.detach(), vae.decoder[0].bias.detach()

    def model(x):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, 0.4).to_event(1), obs=x[rows])

    guide = AmortizedMultivariateNormal(model, Exact(ppca))
    trace = poutine.trace(guide).get_trace(x)
    rows = trace.nodes["data"]["value"]
    assert torch.allclose(trace.nodes["z"]["fn"].mean, ppca.posterior(x[rows]).mean)
    model_trace = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x)
    value = model_trace.log_prob_sum() - trace.log_prob_sum()
    assert abs(value.item() - 20 / 5 * ppca.log_prob(x[rows]).sum().item()) < 1e-8

    def minibatch(x):
        with pyro.plate("data", 20, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + bias, 0.4).to_event(1), obs=x)

    guide = AmortizedMultivariateNormal(minibatch, Exact(ppca))
    for part in (x[:5], x[5:12]):
        loss = Trace_ELBO().loss(minibatch, guide, part)
        assert abs(-loss - 20 / len(part) * ppca.log_prob(part).sum().item()) < 1e-8


def test_the_last_short_batch_needs_nothing():
    vae, _, x = linear_gaussian()
    guide = AmortizedNormal(vae.model, NormalHead(6, 3))
    for rows in (8, 3, 20):
        assert guide(x[:rows])["z"].shape == (rows, 3)


@pytest.mark.parametrize("sizes", [(20, 8, 20), (8, 20, 5), (20, 20, 8)])
@pytest.mark.parametrize("make", [AmortizedMultivariateNormal, AmortizedLaplace])
def test_the_plate_is_that_of_each_batch(make, sizes):
    """A plate of N data is a plain one for all of them and subsamples a mini-batch, whichever comes first."""
    vae, ppca, x = linear_gaussian()

    def minibatch(x):
        with pyro.plate("data", 20, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(vae.decoder(z), 0.4).to_event(1), obs=x)

    guide = make(minibatch, Exact(ppca))
    for rows in sizes:
        loss = Trace_ELBO().loss(minibatch, guide, x[:rows])
        assert abs(-loss - 20 / rows * ppca.log_prob(x[:rows]).sum().item()) < 1e-8
        assert torch.allclose(guide.posterior(x[:rows]).mean, ppca.posterior(x[:rows]).mean)


def test_another_look_at_the_model_leaves_no_trace():
    """Each size of a batch is looked at once; generator and buffers stay as they are."""
    norm, runs = nn.BatchNorm1d(6), []

    def model(x):
        runs.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(norm(z), 0.4).to_event(1), obs=x)

    guide, x = AmortizedNormal(model, NormalHead(6, 6)), torch.randn(20, 6)
    before, state = {n: b.clone() for n, b in norm.named_buffers()}, torch.get_rng_state()
    for rows in (20, 8, 20, 8, 3, 3):
        guide.posterior(x[:rows])
    assert runs == [20, 8, 3]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(b, before[n]) for n, b in norm.named_buffers())


def test_a_plate_that_draws_its_rows_is_looked_at_once():
    """Behind its first look some of the rows will do, on which the program itself could not run."""
    _, ppca, x = linear_gaussian()

    def own_rows(x):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x[rows])

    guide = AmortizedMultivariateNormal(own_rows, Exact(ppca))
    guide(x)
    assert guide.posterior(x[:3]).batch_shape == (3,)


PLACED = {
    "normal": (AmortizedNormal, lambda: NormalHead(6, 3)),
    "full": (AmortizedMultivariateNormal, lambda: MultivariateNormalHead(6, 3)),
    "householder": (AmortizedHouseholder, lambda: HouseholderHead(6, 3, flows=2)),
    "iaf": (AmortizedIAF, lambda: IAFHead(6, 3, flows=2, hidden=[5])),
}


def nested_plates(vae, x):
    """The VAE with a plate of pixels inside the plate of the data."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))  # (B, 1, 3)
        with pyro.plate("pixels", 6, dim=-1):
            pyro.sample("x", dist.Normal(vae.decoder(z).squeeze(-2), 0.4), obs=x)


@pytest.mark.parametrize("bound", [Trace_ELBO(), ImportanceWeighted_ELBO(4)], ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("name", PLACED)
def test_a_plate_of_pixels_inside_the_plate_of_data(name, bound):
    """The loss is that of the same program with its pixels in an event."""
    vae, _, x = linear_gaussian()
    make, head = PLACED[name]
    encoder, losses = head(), []
    for model in (vae.model, lambda x: nested_plates(vae, x)):
        guide = make(model, encoder)
        guide.latents(x)
        pyro.set_rng_seed(3)
        losses.append(bound.differentiable_loss(model, guide, x))
    assert guide(x)["z"].shape == (20, 1, 3) and guide.posterior(x).batch_shape == (20,)
    torch.testing.assert_close(losses[1], losses[0])
    one, two = (torch.autograd.grad(loss, list(encoder.parameters())) for loss in losses)
    torch.testing.assert_close(two, one)


def test_the_analytic_kl_survives_nested_plates():
    vae, _, x = linear_gaussian()
    encoder, losses = NormalHead(6, 3), []
    for model in (vae.model, lambda x: nested_plates(vae, x)):
        pyro.set_rng_seed(3)
        losses.append(TraceMeanField_ELBO().loss(model, AmortizedNormal(model, encoder), x))
    assert losses[1] == pytest.approx(losses[0])


def test_an_encoder_may_bring_its_batch_into_the_plate_itself():
    vae, _, x = linear_gaussian()

    class Placed(NormalHead):
        def forward(self, x):
            return super().forward(x.unsqueeze(-2))

    guide = AmortizedNormal(lambda x: nested_plates(vae, x), Placed(6, 3))
    assert guide(x)["z"].shape == (20, 1, 3)

    class Scaled(NormalHead):
        def forward(self, x):
            maps = [dist.transforms.AffineTransform(0.0, x[:, :3].exp(), event_dim=1)]
            return dist.TransformedDistribution(super().forward(x), maps)

    with pytest.raises(ValueError, match=r"TransformedDistribution.*batch shape \(B, 1\)"):
        AmortizedGuide(lambda x: nested_plates(vae, x), Scaled(6, 3))(x)


class Labelled(nn.Module):
    """A normal whose mean has the labels added, or a weight with their mean."""

    def __init__(self, *, weight=False):
        super().__init__()
        self.weight = weight

    def forward(self, x, y=None):
        loc = x[:, :3] + (0.0 if y is None else y)
        return loc.mean(-1) if self.weight else dist.Normal(loc, 1.0).to_event(1)


def labelled(x, y=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0 if y is None else y, 1.0).expand([len(x), 3]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AmortizedNormal(labelled, Labelled()),
        lambda: SemiAmortized(AmortizedNormal(labelled, Labelled()), steps=1).eval(),
        lambda: AmortizedLaplace(labelled, Labelled(), steps=0),
        lambda: AmortizedMixture(labelled, [Labelled(), Labelled()], [Labelled(weight=True)]),
    ],
    ids=["normal", "semi", "laplace", "mixture"],
)
def test_encoders_get_the_keywords_that_they_take(make):
    x, y, guide = torch.randn(5, 3), torch.randn(5, 3), make()
    wanted = guide.posterior(x, y).mean
    assert not torch.allclose(wanted, guide.posterior(x).mean)
    for args, kwargs in (((x,), {"y": y}), ((), {"x": x, "y": y}), ((), {"y": y, "x": x})):
        assert torch.equal(guide.posterior(*args, **kwargs).mean, wanted)
        assert guide(*args, **kwargs)["z"].shape == (5, 3)


def test_keywords_that_an_encoder_does_not_take_stay_with_the_model():
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    guide = AmortizedNormal(labelled, NormalHead(3, 3))
    assert torch.equal(guide.posterior(x, y=y).mean, guide.posterior(x).mean)
    with pytest.raises(ValueError, match=r"keywords \['x', 'y'\].*guide\(x, y=y\)"):
        guide(x=x, y=y)


def test_rows_are_taken_of_keywords_too():
    x, y = torch.randn(20, 3), torch.randn(20, 3)

    def model(x, y=None):
        with pyro.plate("data", 20, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[rows])

    trace = poutine.trace(AmortizedNormal(model, Labelled())).get_trace(x, y=y)
    rows = trace.nodes["data"]["value"]
    assert torch.equal(trace.nodes["z"]["fn"].mean, x[rows] + y[rows])


def test_the_model_is_no_part_of_the_guide():
    vae, _, x = linear_gaussian()
    guide = AmortizedNormal(vae.model, NormalHead(6, 3))
    guide(x)
    assert {n.split(".")[0] for n, _ in guide.named_parameters()} == {"encoder"}
    state = torch.get_rng_state()
    AmortizedNormal(vae.model, NormalHead(6, 3)).latents(x)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    NormalHead(6, 3)
    assert torch.equal(torch.get_rng_state(), after), "finding the latents draws nothing from the generator"


def _program(latent):
    def model(x):
        latent_outside = latent.pop("outside", None)
        if latent_outside is not None:
            pyro.sample("w", latent_outside)
        with pyro.plate("data", len(x)):
            if latent:
                pyro.sample("z", latent["z"])
            pyro.sample("x", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=x)

    return model


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({}, "no latent sample site"),
        ({"z": dist.Categorical(torch.ones(3) / 3)}, "'z' is discrete .*TraceEnum_ELBO"),
        ({"outside": dist.Normal(0.0, 1.0)}, "'w' lies outside the data plate"),
        ({"z": dist.Uniform(torch.zeros(4), torch.arange(1.0, 5.0)).to_event(1)}, "not constant"),
    ],
)
def test_refusals_name_the_cure(latent, message):
    guide = AmortizedNormal(_program(latent), NormalHead(4, 1))
    with pytest.raises(ValueError, match=message):
        guide(torch.randn(5, 4))


def test_nested_and_different_plates_are_refused():
    def nested(x):
        with pyro.plate("series", len(x), dim=-2), pyro.plate("time", 4, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="nested plates"):
        AmortizedNormal(nested, NormalHead(4, 1))(torch.randn(5, 4))

    def two(x):
        with pyro.plate("a", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("b", 3):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="different plates"):
        AmortizedNormal(two, NormalHead(4, 1))(torch.randn(5, 4))


def test_encoders_that_do_not_fit_are_named():
    vae, _, x = linear_gaussian()
    with pytest.raises(ValueError, match=r"need 3 numbers per datum: z \(3,\)"):
        AmortizedNormal(vae.model, NormalHead(6, 2))(x)
    with pytest.raises(ValueError, match="diagonal normal"):
        AmortizedNormal(vae.model, MultivariateNormalHead(6, 3))(x)
    with pytest.raises(ValueError, match="MultivariateNormalHead"):
        AmortizedMultivariateNormal(vae.model, NormalHead(6, 3))(x)
    with pytest.raises(ValueError, match=r"vae\.model rather than vae"):
        AmortizedNormal(vae.model, "encoder")
    assert math.isfinite(Trace_ELBO().loss(vae.model, AmortizedNormal(vae.model, NormalHead(6, 3)), x))
