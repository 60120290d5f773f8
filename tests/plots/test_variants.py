"""Variants and transitions: the right codes are decoded and stand in the right places."""

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vaes import plots


def tiles(ax, rows, columns, size, gap=1):
    """The pictures of a mosaic, `(rows, columns, size, size)`."""
    whole = np.asarray(ax.images[0].get_array())
    step = size + gap
    return np.stack(
        [[whole[i * step : i * step + size, j * step : j * step + size] for j in range(columns)] for i in range(rows)]
    )


@pytest.fixture
def decoder():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 9)).double()


def shown(images):
    """As the pictures show them: black at -1, white at 1."""
    return ((images.detach().reshape(-1, 3, 3).clamp(-1, 1) + 1) / 2).numpy()


def test_R10_the_middle_of_the_variants_is_the_reconstruction_from_the_mean(decoder):
    loc, scale = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    ax = plots.variants(decoder, loc, scale, value_range=(-1, 1))
    middle = tiles(ax, 3, 3, 3)[1, 1]
    np.testing.assert_array_equal(middle, shown(decoder(loc.repeat(9, 1)))[4])


def test_R10_the_ends_of_a_transition_are_the_reconstructions_of_both(decoder):
    start, end = torch.randn(2, 4, 5, dtype=torch.float64)
    ax = plots.transitions(decoder, start, end, value_range=(-1, 1))
    found = tiles(ax, 4, 6, 3)
    at = torch.stack((start, end), 1).repeat_interleave(3, 1).flatten(0, 1)  # as many codes as the picture decodes
    expected = shown(decoder(at)).reshape(4, 6, 3, 3)
    np.testing.assert_array_equal(found[:, 0], expected[:, 0])
    np.testing.assert_array_equal(found[:, 5], expected[:, 5])


def test_variants_move_two_units_by_multiples_of_their_scale():
    asked = []

    def decode(z):
        asked.append(z)
        return torch.zeros(len(z), 4)

    loc, scale = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    ax = plots.variants(decode, loc, scale, units=(0, 3), span=2.0)
    z = asked[0].reshape(3, 3, 4)
    assert torch.equal(z[1, 1], loc[0])
    torch.testing.assert_close(z[:, 1, 0], torch.tensor([2.1, 0.1, -1.9]))  # the first unit, from the top
    torch.testing.assert_close(z[1, :, 3], torch.tensor([-7.6, 0.4, 8.4]))  # the second, from the left
    torch.testing.assert_close(z[0, 2], torch.tensor([2.1, 0.2, 0.3, 8.4]))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["+2", "0", "-2"]
    assert torch.equal(loc, torch.tensor([[0.1, 0.2, 0.3, 0.4]]))  # what was given stays


def test_transitions_are_straight_and_even():
    asked = []

    def decode(z):
        asked.append(z)
        return torch.zeros(len(z), 4)

    plots.transitions(decode, torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]), steps=5)
    torch.testing.assert_close(asked[0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])[:, None] * torch.tensor([1.0, 2, 4]))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda d: plots.variants(d, torch.zeros(2, 5), torch.ones(2, 5)), r"Pick a datum first: loc\[0\]"),
        (lambda d: plots.variants(d, torch.zeros(5), torch.ones(4)), "one point each"),
        (lambda d: plots.variants(d, torch.zeros(5), torch.ones(5), units=(1, 1)), "two different ones"),
        (lambda d: plots.variants(d, torch.zeros(5), torch.ones(5), units=(0, 5)), "units 0 to 4"),
        (lambda d: plots.transitions(d, torch.zeros(5), torch.ones(5), steps=1), "at least 2"),
        (lambda d: plots.transitions(d, torch.zeros(2, 5), torch.ones(5)), "one end for each start"),
        (lambda d: plots.transitions(lambda z: d(z)[:1], torch.zeros(5), torch.ones(5)), "wanted one each"),
    ],
)
def test_what_does_not_fit_is_refused(decoder, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(decoder.float())
