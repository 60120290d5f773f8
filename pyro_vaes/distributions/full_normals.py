r"""Normals with full covariances, of which a factor of the precision is at hand.

Two hold it in their own way: a normal that Householder reflections turn, a full covariance from a diagonal one and a
few vectors; and one with the Cholesky factor of its precision matrix.
"""

import abc
import math
from collections.abc import Callable

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, linalg
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

from .vector_distribution import VectorDistribution, base_normal


class FactoredNormal(VectorDistribution, abc.ABC):
    r"""A normal whose precision is C Cᵀ, so that Cᵀ (z - E[z]) is standard normal.

    .. math::
        \log q(z) = \log |C| - \tfrac{1}{2} (d \log 2\pi + \lVert C^\top (z - E[z]) \rVert^2), \qquad
        Cov[z] = C^{-\top} C^{-1}
    """

    has_rsample = True

    @abc.abstractmethod
    def _whiten(self, value: Tensor) -> Tensor:
        """Rows (z - E[z])ᵀ C, with shape ``(..., d)``."""

    @abc.abstractmethod
    def _half_log_det(self) -> Tensor:
        """log |C|, half of the precision's log-determinant."""

    @abc.abstractmethod
    def _inverse_factor(self) -> Tensor:
        """C⁻¹, with shape ``(..., d, d)``."""

    def _log_density(self, value: Tensor) -> Tensor:
        square = self._whiten(value).square().sum(-1)
        constant = self.event_shape[0] * math.log(2 * math.pi)
        return self._half_log_det() - 0.5 * (constant + square)

    def entropy(self) -> Tensor:
        constant = 0.5 * self.event_shape[0] * (1 + math.log(2 * math.pi))
        return constant - self._half_log_det()

    @property
    def mode(self) -> Tensor:
        return self.mean

    @property
    def variance(self) -> Tensor:
        return self._inverse_factor().square().sum(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """C⁻ᵀ C⁻¹, with shape ``(..., d, d)``."""
        inverse = self._inverse_factor()
        with torch.autocast(inverse.device.type, enabled=False):
            return inverse.mT @ inverse

    def _kl(self, trace: Tensor, mahalanobis: Tensor, half_log_det: Tensor) -> Tensor:
        """½ (tr Q P⁻¹ + ‖Δ‖²_Q - d) + ½ log |P| - ½ log |Q| from a normal with precision Q."""
        quadratic = 0.5 * (trace + mahalanobis - self.event_shape[0])
        return quadratic + self._half_log_det() - half_log_det


@register_kl(FactoredNormal, Independent)
def _kl_diagonal_normal(p: FactoredNormal, q: Independent) -> Tensor:
    normal = base_normal(p, q)
    trace = p.variance / normal.variance
    mahalanobis = (p.mean - normal.loc).square() / normal.variance
    return p._kl(trace.sum(-1), mahalanobis.sum(-1), -normal.scale.log().sum(-1))


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

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        vectors: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        same = loc.shape[-1:] == scale.shape[-1:] == vectors.shape[-1:]
        if vectors.dim() < 2 or not same:
            raise ValueError(
                "loc and scale have shape (..., d) and vectors (..., K, d), but got "
                f"{tuple(loc.shape)}, {tuple(scale.shape)} and {tuple(vectors.shape)}; "
                "for a single vector use vectors.unsqueeze(-2)?"
            )

        super().__init__(
            loc=loc,
            scale=scale,
            vectors=vectors,
            validate_args=validate_args,
        )

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        before = self.loc + self.scale * self._noise(sample_shape)
        return _reflect(before, self.vectors.unbind(-2))

    @property
    def mean(self) -> Tensor:
        return _reflect(self.loc, self.vectors.unbind(-2))

    def _whiten(self, value: Tensor) -> Tensor:
        # Hᵀ z: each reflection is its own inverse
        before = _reflect(value, self.vectors.unbind(-2)[::-1])
        return (before - self.loc) / self.scale

    def _half_log_det(self) -> Tensor:
        return -self.scale.log().sum(-1)

    def _inverse_factor(self) -> Tensor:
        """diag(scale) Hᵀ: the principal axes as rows, with shape ``(..., d, d)``."""
        axes = torch.diag_embed(self.scale)
        return _reflect(axes, self.vectors.unsqueeze(-3).unbind(-2))


def _reflect(rows: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
    """Reflect the vectors in the last dimension of ``rows`` along one v after the other."""
    for v in vectors:
        square = v.square().sum(-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        rows = rows - 2 * ((rows * v).sum(-1, keepdim=True) / square) * v
    return rows


class PrecisionNormal(FactoredNormal):
    r"""A full-covariance normal N(loc, P⁻¹) with P = C Cᵀ, in which nothing is inverted or factorised again.

    .. math::
        z = \mu + C^{-\top} \epsilon, \qquad
        \log q(z) = -\tfrac{d}{2} \log 2\pi + \sum_i \log C_{ii} - \tfrac{1}{2} \lVert C^\top (z - \mu) \rVert^2

    Samples and densities of one mean use its factor once, however many draws, particles or expanded batch dimensions
    share it.

    Arguments:
        loc: Mean, with shape ``(..., d)``.
        chol_precision: C, lower triangular with a positive diagonal, with shape ``(..., d, d)``.

    Raises:
        ValueError: The shapes do not fit together.

    References:
        | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
        | https://proceedings.mlr.press/v97/park19a.html

    Example:
        >>> precision = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
        >>> q = PrecisionNormal(torch.zeros(5, 2), torch.linalg.cholesky(precision))
        >>> q.batch_shape, q.rsample((3,)).shape
        (torch.Size([5]), torch.Size([3, 5, 2]))
        >>> torch.allclose(q.covariance_matrix[0], precision.inverse())
        True
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "chol_precision": constraints.lower_cholesky,
    }
    chol_precision: Tensor

    def __init__(
        self,
        loc: Tensor,
        chol_precision: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1 or chol_precision.shape[-2:] != loc.shape[-1:] * 2:
            raise ValueError(
                "loc has shape (..., d) and chol_precision (..., d, d), but got "
                f"{tuple(loc.shape)} and {tuple(chol_precision.shape)}; for a diagonal "
                "precision use Normal(...).to_event(1)?"
            )

        super().__init__(
            loc=loc,
            chol_precision=chol_precision,
            validate_args=validate_args,
        )

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.loc + self._by_factor(
            # rows epsᵀ C⁻¹ = (C⁻ᵀ eps)ᵀ
            lambda rows, c: linalg.solve_triangular(c, rows, upper=False, left=False),
            self._noise(sample_shape),
        )

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def precision_matrix(self) -> Tensor:
        """P = C Cᵀ, with shape ``(..., d, d)``."""
        with torch.autocast(self.chol_precision.device.type, enabled=False):
            return self.chol_precision @ self.chol_precision.mT

    def _whiten(self, value: Tensor) -> Tensor:
        return self._by_factor(torch.matmul, value - self.loc)

    def _half_log_det(self) -> Tensor:
        return self.chol_precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _inverse_factor(self) -> Tensor:
        factor = self.chol_precision
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)

    def _by_factor(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        rows: Tensor,
    ) -> Tensor:
        """Apply ``function(rows, C)`` to the rows that share a factor at once, instead of copying the factor to each.

        Leading batch dimensions over which C is merely expanded (stride 0) count as further samples.
        """
        factor, shared = self.chol_precision, 0
        while shared < len(self.batch_shape) and factor.stride(shared) == 0:
            shared += 1
        factor = factor[(0,) * shared]  # (*own batch, d, d)

        shape = torch.broadcast_shapes(rows.shape, self.batch_shape + self.event_shape)
        rows = rows.expand(shape)
        own = shape[1 - factor.dim() : -1]

        # a value may broadcast over the batch as well
        factor = factor.expand(own + factor.shape[-2:])
        rows = rows.reshape(-1, *own, shape[-1]).movedim(0, -2)  # (*own batch, n, d)
        with torch.autocast(rows.device.type, enabled=False):  # Cᵀ (z - mu) cancels
            return function(rows, factor).movedim(-2, 0).reshape(shape)


@register_kl(PrecisionNormal, PrecisionNormal)
def _kl_precision(p: PrecisionNormal, q: PrecisionNormal) -> Tensor:
    with torch.autocast(p.loc.device.type, enabled=False):
        trace = (p._inverse_factor() @ q.chol_precision).square().sum((-2, -1))
    mahalanobis = q._by_factor(torch.matmul, p.loc - q.loc).square().sum(-1)
    return p._kl(trace, mahalanobis, q._half_log_det())


@register_kl(PrecisionNormal, torch.distributions.MultivariateNormal)
def _kl_multivariate_normal(p: PrecisionNormal, q: MultivariateNormal) -> Tensor:
    scale_tril = q.scale_tril
    # the columns of C⁻ᵀ and the difference of the means, (..., d, d + 1)
    both = torch.cat([p._inverse_factor().mT, (p.loc - q.loc).unsqueeze(-1)], -1)
    whitened = linalg.solve_triangular(scale_tril, both, upper=False)
    whitened = whitened.square().sum(-2)
    half_log_det = -scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return p._kl(whitened[..., :-1].sum(-1), whitened[..., -1], half_log_det)
