"""Numbers of single data in short: means and standard errors, checks of counts."""

import math

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""Variance of a unit's posterior mean from which on Burda et al. call the unit active."""


def require_positive(**numbers: int) -> None:
    """Raise a ValueError that names the first of these numbers that is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, but got {number}.")


def standard_error(x: Tensor) -> Tensor:
    """Standard error of the mean over the data, which come first; nan for one datum."""
    if len(x) == 1:
        return torch.full_like(x[0], math.nan)
    return x.std(0) / math.sqrt(len(x))


def mean_and_error(values: Tensor) -> str:
    """Mean and standard error over the data, ``(N,)``, as text."""
    return f"{values.mean().item():.3f} ± {standard_error(values).item():.3f}"
