"""The multivariate normal held by the Cholesky factor of its precision matrix."""

from collections.abc import Callable

import torch
from pyro.distributions import MultivariateNormal
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from .factored_normal import FactoredNormal


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

    arg_constraints = {"loc": constraints.real_vector, "chol_precision": constraints.lower_cholesky}
    chol_precision: Tensor

    def __init__(self, loc: Tensor, chol_precision: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or chol_precision.dim() < 2 or chol_precision.shape[-2:] != (*loc.shape[-1:], *loc.shape[-1:]):
            raise ValueError(
                f"loc has shape (..., d) and chol_precision (..., d, d), but got {tuple(loc.shape)} and "
                f"{tuple(chol_precision.shape)}; for a diagonal precision use Normal(...).to_event(1)?"
            )
        super().__init__(loc=loc, chol_precision=chol_precision, validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.loc + self._by_factor(_solve, self._noise(sample_shape))

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
        own = shape[1 - factor.dim() : -1]
        factor = factor.expand(own + factor.shape[-2:])  # a value may broadcast over the batch as well
        rows = rows.reshape(-1, *own, shape[-1]).movedim(0, -2)  # (*own batch, n, d)
        with torch.autocast(rows.device.type, enabled=False):  # Cᵀ (z - mu) cancels
            return function(rows, factor).movedim(-2, 0).reshape(shape)


def _solve(rows: Tensor, factor: Tensor) -> Tensor:
    """Rows epsᵀ C⁻¹ = (C⁻ᵀ eps)ᵀ."""
    return torch.linalg.solve_triangular(factor, rows, upper=False, left=False)


@register_kl(PrecisionNormal, PrecisionNormal)
def _kl_precision(p: PrecisionNormal, q: PrecisionNormal) -> Tensor:
    with torch.autocast(p.loc.device.type, enabled=False):
        trace = (p._inverse_factor() @ q.chol_precision).square().sum((-2, -1))
    mahalanobis = q._by_factor(torch.matmul, p.loc - q.loc).square().sum(-1)
    return p._kl(trace, mahalanobis, q._half_log_det())


@register_kl(PrecisionNormal, torch.distributions.MultivariateNormal)
def _kl_multivariate_normal(p: PrecisionNormal, q: MultivariateNormal) -> Tensor:
    scale_tril = q.scale_tril
    both = torch.cat([p._inverse_factor().mT, (p.loc - q.loc).unsqueeze(-1)], -1)  # (..., d, d + 1)
    whitened = torch.linalg.solve_triangular(scale_tril, both, upper=False).square().sum(-2)
    half_log_det = -scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return p._kl(whitened[..., :-1].sum(-1), whitened[..., -1], half_log_det)
