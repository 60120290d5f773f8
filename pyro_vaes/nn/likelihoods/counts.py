"""Likelihoods of counts: Poisson, and negative binomial where the variance exceeds the mean."""

from collections.abc import Sequence

from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from .base import Likelihood, PositiveParameter, soft_clamp

# e^15 = 3.3e6 stays below 2^24, up to which float32 holds every whole number; e^-15 is no count in any data set
LOG_BOUND = 15.0


class _CountLikelihood(Likelihood):
    def _hint(self, value: Tensor) -> str | None:
        if (value < 0).any():
            return (
                f"counts are 0, 1, 2, ..., but the smallest value is {value.min().item():.4g}; use the raw "
                "counts rather than centred or logarithmic ones, or GaussianLikelihood."
            )

        if value.is_floating_point() and (value != value.round()).any():
            share = (value != value.round()).float().mean().item()
            return (
                f"counts are whole numbers, but {share:.1%} of the values are not; use the raw counts rather "
                "than normalised ones, or GaussianLikelihood."
            )
        return None


class PoissonLikelihood(_CountLikelihood):
    """x ~ Poisson(exp(log_rate)); the decoder returns log rates, softly bounded to [-15, 15].

    Arguments:
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Example:
        >>> import torch
        >>> PoissonLikelihood()(torch.zeros(5, 20)).mean[0, 0]
        tensor(1.)
    """

    def _values(self, params: Tensor) -> TorchDistribution:
        return dist.Poisson(soft_clamp(params, -LOG_BOUND, LOG_BOUND).exp())


class NegativeBinomialLikelihood(_CountLikelihood):
    """x ~ NegativeBinomial(r, logits), with mean m = r e^logits and variance m (1 + e^logits) = m + m²/r.

    The decoder returns the logits, softly bounded to [-15, 15].

    Arguments:
        total_count: Inverse dispersion r, above its floor of 1e-4, not necessarily whole; r to infinity is
            Poisson.
        learn_total_count: Whether r is a parameter (stored as log(r - floor)) rather than fixed.
        shape: () for one r; the datum's shape, or one that broadcasts to it, for an r per feature.
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Raises:
        ValueError: ``total_count`` is at or below its floor, or ``shape`` does not fit ``event_dim``.

    Example:
        >>> import torch
        >>> NegativeBinomialLikelihood(2.0, learn_total_count=False)(torch.zeros(5, 20)).variance[0, 0]
        tensor(4.)
    """

    def __init__(
        self,
        total_count: float = 1.0,
        learn_total_count: bool = True,
        *,
        shape: Sequence[int] = (),
        event_dim: int = 1,
    ) -> None:
        super().__init__(event_dim=event_dim)
        self._total_count = PositiveParameter(
            total_count, learn=learn_total_count, shape=shape, event_dim=event_dim, name="total_count"
        )

    @property
    def total_count(self) -> Tensor:
        """The inverse dispersion r."""
        return self._total_count()

    def _values(self, params: Tensor) -> TorchDistribution:
        logits = soft_clamp(params, -LOG_BOUND, LOG_BOUND)
        return dist.NegativeBinomial(self._total_count.expand_as(logits), logits=logits)
