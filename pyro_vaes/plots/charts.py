"""What charts share: checks of curves and names, colours, the diagonal, bins."""

import numpy as np
from matplotlib.axes import Axes

from .style import BLUE, GREY, Array, Names, to_numpy


def read_curves(
    across: Array,
    curves: Array,
    names: tuple[str, str],
    wanted: str,
    labels: Names = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Where curves are measured, `(E,)` and ascending, and the curves, `(C, E)`.

    Arguments:
        across: Where the curves are measured, with shape `(E,)`.
        curves: One curve with shape `(E,)`, or C curves with shape `(C, E)`.
        names: Names of the two arguments, for errors.
        wanted: What a curve holds, such as "one loss for each weight", for errors.
        labels: Names of the curves, if any.

    Raises:
        ValueError: If the shapes do not match, `across` does not ascend, or there are
            more or fewer labels than curves.

    Example:
        >>> across = np.arange(3)
        >>> x, y = read_curves(across, across**2, ("x", "y"), "one y for each x")
        >>> y.shape
        (1, 3)
    """
    name, measure = names
    places, values = to_numpy(across, name), np.atleast_2d(to_numpy(curves, measure))

    if places.ndim != 1 or values.ndim != 2 or values.shape[1] != len(places):
        raise ValueError(
            f"{name} has shape {places.shape} and {measure} {np.shape(curves)}; wanted "
            f"(E,) and (E,) or (C, E), {wanted}."
        )
    if not (np.diff(places) > 0).all():
        problem = f"{name} does not ascend, so its curve would run backwards."
        raise ValueError(f"{problem} Sort it, and {measure} with it.")
    check_names("labels", labels, len(values), f"{measure} has {len(values)} curves")
    return places, values


def check_shares(name: str, values: np.ndarray) -> None:
    """Refuse numbers outside [0, 1].

    Raises:
        ValueError: If there is one.
    """
    if not ((values >= 0) & (values <= 1)).all():
        found = f"{name} runs from {values.min():g} to {values.max():g}"
        raise ValueError(f"{found}; wanted [0, 1]. Is it a percentage?")


def check_names(argument: str, names: Names, number: int, wanted: str) -> None:
    """Refuse names of which there is not one for each thing.

    Arguments:
        argument: Name of the argument that holds the names.
        names: The names, if any.
        number: How many things there are.
        wanted: The same in words, such as "loss has 2 curves".

    Raises:
        ValueError: If there are more or fewer names.
    """
    if names is not None and len(names) != number:
        raise ValueError(f"{argument} holds {len(names)} names but {wanted}.")


def draw_curves(
    ax: Axes,
    across: np.ndarray,
    curves: np.ndarray,
    labels: Names,
    *,
    form: str = "-",
    colour: str = BLUE,
    linewidth: float = 1.6,
) -> None:
    """Draw curves, each in a colour of its own.

    Arguments:
        ax: The axes.
        across: Where the curves are measured, with shape `(E,)` or `(C, E)`.
        curves: The curves, with shape `(C, E)`.
        labels: Names of the curves, if any.
        form: Matplotlib's format of a curve: a line, or "o" for points.
        colour: Colour of a single curve.
        linewidth: Width of the lines, in points.
    """
    places = np.broadcast_to(across, curves.shape)
    for index, curve in enumerate(curves):
        ax.plot(
            places[index],
            curve,
            form,
            color=colour if len(curves) == 1 else f"C{index}",
            linewidth=linewidth,
            markersize=4,
            label=None if labels is None else labels[index],
        )


def draw_diagonal(ax: Axes, *values: np.ndarray) -> None:
    """Draw the line on which both axes agree, from 0 to a little beyond all values."""
    top = float(np.max(values)) * 1.05 + 1e-9
    ax.plot([0, top], [0, top], color=GREY, linewidth=0.8)


def central_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Edges of equally wide bins over the central 99.8 % of the values.

    Example:
        >>> central_edges(np.zeros(3), bins=2).tolist()
        [0.0, 0.5, 1.0]
    """
    low, high = np.quantile(values, [0.001, 0.999])
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)
