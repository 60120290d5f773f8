"""Pictures of the latent space: what its units do, where the data lie in it, and what the prior says."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from .charts import central_edges, check_names
from .images import ImageShape, ValueRange, as_images, draw_mosaic
from .style import BLUE, INK, Array, Names, chart_axes, legend, to_numpy

Decode = Callable[[Tensor], Array]
"""Latents with shape `(N, K)` to images in any layout of `image_grid`, such as the mean of the likelihood."""


@torch.no_grad()
def traversals(
    decode: Decode,
    z: Tensor,
    *,
    units: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 9,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
    title: str | None = "Each row moves one latent unit: a unit in use changes the picture",
    ax: Axes | None = None,
) -> Axes:
    """Decode a straight walk along each latent unit, all other units held at `z`.

    Arguments:
        decode: Latents with shape `(N, K)` to N images.
        z: Where the walks cross, with shape `(K,)` or `(1, K)`; zeros for the prior's centre.
        units: Which units to move, one row each; None takes the first sixteen.
        span: Each unit runs from -span to span (in prior standard deviations for a standard normal prior).
        steps: Pictures per row, at least 2.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white; see `to_unit`.
        title: Above the picture.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture with a row per unit.

    Raises:
        ValueError: If `z` is not one point, a unit does not exist, or `decode` returns another number of
            images.

    Example:
        >>> ax = traversals(lambda z: torch.sigmoid(z @ torch.randn(4, 64)), torch.zeros(4), steps=5)
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['z[0]', 'z[1]', 'z[2]', 'z[3]']
    """
    if z.ndim not in (1, 2) or (z.ndim == 2 and len(z) != 1):
        raise ValueError(f"z has shape {tuple(z.shape)}; wanted one point, (K,) or (1, K). Pick a datum first: z[0].")
    if steps < 2:
        raise ValueError(f"steps={steps}, but a walk needs at least 2 pictures.")
    point = z.reshape(-1)
    rows = _chosen_units(units, len(point), "z has")

    # rounded, so that the middle is exactly 0
    shares = torch.linspace(-1, 1, steps, dtype=torch.float64).round(decimals=12)
    values = shares.to(z) * span
    latents = point.repeat(len(rows), steps, 1)  # (units, steps, K)
    for row, unit in enumerate(rows):
        latents[row, :, unit] = values

    images = decoded(decode(latents.flatten(0, 1)), len(rows) * steps, image_shape)
    drawn = draw_mosaic(images, steps, value_range, title, ax)
    drawn.name_rows([f"z[{unit}]" for unit in rows])
    drawn.name_columns([f"{value:+.2g}" for value in values.tolist()])
    return drawn.ax


def decoded(images: Array, number: int, image_shape: ImageShape, what: str = "latents") -> np.ndarray:
    """What a decoder returned as images with shape `(N, H, W, C)`, one for each of its latents.

    Arguments:
        images: What the decoder returned.
        number: How many latents it was given.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        what: Name of the latents, for the error.

    Raises:
        ValueError: If there is another number of images.
    """
    found = as_images(images, image_shape, "decode(z)")
    if len(found) != number:
        raise ValueError(
            f"decode was given {number} {what} and returned {len(found)} images; wanted "
            "one each. Does it average over its batch, or return draws in front of it?"
        )
    return found


def _chosen_units(units: Sequence[int] | None, number: int, owner: str) -> list[int]:
    """The units to show, the first sixteen by default."""
    chosen = list(range(min(number, 16)) if units is None else units)
    if not chosen or not all(0 <= unit < number for unit in chosen):
        raise ValueError(f"units={chosen}, but {owner} the units 0 to {number - 1}; name at least one of these.")
    return chosen


def latent_scatter(
    z: Array,
    labels: Array | None = None,
    *,
    units: tuple[int, int] = (0, 1),
    names: Names = None,
    title: str | None = "Posterior means, coloured by label",
    ax: Axes | None = None,
) -> Axes:
    """Show where the data lie in two units of the latent space.

    Arguments:
        z: Posterior means (or draws) with shape `(N, K)`, K at least 2.
        labels: With shape `(N,)`. Up to twenty distinct integers are classes with a legend; anything else is
            a quantity with a colour bar. None leaves the points in one colour.
        units: The two units shown.
        names: Of the classes, in the order of their labels.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one collection of points for each class.

    Raises:
        ValueError: If `z` has fewer than two units, or labels or names do not match the data.

    Example:
        >>> ax = latent_scatter(np.random.randn(30, 2), np.arange(30) % 3)
        >>> len(ax.collections)
        3
    """
    points = to_numpy(z, "z")
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"z has shape {points.shape}; wanted (N, K) with K at least 2. For one unit draw a histogram.")
    if not all(0 <= unit < points.shape[1] for unit in units):
        raise ValueError(f"units={units}, but z has the units 0 to {points.shape[1] - 1}.")
    across, up = points[:, units[0]], points[:, units[1]]
    size = float(np.clip(2e4 / len(points), 3.0, 18.0))
    names_of_axes = f"z[{units[0]}]", f"z[{units[1]}]"
    ax = chart_axes(ax, title, *names_of_axes, width=5.4, height=4.6)
    if labels is None:
        ax.scatter(across, up, s=size, color=BLUE, alpha=0.6, linewidths=0)
        return ax

    kinds = to_numpy(labels, "labels")
    if kinds.shape != (len(points),):
        raise ValueError(f"labels has shape {kinds.shape} but z holds {len(points)} data; wanted one label for each.")
    classes = np.unique(kinds)

    # a quantity
    if np.issubdtype(kinds.dtype, np.floating) or len(classes) > 20:
        drawn = ax.scatter(across, up, s=size, c=kinds, cmap="viridis", linewidths=0)
        bar = ax.figure.colorbar(drawn, ax=ax, label="label")
        bar.outline.set_visible(False)
        return ax

    check_names("names", names, len(classes), f"labels has {len(classes)} classes: {classes.tolist()}")
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for index, kind in enumerate(classes):
        chosen = kinds == kind
        ax.scatter(
            across[chosen],
            up[chosen],
            s=size,
            color=palette(index),
            alpha=0.75,
            linewidths=0,
            label=str(kind) if names is None else names[index],
            rasterized=True,
        )
    legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.0, handletextpad=0.2)
    return ax


def posterior_against_prior(
    posterior_draws: Array,
    prior_draws: Array,
    *,
    units: Sequence[int] | None = None,
    bins: int = 40,
    title: str | None = "Posterior (filled) and prior (line) of each latent unit",
    ax: Axes | None = None,
) -> Axes:
    """Show the distribution of each latent unit under posterior and prior as two histograms on one line.

    Draws over the whole data set give the aggregate posterior: the closer to the prior, the more samples look
    like reconstructions. Draws for one datum give its posterior, which is the prior in a collapsed unit.

    Arguments:
        posterior_draws: With shape `(..., K)`; all leading dimensions are pooled.
        prior_draws: With shape `(..., K)`, any number of draws.
        units: Which units to show; None takes the first sixteen.
        bins: Of both histograms, over their common central 99.8 %.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one filled curve and one line for each unit, unit by unit from the top.

    Raises:
        ValueError: If the two have another number of units or a unit does not exist.

    Example:
        >>> ax = posterior_against_prior(np.random.randn(500, 3), np.random.randn(400, 3))
        >>> len(ax.collections), len(ax.lines)
        (3, 3)
    """
    posterior, prior = to_numpy(posterior_draws, "posterior_draws"), to_numpy(prior_draws, "prior_draws")
    if min(posterior.ndim, prior.ndim) < 1 or posterior.shape[-1:] != prior.shape[-1:]:
        raise ValueError(
            f"posterior_draws has shape {posterior.shape} and prior_draws {prior.shape}; the last dimension "
            "of both must be the latent units. Flatten an event of several dimensions first."
        )
    number = posterior.shape[-1]
    rows = _chosen_units(units, number, "the draws have")
    posterior = posterior.reshape(-1, number)[:, rows]
    prior = prior.reshape(-1, number)[:, rows]
    edges = central_edges(np.concatenate((posterior, prior)), bins)

    height = 0.9 + 0.42 * len(rows)
    ax = chart_axes(ax, title, "value of the latent", height=height)
    ax.grid(False)
    floors = np.arange(len(rows))[::-1]
    middles = (edges[1:] + edges[:-1]) / 2
    for row, floor in enumerate(floors):
        pair = posterior[:, row], prior[:, row]
        heights, outline = (np.histogram(x, edges)[0] / len(x) for x in pair)
        scale = 0.9 / max(heights.max(), outline.max(), 1e-12)  # one for both areas

        top = floor + scale * heights
        filled = ax.fill_between(middles, floor, top, step="mid", color=BLUE, alpha=0.75, linewidth=0)
        rim = floor + scale * outline
        (line,) = ax.step(middles, rim, where="mid", color=INK, linewidth=0.9)
    # of all units one in the legend
    filled.set_label("posterior")
    line.set_label("prior")

    ax.set_yticks(floors, [f"z[{unit}]" for unit in rows])
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.1, len(rows) + 0.35)  # room for the legend
    legend(ax, loc="upper right", ncols=2)
    return ax
