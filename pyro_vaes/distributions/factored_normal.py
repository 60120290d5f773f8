"""Normals with a full covariance, of which a factor of the precision is at hand."""

import abc
import math

import torch
from torch import Tensor
from torch.distributions import Independent
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
        return self._half_log_det() - 0.5 * (self.event_shape[0] * math.log(2 * math.pi) + square)

    def entropy(self) -> Tensor:
        return 0.5 * self.event_shape[0] * (1 + math.log(2 * math.pi)) - self._half_log_det()

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
