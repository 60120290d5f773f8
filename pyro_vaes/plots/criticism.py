"""Pictures that criticise: replicates against data, importance weights, ranks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.stats
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .charts import (
    central_edges,
    check_shares,
    draw_curves,
    read_curves,
)
from .style import (
    AMBER,
    BLUE,
    GREY,
    INK,
    RED,
    Array,
    Names,
    chart_axes,
    legend,
    row_of_axes,
    to_numpy,
)

Statistic = Callable[[Tensor], Tensor]
"""A whole data set with shape `(N, ...)` to one number."""

STATISTICS: dict[str, Statistic] = {
    "mean": torch.mean,
    "standard deviation": torch.std,
    "spread between data": lambda x: x.std(0).mean(),
}
"""What `ppc_panels` computes unless told; the last notices samples that are all alike."""

DENSITIES = 40
"""Replicates drawn in the panel of densities; more only darkens it."""


def ppc_panels(
    observed: Array,
    replicated: Array,
    statistics: Mapping[str, Statistic] | None = None,
    *,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    r"""Show posterior-predictive (or prior-predictive) checks: replicates against the data.

    .. math:: p = \Pr(T(x^{\mathrm{rep}}) > T(x)) + \tfrac{1}{2} \Pr(T(x^{\mathrm{rep}}) = T(x))

    Arguments:
        observed: The data, with shape `(N, ...)`.
        replicated: S replicates of the data, with shape `(S, N, ...)`.
        statistics: Named functions of a whole data set `(N, ...)` to one number; None takes mean, standard
            deviation and the mean standard deviation between data.
        axes: One axes for the densities and one for each statistic; None makes a figure.

    Returns:
        The axes, with shape `(1 + number of statistics,)`; a p-value near 0 or 1 stands for a misfit.

    Raises:
        ValueError: If the replicates do not have the shape of the data, a statistic is no single number, or
            there are too few axes.

    References:
        | Posterior Predictive Assessment of Model Fitness via Realized Discrepancies
          (Gelman, Meng & Stern, 1996)
        | https://www.jstor.org/stable/24306036

    Example:
        >>> axes = ppc_panels(np.random.randn(50, 4), np.random.randn(30, 50, 4))
        >>> len(axes)
        4
    """
    data, replicates = to_numpy(observed, "observed"), to_numpy(replicated, "replicated")
    if replicates.ndim != data.ndim + 1 or replicates.shape[1:] != data.shape:
        raise ValueError(
            f"observed has shape {data.shape} and replicated {replicates.shape}; wanted (N, ...) and "
            "(S, N, ...), whole data sets with one leading dimension of draws. "
            "For one replicate pass replicated[None]."
        )
    named = STATISTICS if statistics is None else dict(statistics)
    number = 1 + len(named)
    panels = row_of_axes(axes, number, 2.9, 2.7)
    if len(panels) != number:
        raise ValueError(f"axes holds {len(panels)} axes; wanted {number}: the densities and {list(named)}.")
    _densities(data, replicates, panels[0])
    for ax, (name, statistic) in zip(panels[1:], named.items(), strict=True):
        results = [statistic(torch.as_tensor(values)) for values in (data, *replicates)]
        if results[0].numel() != 1:
            raise ValueError(
                f"The statistic {name!r} returned shape {tuple(results[0].shape)} for one data "
                "set; wanted a single number. Average or sum at its end."
            )
        truth, *repeats = (float(result) for result in results)
        p_value = np.mean(np.greater(repeats, truth)) + 0.5 * np.mean(np.equal(repeats, truth))

        chart_axes(ax, None, name)
        colour = INK if 0.01 < p_value < 0.99 else RED
        ax.set_title(f"p = {p_value:.2f}", loc="left", fontsize=10, color=colour)
        ax.xaxis.set_major_locator(MaxNLocator(4))

        bins = min(30, max(8, len(repeats) // 8))
        ax.hist(repeats, bins=bins, color=BLUE, alpha=0.75, label="replicates")
        ax.axvline(truth, color=INK, linewidth=1.6, label="data")
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
    return panels


def _densities(data: np.ndarray, replicates: np.ndarray, ax: Axes) -> None:
    """The histogram of all values, of the data in front of those of some replicates."""
    shown = np.linspace(0, len(replicates) - 1, min(len(replicates), DENSITIES)).astype(int)
    sets = [values.reshape(-1) for values in (data, *replicates[shown])]
    kinds = np.unique(np.concatenate(sets))

    if len(kinds) <= 20:  # counts, bits and classes: one point for each value
        middles = kinds
        heights = [np.mean(values[:, None] == kinds, axis=0) for values in sets]
        marker, unit = "o", "share of values"
    else:
        edges = _edges(np.concatenate(sets), kinds, data.size)
        middles = (edges[1:] + edges[:-1]) / 2
        widths = np.diff(edges)
        heights = [np.histogram(v, edges)[0] / v.size / widths for v in sets]
        marker, unit = None, "density"

    chart_axes(ax, "Values: the lines should agree", "value", unit)
    for height in heights[1:]:
        ax.plot(middles, height, color=BLUE, alpha=0.25, linewidth=0.7)
    ax.plot([], [], color=BLUE, label="replicates")
    ax.plot(middles, heights[0], color=INK, linewidth=1.6, label="data", marker=marker, markersize=3)
    legend(ax)


def _edges(values: np.ndarray, kinds: np.ndarray, size: int) -> np.ndarray:
    """Edges of the bins of values of those kinds; fewer data make fewer bins, a rougher histogram."""
    bins = int(np.clip(np.sqrt(size), 10, 60))
    edges = central_edges(values, bins)
    if not np.array_equal(kinds, np.round(kinds)):
        return edges

    # counts: bins hold equally many whole numbers, or the histogram shows teeth
    low, high = edges[0], edges[-1]
    step = int(max(1, np.ceil((high - low + 1) / bins)))
    return np.arange(np.floor(low), high + step + 1, step) - 0.5


def khat(khats: Array, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Show the Pareto shape of every datum's importance weights with the thresholds 0.5 and 0.7.

    Arguments:
        khats: One shape for each datum, with shape `(N,)`.
        title: Above the axes; None states the share of data whose weights can be trusted.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one collection of points for each zone that has data.

    Raises:
        ValueError: If `khats` is not a vector.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024)
        | https://arxiv.org/abs/1507.02646

    Example:
        >>> ax = khat(np.array([0.1, 0.6, 0.9]))
        >>> ax.get_title(loc="left")
        'Importance weights reliable (k-hat < 0.7) for 67 % of 3 data'
    """
    shapes = to_numpy(khats, "khats")
    if shapes.ndim != 1:
        raise ValueError(
            f"khats has shape {shapes.shape}; wanted (N,), one Pareto shape for each datum. "
            "Flatten several batches first."
        )
    if title is None:
        trusted = f"{np.mean(shapes < 0.7):.0%}".replace("%", " %")
        title = f"Importance weights reliable (k-hat < 0.7) for {trusted} of {len(shapes)} data"

    ax = chart_axes(ax, title, "datum", "Pareto k-hat")
    bad = ~(shapes < 0.7)  # nan included
    usable = (shapes > 0.5) & ~bad
    for zone, colour, name in (
        (~bad & ~usable, BLUE, "good, up to 0.5"),
        (usable, AMBER, "usable, up to 0.7"),
        (bad, RED, "not reliable"),
    ):
        if zone.any():
            chosen = shapes[zone]
            places = np.flatnonzero(zone)
            infinite = (~np.isfinite(chosen)).sum()

            count = f"{name}: {len(chosen)}"
            if infinite:
                count += f" ({infinite} not finite)"
            ax.scatter(places, chosen, s=10, color=colour, linewidths=0, label=count)

    for threshold in (0.5, 0.7):
        ax.axhline(threshold, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))

    legend(
        ax,
        loc="upper left",
        bbox_to_anchor=(0.0, -0.16),
        ncols=3,
        handletextpad=0.2,
        columnspacing=1.0,
    )
    return ax


def rank_hist(
    ranks: Array,
    num_samples: int,
    *,
    bins: int = 20,
    level: float = 0.95,
    title: str | None = "Ranks of the truth among posterior draws: uniform if calibrated",
    ax: Axes | None = None,
) -> Axes:
    """Show the ranks of simulation-based calibration with the band that each bar keeps to under calibration.

    A hump means posteriors too wide, a valley too narrow, a slope posteriors that are off to one side.

    Arguments:
        ranks: Of the true value among `num_samples` posterior draws: integers from 0 to `num_samples`, with shape
            `(N,)`.
        num_samples: Posterior draws behind each rank.
        bins: Bars; at most `num_samples + 1`.
        level: Probability of the band, for each bar on its own (binomial).
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one bar for each bin, heights relative to uniform; bars that leave the band are red.

    Raises:
        ValueError: If the ranks are no integers from 0 to `num_samples`, or there are more bins than ranks.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
          (Talts, Betancourt, Simpson, Vehtari & Gelman, 2018)
        | https://arxiv.org/abs/1804.06788

    Example:
        >>> ax = rank_hist(np.arange(200) % 100, num_samples=99)
        >>> len(ax.containers[0])
        20
    """
    found = to_numpy(ranks, "ranks")
    if found.ndim != 1 or (found != np.round(found)).any() or found.min() < 0 or found.max() > num_samples:
        raise ValueError(
            f"ranks has shape {found.shape} and runs from {found.min():g} to {found.max():g}; wanted "
            f"integers from 0 to num_samples={num_samples} with shape (N,). Pick one latent first: ranks[:, 0]."
        )
    if not 1 <= bins <= num_samples + 1:
        raise ValueError(
            f"bins={bins}, but {num_samples} draws have {num_samples + 1} possible ranks; wanted 1 to that many."
        )
    edges = np.round(np.linspace(0, num_samples + 1, bins + 1))  # whole ranks: bins may differ by one
    shares = np.diff(edges) / (num_samples + 1)
    expected = shares * len(found)
    heights = np.histogram(found, edges - 0.5)[0] / expected
    counts = scipy.stats.binom.interval(level, len(found), shares)
    low, high = np.divide(counts, expected)

    ax = chart_axes(ax, title, "rank", "frequency (uniform = 1)")
    name = f"{level * 100:g} % band"
    ax.stairs(high, edges, baseline=low, fill=True, color=GREY, alpha=0.5, label=name)
    colours = np.where((heights < low) | (heights > high), RED, BLUE)
    ax.bar(
        edges[:-1],
        heights,
        np.diff(edges),
        align="edge",
        color=colours,
        alpha=0.6,
        edgecolor="white",
    )
    ax.axhline(1.0, color=INK, linewidth=0.9)
    ax.set_ylim(0, 1.25 * max(heights.max(), high.max()))  # room for the legend
    legend(ax, loc="upper right")
    return ax


def expected_coverage(
    levels: Array,
    coverage: Array,
    num_simulations: int,
    *,
    level: float = 0.95,
    labels: Names = None,
    title: str | None = "On the diagonal if calibrated",
    ax: Axes | None = None,
) -> Axes:
    """Show how often credible regions held simulated truths, against their credibility, with the band of calibration.

    A curve above the diagonal means regions too large (cautious), below it too small or in the wrong place.

    Arguments:
        levels: Credibilities in [0, 1], ascending, with shape `(E,)`.
        coverage: Shares of the simulations whose truth lay inside, with shape `(E,)`, or `(C, E)` for C curves.
        num_simulations: Simulations behind each share.
        level: Probability of the band, at each credibility on its own (binomial).
        labels: Names of the curves.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with the diagonal and one line for each curve; a single curve is red where the largest distance from
        the diagonal fails Kolmogorov's test at `level`, which looks at all credibilities together.

    Raises:
        ValueError: If the shapes do not match, a number lies outside [0, 1], or `levels` does not ascend.

    References:
        | A Trust Crisis In Simulation-Based Inference? Your Posterior Approximations Can Be Unfaithful
          (Hermans, Delaunoy, Rozet, Wehenkel, Begy & Louppe, 2022)
        | https://arxiv.org/abs/2110.06581

    Example:
        >>> ax = expected_coverage(np.array([0.1, 0.5, 0.9]), np.array([0.12, 0.48, 0.91]), num_simulations=200)
        >>> len(ax.lines)
        2
    """
    names, wanted = ("levels", "coverage"), "one share for each level"
    across, curves = read_curves(levels, coverage, names, wanted, labels)
    check_shares("levels", across)
    check_shares("coverage", curves)
    if num_simulations < 1:
        raise ValueError(f"num_simulations must be at least 1, but got {num_simulations}.")

    axis_names = "credibility of the region", "share of truths inside"
    ax = chart_axes(ax, title, *axis_names, width=4.4, height=4.2)
    fine = np.linspace(0, 1, 201)
    counts = scipy.stats.binom.interval(level, num_simulations, fine)
    edges = np.divide(counts, num_simulations)
    name = f"{level * 100:g} % band"
    ax.fill_between(fine, *edges, color=GREY, alpha=0.5, linewidth=0, label=name)
    ax.plot([0, 1], [0, 1], color=INK, linewidth=0.9)

    furthest = scipy.stats.kstwo.ppf(level, num_simulations)
    calibrated = np.abs(curves - across).max() <= furthest
    colour = BLUE if calibrated else RED  # of a single curve
    draw_curves(ax, across, curves, labels, colour=colour, linewidth=1.8)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    legend(ax, loc="upper left")
    return ax
