"""Cards of clusters: a row of pictures for each, to see what its members share."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes

from pyro_vaes.plots.images import as_images, centres, image_grid
from pyro_vaes.plots.style import Array, to_numpy

__all__ = ["cluster_cards"]


def cluster_cards(
    images: Array,
    clusters: Array,
    *,
    columns: int = 10,
    largest: int | None = None,
    image_shape: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One row of images for each cluster that holds any, the largest cluster on top.

    What the pictures of a row share, and those of other rows lack, is the attribute by which they are clustered. The
    same card shows generated images, with the component that each is generated from for its cluster.

    Arguments:
        images: N images in any layout of `image_grid`.
        clusters: Their numbers 0, 1, .., `(N,)`.
        columns: Pictures per row; the first members are shown.
        largest: How many clusters to show at most; None for all.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        value_range: Values shown as black and white; see `to_unit`.
        title: Above the card.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes; the rows are labelled with the clusters' numbers and their shares of the images.

    Raises:
        ValueError: If there is no number for each image, or `columns` or `largest` is below 1.

    Example:
        >>> ax = cluster_cards(torch.rand(30, 64), torch.arange(30) % 3, columns=5)
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['0 (33%)', '1 (33%)', '2 (33%)']
    """
    tiles = torch.as_tensor(as_images(images, image_shape).transpose(0, 3, 1, 2))
    numbers = torch.as_tensor(np.array(to_numpy(clusters, "clusters")))  # a copy: torch shares no read-only arrays
    if numbers.shape != (len(tiles),) or numbers.is_floating_point():
        raise ValueError(
            f"There are {len(tiles)} images, but clusters has {numbers.dtype} and shape {tuple(numbers.shape)}; "
            "wanted a whole number for each."
        )
    if columns < 1 or (largest is not None and largest < 1):
        raise ValueError(f"columns and largest are at least 1, but got {columns} and {largest}.")
    counts = torch.bincount(numbers)
    order = [int(k) for k in counts.argsort(descending=True, stable=True) if counts[k] > 0][:largest]
    blank = tiles.new_full(tiles.shape[1:], float(tiles.max() if value_range is None else value_range[1]))
    rows = []
    for k in order:
        members = list(tiles[numbers == k][:columns])
        rows += members + [blank] * (columns - len(members))
    ax = image_grid(torch.stack(rows), columns=columns, value_range=value_range, gap=1, title=title, ax=ax)
    share = [f"{k} ({counts[k] / len(tiles):.0%})" for k in order]
    ax.set_yticks(centres(len(order), tiles.shape[2], 1), share)
    return ax
