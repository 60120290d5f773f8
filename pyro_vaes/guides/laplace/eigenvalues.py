"""Symmetric matrices made positive semi-definite, with a gradient that holds where eigenvalues repeat."""

import torch
from torch import Tensor

from pyro_vaes.ops import GradientContext


class FloorEigenvalues(torch.autograd.Function):
    """V max(l, 0) Vᵀ of symmetric matrices V l Vᵀ, with the derivative of Daleckii and Krein.

    These are the nearest positive semi-definite matrices; the eigenvalues l come with them, in ascending order.
    Autograd through ``eigh`` divides by differences of eigenvalues, which vanish where several sites have none.

    Arguments:
        matrix: Symmetric, with shape ``(..., d, d)``.

    Example:
        >>> FloorEigenvalues.apply(torch.diag(torch.tensor([2.0, -1.0])))[0].diagonal()
        tensor([2., 0.])
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
