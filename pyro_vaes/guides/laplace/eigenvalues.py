"""Symmetric matrices made positive semi-definite, with a gradient that holds where eigenvalues repeat."""

import torch
from torch import Tensor

__all__ = ["floor_eigenvalues"]


class _FloorEigenvalues(torch.autograd.Function):
    """V max(l, 0) Vᵀ of symmetric matrices V l Vᵀ, with the derivative of Daleckii and Krein.

    Autograd through ``eigh`` divides by differences of eigenvalues, which vanish where several sites have none.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT, values

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor, _: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors  # type: ignore[attr-defined]
        floored = values.clamp(min=0)
        gap = values.unsqueeze(-1) - values.unsqueeze(-2)
        same = gap == 0
        ratio = (floored.unsqueeze(-1) - floored.unsqueeze(-2)) / torch.where(same, torch.ones_like(gap), gap)
        ratio = torch.where(same, (values > 0).to(gap.dtype).unsqueeze(-1).expand_as(gap), ratio)
        return vectors @ (ratio * (vectors.mT @ gradient @ vectors)) @ vectors.mT


def floor_eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest positive semi-definite matrices to symmetric ones, and their lowest and highest eigenvalues.

    Arguments:
        matrix: Symmetric, with shape ``(..., d, d)``.

    Example:
        >>> floor_eigenvalues(torch.diag(torch.tensor([2.0, -1.0])))[0].diagonal()
        tensor([2., 0.])
    """
    floored, values = _FloorEigenvalues.apply(matrix)
    return floored, values[..., 0], values[..., -1]
