"""Whether two evaluations of one loss agree, and where they differ if they do not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .loss_graph import Evaluated

# Relative to the largest entry: what another order of the same operations may cost.
CAPTURED = {torch.float64: 1e-10, torch.float32: 2e-5}
COMPILED = {torch.float64: 1e-8, torch.float32: 5e-4}
COARSE = 2e-2  # half precision


def difference(
    found: Evaluated,
    wanted: Evaluated,
    names: Sequence[str],
    *,
    compiled: bool,
) -> str | None:
    """What differs between two evaluations; None where they agree.

    Arguments:
        found: The graph's evaluation.
        wanted: The eager one.
        names: Names of the parameters.
        compiled: Whether kernels of another kind have computed the first.
    """
    if not bool(wanted.value.isfinite()):  # the policy for such losses sees to it
        return None if not bool(found.value.isfinite()) else "the loss"
    if not agree(found.value, wanted.value, compiled=compiled):
        here, there = found.value.item(), wanted.value.item()
        return f"the loss ({here:.8g} instead of {there:.8g})"

    largest = 0.0
    for gradient in wanted.gradients:
        if gradient is not None and gradient.numel():
            largest = max(largest, float(gradient.abs().max()))

    for name, one, two in zip(names, found.gradients, wanted.gradients, strict=True):
        if (one is None) != (two is None):
            return f"whether {name} has a gradient"
        if one is None or two is None:
            continue
        if not agree(one, two, compiled=compiled, scale=1e-2 * largest):
            return f"the gradient of {name}"
    return None


def agree(found: Tensor, wanted: Tensor, *, compiled: bool, scale: float = 0.0) -> bool:
    """Whether two tensors are equal up to rounding.

    Arguments:
        found, wanted: The tensors.
        compiled: Whether kernels of another kind have computed the first.
        scale: Size of numbers whose rounding errors these may carry.
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if torch.equal(found, wanted):
        return True
    if not wanted.is_floating_point():
        return False

    tolerance = (COMPILED if compiled else CAPTURED).get(wanted.dtype, COARSE)
    size = max(float(wanted.abs().max()), scale)
    apart = (found - wanted).abs()
    both = found.isnan() & wanted.isnan()
    return bool((both | (apart <= tolerance * size)).all())
