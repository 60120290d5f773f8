"""The multivariate normal held by the Cholesky factor of its precision matrix."""

import math
from collections.abc import Callable
from typing import cast

import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

__all__ = ["PrecisionNormal"]


class PrecisionNormal(TorchDistribution):
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

    arg_constraints = {"loc": constraints.real_vector, "chol_precision": constraints.lower_cholesky}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, chol_precision: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or chol_precision.dim() < 2 or chol_precision.shape[-2:] != (*loc.shape[-1:], *loc.shape[-1:]):
            raise ValueError(
                f"loc has shape (..., d) and chol_precision (..., d, d), but got {tuple(loc.shape)} and "
                f"{tuple(chol_precision.shape)}; for a diagonal precision use Normal(...).to_event(1)?"
            )
        batch_shape = broadcast_shape(loc.shape[:-1], chol_precision.shape[:-2])
        event_shape = loc.shape[-1:]
        self.loc = loc.expand(batch_shape + event_shape)
        self.chol_precision = chol_precision.expand(batch_shape + event_shape + event_shape)
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=validate_args)

    @staticmethod
    def infer_shapes(loc: torch.Size, chol_precision: torch.Size) -> tuple[torch.Size, torch.Size]:
        """Batch and event shape from the shapes of the arguments."""
        return torch.Size(broadcast_shape(loc[:-1], chol_precision[:-2])), torch.Size(loc[-1:])

    def expand(self, batch_shape: torch.Size, _instance: "PrecisionNormal | None" = None) -> "PrecisionNormal":
        new = cast(PrecisionNormal, self._get_checked_instance(PrecisionNormal, _instance))
        batch_shape = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.chol_precision = self.chol_precision.expand(batch_shape + self.event_shape + self.event_shape)
        super(PrecisionNormal, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self._by_factor(_solve, eps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        whitened = self._by_factor(torch.matmul, value - self.loc)  # rows (z - mu)ᵀ C
        d = self.event_shape[0]
        return self._half_log_det() - 0.5 * (d * math.log(2 * math.pi) + whitened.square().sum(-1))

    def entropy(self) -> Tensor:
        return 0.5 * self.event_shape[0] * (1 + math.log(2 * math.pi)) - self._half_log_det()

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self._inverse_factor().square().sum(-2)

    @property
    def covariance_matrix(self) -> Tensor:
        """P⁻¹, with shape ``(..., d, d)``."""
        inverse = self._inverse_factor()
        with torch.autocast(inverse.device.type, enabled=False):
            return inverse.mT @ inverse

    @property
    def precision_matrix(self) -> Tensor:
        """P = C Cᵀ, with shape ``(..., d, d)``."""
        with torch.autocast(self.chol_precision.device.type, enabled=False):
            return self.chol_precision @ self.chol_precision.mT

    def _half_log_det(self) -> Tensor:
        return self.chol_precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def _inverse_factor(self) -> Tensor:
        eye = torch.eye(self.event_shape[0], dtype=self.loc.dtype, device=self.loc.device)
        return torch.linalg.solve_triangular(self.chol_precision, eye.expand_as(self.chol_precision), upper=False)

    def _by_factor(self, function: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
        """Apply ``function(rows, C)`` to the rows that share a factor at once, instead of copying the factor to each.

        Leading batch dimensions over which C is merely expanded (stride 0) count as further samples.
        """
        factor, shared = self.chol_precision, 0
        while shared < len(self.batch_shape) and factor.stride(shared) == 0:
            shared += 1
        factor = factor[(0,) * shared]  # (*own batch, d, d)
        rows = rows.expand(broadcast_shape(rows.shape, self.batch_shape + self.event_shape))
        shape = rows.shape
        own = shape[len(shape) - 1 - (factor.dim() - 2) : -1]
        factor = factor.expand(own + factor.shape[-2:])  # a value may broadcast over the batch as well
        rows = rows.reshape(-1, *own, shape[-1]).movedim(0, -2)  # (*own batch, n, d)
        with torch.autocast(rows.device.type, enabled=False):  # Cᵀ (z - mu) cancels
            return function(rows, factor).movedim(-2, 0).reshape(shape)


def _solve(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows epsᵀ C⁻¹ = (C⁻ᵀ eps)ᵀ."""
    return torch.linalg.solve_triangular(factor, rows, upper=False, left=False)


def _kl(p: PrecisionNormal, trace: Tensor, mahalanobis: Tensor, half_log_det: Tensor) -> Tensor:
    """½ (tr Q P⁻¹ + ‖Δ‖²_Q - d) + ½ log |P| - ½ log |Q| for a normal with precision Q."""
    return 0.5 * (trace + mahalanobis - p.event_shape[0]) + p._half_log_det() - half_log_det


@register_kl(PrecisionNormal, PrecisionNormal)
def _kl_precision(p: PrecisionNormal, q: PrecisionNormal) -> Tensor:
    with torch.autocast(p.loc.device.type, enabled=False):
        trace = (p._inverse_factor() @ q.chol_precision).square().sum((-2, -1))
    mahalanobis = q._by_factor(torch.matmul, p.loc - q.loc).square().sum(-1)
    return _kl(p, trace, mahalanobis, q._half_log_det())


@register_kl(PrecisionNormal, torch.distributions.MultivariateNormal)
def _kl_multivariate_normal(p: PrecisionNormal, q: MultivariateNormal) -> Tensor:
    scale_tril = q.scale_tril
    both = torch.cat([p._inverse_factor().mT, (p.loc - q.loc).unsqueeze(-1)], -1)  # (..., d, d + 1)
    whitened = torch.linalg.solve_triangular(scale_tril, both, upper=False).square().sum(-2)
    half_log_det = -scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _kl(p, whitened[..., :-1].sum(-1), whitened[..., -1], half_log_det)


@register_kl(PrecisionNormal, Independent)
def _kl_diagonal_normal(p: PrecisionNormal, q: Independent) -> Tensor:
    base = q.base_dist
    if not isinstance(base, torch.distributions.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"There is no closed-form KL from a PrecisionNormal to {q}; estimate it from draws.")
    normal = cast(Normal, base)
    trace, mahalanobis = p.variance / normal.variance, (p.loc - normal.loc).square() / normal.variance
    return _kl(p, trace.sum(-1), mahalanobis.sum(-1), -normal.scale.log().sum(-1))
