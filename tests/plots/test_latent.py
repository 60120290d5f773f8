"""Pictures of the latent space: the right latents are decoded and stand in the right places."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pyro_vaes import plots


class Recorder:
    """A decoder of one-pixel images that keeps what it was asked; the pixel is one of the latents."""

    def __init__(self, unit: int) -> None:
        self.unit = unit

    def __call__(self, z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked = z
        return z[:, self.unit, None]


def test_traversal_moves_one_unit_at_a_time() -> None:
    decode = Recorder(unit=2)
    z = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    ax = plots.traversals(decode, z, units=[0, 2], span=2.0, steps=5, value_range=(-2.0, 2.0))
    asked = decode.asked.reshape(2, 5, 4)
    assert asked.dtype == torch.float64
    walk = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for row, unit in enumerate([0, 2]):
        expected = z.repeat(5, 1)
        expected[:, unit] = walk
        torch.testing.assert_close(asked[row], expected)
    picture = np.asarray(ax.images[0].get_array())[::2, ::2]  # without the gaps
    np.testing.assert_allclose(picture[0], np.full(5, (0.3 + 2) / 4))
    np.testing.assert_allclose(picture[1], (walk.numpy() + 2) / 4)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["z[0]", "z[2]"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["-2", "-1", "+0", "+1", "+2"]


def test_traversal_shows_at_most_sixteen_units_unless_told() -> None:
    ax = plots.traversals(lambda z: z.new_zeros(len(z), 4), torch.zeros(1, 40), steps=3)
    assert len(ax.get_yticks()) == 16


@pytest.mark.parametrize("unit", [0, 1])
def test_manifold_steps_equally_in_prior_probability(unit: int) -> None:
    decode = Recorder(unit)
    ax = plots.manifold(decode, steps=4, value_range=(-2.0, 2.0), dtype=torch.float64)
    expected = scipy.stats.norm.ppf([0.125, 0.375, 0.625, 0.875])
    picture = 4 * np.asarray(ax.images[0].get_array()) - 2
    across, up = np.meshgrid(expected, expected[::-1])
    np.testing.assert_allclose(picture, (across, up)[unit], atol=1e-12)


def test_scatter_has_one_collection_for_each_class() -> None:
    z, labels = torch.randn(60, 3), torch.arange(60) % 3
    ax = plots.latent_scatter(z, labels, units=(2, 0), names=["a", "b", "c"])
    assert len(ax.collections) == 3
    for kind, points in enumerate(ax.collections):
        np.testing.assert_allclose(points.get_offsets(), z[labels == kind][:, [2, 0]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[2]", "z[0]")


def test_scatter_of_a_quantity_has_a_colour_bar() -> None:
    ax = plots.latent_scatter(torch.randn(60, 2), torch.rand(60))
    assert len(ax.collections) == 1
    assert len(ax.figure.axes) == 2


def test_scatter_without_labels_has_one_colour() -> None:
    ax = plots.latent_scatter(torch.randn(60, 2).numpy())
    assert len(ax.collections) == 1
    assert ax.get_legend() is None


def test_posterior_and_prior_share_bins_and_scale() -> None:
    prior = torch.linspace(-1, 1, 4001)[:, None].repeat(1, 2)
    posterior = torch.stack((prior[:, 0], prior[:, 1] / 2), dim=-1).reshape(1, 4001, 2)  # the second twice as tall
    ax = plots.posterior_against_prior(posterior, prior, bins=20)
    assert len(ax.collections) == len(ax.lines) == 2
    for row, ratio in enumerate([1.0, 2.0]):
        floor = 1 - row
        tallest = ax.collections[row].get_paths()[0].vertices[:, 1].max() - floor
        middle = ax.lines[row].get_ydata()[10] - floor
        assert tallest == pytest.approx(0.9, abs=1e-6)
        assert tallest / middle == pytest.approx(ratio, rel=0.06)  # edges of the uniform cut bins
    assert [text.get_text() for text in ax.get_yticklabels()] == ["z[0]", "z[1]"]


def test_a_unit_of_one_value_can_be_shown() -> None:
    ax = plots.posterior_against_prior(np.zeros((10, 1)), np.zeros((10, 1)))
    assert np.isfinite(ax.lines[0].get_ydata()).all()


POINTS = torch.randn(10, 2)
BAD = {
    "several points": (lambda: plots.traversals(lambda z: z, torch.zeros(3, 4)), "one point"),
    "no such unit": (lambda: plots.traversals(lambda z: z, torch.zeros(4), units=[4]), "units 0 to 3"),
    "one step": (lambda: plots.traversals(lambda z: z, torch.zeros(4), steps=1), "steps=1"),
    "decoder that averages": (
        lambda: plots.traversals(lambda z: z.mean(0, keepdim=True), torch.zeros(4)),
        "returned 1 images",
    ),
    "one step per side": (lambda: plots.manifold(lambda z: z, steps=1), "steps=1"),
    "one unit": (lambda: plots.latent_scatter(torch.zeros(5, 1)), "at least 2"),
    "no such axis": (lambda: plots.latent_scatter(POINTS, units=(0, 2)), "units 0 to 1"),
    "fewer labels": (lambda: plots.latent_scatter(POINTS, torch.zeros(9)), "one label"),
    "fewer names": (lambda: plots.latent_scatter(POINTS, torch.arange(10), names=["a"]), "10 classes"),
    "units differ": (lambda: plots.posterior_against_prior(POINTS, torch.zeros(10, 3)), "last dimension"),
    "unit of draws": (lambda: plots.posterior_against_prior(POINTS, POINTS, units=[2]), "units 0 to 1"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_errors_name_the_cure(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
