"""Pictures of the linear theory of collapse: what it forecasts, beside what training gave.

Of one model, unit by unit, and of many: does the forecast put them in the right order?
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import spearmanr
from torch import Tensor

from .charts import check_names, draw_curves, draw_diagonal, read_curves
from .style import (
    BLUE,
    INK,
    Array,
    Names,
    chart_axes,
    legend,
    to_numpy,
    width_for_bars,
)


class Compared(Protocol):
    """What `kl_forecast` reads: the KL of each unit in nats, rows forecast and measured, with shape `(2, K)`."""

    @property
    def kl(self) -> Array:
        """Nats per datum."""
        ...


def kl_forecast(site: Compared | Array, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Show the KL of each latent unit as the linear theory forecasts it and as it was measured, unit by unit.

    Arguments:
        site: One site of a comparison, `forecast.beside(report)["z"]`; or the numbers, with shape `(2, K)`: forecast
            and measured, in nats.
        title: Above the axes; None states both totals.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with bars for the measurement and a line with markers for the forecast.

    Raises:
        ValueError: If there are not two rows of finite numbers.

    References:
        | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
        | https://arxiv.org/abs/2306.05023

    Example:
        >>> ax = kl_forecast(np.array([[2.0, 1.0, 0.0], [1.8, 1.1, 0.1]]))
        >>> [float(bar.get_height()) for bar in ax.containers[0]]
        [1.8, 1.1, 0.1]
    """
    numbers = site if isinstance(site, Tensor | np.ndarray) else site.kl
    kl = to_numpy(numbers, "site")
    if kl.ndim != 2 or len(kl) != 2 or not np.isfinite(kl).all():
        raise ValueError(
            f"site has shape {kl.shape} and {int((~np.isfinite(kl)).sum())} entries "
            "not finite; wanted (2, K): the forecast and the measured KL of each unit, "
            "in nats."
        )
    forecast, measured = kl
    if title is None:
        title = f"{forecast.sum():.2f} nats forecast, {measured.sum():.2f} measured"

    width = width_for_bars(len(measured))
    ax = chart_axes(ax, title, "latent unit, sorted", "KL from prior (nats)", width=width)
    units = np.arange(1, len(measured) + 1)
    ax.bar(units, measured, color=BLUE, width=0.8, label="measured")
    ax.plot(units, forecast, "o-", color=INK, markersize=3, linewidth=0.8, label="linear forecast")
    ax.margins(x=0.01)
    legend(ax, loc="upper right")
    return ax


def singular_values(
    theory: Array,
    trained: Array,
    *,
    labels: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show singular values after training over those of the closed form: on the diagonal theory and training agree.

    Arguments:
        theory: Values, with shape `(K,)`, or `(C, K)` for C matrices.
        trained: Values of the same shape; each row is sorted, as is theory's.
        labels: Names of the matrices, as `["decoder", "encoder"]`.
        title: Above the axes; None states the mean absolute difference.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one set of points for each matrix and the diagonal.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> ax = singular_values(np.array([2.0, 1.0]), np.array([1.0, 2.1]))
        >>> ax.get_title(loc="left")
        'theory and training differ by 0.050 on average'
    """
    wanted = np.atleast_2d(to_numpy(theory, "theory"))
    got = np.atleast_2d(to_numpy(trained, "trained"))
    if wanted.shape != got.shape or wanted.ndim != 2:
        raise ValueError(
            f"theory has shape {wanted.shape} and trained {got.shape}; wanted the "
            "same, (K,) or (C, K). Pad the shorter one with zeros: a collapsed unit has "
            "singular value 0."
        )
    check_names("labels", labels, len(wanted), f"there are {len(wanted)} matrices")
    wanted, got = -np.sort(-wanted, 1), -np.sort(-got, 1)
    if title is None:
        difference = np.abs(wanted - got).mean()
        title = f"theory and training differ by {difference:.3f} on average"

    ax = chart_axes(ax, title, "closed form", "after training", width=4.0, height=3.8)
    draw_diagonal(ax, wanted, got)
    draw_curves(ax, wanted, got, labels, form="o")
    if labels is not None:
        legend(ax, loc="upper left")
    return ax


def loss_with_thresholds(
    beta: Array,
    loss: Array,
    critical_beta: Array,
    *,
    labels: Names = None,
    xlabel: str = "beta",
    title: str | None = "Each tick: one more unit collapses",
    ax: Axes | None = None,
) -> Axes:
    """Show a loss (or any measure) against the KL weight, with a tick where each latent unit collapses.

    Arguments:
        beta: Weights, ascending, with shape `(E,)`.
        loss: Measures, with shape `(E,)`, or `(C, E)` for C curves.
        critical_beta: Weights at which the units collapse, with shape `(K,)`, as the closed forms return them; those
            outside the range of `beta` are left out.
        labels: Names of the curves.
        xlabel: What is swept, for noise instead of beta.
        title: Above the axes.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one line for each curve and one vertical line for each threshold.

    Raises:
        ValueError: If the shapes do not match or `beta` does not ascend.

    Example:
        >>> ax = loss_with_thresholds(np.array([0.5, 1.0, 2.0]), np.array([3.0, 4.0, 5.0]), np.array([1.5, 9.0]))
        >>> len(ax.lines)
        2
    """
    names, wanted = (xlabel, "loss"), "one loss for each weight"
    across, curves = read_curves(beta, loss, names, wanted, labels)
    ticks = to_numpy(critical_beta, "critical_beta")
    if ticks.ndim != 1:
        wanted = "(K,), one threshold for each unit"
        raise ValueError(f"critical_beta has shape {ticks.shape}; wanted {wanted}.")

    ax = chart_axes(ax, title, xlabel, "loss")
    draw_curves(ax, across, curves, labels)
    for tick in ticks[(ticks >= across[0]) & (ticks <= across[-1])]:
        ax.axvline(float(tick), ymax=0.06, color=INK, linewidth=0.8)
    if labels is not None:
        legend(ax)
    return ax


def forecast_scatter(
    forecast: Array,
    trained: Array,
    *,
    names: Names = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the KL of several models after training over what was forecast of each: on the diagonal both agree.

    Arguments:
        forecast: In nats, with shape `(M,)`.
        trained: Likewise.
        names: Names of the models, written beside their points.
        title: Above the axes; None states Spearman's rank correlation.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with the diagonal and one point for each model.

    Raises:
        ValueError: If the shapes do not match or numbers are not finite.

    Example:
        >>> ax = forecast_scatter(np.array([0.0, 1.0, 4.0]), np.array([0.1, 2.0, 3.5]))
        >>> ax.get_title(loc="left")
        'rank correlation 1.00 over 3 models'
    """
    x, y = _pair(forecast, trained, names)
    if title is None:
        title = f"{_rank_correlation(x, y)} over {len(x)} models"

    axis_names = "KL, linear forecast (nats)", "KL, after training (nats)"
    ax = chart_axes(ax, title, *axis_names, width=4.6, height=4.2)
    draw_diagonal(ax, x, y)
    ax.plot(x, y, "o", color=BLUE, markersize=4.5)
    if names is not None:
        for name, right, up in zip(names, x, y, strict=True):
            ax.annotate(
                name,
                (right, up),
                (4, -3),
                textcoords="offset points",
                fontsize=7,
                color=INK,
            )
    return ax


def forecast_bars(
    forecast: Array,
    trained: Array,
    names: Sequence[str],
    *,
    xlabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the KL of several models, such as one for each digit, as forecast and as trained.

    Arguments:
        forecast: In nats, with shape `(M,)`.
        trained: Likewise.
        names: Names of the models.
        xlabel: What the names are names of.
        title: Above the axes; None states Spearman's rank correlation.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with a bar for each measurement and a marker for each forecast.

    Raises:
        ValueError: If the shapes do not match or numbers are not finite.

    Example:
        >>> ax = forecast_bars(np.array([1.0, 3.0, 2.0]), np.array([2.0, 5.0, 1.0]), ["0", "1", "2"])
        >>> ax.get_title(loc="left"), [float(bar.get_height()) for bar in ax.containers[0]]
        ('rank correlation 0.50', [2.0, 5.0, 1.0])
    """
    x, y = _pair(forecast, trained, names)
    if title is None:
        title = _rank_correlation(x, y)

    width = width_for_bars(len(x), each=0.45)
    ax = chart_axes(ax, title, xlabel, "KL from prior (nats)", width=width)
    places = np.arange(len(x))
    ax.bar(places, y, color=BLUE, width=0.7, label="after training")
    ax.plot(places, x, "D", color=INK, markersize=4, label="linear forecast")
    ax.set_xticks(places, list(names))
    legend(ax)
    return ax


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return "too few different models for a rank correlation"
    return f"rank correlation {spearmanr(x, y).statistic:.2f}"


def _pair(forecast: Array, trained: Array, names: Names) -> tuple[np.ndarray, np.ndarray]:
    x, y = to_numpy(forecast, "forecast"), to_numpy(trained, "trained")
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite((x, y)).all():
        raise ValueError(
            f"forecast has shape {x.shape} and trained {y.shape}; wanted (M,), one "
            "finite number for each model, the sum over its units, report['z'].total_kl."
        )
    check_names("names", names, len(x), f"there are {len(x)} models")
    return x, y
