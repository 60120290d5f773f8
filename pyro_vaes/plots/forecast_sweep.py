"""Pictures of many models, each forecast and then trained: does the forecast put them in the right order?"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from .charts import check_names, draw_diagonal
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
    legend(ax, loc="best")
    return ax


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return "too few different models for a rank correlation"
    return f"rank correlation {spearmanr(x, y).statistic:.2f}"


def _pair(forecast: Array, trained: Array, names: Names) -> tuple[np.ndarray, np.ndarray]:
    x, y = to_numpy(forecast, "forecast"), to_numpy(trained, "trained")
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite((x, y)).all():
        raise ValueError(
            f"forecast has shape {x.shape} and trained {y.shape}; wanted (M,), one finite number for each model, "
            "the sum over its units, report['z'].total_kl."
        )
    check_names("names", names, len(x), f"there are {len(x)} models")
    return x, y
