"""Pictures of the divergences between posteriors of different data."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from .style import Array, chart_axes, legend, to_numpy

LEAST = 1e-6
"""Smaller divergences are drawn here, nats: a logarithm has no place for 0."""


def divergence_histogram(
    divergences: Mapping[str, Array],
    *,
    bins: int = 60,
    title: str | None = "Divergences between the posteriors of two data: how far the tail reaches",
    ax: Axes | None = None,
) -> Axes:
    """Show how KL(q_i || q_j) is distributed over pairs of data, both axes logarithmic.

    Arguments:
        divergences: In nats, 0 or more, any shape, by name; the legend adds the median, and the maximum as a multiple
            of it. A name may be empty.
        bins: Of all histograms together, equally wide on the logarithmic axis.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one stepped line for each name.

    Raises:
        ValueError: Nothing was given, or a divergence is negative or not a number.

    Example:
        >>> ax = divergence_histogram({"even": np.full(9, 2.0), "one far": np.array([1.0, 1.0, 50.0])})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['even: median 2, max 1 times that', 'one far: median 1, max 50 times that']
    """
    found = {n: to_numpy(v, n or "divergences").ravel() for n, v in divergences.items()}
    for name, values in found.items():
        if not (values >= 0).all():
            raise ValueError(
                f"The divergences {name!r} run from {values.min():g} to {values.max():g}; "
                "a KL divergence is not negative. Estimates from draws can be: clamp them first?"
            )
    if not found:
        raise ValueError("divergences is empty: give at least one set of divergences by name.")

    everything = np.concatenate(list(found.values())).clip(LEAST)
    edges = np.geomspace(everything.min() / 1.05, everything.max() * 1.05, bins + 1)

    ax = chart_axes(ax, title, "KL between two posteriors (nats)", "share of pairs")
    for name, values in found.items():
        median = float(np.median(values))
        times = values.max() / median if median > 0 else np.nan
        told = f"median {median:.3g}, max {times:.3g} times that"
        shares = np.histogram(values.clip(LEAST), edges)[0] / len(values)
        ax.stairs(shares, edges, linewidth=1.6, label=f"{name}: {told}" if name else told)

    ax.set(xscale="log", yscale="log")
    legend(ax, loc="best")
    return ax
