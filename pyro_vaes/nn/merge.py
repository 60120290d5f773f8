"""Merges of a ladder: modules that put what a rung codes into the features that come from the rungs above.

    gated addition:  t + gate * v(z)          concatenation:  [t; v(z)]

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017), the authors' code
    | https://arxiv.org/abs/1702.08396
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mlp import concatenate


class _Merge(nn.Module):
    """Runs the injecting network and compares shapes."""

    def __init__(self, network: nn.Module, shape: Sequence[int], injected: Sequence[int]) -> None:
        super().__init__()
        self.network, self.shape, self.injected = network, tuple(shape), tuple(injected)

    def _inject(self, above: Tensor, z: Tensor) -> Tensor:
        """v(z)."""
        v = self.network(z)
        for name, tensor, shape in (("comes from above", above, self.shape), ("the network injects", v, self.injected)):
            if tensor.shape[tensor.dim() - len(shape) :] != shape:
                raise ValueError(
                    f"{type(self).__name__}: what {name} has shape {tuple(tensor.shape)}, but {shape} is wanted behind "
                    "the leading dimensions. Does the network in front of the merge return as many features?"
                )
        return v


class GatedAdd(_Merge):
    """``t + gate * v(z)``, with one learned gate per feature, on what is injected and not on the path from above.

    Arguments:
        network: v, ``z -> features`` with shape ``(..., *shape)``.
        shape: Shape of the features of one datum, ``(F,)`` or ``(C, H, W)``.
        gate: Initial value of the gates; the authors' 0.1.

    Attributes:
        out_shape: Shape of the merged features.

    Example:
        >>> GatedAdd(nn.Linear(2, 8), (8,))(torch.zeros(5, 8), torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 8])
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], gate: float = 0.1) -> None:
        super().__init__(network, shape, shape)
        self.gate = nn.Parameter(torch.full(self.shape, float(gate)))
        self.out_shape = self.shape

    def forward(self, above: Tensor, z: Tensor) -> Tensor:
        v = self._inject(above, z)
        return above + self.gate * v


class Concatenate(_Merge):
    """``[t; v(z)]``, along the features or channels.

    Arguments:
        network: v, ``z -> features``.
        shape: Shape of the features from above of one datum, ``(F,)`` or ``(C, H, W)``.
        injected: Number of features or channels that v returns; None for as many as come from above.

    Attributes:
        out_shape: Shape of the merged features.

    Example:
        >>> Concatenate(nn.Identity(), (8,), injected=2)(torch.zeros(5, 8), torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 10])
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], injected: int | None = None) -> None:
        first, *rest = shape
        injected = first if injected is None else injected
        super().__init__(network, shape, (injected, *rest))
        self.out_shape = (first + injected, *rest)

    def forward(self, above: Tensor, z: Tensor) -> Tensor:
        v = self._inject(above, z)
        return concatenate([above, v], dim=-len(self.shape))
