"""The course of training."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import BLUE, RED, chart_axes, label, legend


class Curves(Protocol):
    """What `loss_curves` reads: one loss in nats per datum for each epoch; None or nan where not measured."""

    @property
    def epochs(self) -> Sequence[int]:
        """Their numbers."""
        ...

    @property
    def train(self) -> Sequence[float | None]:
        """Losses on the training data."""
        ...

    @property
    def valid(self) -> Sequence[float | None]:
        """Losses on held-out data; may be empty."""
        ...


def loss_curves(
    history: Curves,
    *,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the loss on training and held-out data over epochs, and where the latter was least.

    Arguments:
        history: Anything with the sequences `epochs` (numbers), `train` and `valid` (nats per datum), such as
            what `fit` returns.
        title: Above the axes; None states the least held-out loss.
        ax: Axes to draw into; None makes a figure.

    Returns:
        The axes, with one line for each sequence that has values.

    Raises:
        ValueError: If there is no loss yet, or the sequences differ in length.

    Example:
        >>> from types import SimpleNamespace
        >>> ax = loss_curves(SimpleNamespace(epochs=[1, 2, 3], train=[3.0, 2.0, 1.5], valid=[3.1, 2.2, 2.3]))
        >>> ax.get_title(loc="left")
        'Held-out loss least at epoch 2: 2.20 nats per datum'
    """
    across = np.asarray(list(history.epochs))
    train = np.asarray(list(history.train), dtype=np.float64)
    valid = np.asarray(list(history.valid), dtype=np.float64)
    if not np.isfinite(train).any():
        raise ValueError("history.train holds no finite loss, so there is no curve. Has at least one epoch run?")
    if len(across) != len(train) or len(valid) not in (0, len(train)):
        raise ValueError(
            f"history has {len(train)} training losses, {len(valid)} held-out losses and "
            f"{len(across)} epoch numbers; wanted as many of each (or no held-out losses). "
            "Put nan where an epoch was not evaluated."
        )

    ax = chart_axes(ax, title, "epoch", "loss (nats per datum)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    marker = "o" if len(train) == 1 else None
    ax.plot(across, train, color=BLUE, linewidth=1.6, marker=marker, label="training")

    measured = np.isfinite(valid)
    if not measured.any():
        return ax
    epochs, losses = across[measured], valid[measured]
    ax.plot(epochs, losses, color=RED, linewidth=1.6, marker=marker, label="held out")
    best = int(losses.argmin())
    ax.plot(epochs[best], losses[best], "o", color=RED, markersize=5)
    if title is None:
        least = f"at epoch {epochs[best]}: {losses[best]:.2f} nats per datum"
        label(ax, f"Held-out loss least {least}")
    legend(ax, loc="upper right")
    return ax
