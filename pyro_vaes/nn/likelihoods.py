"""Likelihoods p(x | z) as modules: they turn what the decoder returns into a distribution of x.

All read the decoder's output alike, look at data before it is scored, and keep positive parameters above a floor.
"""

import abc
import math
from collections.abc import Sequence

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vaes.distributions import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    IntegerCategorical,
    grid,
)

from .sizes import check_sizes

# of positive parameters: it keeps a density bounded where data are constant
FLOOR = 1e-4

# e^15 = 3.3e6 stays below 2^24, up to which float32 holds every whole number; e^-15 is no count in any data set
LOG_BOUND = 15.0


def soft_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """Keep x within about [low, high]: the identity well inside, and a gradient that never vanishes."""
    return low + softplus(high - softplus(high - x) - low)


class Likelihood(nn.Module, abc.ABC):
    """A module whose forward turns the decoder's output into the distribution of the observation.

    Every observed value needs ``num_params`` (P) numbers from the decoder. With ``event_dim=1`` they come as
    ``(..., P*D)`` and are read as ``(..., P, D)``; with ``event_dim=3`` as ``(..., P*C, H, W)``, read as
    ``(..., P, C, H, W)``. Leading dimensions (particles, batch) are free.

    A subclass defines :meth:`_values`, and sets ``num_params`` unless it is 1.

    Arguments:
        event_dim: Number of right-most dimensions that make up one datum: 1 for vectors, 3 for images.

    Attributes:
        num_params: Numbers P per observed value.
        limits: The smallest and the largest value that can be observed; (-1, 1) where there are none.

    Raises:
        ValueError: ``event_dim`` is below 1.
    """

    num_params = 1
    limits = (-1.0, 1.0)

    def __init__(self, *, event_dim: int = 1) -> None:
        super().__init__()
        if not isinstance(event_dim, int) or event_dim < 1:
            raise ValueError(
                f"event_dim counts the dimensions of one datum, but got {event_dim!r}; "
                "1 for vectors with shape (D,), 3 for images with shape (C, H, W)?"
            )
        self.event_dim = event_dim

    def forward(self, params: Tensor) -> TorchDistribution:
        """The distribution of x, with the right-most ``event_dim`` dimensions as its event."""
        return self._values(self.unpack(params)).to_event(self.event_dim)

    @abc.abstractmethod
    def _values(self, params: Tensor) -> TorchDistribution:
        """The distribution of the single values, from what :meth:`unpack` returns."""

    def hint(self, value: Tensor) -> str | None:
        """Say in one sentence why ``value`` cannot be scored and what to do, or return None where it can be.

        Arguments:
            value: Data, any shape.
        """
        if not value.numel():
            return None
        if value.isnan().any():
            share = value.isnan().float().mean()
            found = f"the data hold NaN ({share:.2%} of the values)"
            return f"{found}; drop or impute the missing values first."
        if value.isinf().any():
            return "the data hold infinite values; drop or clip them first."
        return self._hint(value)

    def _hint(self, value: Tensor) -> str | None:
        """:meth:`hint` for values that are not empty and finite; by default all of them can be scored."""
        return None

    def unpack(self, params: Tensor) -> Tensor:
        """The decoder's output, read as ``(..., *event_shape, P)``; without the last dimension where P is 1."""
        if params.dim() < self.event_dim:
            raise ValueError(
                f"params has shape {tuple(params.shape)}, but "
                f"{type(self).__name__}(event_dim={self.event_dim}) reads the last "
                f"{self.event_dim} dimensions as one datum; add a batch dimension, or "
                "change event_dim?"
            )

        first, width = -self.event_dim, params.shape[-self.event_dim]
        if width % self.num_params:
            axis = "features" if self.event_dim == 1 else "channels"
            raise ValueError(
                f"params has shape {tuple(params.shape)}: {width} {axis} cannot be "
                f"shared out, because {type(self).__name__} takes {self.num_params} "
                f"numbers per observed value; give the decoder {self.num_params} times "
                f"as many outputs as the data have {axis}."
            )

        if self.num_params == 1:
            return params
        return params.unflatten(first, (self.num_params, -1)).movedim(first - 1, -1)

    def extra_repr(self) -> str:
        return f"num_params={self.num_params}, event_dim={self.event_dim}"


class PositiveParameter(nn.Module):
    """A positive number or tensor, ``FLOOR + exp(raw)``, shared by all data: a frozen buffer or a parameter.

    Every value above the floor is reached exactly, so an optimum above it is not displaced.

    Arguments:
        value: Initial value, greater than ``FLOOR``.
        learn: Whether ``raw`` is a parameter.
        shape: () for one number, or a shape that broadcasts to the datum's.
        event_dim: Number of dimensions of the datum.
        name: What the value is called in the error messages.

    Raises:
        ValueError: ``value`` is not greater than ``FLOOR``, or ``shape`` has more dimensions than a datum.
    """

    def __init__(
        self,
        value: float,
        *,
        learn: bool,
        shape: Sequence[int],
        event_dim: int,
        name: str = "scale",
    ) -> None:
        super().__init__()
        if not FLOOR < value < math.inf:
            raise ValueError(
                f"{name} must be a finite number above its floor of {FLOOR:g}, but got "
                f"{value!r}; for data with less spread than that, rescale the data?"
            )

        if len(shape) > event_dim:
            raise ValueError(
                f"shape={tuple(shape)} is the shape of {name} within one datum, but "
                f"has more dimensions than event_dim={event_dim}; pass the datum's "
                "shape, without the batch?"
            )

        self.event_dim, self.name = event_dim, name
        raw = torch.full(tuple(shape), math.log(value - FLOOR))
        self.raw = nn.Parameter(raw) if learn else nn.Buffer(raw)

    def forward(self) -> Tensor:
        return FLOOR + self.raw.exp()

    def expand_as(self, params: Tensor) -> Tensor:
        """The value for each element of ``params``, whose last ``event_dim`` dimensions are one datum."""
        try:
            return self().expand_as(params)
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} has shape {tuple(self.raw.shape)}, but the decoder "
                f"returns data with shape {tuple(params.shape[-self.event_dim :])}, to "
                "which it does not broadcast; pass the data's shape to the likelihood, "
                "or shape=() for one number?"
            ) from error

    def extra_repr(self) -> str:
        learn = isinstance(self.raw, nn.Parameter)
        return f"shape={tuple(self.raw.shape)}, floor={FLOOR:g}, learn={learn}"


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
                "amortize_scale=True takes the scale from the decoder, so learn_scale "
                "and shape have nothing to do; leave them out, or set "
                "amortize_scale=False?"
            )

        self.amortize_scale = amortize_scale
        self.num_params = 2 if amortize_scale else 1
        self._scale = PositiveParameter(
            scale,
            learn=learn_scale,
            shape=shape,
            event_dim=event_dim,
        )

    @property
    def scale(self) -> Tensor:
        """The shared scale; with ``amortize_scale`` the scale at a raw output of 0."""
        return self._scale()

    def _values(self, params: Tensor) -> TorchDistribution:
        if not self.amortize_scale:
            return self.family(params, self._scale.expand_as(params))
        loc, raw = params.unbind(-1)
        factor = soft_clamp(raw, -9.2, 9.2).exp()  # exp(-9.2) = 1e-4, the floor
        return self.family(loc, self._scale.expand_as(loc) * factor)


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


class UnitLikelihood(Likelihood):
    """A likelihood of floating-point numbers in [0, 1]."""

    limits = (0.0, 1.0)

    def _hint(self, value: Tensor) -> str | None:
        if not value.is_floating_point():
            cure = "convert them with x.float()"
            if value.max() > 1:
                cure = "scale them to [0, 1] with x.float() / 255"
            found = f"the data have dtype {value.dtype}"
            return f"{found}, floating-point values are wanted; {cure}."

        low, high = value.aminmax()
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
            "the data hold values other than 0 and 1 (grey pixels: "
            f"{grey.float().mean():.1%}), which a Bernoulli cannot score; use dynamic "
            "binarisation (data.Binarize) or ContinuousBernoulliLikelihood."
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
        check_sizes(self, least=2, num_classes=num_classes)
        super().__init__(event_dim=event_dim)
        self.num_classes = self.num_params = num_classes
        self.limits = 0.0, num_classes - 1.0

    def _values(self, params: Tensor) -> TorchDistribution:
        return IntegerCategorical(logits=params)

    def _hint(self, value: Tensor) -> str | None:
        low, high = value.aminmax()
        if low < 0 or high > self.num_classes - 1:
            return (
                f"the data run from {low:.4g} to {high:.4g}, but the classes are 0, "
                f"..., {self.num_classes - 1}; relabel the data from 0, or give "
                "CategoricalLikelihood more classes (and the decoder more outputs)."
            )

        if (value % 1 != 0).any():
            return (
                f"classes are whole numbers 0, ..., {self.num_classes - 1}, but the "
                "data hold others; quantise first, for example with (x * "
                f"{self.num_classes - 1}).round() for pixels in [0, 1]."
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

    def __init__(
        self,
        num_components: int,
        num_levels: int = 256,
        *,
        event_dim: int = 1,
    ) -> None:
        check_sizes(self, num_components=num_components)
        check_sizes(self, least=2, num_levels=num_levels)
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
            f"{off.float().mean():.1%} of the values are not on the grid 0, "
            f"1/{self.num_levels - 1}, ..., 1; quantise with (x * "
            f"{self.num_levels - 1}).round() / {self.num_levels - 1}, leave out "
            "dequantisation, or use num_levels as the data have it."
        )


class _CountLikelihood(Likelihood):
    def _hint(self, value: Tensor) -> str | None:
        if (value < 0).any():
            return (
                "counts are 0, 1, 2, ..., but the smallest value is "
                f"{value.min():.4g}; use the raw counts rather than centred or "
                "logarithmic ones, or GaussianLikelihood."
            )

        fractional = value % 1 != 0
        if fractional.any():
            return (
                f"counts are whole numbers, but {fractional.float().mean():.1%} of the "
                "values are not; use the raw counts rather than normalised ones, or "
                "GaussianLikelihood."
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
            total_count,
            learn=learn_total_count,
            shape=shape,
            event_dim=event_dim,
            name="total_count",
        )

    @property
    def total_count(self) -> Tensor:
        """The inverse dispersion r."""
        return self._total_count()

    def _values(self, params: Tensor) -> TorchDistribution:
        logits = soft_clamp(params, -LOG_BOUND, LOG_BOUND)
        return dist.NegativeBinomial(self._total_count.expand_as(logits), logits=logits)
