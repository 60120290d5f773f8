"""Likelihoods of real-valued data: Gaussian and Laplace, with a fixed, learned or amortised scale."""

from collections.abc import Sequence

from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from .base import Likelihood, PositiveParameter, soft_clamp


class _LocationScale(Likelihood):
    """Reads (loc) or (loc, raw scale) and holds the scale; the two classes below say which density it is."""

    family: type[dist.Normal] | type[dist.Laplace]

    def __init__(
        self,
        scale: float = 1.0,
        learn_scale: bool = False,
        *,
        shape: Sequence[int] = (),
        amortize_scale: bool = False,
        event_dim: int = 1,
    ) -> None:
        super().__init__(event_dim=event_dim)
        if amortize_scale and (learn_scale or tuple(shape)):
            raise ValueError(
                "amortize_scale=True takes the scale from the decoder, so learn_scale and shape have "
                "nothing to do; leave them out, or set amortize_scale=False?"
            )
        self.amortize_scale = amortize_scale
        self.num_params = 2 if amortize_scale else 1
        self._scale = PositiveParameter(scale, learn=learn_scale, shape=shape, event_dim=event_dim)

    @property
    def scale(self) -> Tensor:
        """The shared scale; with ``amortize_scale`` the scale at a raw output of 0."""
        return self._scale()

    def _values(self, params: Tensor) -> TorchDistribution:
        if not self.amortize_scale:
            return self.family(params, self._scale.expand_as(params))
        loc, raw = params.unbind(-1)
        # exp(-9.2) = 1e-4, the floor that the shared scale has
        return self.family(loc, self._scale.expand_as(loc) * soft_clamp(raw, -9.2, 9.2).exp())


class GaussianLikelihood(_LocationScale):
    """x ~ N(loc, scale²), with independent values.

    The decoder returns loc (``num_params`` 1), or loc and a raw scale (``num_params`` 2, with
    ``amortize_scale``).

    Arguments:
        scale: Standard deviation, above its floor of 1e-4; the initial one if it is learned or amortised.
        learn_scale: Whether the scale is a parameter (stored as log(scale - floor), so any value above the
            floor is reached exactly) rather than fixed.
        shape: () for one scale; the datum's shape, or one that broadcasts to it, for a scale per feature or
            channel.
        amortize_scale: Whether the decoder returns a scale per value: ``scale * exp(raw)``, with raw softly
            bounded to [-9.2, 9.2] (a factor between 1e-4 and 1e4).
        event_dim: 1 for vectors (..., D), 3 for images (..., C, H, W).

    Raises:
        ValueError: The scale is at or below its floor, or the arguments contradict each other.

    Example:
        >>> import torch
        >>> likelihood = GaussianLikelihood(0.1, learn_scale=True, shape=(64,))
        >>> x = likelihood(torch.zeros(5, 64))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([64]))
    """

    family = dist.Normal


class LaplaceLikelihood(_LocationScale):
    """x ~ Laplace(loc, scale), the double exponential, with independent values; robust to outliers.

    Takes the arguments of :class:`GaussianLikelihood`; ``scale`` is the mean absolute deviation b, and the
    standard deviation is √2 b.

    Example:
        >>> import torch
        >>> LaplaceLikelihood(0.5, event_dim=3)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([1, 8, 8])
    """

    family = dist.Laplace
