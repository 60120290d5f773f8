"""Likelihoods of values with finitely many levels: categorical, and mixtures of discretised logistics."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vaes.distributions import DiscretizedLogisticMixture, IntegerCategorical, grid

from .base import Likelihood, soft_clamp
from .unit import UnitLikelihood


class CategoricalLikelihood(Likelihood):
    """x ~ Categorical(softmax(logits)) over the whole numbers 0, ..., K-1; the decoder returns K logits per
    value.

    Arguments:
        num_classes: Number K of classes, at least 2; ``num_params`` is K.
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Raises:
        ValueError: ``num_classes`` is below 2.

    Example:
        >>> import torch
        >>> CategoricalLikelihood(4, event_dim=3)(torch.zeros(5, 4 * 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, num_classes: int, *, event_dim: int = 1) -> None:
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be a whole number of at least 2, but got {num_classes!r}.")
        super().__init__(event_dim=event_dim)
        self.num_classes = self.num_params = num_classes
        self.limits = 0.0, num_classes - 1.0

    def _values(self, params: Tensor) -> TorchDistribution:
        return IntegerCategorical(logits=params)

    def _hint(self, value: Tensor) -> str | None:
        low, high = value.min().item(), value.max().item()
        if low < 0 or high > self.num_classes - 1:
            return (
                f"the data run from {low:.4g} to {high:.4g}, but the classes are 0, ..., "
                f"{self.num_classes - 1}; relabel the data from 0, or give CategoricalLikelihood more "
                "classes (and the decoder more outputs)."
            )

        if value.is_floating_point() and (value != value.round()).any():
            return (
                f"classes are whole numbers 0, ..., {self.num_classes - 1}, but the data hold others; "
                f"quantise first, for example with (x * {self.num_classes - 1}).round() for pixels in [0, 1]."
            )
        return None


class DiscretizedLogisticMixtureLikelihood(UnitLikelihood):
    """x ~ a mixture of K discretised logistics per value, for pixels with L levels scaled to {0, 1/(L-1),
    ..., 1}.

    The decoder returns K logits, then K locations m, then K log scales s per value (``num_params`` 3K), in
    the paper's units, in which pixels lie in [-1, 1]: loc = (1 + m) / 2 and scale = exp(s) / 2 with s softly
    bounded to [-7, 7]. The channels of a pixel are independent given z (the paper lets them depend on each
    other linearly).

    Arguments:
        num_components: Number K of components, at least 1.
        num_levels: Number L of levels, 256 for 8-bit images.
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Raises:
        ValueError: ``num_components`` is below 1 or ``num_levels`` below 2.

    References:
        | PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
        Modifications
          (Salimans et al., 2017)
        | https://arxiv.org/abs/1701.05517

    Example:
        >>> likelihood = DiscretizedLogisticMixtureLikelihood(5, event_dim=3)
        >>> likelihood(torch.randn(2, 15 * 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    def __init__(self, num_components: int, num_levels: int = 256, *, event_dim: int = 1) -> None:
        if not isinstance(num_components, int) or num_components < 1:
            raise ValueError(f"num_components must be a whole number of at least 1, but got {num_components!r}.")
        if not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(f"num_levels must be a whole number of at least 2, but got {num_levels!r}.")
        super().__init__(event_dim=event_dim)
        self.num_components, self.num_levels = num_components, num_levels
        self.num_params = 3 * num_components

    def _values(self, params: Tensor) -> TorchDistribution:
        logits, loc, log_scale = params.chunk(3, -1)  # (..., *event_shape, K) each
        scale = torch.exp(soft_clamp(log_scale, -7.0, 7.0)) / 2
        return DiscretizedLogisticMixture(logits, (1 + loc) / 2, scale, self.num_levels)

    def _hint(self, value: Tensor) -> str | None:
        hint = super()._hint(value)
        if hint:
            return hint

        off = ~grid(self.num_levels).check(value)
        if not off.any():
            return None
        return (
            f"{off.float().mean().item():.1%} of the values are not on the grid 0, 1/{self.num_levels - 1}, "
            f"..., 1; quantise with (x * {self.num_levels - 1}).round() / {self.num_levels - 1}, leave out "
            "dequantisation, or use num_levels as the data have it."
        )
