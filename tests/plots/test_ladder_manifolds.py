"""Manifolds per level: the right latents move, all others are drawn from the prior or held."""

import numpy as np
import pytest
import torch
from pyro.distributions import Cauchy, Normal

from pyro_vaes import plots
from pyro_vaes.nn import AutoregressivePrior, MixturePrior, StandardNormal


class Recorder:
    """A decoder of one-pixel images that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[torch.Tensor]] = []

    def __call__(self, z):
        assert not torch.is_grad_enabled()
        self.asked.append([v.clone() for v in z])
        return z[0][:, :1]


def grid(steps, span):
    values = torch.linspace(-span, span, steps)
    across, up = np.meshgrid(values.numpy(), values.flip(0).numpy())
    return across.ravel(), up.ravel()


@pytest.mark.parametrize("units", [(0, 1), (2, 0)])
def test_each_level_moves_by_itself(units) -> None:
    decode = Recorder()
    axes = plots.level_manifolds(decode, [3, 4], steps=30, span=1.5, units=units, value_range=(-2, 2))
    assert len(axes) == len(decode.asked) == 2
    across, up = grid(30, 1.5)
    drawn = []
    for level, asked in enumerate(decode.asked):
        assert [z.shape for z in asked] == [(900, 3), (900, 4)]
        np.testing.assert_allclose(asked[level][:, units[0]], across)
        np.testing.assert_allclose(asked[level][:, units[1]], up)
        drawn += [asked[1 - level].flatten(), *asked[level][:, [u for u in range(3 + level) if u not in units]].T]
    everything = torch.cat(drawn)  # n = 9000 draws of N(0, 1), 4 standard errors
    assert everything.mean().abs() < 4 / len(everything) ** 0.5
    assert (everything.var() - 1).abs() < 4 * (2 / len(everything)) ** 0.5
    if units == (0, 1):
        picture = 4 * np.asarray(axes[0].images[0].get_array()) - 2
        np.testing.assert_allclose(picture.ravel(), across, atol=1e-6)
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == (f"unit {units[0]}", f"unit {units[1]}")
    assert [t.get_text() for t in axes[0].get_yticklabels()][::2] == ["1.5", "-1.5"]


def test_the_rest_can_be_held_and_the_draws_repeated() -> None:
    decode, rest = Recorder(), [torch.tensor([5.0, 6.0, 7.0]), torch.tensor([8.0, 9.0])]
    plots.level_manifolds(decode, [3, 2], steps=3, rest=rest, dtype=torch.float64)
    first, second = decode.asked
    assert (first[0][:, 2] == 7).all() and (first[1] == rest[1]).all() and (second[0] == rest[0]).all()
    assert first[0].dtype == torch.float64
    assert rest[0].tolist() == [5.0, 6.0, 7.0]
    one, two = Recorder(), Recorder()
    for recorder in (one, two):
        plots.level_manifolds(recorder, [2, 2], steps=3, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for x, y in zip(one.asked, two.asked, strict=True) for a, b in zip(x, y, strict=True))


def far_priors() -> tuple[MixturePrior, Normal]:
    """Two components at (8, 6, 4) and (12, 6, 4) with scale 0.5: mean (10, 6, 4); and N((-5, 7), diag (3, 0.1)²)."""
    mixture = MixturePrior(3, 2)
    mixture.place(torch.tensor([[8.0, 6.0, 4.0], [12.0, 6.0, 4.0]]), 0.5)
    return mixture, Normal(torch.tensor([-5.0, 7.0]), torch.tensor([3.0, 0.1]))  # an event once the level is one


def test_priors_place_the_grid_and_are_drawn_from() -> None:
    decode = Recorder()
    axes = plots.level_manifolds(decode, [3, 2], steps=20, priors=far_priors())
    first, second = decode.asked
    scale = [(2**2 + 0.5**2) ** 0.5, 0.5]  # of the mixture's two units on the grid, components and their distance
    across, up = grid(20, 2.0)
    np.testing.assert_allclose(first[0][:, 0], 10 + scale[0] * across, rtol=1e-5)
    np.testing.assert_allclose(first[0][:, 1], 6 + scale[1] * up, rtol=1e-5)
    np.testing.assert_allclose(second[1][:, 0], -5 + 3 * across, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second[1][:, 1], 7 + 0.1 * up, rtol=1e-5)
    for drawn, mean, std in (  # n = 400 draws: 4 standard errors, wider than the mixture's whose kurtosis is below 3
        (first[0][:, 2], 4.0, 0.5),
        (second[0][:, 0], 10.0, scale[0]),
        (first[1][:, 0], -5.0, 3.0),
        (first[1][:, 1], 7.0, 0.1),
    ):
        assert abs(drawn.mean() - mean) < 4 * std / 400**0.5
        assert abs(drawn.std() / std - 1) < 4 / 800**0.5
    assert (second[0][:, 0] - 10).abs().min() > 0.05  # two clusters, and nothing between them
    assert [t.get_text() for t in axes[1].get_yticklabels()][::2] == ["7.2", "6.8"]
    assert [t.get_text() for t in axes[1].get_xticklabels()][::2] == ["-11", "1"]


def test_standard_normal_priors_have_the_grid_of_none() -> None:
    asked = []
    for priors in (None, [StandardNormal(2), StandardNormal(2)]):
        decode = Recorder()
        plots.level_manifolds(decode, [2, 2], steps=5, priors=priors)
        asked.append(decode.asked)
    for level in range(2):
        assert torch.equal(asked[0][level][level], asked[1][level][level])


def test_a_prior_without_moments_is_measured_by_its_draws() -> None:
    prior, asked = AutoregressivePrior(2, [4], steps=1), []
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()  # N(0, I)
    state = torch.get_rng_state()
    for _ in range(2):
        decode = Recorder()
        generator = torch.Generator().manual_seed(1)
        plots.level_manifolds(decode, [2, 2], steps=9, priors=[prior, prior], generator=generator)
        asked.append(decode.asked)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for x, y in zip(*asked, strict=True) for a, b in zip(x, y, strict=True))
    np.testing.assert_allclose(asked[0][0][0][:, 0], grid(9, 2.0)[0], atol=0.15)  # a few standard errors of 4096 draws


def test_held_latents_with_priors() -> None:
    decode, rest = Recorder(), [torch.tensor([5.0, 6.0, 7.0]), torch.tensor([8.0, 9.0])]
    plots.level_manifolds(decode, [3, 2], steps=3, rest=rest, priors=far_priors(), dtype=torch.float64)
    assert (decode.asked[0][1] == rest[1]).all() and decode.asked[0][0][:, 0].mean().item() == pytest.approx(10)
    assert decode.asked[0][0].dtype == torch.float64


def test_axes_of_ones_own() -> None:
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(1, 3)
    drawn = plots.level_manifolds(Recorder(), [2, 2, 2], steps=3, axes=axes)
    assert drawn == list(axes)
    assert [ax.get_title(loc="left") for ax in drawn] == ["z_1, the bottom", "z_2", "z_3, the top"]


BAD = {
    "one step": (lambda: plots.level_manifolds(Recorder(), [2], steps=1), "steps=1"),
    "one unit": (lambda: plots.level_manifolds(Recorder(), [2, 1]), "traversals"),
    "twice the same unit": (lambda: plots.level_manifolds(Recorder(), [2], units=(1, 1)), "two different"),
    "rest of other levels": (lambda: plots.level_manifolds(Recorder(), [2, 2], rest=[torch.zeros(2)]), "rest holds"),
    "fewer axes": (lambda: plots.level_manifolds(Recorder(), [2, 2], axes=[None]), "1 axes for 2 levels"),
    "one prior of two": (lambda: plots.level_manifolds(Recorder(), [2, 2], priors=[StandardNormal(2)]), "1 priors"),
    "a prior of another level": (
        lambda: plots.level_manifolds(Recorder(), [3, 2], priors=[StandardNormal(3), StandardNormal(3)]),
        r"prior of z_2.*\(3,\).*wanted.*\(2,\)",
    ),
    "no distribution": (lambda: plots.level_manifolds(Recorder(), [2], priors=[torch.ones(2)]), "z_1 is a Tensor"),
    "no variance": (
        lambda: plots.level_manifolds(Recorder(), [2], priors=[Cauchy(torch.zeros(2), torch.ones(2))]),
        "prior of z_1.*no finite",
    ),
    "averages": (lambda: plots.level_manifolds(lambda z: z[0][:1, :1], [2]), "returned 1 images"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_errors_name_the_cure(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
