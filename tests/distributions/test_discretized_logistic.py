"""What the shared suite does not ask of the discretised logistic mixture."""

import math

import pytest
import torch

from pyro_vaes.distributions import DiscretizedLogisticMixture, grid


def single(loc: float, scale: float, num_levels: int = 256, dtype: torch.dtype = torch.float64):
    loc_, scale_ = torch.tensor([loc], dtype=dtype), torch.tensor([scale], dtype=dtype)
    return DiscretizedLogisticMixture(torch.zeros_like(loc_), loc_, scale_, num_levels)


@pytest.mark.parametrize("num_levels", [2, 3, 256, 65536])
@pytest.mark.parametrize(
    ("loc", "scale"), [(0.5, 0.1), (0.0, 1e-5), (-3.0, 0.05), (7.0, 0.3), (0.2, 50.0), (1.0, 1e-3)]
)
def test_levels_sum_to_one_in_float32(loc: float, scale: float, num_levels: int):
    d = single(loc, scale, num_levels, torch.float32)
    total = d.log_prob(d.enumerate_support()).double().exp().sum()
    assert total.item() == pytest.approx(1.0, abs=2e-5)


def test_tails_are_exact_where_a_difference_of_cdfs_is_zero():
    # 0.9 lies 800 scales above loc: both CDFs are 1 even in float64, and log(0) would be -inf
    d = single(0.1, 1e-3, dtype=torch.float32)
    x = torch.tensor(230 / 255)
    expected = -(229.5 / 255 - 0.1) / 1e-3 + math.log(-math.expm1(-1 / 0.255))
    assert d.log_prob(x).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_are_finite_at_the_edges_and_far_away():
    loc = torch.tensor([-30.0, 0.0, 1.0, 30.0], requires_grad=True)
    log_scale = torch.tensor([-8.0, -8.0, 5.0, -8.0], requires_grad=True)
    d = DiscretizedLogisticMixture(torch.zeros(4), loc, log_scale.exp())
    d.log_prob(torch.tensor([0.0, 1.0, 7 / 255])).sum().backward()
    assert loc.grad is not None and loc.grad.isfinite().all() and (loc.grad != 0).any()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()


def test_two_levels_are_a_bernoulli():
    d = single(0.3, 0.2, num_levels=2)
    assert d.mean.item() == pytest.approx(1 / (1 + math.exp((0.5 - 0.3) / 0.2)))


def test_weights_are_normalised():
    loc, scale = torch.rand(3), torch.rand(3) + 0.1
    x = torch.tensor(100 / 255)
    shifted = DiscretizedLogisticMixture(torch.arange(3.0) + 5.0, loc, scale).log_prob(x)
    torch.testing.assert_close(DiscretizedLogisticMixture(torch.arange(3.0), loc, scale).log_prob(x), shifted)


def test_samples_of_extreme_parameters_stay_on_the_grid():
    d = DiscretizedLogisticMixture(torch.zeros(2), torch.tensor([-50.0, 50.0]), torch.tensor([1e-6, 100.0]))
    x = d.sample(torch.Size([1000]))
    assert grid(256).check(x).all()


def test_constructor_errors():
    with pytest.raises(ValueError, match="num_levels"):
        single(0.5, 0.1, num_levels=1)
    with pytest.raises(ValueError, match=r"\(3,\), \(2,\), \(3,\)"):
        DiscretizedLogisticMixture(torch.zeros(3), torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="last dimension"):
        DiscretizedLogisticMixture(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1.0))


def test_grid():
    uint8 = torch.arange(256, dtype=torch.uint8)
    assert grid(256).check(uint8.float() / 255).all()
    assert grid(256).check(uint8.float() * (1 / 255)).all()
    assert not grid(256).check(torch.tensor([-1 / 255, 256 / 255, 0.5, math.nan, math.inf])).any()
    assert repr(grid(8)) == "grid(num_levels=8)"
