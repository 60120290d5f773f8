"""A chain of linear and (leaky) ReLU layers around one point per datum: stages that tangents and cotangents pass.

A linear layer is its weight, shared by the data, shape ``(F', F)``; a ReLU the slopes of its units, ``(B, 1, F)``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["chunks", "pull", "push", "push_basis", "rerun", "run", "take", "without_idle"]

LANES = 16  # single-precision numbers in a CPU's widest vector
CACHE = 2**18  # numbers in an intermediate result of the curvature that a CPU's cache holds: 1 MB in single precision


def run(layers: Sequence[nn.Module], value: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The last hidden layer ``(B, H)`` at z, and the stages up to it."""
    stages: list[Tensor] = []
    for layer in layers[:-1]:
        if isinstance(layer, nn.Linear):
            stages.append(layer.weight)
            value = layer(value)
        elif isinstance(layer, nn.LeakyReLU):
            slope = torch.where(value > 0, value.new_ones(()), value.new_full((), layer.negative_slope))
            stages.append(slope.unsqueeze(-2))
            value = layer(value)
        else:
            value = layer(value)
            stages.append(value.sign().unsqueeze(-2))
    return value, stages


def rerun(layers: Sequence[nn.Module], stages: Sequence[Tensor], value: Tensor) -> Tensor:
    """The last hidden layer ``(B, H)`` at another point of the linear network that the stages are."""
    for layer, stage in zip(layers, stages, strict=False):
        value = layer(value) if isinstance(layer, nn.Linear) else value * stage.squeeze(-2)
    return value


def without_idle(stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """The stages without the units that are off for all data; which of the last layer are kept, None for all.

    They contribute nothing: after a training in which latents were idle for a while that may be most. A GPU keeps them;
    it would have to wait for their number.
    """
    kept: list[Tensor] = []
    on: Tensor | None = None
    for stage in stages:
        if stage.dim() == 2:
            kept.append(take(stage, 1, on))
            on = None
        else:
            if stage.device.type == "cpu" and kept and kept[-1].dim() == 2:
                on = _kept(stage.squeeze(-2).any(0))
                kept[-1] = take(kept[-1], 0, on)
            kept.append(take(stage, 2, on))
    return kept, on


def _kept(used: Tensor) -> Tensor | None:
    """The units in use and so many more that their number is a multiple of LANES, as matrix products like it."""
    number = -(-int(used.sum()) // LANES) * LANES
    return None if number >= len(used) else used.to(torch.uint8).topk(number).indices.sort().values


def take(t: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """Those indices along a dimension; None for all."""
    return t if index is None else t.index_select(dim, index)


def chunks(stages: list[Tensor], z: Tensor, width: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Which data, and their stages, so that tangents of this width in all directions of z fill a CPU's cache."""
    size = max(1, CACHE // max(1, z.shape[-1] * width)) if z.device.type == "cpu" else len(z)
    if all(s.dim() == 2 for s in stages):  # one Jacobian for all data
        size = len(z)
    for start in range(0, len(z), size):
        rows = slice(start, start + size)
        yield rows, [s if s.dim() == 2 else s[rows] for s in stages]


def push(rows: Tensor, stages: list[Tensor]) -> Tensor:
    """Tangents of z, rows ``(..., k, d)``, as tangents of the last hidden layer, ``(B, k, H)``."""
    for stage in stages:
        rows = linear(rows, stage) if stage.dim() == 2 else rows * stage
    return rows


def push_basis(basis: Tensor, stages: list[Tensor]) -> Tensor:
    """:func:`push` of the rows of one matrix ``(d, d)`` for all data; ``(1, d, H)`` if they are the same for all."""
    rows = push(basis, stages)
    return rows if rows.dim() == 3 else rows.unsqueeze(0)


def pull(rows: Tensor, stages: list[Tensor]) -> Tensor:
    """Cotangents ``(B, H)`` of the last hidden layer as cotangents ``(B, d)`` of z."""
    for stage in reversed(stages):
        rows = linear(rows, stage.T) if stage.dim() == 2 else rows * stage.squeeze(-2)
    return rows
