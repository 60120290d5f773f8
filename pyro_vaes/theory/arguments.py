"""What the closed forms accept: spectra in the right order and units, positive standard deviations, whole numbers."""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.nn.functional import pad

Number = float | Tensor
"""One number: a Python number or a tensor with shape ``()``."""


def spectrum(
    theta: Tensor | Sequence[float],
    num_units: int,
    source: str = "use second_moment_spectrum(x), or moment_spectrum(second_moment).sqrt()",
) -> Tensor:
    """A spectrum in float64, after looking at its shape, its order and its signs.

    Arguments:
        theta: Non-negative numbers in descending order, shape ``(D,)``.
        num_units: How many latent units there are; zeros are appended until each of them has a mode.
        source: The function that computes it from data, for the error message.

    Raises:
        ValueError: theta is no such vector.
    """
    values = torch.as_tensor(theta)
    if values.dim() != 1 or not len(values) or values.is_complex():
        raise ValueError(
            f"theta is a vector of at least one number, one for each mode of the data, but has shape "
            f"{tuple(values.shape)}; to get it from data, {source}."
        )

    values = values.detach().double()
    _want_finite(
        "theta",
        values,
        ". Is it the square root of eigenvalues that rounding made negative? Clamp them first "
        "(eigenvalues.clamp(min=0).sqrt()).",
    )

    if (values.diff() > 0).any():
        raise ValueError(
            "theta must be in descending order, so that the first latent unit belongs to the strongest mode; "
            "torch.linalg.eigvalsh returns ascending eigenvalues: sort them, theta.sort(descending=True).values."
        )

    if values[-1] < -1e-10 * values[0].clamp(min=1):
        raise ValueError(
            f"theta cannot be negative, but goes down to {values[-1].item():.3g}; second moments have no negative "
            "eigenvalues. Are these correlations, or logarithms?"
        )
    values = values.clamp(min=0)  # rounding in an eigenvalue that is zero
    return pad(values, (0, max(0, num_units - len(values))))


def _want_finite(name: str, values: Tensor, cure: str) -> None:
    bad = (~values.isfinite()).sum()
    if bad:
        raise ValueError(f"{name} holds {bad} values that are NaN or infinite{cure}")


def positive(name: str, value: Number, meaning: str) -> float:
    """A positive finite number as a float.

    Arguments:
        name: The argument.
        value: What was passed.
        meaning: What it is, with its unit, for the error message.

    Raises:
        ValueError: It is no such number.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        found = f"shape {tuple(value.shape)}"
    elif isinstance(value, bool) or not isinstance(value, Real | Tensor) or not 0 < float(value) < math.inf:
        found = repr(value)
    else:
        return float(value)
    raise ValueError(f"{name} is {meaning}: one positive finite number is wanted, but got {found}.")


def whole(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: It is no such number.
    """
    if type(value) is not int or value < 1:  # a bool is none
        raise ValueError(f"{name} is a number of latent units, at least 1, but got {value!r}.")
    return value


def data_matrix(name: str, x: Tensor) -> Tensor:
    """Data with one datum in each row, after a look at shape, dtype and values.

    Raises:
        ValueError: x is no matrix of finite floating-point numbers.
    """
    if x.dim() != 2 or not x.numel():
        raise ValueError(
            f"{name} must have shape (N, D), one datum in each row, but has shape {tuple(x.shape)}; flatten images "
            "with flatten(1)?"
        )

    if not x.is_floating_point():
        raise ValueError(
            f"{name} has dtype {x.dtype}, and the closed forms depend on the units of the data: convert it as for "
            "training, pixels with x.float() / 255, labels with pyro_vaes.nn.OneHot."
        )

    _want_finite(name, x, "; drop or impute them first.")
    return x
