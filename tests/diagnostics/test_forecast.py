"""Forecasts against training and theory, and T8 of the collapse spec: the measures and their closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vaes.diagnostics import (
    chi_square_collapse_curve,
    chi_square_collapse_probability,
    collapse_report,
    forecast_collapse,
)
from pyro_vaes.infer import scale_latents
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, NormalHead, OneHot
from pyro_vaes.theory import (
    linear_cvae,
    linear_hierarchical_vae,
    linear_vae,
    residual_spectrum,
    second_moment_spectrum,
)
from tests.theory.pairs import (
    THETA,
    data_with,
    linear_cvae_pair,
    linear_hierarchical_pair,
    linear_vae_pair,
    minimise,
    moment_of,
    vae_loss,
)

X = data_with(THETA, 500)


def relu_vae(*, bias: bool = True, likelihood: nn.Module | None = None) -> VAE:
    encoder = Chain(MLP(6, [8], 8, bias=bias), NormalHead(8, 4, bias=bias))
    decoder = MLP(4, [8], 6, bias=bias)
    return VAE(encoder, decoder, GaussianLikelihood(0.8) if likelihood is None else likelihood, 4).double()


def test_T8_chi_square_form_is_that_of_draws():
    """P[KL_i < epsilon] and the curve, against 200,000 normal data within the spec's 0.01 (standard error 0.001)."""
    vae = linear_vae(THETA, 5, noise=0.8, prior_scale=1.3, beta=1.2)
    m = torch.randn(200_000, 5, dtype=torch.float64) * vae.encoder_singular_values
    ratio = (vae.encoder_scale / 1.3) ** 2
    kl = 0.5 * (m**2 / 1.3**2 + ratio - 1 - ratio.log())
    epsilon = torch.tensor([1e-3, 0.05, 0.3, 0.7, 1.0, 2.0, 5.0], dtype=torch.float64)
    scales = vae.encoder_singular_values, vae.encoder_scale, 1.3
    probability = chi_square_collapse_probability(epsilon, *scales)
    drawn = torch.stack([(kl < e).double().mean(0) for e in epsilon])
    torch.testing.assert_close(probability, drawn, atol=0.01, rtol=0)
    assert (probability[:, vae.num_active :] == 1).all(), "q = p: collapsed as epsilon tends to 0"
    _, share = chi_square_collapse_curve(*scales, epsilon=epsilon, delta=0.05)
    assert (drawn - 0.95).abs().min() > 0.005, "the draws decide"
    torch.testing.assert_close(share, (drawn >= 0.95).double().mean(1))


def test_T8_curves_are_monotone_and_collapse_is_total():
    vae = linear_vae(THETA, 6, noise=0.8)
    last = torch.zeros(100, dtype=torch.float64)
    for delta in (0.0, 0.01, 0.05, 0.3, 0.9):
        epsilon, share = chi_square_collapse_curve(vae.encoder_singular_values, vae.encoder_scale, delta=delta)
        assert (share.diff() >= 0).all() and (share >= last).all() and len(epsilon) == 100
        last = share
    collapsed = linear_vae(THETA, 6, noise=3.0)
    tiny = torch.tensor([1e-300], dtype=torch.float64)
    _, share = chi_square_collapse_curve(collapsed.encoder_singular_values, collapsed.encoder_scale, epsilon=tiny)
    assert collapsed.num_active == 0 and share == 1
    # fixed scales other than the prior's: independent of x, and yet not the prior
    fixed = linear_vae(THETA, 6, noise=30.0, encoder_scale=0.5)
    offset = 0.5 * (0.25 - 1 - math.log(0.25))
    around = torch.tensor([offset - 1e-6, offset + 1e-6], dtype=torch.float64)
    _, share = chi_square_collapse_curve(fixed.encoder_singular_values, fixed.encoder_scale, epsilon=around)
    assert share.tolist() == [0.0, 1.0]


def test_T8_measures_of_a_collapsed_pair_and_two_definitions_of_active():
    """q = p: 100 % collapsed, nothing active, I = 0. A mean that is off but constant: active pairs, no active unit."""
    x = torch.randn(100, 6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 6), 1.0).to_event(1), obs=x)

    def guide(x, shift=0.0):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.full((len(x), 2), shift), 1.0).to_event(1))

    site = collapse_report(model, guide, x)["z"]
    assert site.collapse_curve(torch.tensor([1e-12]))[1] == 1 and (site.collapse_epsilon() == 0).all()
    assert site.active_units == 0 and site.active_pairs == 0 and abs(site.mutual_information) < 1e-6
    shifted = collapse_report(model, lambda x: guide(x, 0.5), x)["z"]
    assert shifted.active_units == 0 and shifted.active_pairs == 1.0
    assert abs(shifted.mutual_information) < 1e-6
    torch.testing.assert_close(shifted.collapse_epsilon(), torch.full((2,), 0.125, dtype=torch.float64))


def test_vae_forecast_is_the_theory_of_its_data():
    vae = linear_vae_pair(6, 4, noise=0.8, prior_scale=1.3)
    forecast = forecast_collapse(scale_latents(1.5)(vae.model), X, batch_size=64)
    theory = linear_vae(THETA, 4, noise=0.8, prior_scale=1.3, beta=1.5)
    assert not forecast.centred and not forecast.conditional and forecast.num_data == 500
    assert forecast.theory.loss == pytest.approx(theory.loss, abs=1e-6)
    torch.testing.assert_close(forecast["z"].kl, theory.kl, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(forecast["z"].critical_beta, THETA[:4] ** 2 / 0.8**2, rtol=1e-6, atol=0)
    torch.testing.assert_close(forecast["z"].critical_noise, THETA[:4] / 1.5**0.5, rtol=1e-6, atol=0)
    assert forecast["z"].num_active == 3 and forecast["z"].total_kl == pytest.approx(theory.kl.sum().item(), rel=1e-6)
    given = forecast_collapse(vae.model, X, noise=0.8, beta=1.5)
    torch.testing.assert_close(given["z"].kl, theory.kl, rtol=1e-6, atol=1e-8)
    fixed = forecast_collapse(vae.model, X, encoder_scale=0.7)
    torch.testing.assert_close(
        fixed["z"].kl, linear_vae(THETA, 4, noise=0.8, prior_scale=1.3, encoder_scale=0.7).kl, rtol=1e-6, atol=1e-8
    )
    text = str(forecast)
    assert "linear forecast from the second moment of 500 data, exact for linear networks" in text
    assert "z: 3 of 4 units active" in text and "dies at beta" in text
    _, share = forecast["z"].collapse_curve(torch.tensor([1e-9], dtype=torch.float64))
    assert share == 0.25


def test_forecast_beside_measurement_after_training():
    """A linear pair trained on its exact loss is where the forecast put it."""
    vae = linear_vae_pair(6, 4, noise=0.8)
    minimise(vae, lambda: vae_loss(vae, moment_of(THETA), noise=0.8))
    forecast = forecast_collapse(vae.model, X)
    comparison = forecast.beside(collapse_report(vae.model, vae.guide, X))
    both = comparison["z"].kl
    assert both.shape == (2, 4)
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)
    assert comparison["z"].forecast.num_active == comparison["z"].measured.active_units == 4
    lines = str(comparison).splitlines()
    assert lines[0].split() == ["z", "linear", "forecast", "measured", "±"] and "unit 4" in lines[6]
    with pytest.raises(ValueError, match=r"no site 'z': it measured \['w'\]"):
        forecast.beside(type("Report", (), {"sites": {"w": None}})())


def test_biases_take_the_mean_out():
    x = X + 3.0
    centred, plain = (second_moment_spectrum(x, centred=c) for c in (True, False))
    assert forecast_collapse(relu_vae().model, x).centred
    torch.testing.assert_close(forecast_collapse(relu_vae().model, x)["z"].kl, linear_vae(centred, 4, noise=0.8).kl)
    without = relu_vae(bias=False)  # its scale network has a bias, and yet no map of x or z has one
    torch.testing.assert_close(
        forecast_collapse(without.model, x, centred=False)["z"].kl, linear_vae(plain, 4, noise=0.8).kl
    )


def test_noise_of_each_feature_is_whitened():
    scale = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)

    class Own(nn.Module):
        def forward(self, params):
            return dist.Normal(params, scale).to_event(1)

    forecast = forecast_collapse(relu_vae(likelihood=Own()).model, X, centred=False)
    torch.testing.assert_close(forecast["z"].kl, linear_vae(second_moment_spectrum(X / scale), 4, noise=1.0).kl)
    assert forecast.theory.noise == pytest.approx(scale.square().mean().sqrt().item())


def test_conditional_forecast():
    y, c = X[:, :4], X[:, 4:]
    cvae = linear_cvae_pair(4, 2, 3, noise=0.7, prior_scale=1.2)
    forecast = forecast_collapse(cvae.model, (y, c), beta=1.4)
    theory = linear_cvae(residual_spectrum(y, c), 3, noise=0.7, prior_scale=1.2, beta=1.4)
    assert forecast.conditional and "residual second moment" in str(forecast)
    torch.testing.assert_close(forecast["z"].kl, theory.kl, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(forecast["z"].critical_beta, theory.critical_beta, rtol=1e-6, atol=0)
    labels = torch.arange(500) % 3
    digits = ConditionalVAE(
        Chain(MLP(9, [8], 8), NormalHead(8, 2)), MLP(5, [8], 6), GaussianLikelihood(), 2, embedding=OneHot(3)
    ).double()
    by_class = torch.cat([X[labels == k] - X[labels == k].mean(0) for k in range(3)])
    wanted = linear_vae(second_moment_spectrum(by_class), 2).kl
    torch.testing.assert_close(forecast_collapse(digits.model, (X, labels))["z"].kl, wanted, rtol=1e-6, atol=1e-8)


def test_conditional_program_of_a_users_own():
    def model(x, y):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("style", dist.Normal(torch.zeros(2).double(), 0.5).to_event(1))
            pyro.sample("pixels", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 6), 0.5).to_event(1), obs=x)

    labels = torch.arange(500) % 2
    with pytest.raises(ValueError, match=r"dtype torch.int64.*embedding=OneHot"):
        forecast_collapse(model, (X, labels))
    forecast = forecast_collapse(model, (X, labels), embedding=OneHot(2))
    onehot = torch.nn.functional.one_hot(labels).double()
    wanted = linear_cvae(residual_spectrum(X, onehot), 2, noise=0.5, prior_scale=0.5)
    torch.testing.assert_close(forecast["style"].kl, wanted.kl, rtol=1e-6, atol=1e-8)


def test_data_made_inside_the_program():
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(len(x), 6), 1.0).to_event(1), obs=2 * x)

    torch.testing.assert_close(forecast_collapse(model, X)["z"].kl, linear_vae(2 * THETA, 2).kl, rtol=1e-6, atol=1e-8)


def test_data_reshaped_inside_the_program_are_no_covariate():
    """Whatever the order of the arguments; where it cannot be told, the forecast says so."""
    images, covariate = X.reshape(-1, 2, 3), torch.randn(len(X), 2).double()

    def conditional(c, x, factor=1.0):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 0.5).to_event(1))
            mean = z.sum(-1, keepdim=True).expand(len(x), 6) + c.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=factor * x.flatten(1))

    wanted = linear_cvae(residual_spectrum(X, covariate), 2, noise=0.5, prior_scale=0.5)
    for program, args in ((conditional, (covariate, images)), (lambda x, c: conditional(c, x), (images, covariate))):
        torch.testing.assert_close(forecast_collapse(program, args)["z"].kl, wanted.kl, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match=r"arguments \[0, 1\] may be what it is made from"):
        forecast_collapse(lambda c, x: conditional(c, x, 2.0), (covariate, images))


def test_hierarchical_forecast():
    """z_1 in other units than the theory's: p(z_1|z_2) has a scale of its own."""
    vae = linear_hierarchical_pair(6, (4, 3), noise=0.8, prior_scale=1.1, encoder_scales=(0.7, None))
    options = dict(noise=0.8, prior_scale=1.1, betas=(0.9, 1.3), encoder_scales=(0.7, None))
    theory = linear_hierarchical_vae(THETA, (4, 3), **options)
    weighted = scale_latents({"z_1": 0.9, "z_2": 1.3})(vae.model)
    forecast = forecast_collapse(weighted, X, encoder_scales=(0.7, None))
    assert list(forecast.sites) == ["z_1", "z_2"]
    torch.testing.assert_close(forecast["z_1"].kl, theory.kl, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(forecast["z_2"].kl, theory.top_kl, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(forecast["z_2"].critical_beta, theory.top_critical_beta, rtol=1e-6, atol=0)
    vae.priors[0].log_scale.fill_(math.log(1.6))  # z_1 twice as large: so is its encoder's scale
    twice = forecast_collapse(vae.model, X, betas=(0.9, 1.3), encoder_scales=(1.4, None))
    torch.testing.assert_close(twice["z_2"].kl, theory.top_kl, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        twice["z_1"].encoder_singular_values, 2 * theory.encoder_singular_values, rtol=1e-6, atol=1e-8
    )
    with pytest.raises(ValueError, match="'z_1' depends on the level above"):
        forecast["z_1"].collapse_curve()
    assert forecast["z_2"].collapse_curve()[1][0] == pytest.approx(1 - theory.top_num_active / 3)
    comparison = forecast.beside(collapse_report(vae.model, vae.guide, X))
    assert "z_2" in str(comparison) and comparison["z_1"].kl.shape == (2, 4)
    undetermined = forecast_collapse(vae.model, X)
    assert "does not decide about z_2" in str(undetermined)


def test_nothing_of_the_pair_changes():
    vae = relu_vae()
    before = {n: t.clone() for n, t in vae.state_dict().items()}
    state, mode = torch.get_rng_state(), vae.training
    forecast_collapse(vae.model, X)
    assert torch.equal(state, torch.get_rng_state()) and vae.training == mode and not pyro.get_param_store().keys()
    assert all(torch.equal(t, before[n]) for n, t in vae.state_dict().items())


def skip_vae() -> HierarchicalVAE:
    encoders = [NormalHead(6, 3), NormalHead(9, 2)]
    return HierarchicalVAE(
        encoders, MLP(5, [], 6), GaussianLikelihood(), [3, 2], priors=[NormalHead(2, 3)], skip=True
    ).double()


def no_plate(x):
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x[0])


def two_observed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for name in ("a", "b"):
            pyro.sample(name, dist.Normal(z, 1.0), obs=x[:, 0])


def own_rows(x, c):
    with pyro.plate("data", len(x), subsample_size=5) as index:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x[index])


BAD = {
    "no normal likelihood": (
        lambda: (relu_vae(likelihood=BernoulliLikelihood()).model, X > 0),
        {},
        "is Bernoulli. Pass",
    ),
    "skip connections": (lambda: (skip_vae().model, X), {}, "no such chain"),
    "no plate": (lambda: (no_plate, X), {}, "lies in no plate"),
    "two observed sites": (lambda: (two_observed, X), {}, r"one observed site, but the model has \['a', 'b'\]"),
    "rows of its own": (lambda: (own_rows, (X, X)), {}, "made inside the model, and each of its arguments"),
    "betas for one site": (lambda: (relu_vae().model, X), {"betas": (1.0, 1.0)}, "one latent site: give beta"),
    "both": (lambda: (relu_vae().model, X), {"betas": (1.0, 1.0), "beta": 1.0}, "give one"),
    "beta for two sites": (
        lambda: (linear_hierarchical_pair(6, (2, 2), encoder_scales=(1.0, 1.0)).model, X),
        {"beta": 2.0},
        "give betas and encoder_scales",
    ),
    "no noise": (lambda: (relu_vae().model, X), {"noise": 0.0}, "noise is the standard deviation"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_the_closed_forms_do_not_cover(kind):
    make, options, said = BAD[kind]
    model, data = make()
    data = data.double() if isinstance(data, torch.Tensor) else data
    with pytest.raises(ValueError, match=said):
        forecast_collapse(model, data, **options)


def test_bernoulli_with_a_noise_of_ones_own():
    vae = relu_vae(likelihood=BernoulliLikelihood())
    x = (X > 0).double()
    forecast = forecast_collapse(vae.model, x, noise=0.4)
    torch.testing.assert_close(
        forecast["z"].kl, linear_vae(second_moment_spectrum(x, centred=True), 4, noise=0.4).kl, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(2), torch.ones(3), torch.ones(2)), "shape"),
        ((torch.ones(2), torch.ones(2), -torch.ones(2)), "logarithms"),
        ((torch.ones(2), torch.ones(2), torch.ones(2), 0.0), "positive standard deviations"),
    ],
)
def test_bad_scales(arguments, said):
    with pytest.raises(ValueError, match=said):
        chi_square_collapse_probability(*arguments)
    with pytest.raises(ValueError, match="share of the data"):
        chi_square_collapse_curve(torch.ones(2), torch.ones(2), delta=1.0)
