"""Pictures of the linear theory of collapse: what it forecasts, beside what training gave."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from pyro_vaes.plots.style import BLUE, GREY, INK, Array, axes_for_bars, axes_or_new, legend, quiet, to_numpy


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
    ax = quiet(axes_for_bars(ax, len(measured)), title, "latent unit, sorted", "KL from prior (nats)")
    units = np.arange(1, len(measured) + 1)
    ax.bar(units, measured, color=BLUE, width=0.8, label="measured")
    ax.plot(units, forecast, color=INK, marker="o", markersize=3, linewidth=0.8, label="linear forecast")
    ax.margins(x=0.01)
    legend(ax, loc="upper right")
    return ax


def singular_values(
    theory: Array,
    trained: Array,
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show singular values after training over those of the closed form: on the diagonal theory and training agree.

    Arguments:
        theory: Values, with shape `(K,)`, or `(C, K)` for C matrices.
        trained: Values of the same shape; each row is sorted, as is theory's.
        labels: Of the matrices, as `["decoder", "encoder"]`.
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
    wanted, got = (np.atleast_2d(to_numpy(v, n)) for v, n in ((theory, "theory"), (trained, "trained")))
    if wanted.shape != got.shape or wanted.ndim != 2:
        raise ValueError(
            f"theory has shape {wanted.shape} and trained {got.shape}; wanted the same, (K,) or (C, K). Pad the "
            "shorter one with zeros: a collapsed unit has singular value 0."
        )
    if labels is not None and len(labels) != len(wanted):
        raise ValueError(f"labels holds {len(labels)} names but there are {len(wanted)} matrices.")
    wanted, got = -np.sort(-wanted, 1), -np.sort(-got, 1)
    if title is None:
        title = f"theory and training differ by {np.abs(wanted - got).mean():.3f} on average"
    ax = quiet(axes_or_new(ax, 4.0, 3.8), title, "closed form", "after training")
    top = float(max(wanted.max(), got.max())) * 1.05 + 1e-9
    ax.plot([0, top], [0, top], color=GREY, linewidth=0.8)
    for index, (row, values) in enumerate(zip(wanted, got, strict=True)):
        colour = BLUE if len(wanted) == 1 else f"C{index}"
        name = None if labels is None else labels[index]
        ax.plot(row, values, "o", color=colour, markersize=4, linestyle="none", label=name)
    if labels is not None:
        legend(ax, loc="upper left")
    return ax


def loss_with_thresholds(
    beta: Array,
    loss: Array,
    critical_beta: Array,
    *,
    labels: Sequence[str] | None = None,
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
        labels: Of the curves.
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
    across, curves = to_numpy(beta, "beta"), np.atleast_2d(to_numpy(loss, "loss"))
    ticks = to_numpy(critical_beta, "critical_beta")
    if across.ndim != 1 or curves.ndim != 2 or curves.shape[1] != len(across) or ticks.ndim != 1:
        raise ValueError(
            f"beta has shape {across.shape}, loss {np.shape(loss)} and critical_beta {ticks.shape}; wanted (E,), (E,) "
            "or (C, E), and (K,)."
        )
    if not (np.diff(across) > 0).all():
        raise ValueError(f"{xlabel} does not ascend, so its curve would run backwards. Sort it, and loss with it.")
    if labels is not None and len(labels) != len(curves):
        raise ValueError(f"labels holds {len(labels)} names but loss has {len(curves)} curves.")
    ax = quiet(axes_or_new(ax), title, xlabel, "loss")
    for index, curve in enumerate(curves):
        colour = BLUE if len(curves) == 1 else f"C{index}"
        ax.plot(across, curve, color=colour, linewidth=1.6, label=None if labels is None else labels[index])
    for tick in ticks[(ticks >= across[0]) & (ticks <= across[-1])]:
        ax.axvline(float(tick), ymax=0.06, color=INK, linewidth=0.8)
    if labels is not None:
        legend(ax, loc="best")
    return ax
