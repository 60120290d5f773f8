r"""A chain of linear and (leaky) ReLU layers, and the linear network that it is around one point per datum.

    h(z') = M₂ (V₂ M₁ (V₁ z' + a₁) + a₂)

with the slopes M of the units at that point. The order of its dimensions tells what a part is: a weight V, shared by
the data, has shape ``(F', F)``, a bias a ``(F',)``, and slopes M ``(B, 1, F)``.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_vaes.ops import is_capturing

LANES = 16  # single-precision numbers in a CPU's widest vector
CACHE = 2**18  # numbers in an intermediate result of the curvature that a CPU's cache holds: 1 MB in single precision


class LinearRegion(NamedTuple):
    """The linear network up to the last hidden layer, which tangents and cotangents pass.

    Arguments:
        parts: Its weights, biases and slopes, in the order in which they are applied.
    """

    parts: Sequence[Tensor]

    def __call__(self, value: Tensor) -> Tensor:
        """The last hidden layer ``(B, H)`` at another point."""
        return self.push(value.unsqueeze(-2), biases=True).squeeze(-2)

    def push(self, rows: Tensor, *, biases: bool = False) -> Tensor:
        """Tangents of z, rows ``(..., k, d)``, as tangents of the last hidden layer, ``(B, k, H)``.

        With biases, points rather than tangents.
        """
        for part in self.parts:
            if part.dim() == 2:
                rows = linear(rows, part)
            elif part.dim() > 2:
                rows = rows * part
            elif biases:
                rows = rows + part
        return rows

    def pull(self, cotangents: Tensor) -> Tensor:
        """Cotangents ``(B, H)`` of the last hidden layer as cotangents ``(B, d)`` of z."""
        for part in reversed(self.parts):
            if part.dim() == 2:
                cotangents = cotangents @ part
            elif part.dim() > 2:
                cotangents = cotangents * part.squeeze(-2)
        return cotangents

    def push_all(self, z: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
        """Which data, and their tangents of all directions of z at the last hidden layer, ``(b, d, H)``.

        There are so many data in each part that tangents of this width fill a CPU's cache. Where one Jacobian holds for
        all data, it comes once, with b = 1.
        """
        basis = z.new_ones(z.shape[-1]).diag()
        size = len(z)
        if z.device.type == "cpu" and any(part.dim() == 3 for part in self.parts):
            size = max(1, CACHE // max(1, z.shape[-1] * width))

        for start in range(0, len(z), size):
            rows = slice(start, start + size)
            here = LinearRegion([part[rows] if part.dim() == 3 else part for part in self.parts])
            yield rows, here.push(basis.unsqueeze(0))

    def without_idle_units(self) -> tuple["LinearRegion", Tensor | None]:
        """The weights and slopes of the units that are on for any datum; which of the last layer these are.

        The others contribute nothing: after a training in which latents were idle for a while that may be most. A GPU
        keeps them; it would have to wait for their number. So do graphs, whose sizes are fixed.
        """
        kept: list[Tensor] = []
        looks = not is_capturing()
        used: Tensor | None = None  # the units of the layer that the parts so far lead to; None for all

        for part in self.parts:
            if part.dim() == 2:
                kept.append(select(part, 1, used))
                used = None
            elif part.dim() == 3:
                if looks and part.device.type == "cpu" and kept and kept[-1].dim() == 2:
                    used = used_units(part.squeeze(-2).any(0))
                    kept[-1] = select(kept[-1], 0, used)
                kept.append(select(part, 2, used))

        return LinearRegion(kept), used


def used_units(on: Tensor) -> Tensor | None:
    """The units that are on, and so many more that their number is a multiple of LANES, as matrix products like it."""
    number = -(-int(on.sum()) // LANES) * LANES
    return None if number >= len(on) else on.to(torch.uint8).topk(number).indices.sort().values


def select(t: Tensor, dim: int, index: Tensor | None) -> Tensor:
    """Those indices along a dimension; None for all."""
    return t if index is None else t.index_select(dim, index)
