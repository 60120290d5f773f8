"""Likelihoods of pixels in [0, 1]: Bernoulli for black and white, continuous Bernoulli for grey."""

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vaes.distributions import Bernoulli, ContinuousBernoulli

from .base import Likelihood


class UnitLikelihood(Likelihood):
    """A likelihood of floating-point numbers in [0, 1]."""

    limits = (0.0, 1.0)

    def _hint(self, value: Tensor) -> str | None:
        if not value.is_floating_point():
            cure = "scale them to [0, 1] with x.float() / 255" if value.max() > 1 else "convert them with x.float()"
            return f"the data have dtype {value.dtype}, floating-point values are wanted; {cure}."

        low, high = value.min().item(), value.max().item()
        if low >= 0 and high <= 1:
            return None
        cure = "use GaussianLikelihood for real-valued data, or undo the centring"
        if low >= 0 and high > 2:
            cure = "divide by 255"
        return f"the data lie in [{low:.4g}, {high:.4g}] rather than in [0, 1]; {cure}?"


class BernoulliLikelihood(UnitLikelihood):
    """x ~ Bernoulli(sigmoid(logits)), for pixels 0 or 1; the decoder returns the logits.

    Arguments:
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Example:
        >>> import torch
        >>> likelihood = BernoulliLikelihood()
        >>> likelihood(torch.zeros(5, 784)).mean.shape
        torch.Size([5, 784])
        >>> likelihood.hint(torch.full((1, 784), 0.5))[:53]
        'the data hold values other than 0 and 1 (grey pixels:'
    """

    def _values(self, params: Tensor) -> TorchDistribution:
        return Bernoulli(logits=params)

    def _hint(self, value: Tensor) -> str | None:
        hint = super()._hint(value)
        grey = (value != 0) & (value != 1)
        if hint or not grey.any():
            return hint
        return (
            f"the data hold values other than 0 and 1 (grey pixels: {grey.float().mean().item():.1%}), "
            "which a Bernoulli cannot score; use dynamic binarisation (data.Binarize) or "
            "ContinuousBernoulliLikelihood."
        )


class ContinuousBernoulliLikelihood(UnitLikelihood):
    """x ~ ContinuousBernoulli(logits), a density on [0, 1] for grey pixels; the decoder returns the logits.

    Arguments:
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    References:
        | The continuous Bernoulli: fixing a pervasive error in variational autoencoders
          (Loaiza-Ganem and Cunningham, 2019)
        | https://arxiv.org/abs/1907.06845

    Example:
        >>> import torch
        >>> ContinuousBernoulliLikelihood()(torch.zeros(5, 784)).event_shape
        torch.Size([784])
    """

    def _values(self, params: Tensor) -> TorchDistribution:
        return ContinuousBernoulli(logits=params)
