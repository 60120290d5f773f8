"""Likelihoods: shapes, layout of the decoder's output, parameters, stability, and hints about data."""

import copy
import math

import pyro
import pytest
import torch
from torch import nn

from pyro_vaes.distributions import DiscretizedLogisticMixture
from pyro_vaes.nn.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    soft_clamp,
)

MAKERS = {
    "gaussian": lambda e: GaussianLikelihood(0.3, event_dim=e),
    "gaussian-learned": lambda e: GaussianLikelihood(0.3, learn_scale=True, event_dim=e),
    "gaussian-amortised": lambda e: GaussianLikelihood(0.3, amortize_scale=True, event_dim=e),
    "laplace": lambda e: LaplaceLikelihood(0.3, learn_scale=True, event_dim=e),
    "bernoulli": lambda e: BernoulliLikelihood(event_dim=e),
    "continuous-bernoulli": lambda e: ContinuousBernoulliLikelihood(event_dim=e),
    "categorical": lambda e: CategoricalLikelihood(5, event_dim=e),
    "discretized-logistic": lambda e: DiscretizedLogisticMixtureLikelihood(3, 16, event_dim=e),
    "poisson": lambda e: PoissonLikelihood(event_dim=e),
    "negative-binomial": lambda e: NegativeBinomialLikelihood(2.0, event_dim=e),
}


@pytest.mark.parametrize("leading", [(), (7,), (2, 7)])
@pytest.mark.parametrize(("event_dim", "event_shape"), [(1, (6,)), (3, (2, 4, 3))])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_shapes_moments_and_gradients(make, event_dim, event_shape, leading):
    likelihood = make(event_dim)
    assert isinstance(likelihood, Likelihood)
    width = likelihood.num_params * event_shape[0]
    params = torch.randn(*leading, width, *event_shape[1:], requires_grad=True)
    p = likelihood(params)
    assert p.batch_shape == leading and p.event_shape == event_shape
    assert p.mean.shape == p.variance.shape == leading + event_shape
    assert p.mean.isfinite().all() and (p.variance > 0).all()
    x = p.sample()
    assert likelihood.hint(x) is None
    p.log_prob(x).sum().backward()
    assert params.grad is not None and params.grad.isfinite().all() and (params.grad != 0).any()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in likelihood.parameters())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_image_and_vector_layouts_hold_the_same_numbers(make):
    flat, image = make(1), make(3)
    params = torch.randn(5, flat.num_params * 2, 3, 4)  # (B, P*C, H, W)
    x = image(params).sample()
    # one pixel (c, h, w) alone is a vector with D = 1
    one = params.unflatten(1, (flat.num_params, 2))[:, :, 1, 2, 3]
    expected = flat(one).log_prob(x[:, 1, 2, 3].unsqueeze(-1))
    images = image(params).base_dist.log_prob(x)
    torch.testing.assert_close(images[:, 1, 2, 3], expected)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_dtype_and_copies(make):
    likelihood = make(1).double()
    params = torch.randn(4, likelihood.num_params * 3, dtype=torch.float64)
    p = likelihood(params)
    x = p.sample()
    assert p.log_prob(x).dtype == p.mean.dtype == torch.float64
    duplicate = copy.deepcopy(likelihood)
    duplicate.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(duplicate(params).log_prob(x), p.log_prob(x))


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_extreme_decoder_outputs_stay_finite(make, size):
    likelihood = make(1)
    params = (size * torch.randn(4, likelihood.num_params * 3)).requires_grad_()
    p = likelihood(params)
    x = make(1)(torch.zeros_like(params)).sample()
    log_prob = p.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and p.mean.isfinite().all()
    assert params.grad is not None and params.grad.isfinite().all()


class TestScale:
    def test_frozen_scale_is_no_parameter_and_is_saved(self):
        likelihood = GaussianLikelihood(0.1)
        assert not list(likelihood.parameters()) and len(likelihood.state_dict()) == 1
        assert likelihood.scale.item() == pytest.approx(0.1, rel=1e-6)
        other = GaussianLikelihood(0.7)
        other.load_state_dict(likelihood.state_dict())
        assert other.scale == likelihood.scale

    @pytest.mark.parametrize("cls", [GaussianLikelihood, LaplaceLikelihood])
    def test_maximum_likelihood_reaches_the_closed_form(self, cls):
        """With loc = 0 the optimum is sqrt(mean x^2) per feature (Laplace: mean |x|)."""
        x = torch.randn(50, 3, dtype=torch.float64) * torch.tensor([0.01, 1.0, 30.0])
        likelihood = cls(0.5, learn_scale=True, shape=(3,)).double()
        optim = torch.optim.LBFGS(
            likelihood.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=0
        )

        def closure():
            optim.zero_grad()
            loss = -likelihood(torch.zeros_like(x)).log_prob(x).mean()
            loss.backward()
            return loss

        optim.step(closure)
        optimum = x.square().mean(0).sqrt() if cls is GaussianLikelihood else x.abs().mean(0)
        torch.testing.assert_close(likelihood.scale.detach(), optimum, rtol=1e-5, atol=0)

    def test_per_channel_scale(self):
        likelihood = GaussianLikelihood(0.5, learn_scale=True, shape=(3, 1, 1), event_dim=3)
        assert likelihood(torch.zeros(2, 3, 4, 4)).log_prob(torch.zeros(2, 3, 4, 4)).shape == (2,)

    def test_amortised_scale(self):
        likelihood = GaussianLikelihood(0.5, amortize_scale=True)
        raw = torch.tensor([0.0, 1.0, -2.0])
        p = likelihood(torch.cat([torch.arange(3.0), raw]))
        torch.testing.assert_close(p.mean, torch.arange(3.0))
        torch.testing.assert_close(p.stddev, 0.5 * raw.exp(), rtol=1e-3, atol=0)  # soft bounds at 9.2

    def test_floor_keeps_the_density_bounded(self):
        likelihood = GaussianLikelihood(0.5, learn_scale=True)
        nn.init.constant_(next(likelihood.parameters()), -1e4)
        assert likelihood(torch.zeros(1)).log_prob(torch.zeros(1)).item() == pytest.approx(
            -0.5 * math.log(2 * math.pi) - math.log(1e-4), abs=1e-3
        )

    @pytest.mark.parametrize("scale", [0.0, -1.0, 1e-4, math.inf, math.nan])
    def test_bad_scale(self, scale):
        with pytest.raises(ValueError, match="scale must be a finite number above its floor"):
            GaussianLikelihood(scale)

    def test_contradictions(self):
        with pytest.raises(ValueError, match="amortize_scale=True takes the scale from the decoder"):
            GaussianLikelihood(amortize_scale=True, learn_scale=True)
        with pytest.raises(ValueError, match="more dimensions than event_dim=1"):
            GaussianLikelihood(shape=(10, 3))
        with pytest.raises(ValueError, match=r"scale has shape \(4,\).*shape \(3,\)"):
            GaussianLikelihood(shape=(4,))(torch.zeros(2, 3))
        with pytest.raises(ValueError, match=r"scale has shape \(4,\).*shape \(1,\)"):
            GaussianLikelihood(shape=(4,))(torch.zeros(2, 1))
        with pytest.raises(ValueError, match=r"total_count has shape \(4,\)"):
            NegativeBinomialLikelihood(shape=(4,))(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="total_count must be"):
            NegativeBinomialLikelihood(0.0)


def test_soft_clamp():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(soft_clamp(x, -15.0, 15.0), x, rtol=0, atol=2e-4)
    far = torch.tensor([-1e3, 1e3], dtype=torch.float64, requires_grad=True)
    y = soft_clamp(far, -15.0, 15.0)
    torch.testing.assert_close(y.detach(), torch.tensor([-15.0, 15.0], dtype=torch.float64), rtol=0, atol=1e-3)
    z = torch.tensor([-30.0, 30.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_clamp(z, -15.0, 15.0).sum(), z)
    assert (gradient > 0).all()


def test_discretized_logistic_units_are_those_of_the_paper():
    """(logits, m, log s) in [-1, 1]: pixel 2 x - 1 has location m and scale s."""
    p = DiscretizedLogisticMixtureLikelihood(2)(torch.tensor([0.3, -0.3, 0.5, -0.5, -2.0, -1.0]))
    base = p.base_dist
    assert isinstance(base, DiscretizedLogisticMixture)
    torch.testing.assert_close(base.logits, torch.tensor([[0.3, -0.3]]))
    torch.testing.assert_close(base.loc, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(base.scale, torch.tensor([[-2.0, -1.0]]).exp() / 2, rtol=1e-2, atol=0)


def test_poisson_and_negative_binomial_moments():
    log_rate = torch.tensor([-1.0, 0.0, 3.0])
    torch.testing.assert_close(PoissonLikelihood()(log_rate).mean, log_rate.exp(), rtol=1e-4, atol=0)
    p = NegativeBinomialLikelihood(3.0, learn_total_count=False)(log_rate)
    mean = 3.0 * log_rate.exp()
    torch.testing.assert_close(p.mean, mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(p.variance, mean + mean**2 / 3.0, rtol=1e-4, atol=0)


def test_wrong_widths_are_refused():
    with pytest.raises(ValueError, match=r"784 features cannot be shared out.*takes 30 numbers per observed value"):
        DiscretizedLogisticMixtureLikelihood(10)(torch.zeros(5, 784))
    with pytest.raises(ValueError, match="3 channels cannot be shared out"):
        GaussianLikelihood(amortize_scale=True, event_dim=3)(torch.zeros(5, 3, 8, 8))
    with pytest.raises(ValueError, match="reads the last 3 dimensions as one datum"):
        BernoulliLikelihood(event_dim=3)(torch.zeros(5, 784))
    with pytest.raises(ValueError, match="event_dim"):
        BernoulliLikelihood(event_dim=0)
    with pytest.raises(ValueError, match="num_classes"):
        CategoricalLikelihood(1)
    with pytest.raises(ValueError, match="num_components"):
        DiscretizedLogisticMixtureLikelihood(0)
    with pytest.raises(ValueError, match="num_levels"):
        DiscretizedLogisticMixtureLikelihood(3, 1)


GREY = torch.tensor([[0.0, 0.5, 1.0]])
HINTS = [
    (BernoulliLikelihood(), GREY, r"data\.Binarize.*ContinuousBernoulliLikelihood"),
    (BernoulliLikelihood(), GREY * 255, "divide by 255"),
    (BernoulliLikelihood(), torch.tensor([0, 255], dtype=torch.uint8), r"x\.float\(\) / 255"),
    (BernoulliLikelihood(), torch.tensor([True, False]), r"x\.float\(\)"),
    (BernoulliLikelihood(), GREY - 0.5, "GaussianLikelihood"),
    (ContinuousBernoulliLikelihood(), GREY + 0.2, "GaussianLikelihood"),
    (ContinuousBernoulliLikelihood(), GREY * 255, "divide by 255"),
    (PoissonLikelihood(), -GREY, "smallest value is -1"),
    (PoissonLikelihood(), GREY, "counts are whole numbers"),
    (NegativeBinomialLikelihood(), GREY, "counts are whole numbers"),
    (CategoricalLikelihood(3), torch.tensor([1, 2, 3]), "from 1 to 3.*classes are 0, ..., 2"),
    (CategoricalLikelihood(3), torch.tensor([-1, 2]), "relabel"),
    (CategoricalLikelihood(3), GREY, "quantise"),
    (DiscretizedLogisticMixtureLikelihood(2), GREY, "not on the grid"),
    (DiscretizedLogisticMixtureLikelihood(2), GREY * 255, "divide by 255"),
    *[(make(1), torch.tensor([0.0, math.nan]), "NaN.*50.00%") for make in MAKERS.values()],
    *[(make(1), torch.tensor([0.0, math.inf]), "infinite") for make in MAKERS.values()],
]


@pytest.mark.parametrize(("likelihood", "value", "message"), HINTS)
def test_hint_names_the_cure(likelihood, value, message):
    hint = likelihood.hint(value)
    assert hint is not None
    assert hint.endswith((".", "?")) and "\n" not in hint
    with pytest.raises(ValueError, match=message):
        raise ValueError(hint)


@pytest.mark.parametrize(
    ("likelihood", "value"),
    [
        (GaussianLikelihood(), GREY * 1000 - 5),
        (LaplaceLikelihood(), GREY - 3),
        (BernoulliLikelihood(), torch.tensor([0.0, 1.0])),
        (ContinuousBernoulliLikelihood(), GREY),
        (PoissonLikelihood(), torch.tensor([0, 3])),
        (NegativeBinomialLikelihood(), torch.tensor([0.0, 3.0])),
        (CategoricalLikelihood(3), torch.tensor([0, 2])),
        (CategoricalLikelihood(3), torch.tensor([0.0, 2.0])),
        (DiscretizedLogisticMixtureLikelihood(2), torch.arange(256.0) / 255),
        (BernoulliLikelihood(), torch.zeros(0, 784)),
    ],
)
def test_good_data_have_no_hint(likelihood, value):
    assert likelihood.hint(value) is None


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_is_a_sample_site_under_particles_and_a_plate(make):
    likelihood = make(1)
    params = torch.randn(10, 7, likelihood.num_params * 3)
    with pyro.plate("particles", 10, dim=-2), pyro.plate("data", 7, dim=-1):
        assert pyro.sample("x", likelihood(params)).shape == (10, 7, 3)


def test_prints_what_it_holds():
    text = repr(NegativeBinomialLikelihood(2.0, shape=(6,)))
    assert "num_params=1, event_dim=1" in text and "shape=(6,), floor=0.0001, learn=True" in text
    torch.testing.assert_close(NegativeBinomialLikelihood(2.0).total_count.detach(), torch.tensor(2.0))
