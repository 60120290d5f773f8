"""What lies around one code and between two: variants of a datum, and the way from one datum to another."""

import torch
from matplotlib.axes import Axes
from torch import Tensor

from .images import ImageShape, ValueRange, draw_mosaic
from .latent import Decode, decoded
from .style import label


@torch.no_grad()
def variants(
    decode: Decode,
    loc: Tensor,
    scale: Tensor,
    *,
    units: tuple[int, int] = (0, 1),
    span: float = 20.0,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    title: str | None = "One datum, two units moved: in the middle its reconstruction",
    ax: Axes | None = None,
) -> Axes:
    r"""Decode the code of one datum with two units moved by multiples of their posterior's scale.

    .. math:: z = \mu + \delta_1 \sigma_{i_1} e_{i_1} + \delta_2 \sigma_{i_2} e_{i_2}, \quad
        \delta_1, \delta_2 \in \{-span, 0, span\}

    Arguments:
        decode: Latents with shape `(N, K)` to N images.
        loc: Posterior mean of the datum, with shape `(K,)` or `(1, K)`.
        scale: Its posterior standard deviation, likewise.
        units: i_1, which grows upwards, and i_2, which grows to the right.
        span: How far, in standard deviations.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white, others are cut off; see `to_unit`.
        title: Above the picture.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture of 3 x 3 images.

    Raises:
        ValueError: If `loc` and `scale` are not one point each, a unit does not exist, the two are one, or `decode`
            returns another number of images.

    References:
        | How to train your VAE (Rivera, 2024), figure 4
        | https://arxiv.org/abs/2309.13160

    Example:
        >>> weights = torch.randn(4, 64)
        >>> ax = variants(lambda z: torch.sigmoid(z @ weights), torch.zeros(4), 0.1 * torch.ones(4))
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['-20', '0', '+20']
    """
    if loc.numel() != loc.shape[-1] or scale.shape != loc.shape:
        raise ValueError(
            f"loc has shape {tuple(loc.shape)} and scale {tuple(scale.shape)}; wanted one point each, (K,) or (1, K). "
            "Pick a datum first: loc[0], scale[0]."
        )
    point, width = loc.reshape(-1), scale.reshape(-1)
    up, right = units
    if up == right or not all(0 <= unit < len(point) for unit in units):
        raise ValueError(f"units={units}; wanted two different ones of the units 0 to {len(point) - 1}.")
    latents = point.repeat(3, 3, 1)  # rows, columns, units
    steps = torch.tensor([-span, 0.0, span]).to(point)
    latents[:, :, up] += (width[up] * steps).flip(0)[:, None]  # row 0 is the top
    latents[:, :, right] += width[right] * steps

    images = decoded(decode(latents.flatten(0, 1)), 9, image_shape)
    drawn = draw_mosaic(images, 3, value_range, title, ax)
    names = [f"{-span:+g}", "0", f"{span:+g}"]
    drawn.name_columns(names)
    drawn.name_rows(names[::-1])
    label(drawn.ax, None, f"z[{right}], posterior standard deviations", f"z[{up}]")
    return drawn.ax


@torch.no_grad()
def transitions(
    decode: Decode,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 6,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    title: str | None = "From one datum to another, in a straight line between their posterior means",
    ax: Axes | None = None,
) -> Axes:
    r"""Decode straight ways between codes, a row for each.

    .. math:: z = (1 - a) z_{start} + a z_{end}, \quad a = k / (steps - 1), \quad k = 0, \dots, steps - 1

    Arguments:
        decode: Latents with shape `(N, K)` to N images.
        start: Where each row starts, with shape `(K,)` or `(R, K)`: posterior means, not draws.
        end: Where it ends, likewise.
        steps: Pictures in a row, at least 2.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white, others are cut off; see `to_unit`.
        title: Above the picture.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture.

    Raises:
        ValueError: If `steps` is below 2, `start` and `end` differ in shape or are no codes, or `decode` returns
            another number of images.

    References:
        | How to train your VAE (Rivera, 2024), figure 5
        | https://arxiv.org/abs/2309.13160

    Example:
        >>> weights = torch.randn(4, 64)
        >>> ax = transitions(lambda z: torch.sigmoid(z @ weights), torch.zeros(2, 4), torch.ones(2, 4))
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['0', '0.2', '0.4', '0.6', '0.8', '1']
    """
    if steps < 2:
        raise ValueError(f"steps={steps}, but a way needs at least 2 pictures.")
    if start.shape != end.shape or start.dim() not in (1, 2):
        raise ValueError(
            f"start has shape {tuple(start.shape)} and end {tuple(end.shape)}; wanted codes (K,) or (R, K), one end "
            "for each start."
        )
    share = (torch.arange(steps) / (steps - 1)).to(start).unsqueeze(-1)  # exactly 0 and 1 at the ends
    start, end = (z.reshape(-1, 1, z.shape[-1]) for z in (start, end))
    latents = (1 - share) * start + share * end  # rows, steps, units

    images = decoded(decode(latents.flatten(0, 1)), len(start) * steps, image_shape)
    drawn = draw_mosaic(images, steps, value_range, title, ax)
    drawn.name_columns([f"{k / (steps - 1):.2g}" for k in range(steps)])
    return drawn.ax
