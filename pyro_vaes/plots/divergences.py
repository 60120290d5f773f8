"""Pictures of divergences: of the posterior's units from their prior, and between the posteriors of data."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from .charts import check_names, check_shares, draw_curves, read_curves
from .style import (
    BLUE,
    GREY,
    INK,
    Array,
    Names,
    chart_axes,
    legend,
    to_numpy,
    width_for_bars,
)

LEAST = 1e-6
"""Smaller divergences are drawn here, nats: a logarithm has no place for 0."""


def kl_bars(
    kl_per_unit: Array,
    threshold: float = 0.01,
    *,
    names: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the Kullback-Leibler divergence of every latent unit from its prior, largest first.

    Arguments:
        kl_per_unit: In nats, averaged over data, with shape `(K,)`.
        threshold: In nats; units above it count as active.
        names: Names of the units; None takes their numbers.
        title: Above the axes; None states how many units are active and the total in nats.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one bar for each unit.

    Raises:
        ValueError: If `kl_per_unit` is not a vector of numbers, or `names` has another length.

    Example:
        >>> ax = kl_bars(np.array([0.0, 2.0, 1.0]))
        >>> [float(bar.get_height()) for bar in ax.containers[0]]
        [2.0, 1.0, 0.0]
    """
    kl = to_numpy(kl_per_unit, "kl_per_unit")
    if kl.ndim != 1 or not np.isfinite(kl).all():
        raise ValueError(
            f"kl_per_unit has shape {kl.shape} and {int((~np.isfinite(kl)).sum())} "
            "entries not finite; wanted (K,), one divergence in nats for each unit. "
            "Average over the data first: kl.mean(0)."
        )
    check_names("names", names, len(kl), f"kl_per_unit has {len(kl)} units")
    order = np.argsort(-kl, kind="stable")
    active = kl[order] > threshold
    if title is None:
        title = f"{active.sum()} of {len(kl)} units active, {kl.sum():.1f} nats in all"

    width = width_for_bars(len(kl))
    ax = chart_axes(ax, title, "latent unit", "KL from prior (nats)", width=width)
    places = np.arange(len(kl))
    ax.bar(places, kl[order], color=np.where(active, BLUE, GREY), width=0.8)
    if not active.all():  # too small to be seen as bars
        span = active.sum() - 0.5, len(kl) - 0.5
        ax.axvspan(*span, color=GREY, alpha=0.2, linewidth=0, label="inactive")
    name = f"threshold {threshold:g} nats"
    ax.axhline(threshold, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=name)

    if len(kl) <= 40:
        called = [str(unit) if names is None else names[unit] for unit in order]
        turned = 90 if max(map(len, called)) > 3 else 0
        ax.set_xticks(places, called, rotation=turned)
    else:
        ax.set_xlabel("latent unit, sorted", fontsize=9)
    ax.margins(x=0.01)
    legend(ax, loc="upper right")
    return ax


def collapse_curve(
    epsilon: Array,
    fraction: Array,
    *,
    labels: Names = None,
    title: str | None = "The sooner a curve rises, the more units have collapsed",
    ax: Axes | None = None,
) -> Axes:
    """Show the fraction of latent units whose divergence from the prior stays below epsilon, against epsilon.

    Arguments:
        epsilon: In nats, ascending, with shape `(E,)`; more than two decades get a log axis.
        fraction: In [0, 1], with shape `(E,)`, or `(C, E)` for C curves.
        labels: Names of the curves.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one line for each curve.

    Raises:
        ValueError: If the shapes do not match, `epsilon` does not ascend, or a fraction lies outside [0, 1].

    References:
        | Beyond Vanilla Variational Autoencoders: Detecting Posterior Collapse in Conditional and
          Hierarchical Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
        | https://arxiv.org/abs/2306.05023

    Example:
        >>> ax = collapse_curve(np.array([0.0, 0.5, 1.0]), np.array([[0.0, 0.2, 0.4], [0.0, 0.5, 1.0]]))
        >>> len(ax.lines)
        2
    """
    names, wanted = ("epsilon", "fraction"), "one fraction for each epsilon"
    across, curves = read_curves(epsilon, fraction, names, wanted, labels)
    check_shares("fraction", curves)

    ax = chart_axes(ax, title, "epsilon (nats)", "fraction of units collapsed")
    draw_curves(ax, across, curves, labels)
    if across[0] > 0 and across[-1] / across[0] > 100:
        ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.02)
    if labels is not None:
        legend(ax)
    return ax


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
    legend(ax)
    return ax
