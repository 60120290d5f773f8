"""Images in a grid: the pixels that go in are the pixels that come out."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyro_vaes import plots


def shown(ax: plt.Axes) -> np.ndarray:
    """The one picture on some axes, as plain numbers."""
    (picture,) = ax.images
    return np.asarray(picture.get_array())


LAYOUTS = {
    "flat grey squares": ((6, 64), None, (8, 8, 1)),
    "flat grey oblongs": ((6, 48), (8, 6), (8, 6, 1)),
    "flat colour": ((6, 3 * 8 * 6), (3, 8, 6), (8, 6, 3)),
    "grey": ((6, 8, 6), None, (8, 6, 1)),
    "grey with a channel": ((6, 1, 8, 6), None, (8, 6, 1)),
    "colour": ((6, 3, 8, 6), None, (8, 6, 3)),
}


@pytest.mark.parametrize(("given", "image_shape", "expected"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_grid_shows_the_pixels_of_every_layout(
    given: tuple[int, ...], image_shape: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    images = torch.rand(given)
    height, width, channels = expected
    picture = shown(plots.image_grid(images, image_shape=image_shape, columns=4, gap=2))
    assert picture.shape[:2] == (2 * height + 2, 4 * width + 3 * 2)
    channels_last = images.reshape(6, channels, height, width).permute(0, 2, 3, 1).numpy().squeeze()
    for index in range(6):
        top, left = (index // 4) * (height + 2), (index % 4) * (width + 2)
        tile = picture[top : top + height, left : left + width]
        np.testing.assert_allclose(tile, channels_last[index], rtol=1e-6)
    assert (picture[height : height + 2] == 1).all(), "the gap is white"
    assert (picture[-height:, -width:] == 1).all(), "a missing image is white"


@pytest.mark.parametrize(
    ("images", "value_range", "first", "last"),
    [
        (torch.tensor([0, 51, 102, 204], dtype=torch.uint8), None, 0.0, 0.8),
        (torch.tensor([0.1, 0.2, 0.3, 0.9]), None, 0.1, 0.9),
        (torch.tensor([-1.0, 0.0, 0.5, 1.0]), None, 0.0, 1.0),
        (torch.tensor([-1.0, 0.0, 0.5, 3.0]), (-1.0, 1.0), 0.0, 1.0),
        (torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.bfloat16), None, 0.5, 0.5),
        (torch.tensor([7.0, 7.0, 7.0, 7.0]), None, 1.0, 1.0),
    ],
    ids=["8 bit", "unit", "own range", "given range cuts off", "bfloat16", "constant"],
)
def test_black_and_white_are_where_they_should_be(
    images: torch.Tensor, value_range: tuple[float, float] | None, first: float, last: float
) -> None:
    picture = shown(plots.image_grid(images[None], value_range=value_range))
    assert picture[0, 0] == pytest.approx(first)
    assert picture[1, 1] == pytest.approx(last)


def test_each_reconstruction_stands_below_its_datum() -> None:
    x = torch.rand(5, 16)
    x_hat = 1 - x
    ax = plots.reconstructions(x, x_hat, columns=3)
    picture = shown(ax)
    tile = lambda row, column: picture[5 * row : 5 * row + 4, 5 * column : 5 * column + 4]
    for index in range(5):
        row, column = 2 * (index // 3), index % 3
        np.testing.assert_allclose(tile(row, column), x[index].reshape(4, 4), rtol=1e-6)
        np.testing.assert_allclose(tile(row + 1, column), x_hat[index].reshape(4, 4), rtol=1e-6)
    assert (tile(2, 2) == 1).all(), "a missing pair is white"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["data", "model"] * 2


def test_8_bit_data_stand_above_unit_reconstructions() -> None:
    picture = shown(plots.reconstructions(torch.full((1, 16), 51, dtype=torch.uint8), torch.full((1, 16), 0.6)))
    assert picture[0, 0] == pytest.approx(0.2)
    assert picture[-1, 0] == pytest.approx(0.6)


def test_samples_draw_into_the_axes_given() -> None:
    _, ax = plt.subplots()
    assert plots.samples(torch.rand(4, 3, 5, 5), ax=ax) is ax
    assert shown(ax).shape == (11, 11, 3)
    assert len(plt.get_fignums()) == 1


BAD = {
    "no square": (lambda: plots.image_grid(torch.rand(3, 50)), "no square"),
    "wrong image_shape": (lambda: plots.image_grid(torch.rand(3, 50), image_shape=(8, 8)), "image_shape"),
    "channels last": (lambda: plots.image_grid(torch.rand(3, 8, 8, 3)), "permute"),
    "one number": (lambda: plots.image_grid(torch.rand(3)), "wanted"),
    "empty": (lambda: plots.image_grid(torch.rand(0, 64)), "nothing to plot"),
    "no columns": (lambda: plots.image_grid(torch.rand(3, 64), columns=0), "columns=0"),
    "empty range": (lambda: plots.image_grid(torch.rand(3, 64), value_range=(1.0, 1.0)), "value_range"),
    "fewer reconstructions": (
        lambda: plots.reconstructions(torch.rand(3, 64), torch.rand(2, 64)),
        "each datum",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_errors_name_the_cure(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
