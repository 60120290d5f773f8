"""The look that all plots share, set on each axes and never on Matplotlib's global settings."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

Array = Tensor | np.ndarray
Names = Sequence[str] | None
"""What things are called, where they have names."""

INK = "#2b2d33"
"""Text, and whatever was observed."""
BLUE = "#2f6f9f"
"""Whatever the model says."""
AMBER = "#e0a030"
"""Borderline."""
RED = "#c8443c"
"""Not to be trusted."""
GREY = "#b4b8bf"
"""Reference: priors, inactive units, replicates in the background."""


def to_numpy(values: Array, name: str) -> np.ndarray:
    """An array or tensor of any device and dtype as a non-empty NumPy array of its own numbers.

    Arguments:
        values: The numbers, with any shape.
        name: Name of the caller's argument, for the error.

    Returns:
        The numbers, floating ones as float64, the others in their own dtype.

    Raises:
        ValueError: If there are no numbers in it.

    Example:
        >>> to_numpy([1, 2], "x").tolist()
        [1, 2]
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_floating_point():  # NumPy has no bfloat16
            values = values.double()
    found = np.asarray(values)

    if found.size == 0:
        raise ValueError(
            f"{name} has shape {found.shape}: there is nothing to plot. An empty selection upstream is the usual cause."
        )
    if np.issubdtype(found.dtype, np.floating):
        return found.astype(np.float64)
    return found


def axes_or_new(ax: Axes | None, width: float = 5.6, height: float = 3.6) -> Axes:
    """The axes given, or those of a new figure of `width` x `height` inches.

    Arguments:
        ax: Axes to draw into, or None.
        width: Width of the new figure, in inches.
        height: Height of the new figure, in inches.

    Returns:
        The axes.

    Example:
        >>> ax = axes_or_new(None)
        >>> axes_or_new(ax) is ax
        True
    """
    if ax is not None:
        return ax
    return row_of_axes(None, 1, width, height)[0]


def row_of_axes(
    axes: Sequence[Axes] | None,
    number: int,
    width: float,
    height: float,
) -> np.ndarray:
    """The axes given as a vector, or those of a new figure that stand in a row.

    Arguments:
        axes: Axes to draw into, or None.
        number: How many axes a new figure has.
        width: Width of each of them, in inches.
        height: Height of the new figure, in inches.

    Example:
        >>> row_of_axes(None, 3, 2.0, 2.0).shape
        (3,)
    """
    if axes is not None:
        return np.asarray(axes, dtype=object).reshape(-1)
    size = width * number, height
    _, new = plt.subplots(1, number, figsize=size, layout="constrained", squeeze=False)
    return new[0]


def width_for_bars(number: int, each: float = 0.22) -> float:
    """The width of a figure that grows with the number of bars, within limits, in inches.

    Arguments:
        number: Number of bars.
        each: Width of one bar, in inches.

    Example:
        >>> width_for_bars(25)
        7.0
    """
    return float(np.clip(each * number + 1.5, 4.0, 9.0))


def chart_axes(
    ax: Axes | None = None,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    *,
    width: float = 5.6,
    height: float = 3.6,
) -> Axes:
    """The axes given, or new ones, with two thin spines, small ticks and a faint grid.

    Arguments:
        ax: Axes to draw into, or None.
        title: What one should see, or None for no title.
        xlabel: Name of the horizontal axis with its unit, or None.
        ylabel: Name of the vertical axis with its unit, or None.
        width: Width of a new figure, in inches.
        height: Height of a new figure, in inches.

    Returns:
        The axes.

    Example:
        >>> chart_axes(title="Loss falls").get_title(loc="left")
        'Loss falls'
    """
    ax = axes_or_new(ax, width, height)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=GREY, linewidth=0.8)

    ax.tick_params(labelsize=8, color=GREY, labelcolor=INK, length=3)
    ax.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)

    label(ax, title, xlabel, ylabel)
    return ax


def label(
    ax: Axes,
    title: str | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> None:
    """Write the title and the axis labels that are not None in the common type.

    Example:
        >>> ax = axes_or_new(None)
        >>> label(ax, xlabel="epoch")
        >>> ax.get_xlabel()
        'epoch'
    """
    if title is not None:
        ax.set_title(title, loc="left", fontsize=10, color=INK)
    if xlabel is not None:
        ax.set_xlabel(xlabel, fontsize=9, color=INK)
    if ylabel is not None:
        ax.set_ylabel(ylabel, fontsize=9, color=INK)


def legend(ax: Axes, **options: str | float | int | tuple[float, float]) -> None:
    """Draw the legend without a frame; `options` are forwarded whole to `Axes.legend`.

    Example:
        >>> ax = axes_or_new(None)
        >>> line, = ax.plot([0, 1], label="test")
        >>> legend(ax, loc="upper left")
        >>> ax.get_legend().get_texts()[0].get_text()
        'test'
    """
    ax.legend(**{"frameon": False, "fontsize": 8, "labelcolor": INK, **options})
