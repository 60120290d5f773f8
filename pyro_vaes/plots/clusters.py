"""Cards of clusters: a row of pictures for each, to see what its members share."""

import numpy as np
from matplotlib.axes import Axes

from .images import ImageShape, ValueRange, as_images, draw_mosaic
from .style import Array, to_numpy


def cluster_cards(
    images: Array,
    clusters: Array,
    *,
    columns: int = 10,
    largest: int | None = None,
    image_shape: ImageShape = None,
    value_range: ValueRange = None,
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
        >>> ax = cluster_cards(np.random.rand(30, 64), np.arange(30) % 3, columns=5)
        >>> [t.get_text() for t in ax.get_yticklabels()]
        ['0 (33%)', '1 (33%)', '2 (33%)']
    """
    tiles = as_images(images, image_shape)
    numbers = to_numpy(clusters, "clusters")
    if numbers.shape != (len(tiles),) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"There are {len(tiles)} images, but clusters has {numbers.dtype} and shape "
            f"{numbers.shape}; wanted a whole number for each."
        )
    if columns < 1 or (largest is not None and largest < 1):
        raise ValueError(f"columns and largest are at least 1, but got {columns} and {largest}.")

    counts = np.bincount(numbers)
    order = np.argsort(-counts, kind="stable")[:largest]
    order = order[counts[order] > 0]

    white = tiles.max() if value_range is None else value_range[1]
    cards = np.full((len(order), columns, *tiles.shape[1:]), white, tiles.dtype)
    for card, cluster in zip(cards, order, strict=True):
        members = tiles[numbers == cluster][:columns]
        card[: len(members)] = members

    drawn = draw_mosaic(cards.reshape(-1, *tiles.shape[1:]), columns, value_range, title, ax, gap=1)
    drawn.name_rows([f"{k} ({counts[k] / len(tiles):.0%})" for k in order])
    return drawn.ax
