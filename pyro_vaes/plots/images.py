"""Images side by side: one axes, one mosaic."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from .style import INK, Array, axes_or_new, label, to_numpy

ImageShape = Sequence[int] | None
"""`(H, W)` or `(C, H, W)` of flat images; None where they are squares, or not flat."""
ValueRange = tuple[float, float] | None
"""The values shown as black and white; None finds them, see `to_unit`."""


def as_images(images: Array, image_shape: ImageShape = None, name: str = "images") -> np.ndarray:
    """Bring images of any accepted layout to one: `(N, H, W, C)` with C = 1 (grey) or 3 (red, green, blue).

    Arguments:
        images: Flat with shape `(N, D)`, or with shape `(N, H, W)` or `(N, C, H, W)`.
        image_shape: `(H, W)` or `(C, H, W)` of flat images; squares are recognised without it.
        name: Name of the caller's argument, for the error.

    Returns:
        The images with shape `(N, H, W, C)`, values untouched.

    Raises:
        ValueError: If the shape is none of these or does not fit `image_shape`.

    Example:
        >>> as_images(np.zeros((5, 64))).shape
        (5, 8, 8, 1)
    """
    found = to_numpy(images, name)
    given = found.shape
    if found.ndim == 2 and image_shape is None:
        side = math.isqrt(found.shape[1])
        if side * side != found.shape[1]:
            raise ValueError(
                f"{name} has shape {found.shape}, flat images whose {found.shape[1]} pixels make no square. "
                "Pass image_shape=(height, width) or (channels, height, width)."
            )
        image_shape = (side, side)

    if image_shape is not None:
        shape = tuple(image_shape)
        if len(shape) not in (2, 3) or found.ndim < 2 or math.prod(found.shape[1:]) != math.prod(shape):
            raise ValueError(
                f"{name} has shape {found.shape}, which does not divide into images of image_shape={shape}. "
                "Expected (height, width) or (channels, height, width) with as many values as one image has."
            )
        found = found.reshape(len(found), *shape)

    if found.ndim == 3:
        found = found[:, None]
    if found.ndim != 4 or found.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has shape {given}; wanted (N, D), (N, H, W) or (N, C, H, W) with 1 or 3 channels. "
            "For channels last, permute first: images.permute(0, 3, 1, 2)."
        )
    return found.transpose(0, 2, 3, 1)


def to_unit(images: np.ndarray, value_range: ValueRange = None) -> np.ndarray:
    """Map `value_range` to [0, 1] and cut off what lies outside.

    Arguments:
        images: With any shape.
        value_range: Values shown as black and white. None takes (0, 1) for values within it, (0, 255) for
            8-bit integers, and the least and greatest value otherwise.

    Returns:
        Values in [0, 1] with the same shape.

    Raises:
        ValueError: If the range is empty.

    Example:
        >>> to_unit(np.array([0, 255], dtype=np.uint8)).tolist()
        [0.0, 1.0]
    """
    if value_range is not None:
        low, high = value_range
    elif images.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = float(np.nanmin(images)), float(np.nanmax(images))
        if (low >= 0 and high <= 1) or low == high:
            low, high = 0.0, 1.0

    if not low < high:
        raise ValueError(
            f"value_range={(low, high)} is empty; wanted (black, white) with black < white, such as (0, 1)."
        )
    return np.clip((images - low) / (high - low), 0.0, 1.0)


def mosaic(images: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Lay images out row by row on white.

    Arguments:
        images: With shape `(N, H, W, C)`, values in [0, 1].
        columns: Images per row, at least 1.
        gap: White pixels between neighbours.

    Returns:
        One image with shape `(rows (H + gap) - gap, columns (W + gap) - gap, C)`.

    Example:
        >>> mosaic(np.zeros((5, 8, 8, 1)), columns=3, gap=2).shape
        (18, 28, 1)
    """
    tiles = np.pad(images, [(0, 0), (0, gap), (0, gap), (0, 0)], constant_values=1.0)
    rows = in_rows(tiles, columns).swapaxes(1, 2)  # (rows, H, columns, W, C)
    whole = rows.reshape(len(rows) * tiles.shape[1], -1, tiles.shape[-1])
    return whole[: len(whole) - gap, : whole.shape[1] - gap]


def in_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Images `(N, H, W, C)` row by row, with shape `(rows, columns, H, W, C)`.

    The last row is filled up with white images.

    Example:
        >>> in_rows(np.zeros((5, 8, 8, 1)), columns=3).shape
        (2, 3, 8, 8, 1)
    """
    missing = -len(images) % columns
    full = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=1.0)
    return full.reshape(-1, columns, *images.shape[1:])


class Mosaic(NamedTuple):
    """Images in rows and columns, as one picture on some axes.

    Attributes:
        ax: The axes.
        row_centres: Middles of the rows, from the top, in pixels.
        column_centres: Middles of the columns, in pixels.
    """

    ax: Axes
    row_centres: np.ndarray
    column_centres: np.ndarray

    def name_rows(self, names: Sequence[str]) -> None:
        """Write a name to the left of each row."""
        self.ax.set_yticks(self.row_centres, names)

    def name_columns(self, names: Sequence[str]) -> None:
        """Write a name under each column."""
        self.ax.set_xticks(self.column_centres, names)


def draw_mosaic(
    images: np.ndarray,
    columns: int,
    value_range: ValueRange,
    title: str | None,
    ax: Axes | None,
    gap: int | None = None,
) -> Mosaic:
    """Draw images row by row, without a frame.

    Arguments:
        images: The images, with shape `(N, H, W, C)` and C = 1 or 3.
        columns: Images per row, at least 1.
        value_range: Values shown as black and white; see `to_unit`.
        title: Above the picture, or None.
        ax: Axes to draw into; None makes a figure.
        gap: White pixels between images; None takes a fourteenth of the height.
    """
    number, height, width, channels = images.shape
    if gap is None:
        gap = max(1, height // 14)
    whole = mosaic(to_unit(images, value_range), columns, gap)

    scale = 7.0 / max(whole.shape[:2])
    room = 0.3 if title else 0.0
    ax = axes_or_new(ax, scale * whole.shape[1], scale * whole.shape[0] + room)
    picture = whole if channels == 3 else whole[..., 0]
    ax.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")

    ax.spines[:].set_visible(False)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    label(ax, title)

    rows = np.arange(-(-number // columns)) * (height + gap) + (height - 1) / 2
    return Mosaic(ax, rows, np.arange(columns) * (width + gap) + (width - 1) / 2)


def image_grid(
    images: Array,
    *,
    image_shape: ImageShape = None,
    columns: int | None = None,
    value_range: ValueRange = None,
    gap: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show images as a grid, row by row.

    Arguments:
        images: Flat with shape `(N, D)`, or with shape `(N, H, W)` or `(N, C, H, W)`.
        image_shape: `(H, W)` or `(C, H, W)` of flat images; squares are recognised without it.
        columns: Images per row; None makes the grid about square.
        value_range: Values shown as black and white; see `to_unit`.
        gap: White pixels between images; None takes a fourteenth of the height.
        title: Above the grid.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture.

    Raises:
        ValueError: If the images cannot be told apart (see `as_images`) or `columns` is below 1.

    Example:
        >>> ax = image_grid(np.random.rand(12, 784), columns=4)
        >>> len(ax.images)
        1
    """
    tiles = as_images(images, image_shape)
    if columns is None:
        columns = math.ceil(math.sqrt(len(tiles)))
    if columns < 1:
        raise ValueError(f"columns={columns}, but a grid needs at least one image per row.")
    return draw_mosaic(tiles, min(columns, len(tiles)), value_range, title, ax, gap).ax


def reconstructions(
    x: Array,
    x_hat: Array,
    *,
    image_shape: ImageShape = None,
    columns: int = 10,
    value_range: ValueRange = None,
    title: str | None = "Each reconstruction should resemble the datum above it",
    ax: Axes | None = None,
) -> Axes:
    """Show data and, under each row of them, what the pair makes of them.

    Arguments:
        x: Data; layouts as in `image_grid`.
        x_hat: Reconstructions of the same data, in the same order.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        columns: Data per row.
        value_range: Values shown as black and white; see `to_unit`.
        title: Above the picture.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture.

    Raises:
        ValueError: If `x` and `x_hat` do not have the same number and size of images.

    Example:
        >>> x = np.random.rand(20, 784)
        >>> ax = reconstructions(x, 1 - x)
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['data', 'model', 'data', 'model']
    """
    data, model = as_images(x, image_shape, "x"), as_images(x_hat, image_shape, "x_hat")
    if data.shape != model.shape:
        raise ValueError(
            f"x holds {len(data)} images of {data.shape[1:]} (height, width, channels) but x_hat {len(model)}"
            f" of {model.shape[1:]}; wanted one reconstruction for each datum. Average any draws first."
        )
    both = [data, model]
    for index, part in enumerate(both):  # 8-bit data may stand above others in [0, 1]
        if value_range is None and part.dtype == np.uint8:
            both[index] = to_unit(part)
    whole = np.nan_to_num(to_unit(np.stack(both), value_range), nan=1.0)

    columns = max(1, min(columns, len(data)))
    pairs = np.stack([in_rows(part, columns) for part in whole], axis=1)

    tiles = pairs.reshape(-1, *data.shape[1:])
    drawn = draw_mosaic(tiles, columns, (0.0, 1.0), title, ax)
    drawn.name_rows(["data", "model"] * len(pairs))
    return drawn.ax


def samples(
    images: Array,
    *,
    image_shape: ImageShape = None,
    columns: int | None = None,
    value_range: ValueRange = None,
    title: str | None = "Samples from the model: they should pass for data",
    ax: Axes | None = None,
) -> Axes:
    """Show draws from the model; `image_grid` with a title that says what to look for.

    Arguments:
        images: Layouts as in `image_grid`.
        image_shape: `(H, W)` or `(C, H, W)` of flat images.
        columns: Images per row; None makes the grid about square.
        value_range: Values shown as black and white; see `to_unit`.
        title: Above the grid.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, which hold one picture.

    Raises:
        ValueError: As `image_grid`.

    Example:
        >>> samples(np.random.rand(16, 3, 32, 32)).images[0].get_array().shape
        (134, 134, 3)
    """
    return image_grid(
        images,
        image_shape=image_shape,
        columns=columns,
        value_range=value_range,
        title=title,
        ax=ax,
    )


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
        found = f"clusters has {numbers.dtype} and shape {numbers.shape}"
        problem = f"There are {len(tiles)} images, but {found}"
        raise ValueError(f"{problem}; wanted a whole number for each.")
    if columns < 1 or (largest is not None and largest < 1):
        got = f"{columns} and {largest}"
        raise ValueError(f"columns and largest are at least 1, but got {got}.")

    counts = np.bincount(numbers)
    order = np.argsort(-counts, kind="stable")[:largest]
    order = order[counts[order] > 0]

    white = tiles.max() if value_range is None else value_range[1]
    cards = np.full((len(order), columns, *tiles.shape[1:]), white, tiles.dtype)
    for card, cluster in zip(cards, order, strict=True):
        members = tiles[numbers == cluster][:columns]
        card[: len(members)] = members

    images = cards.reshape(-1, *tiles.shape[1:])
    drawn = draw_mosaic(images, columns, value_range, title, ax, gap=1)
    drawn.name_rows([f"{k} ({counts[k] / len(tiles):.0%})" for k in order])
    return drawn.ax
