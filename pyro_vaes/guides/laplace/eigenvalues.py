"""Symmetric matrices made positive semi-definite, with a gradient that holds where eigenvalues repeat."""

import torch
from torch import Tensor

from pyro_vaes.ops import GradientContext


def floor_eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest positive semi-definite matrices to symmetric ones, and the eigenvalues of these in ascending order.

    Arguments:
        matrix: Symmetric, with shape ``(..., d, d)``.

    Example:
        >>> floor_eigenvalues(torch.diag(torch.tensor([2.0, -1.0])))[0].diagonal()
        tensor([2., 0.])
    """
    floored, eigenvalues = _FloorEigenvalues.apply(matrix)
    return floored, eigenvalues


class _FloorEigenvalues(torch.autograd.Function):
    """V max(l, 0) Vᵀ of symmetric matrices V l Vᵀ, with the derivative of Daleckii and Krein.

    Autograd through ``eigh`` divides by differences of eigenvalues, which vanish where several sites have none.
    """

    @staticmethod
    def forward(ctx: GradientContext, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT, values

    @staticmethod
    def backward(ctx: GradientContext, gradient: Tensor, _: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gap = _differences(values)
        slope = (values > 0).to(gap.dtype).unsqueeze(-1)  # the limit where two eigenvalues meet
        ratio = torch.where(gap == 0, slope, _differences(values.clamp(min=0)) / gap)
        return vectors @ (ratio * (vectors.mT @ gradient @ vectors)) @ vectors.mT


def _differences(values: Tensor) -> Tensor:
    return values.unsqueeze(-1) - values.unsqueeze(-2)
