"""Manifolds of a model with several levels of latents: what each level codes, side by side."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vaes.plots.images import as_images, centres, image_grid
from pyro_vaes.plots.style import Array, label

LevelDecode = Callable[[Sequence[Tensor]], Array]
"""Latents z_1 .. z_L with shapes `(N, d_l)` to N images in any layout of `image_grid`."""


@torch.no_grad()
def level_manifolds(
    decode: LevelDecode,
    latent_dims: Sequence[int],
    *,
    steps: int = 15,
    span: float = 2.0,
    units: tuple[int, int] = (0, 1),
    rest: Sequence[Tensor] | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """For each level decode a grid over two of its latents, all other latents drawn anew from N(0, I) in each picture.

    What changes smoothly over the grid of a level is what that level codes. Put modules into evaluation mode first:
    with batch normalisation in training mode each picture depends on the others.

    Arguments:
        decode: Latents of all levels, `(N, d_1) .. (N, d_L)`, to N images, such as
            `lambda z: ladder.likelihood(ladder.decode(z)).mean`.
        latent_dims: d_1 .. d_L, level 1 nearest the data, each at least 2.
        steps: Pictures per side, at least 2; the paper's 30.
        span: The grid runs from -span to span.
        units: The two units of a level that the grid moves, to the right and upwards.
        rest: Latents of one datum, with shapes `(d_l,)`, at which all others are held instead, so that pictures of a
            level differ by that level alone.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white; see `to_unit`.
        generator: Of the draws; None takes torch's global one.
        dtype: Of the latents; None takes the default.
        device: Of the latents; None takes the default.
        axes: One for each level; None makes a figure.

    Returns:
        The axes, from the bottom level to the top.

    Raises:
        ValueError: If `steps` is below 2, a level lacks the units, `rest` or `axes` do not match the levels, or
            `decode` returns another number of images.

    References:
        | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
        | https://arxiv.org/abs/1702.08396

    Example:
        >>> weights = torch.randn(2, 64), torch.randn(3, 64)
        >>> axes = level_manifolds(lambda z: torch.sigmoid(z[0] @ weights[0] + z[1] @ weights[1]), [2, 3], steps=4)
        >>> [ax.get_title(loc="left") for ax in axes]
        ['z_1, the bottom', 'z_2, the top']
    """
    _refuse(latent_dims, steps, units, rest, axes)
    if axes is None:
        width = 3.6 * len(latent_dims)
        _, grid = plt.subplots(1, len(latent_dims), figsize=(width, 4.0), layout="constrained", squeeze=False)
        axes = list(grid[0])
    values = torch.linspace(-span, span, steps, dtype=dtype, device=device)
    vertical, horizontal = torch.meshgrid(values.flip(0), values, indexing="ij")  # row 0 is the top
    drawn = []
    for level, ax in enumerate(axes):
        z = [
            torch.randn(steps**2, d, generator=generator, dtype=values.dtype, device=values.device)
            if rest is None
            else rest[i].to(values).expand(steps**2, d).clone()
            for i, d in enumerate(latent_dims)
        ]
        z[level][:, units[0]], z[level][:, units[1]] = horizontal.flatten(), vertical.flatten()
        images = as_images(decode(z), image_shape, "decode(z)").transpose(0, 3, 1, 2)
        if len(images) != steps**2:
            raise ValueError(
                f"decode was given {steps**2} latents per level and returned {len(images)} images; wanted one each."
            )
        place = {0: ", the bottom", len(latent_dims) - 1: ", the top"}.get(level, "") if len(latent_dims) > 1 else ""
        title = f"z_{level + 1}{place}"
        image_grid(images, columns=steps, value_range=value_range, gap=0, title=title, ax=ax)
        _ticks(ax, images.shape[2:], values, units)
        drawn.append(ax)
    return drawn


def _ticks(ax: Axes, size: Sequence[int], values: Tensor, units: tuple[int, int]) -> None:
    steps = len(values)
    shown = sorted({0, steps // 2, steps - 1})
    numbers = [f"{v:.2g}" for v in values.double().cpu().numpy().round(6) + 0.0]
    ax.set_xticks(centres(steps, size[1], 0)[shown], [numbers[i] for i in shown])
    ax.set_yticks(centres(steps, size[0], 0)[shown], [numbers[steps - 1 - i] for i in shown])
    label(ax, None, f"unit {units[0]}", f"unit {units[1]}")


def _refuse(
    latent_dims: Sequence[int],
    steps: int,
    units: tuple[int, int],
    rest: Sequence[Tensor] | None,
    axes: Sequence[Axes] | None,
) -> None:
    if steps < 2:
        raise ValueError(f"steps={steps}, but a plane needs at least 2 pictures per side.")
    if not latent_dims or units[0] == units[1] or not all(0 <= u < d for u in units for d in latent_dims):
        raise ValueError(
            f"units={units}, but the levels have {list(latent_dims)} units; name two different ones that every level "
            "has, or draw a level of one unit with traversals."
        )
    if rest is not None and [tuple(z.shape) for z in rest] != [(d,) for d in latent_dims]:
        raise ValueError(
            f"rest holds tensors of shapes {[tuple(z.shape) for z in rest]}, but the levels of one datum have "
            f"{[(d,) for d in latent_dims]}. Pick a datum first: [z[0] for z in latents]."
        )
    if axes is not None and len(np.atleast_1d(np.asarray(axes, dtype=object))) != len(latent_dims):
        raise ValueError(f"axes holds {len(axes)} axes for {len(latent_dims)} levels; pass one for each.")
