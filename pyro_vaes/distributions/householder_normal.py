r"""The normal that Householder reflections turn: a full covariance from a diagonal one and a few vectors."""

import torch
from torch import Tensor
from torch.distributions import constraints

from .factored_normal import FactoredNormal


class HouseholderNormal(FactoredNormal):
    r"""A diagonal normal after K reflections, N(H loc, H diag(scale²) Hᵀ).

    .. math::
        z = H (\mu + \sigma \odot \epsilon), \qquad H = H_K \cdots H_1, \qquad
        H_k = I - 2 \frac{v_k v_k^\top}{\lVert v_k \rVert^2}, \qquad \log q(z) = \log q_0(H^\top z)

    H is orthogonal, so the density of any z is as cheap as that of a draw. H is never formed: a reflection is a dot
    product.

    Arguments:
        loc: Mean before the reflections, with shape ``(..., d)``.
        scale: Standard deviations before the reflections, positive, with shape ``(..., d)``.
        vectors: v_1, .., v_K with shape ``(..., K, d)``; a zero vector reflects nothing. K may be 0.

    Raises:
        ValueError: The shapes do not fit together.

    References:
        | Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016)
        | https://arxiv.org/abs/1611.09630

    Example:
        >>> q = HouseholderNormal(torch.zeros(5, 2), torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 1.0]]))
        >>> q.covariance_matrix[0]  # this vector swaps the axes
        tensor([[9., 0.],
                [0., 1.]])
        >>> q.rsample((3,)).shape
        torch.Size([3, 5, 2])
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "vectors": constraints.independent(constraints.real, 2),
    }
    scale: Tensor
    vectors: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, vectors: Tensor, validate_args: bool | None = None) -> None:
        if vectors.dim() < 2 or not loc.shape[-1:] == scale.shape[-1:] == vectors.shape[-1:]:
            raise ValueError(
                f"loc and scale have shape (..., d) and vectors (..., K, d), but got {tuple(loc.shape)}, "
                f"{tuple(scale.shape)} and {tuple(vectors.shape)}; for a single vector use vectors.unsqueeze(-2)?"
            )
        super().__init__(loc=loc, scale=scale, vectors=vectors, validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return _reflect(self.loc + self.scale * self._noise(sample_shape), self.vectors.unbind(-2))

    @property
    def mean(self) -> Tensor:
        return _reflect(self.loc, self.vectors.unbind(-2))

    def _whiten(self, value: Tensor) -> Tensor:
        before = _reflect(value, self.vectors.unbind(-2)[::-1])  # Hᵀ z: each reflection is its own inverse
        return (before - self.loc) / self.scale

    def _half_log_det(self) -> Tensor:
        return -self.scale.log().sum(-1)

    def _inverse_factor(self) -> Tensor:
        """diag(scale) Hᵀ: the principal axes as rows, with shape ``(..., d, d)``."""
        return _reflect(torch.diag_embed(self.scale), self.vectors.unsqueeze(-3).unbind(-2))


def _reflect(rows: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """Reflect the vectors in the last dimension of ``rows`` along one v after the other."""
    for v in vectors:
        square = v.square().sum(-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        rows = rows - 2 * ((rows * v).sum(-1, keepdim=True) / square) * v
    return rows
