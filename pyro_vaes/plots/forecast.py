"""Pictures of the linear theory of collapse: what it forecasts, beside what training gave."""

from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
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
            f"site has shape {kl.shape} and {int((~np.isfinite(kl)).sum())} entries not finite; wanted (2, K): the "
            "forecast and the measured KL of each unit, in nats."
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
            f"theory has shape {wanted.shape} and trained {got.shape}; wanted the same, (K,) or (C, K). Pad the "
            "shorter one with zeros: a collapsed unit has singular value 0."
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
        raise ValueError(f"critical_beta has shape {ticks.shape}; wanted (K,), one threshold for each unit.")

    ax = chart_axes(ax, title, xlabel, "loss")
    draw_curves(ax, across, curves, labels)
    for tick in ticks[(ticks >= across[0]) & (ticks <= across[-1])]:
        ax.axvline(float(tick), ymax=0.06, color=INK, linewidth=0.8)
    if labels is not None:
        legend(ax, loc="best")
    return ax
