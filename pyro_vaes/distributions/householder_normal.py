r"""The normal that Householder reflections turn: a full covariance from a diagonal one and a few vectors."""

import math
from typing import cast

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

__all__ = ["HouseholderNormal"]


class HouseholderNormal(TorchDistribution):
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
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, vectors: Tensor, validate_args: bool | None = None) -> None:
        if vectors.dim() < 2 or not loc.shape[-1:] == scale.shape[-1:] == vectors.shape[-1:]:
            raise ValueError(
                f"loc and scale have shape (..., d) and vectors (..., K, d), but got {tuple(loc.shape)}, "
                f"{tuple(scale.shape)} and {tuple(vectors.shape)}; for a single vector use vectors.unsqueeze(-2)?"
            )
        batch_shape = torch.Size(broadcast_shape(loc.shape[:-1], scale.shape[:-1], vectors.shape[:-2]))
        event_shape = loc.shape[-1:]
        self.loc = loc.expand(batch_shape + event_shape)
        self.scale = scale.expand(batch_shape + event_shape)
        self.vectors = vectors.expand(batch_shape + vectors.shape[-2:])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @staticmethod
    def infer_shapes(loc: torch.Size, scale: torch.Size, vectors: torch.Size) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape from the shapes of the arguments."""
        return torch.Size(broadcast_shape(loc[:-1], scale[:-1], vectors[:-2])), torch.Size(loc[-1:])

    def expand(self, batch_shape: torch.Size, _instance: "HouseholderNormal | None" = None) -> "HouseholderNormal":
        new = cast(HouseholderNormal, self._get_checked_instance(HouseholderNormal, _instance))
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.scale = self.scale.expand(batch_shape + self.event_shape)
        new.vectors = self.vectors.expand(batch_shape + self.vectors.shape[-2:])
        super(HouseholderNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        eps = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return _reflect(self.loc + self.scale * eps, self.vectors.unbind(-2))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        before = _reflect(value, self.vectors.unbind(-2)[::-1])  # Hᵀ z: each reflection is its own inverse
        whitened = (before - self.loc) / self.scale
        d = self.event_shape[0]
        return -self.scale.log().sum(-1) - 0.5 * (d * math.log(2 * math.pi) + whitened.square().sum(-1))

    def entropy(self) -> Tensor:
        return 0.5 * self.event_shape[0] * (1 + math.log(2 * math.pi)) + self.scale.log().sum(-1)

    @property
    def mean(self) -> Tensor:
        return _reflect(self.loc, self.vectors.unbind(-2))

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def variance(self) -> Tensor:
        return self._axes().square().sum(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """H diag(scale²) Hᵀ, with shape ``(..., d, d)``."""
        axes = self._axes()
        return axes.mT @ axes

    def _axes(self) -> Tensor:
        """diag(scale) Hᵀ: the principal axes as rows, with shape ``(..., d, d)``."""
        return _reflect(torch.diag_embed(self.scale), self.vectors.unsqueeze(-3).unbind(-2))


def _reflect(rows: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """Reflect the vectors in the last dimension of ``rows`` along one v after the other."""
    for v in vectors:
        square = v.square().sum(-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        rows = rows - 2 * ((rows * v).sum(-1, keepdim=True) / square) * v
    return rows


@register_kl(HouseholderNormal, Independent)
def _kl_diagonal_normal(p: HouseholderNormal, q: Independent) -> Tensor:
    """-H(p) - E_p[log q], where E_p[log q] falls short of log q(E[z]) by half the ratio of the variances."""
    if not isinstance(q.base_dist, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"No closed-form KL from a HouseholderNormal to {q} is known; estimate it from draws."
        )
    return 0.5 * (p.variance / q.variance).sum(-1) - q.log_prob(p.mean) - p.entropy()
