"""What likelihoods share: reading the decoder's output, looking at data, positive parameters with a floor."""

import abc
import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus


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
                f"event_dim counts the dimensions of one datum, but got {event_dim!r}; 1 for vectors with "
                "shape (D,), 3 for images with shape (C, H, W)?"
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
        if value.numel() == 0:
            return None
        if value.is_floating_point():
            if value.isnan().any():
                share = value.isnan().float().mean().item()
                return f"the data hold NaN ({share:.2%} of the values); drop or impute the missing values first."
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
                f"{type(self).__name__}(event_dim={self.event_dim}) reads the last {self.event_dim} "
                "dimensions as one datum; add a batch dimension, or change event_dim?"
            )

        first, width = -self.event_dim, params.shape[-self.event_dim]
        if width % self.num_params:
            axis = "features" if self.event_dim == 1 else "channels"
            raise ValueError(
                f"params has shape {tuple(params.shape)}: {width} {axis} cannot be shared out, because "
                f"{type(self).__name__} takes {self.num_params} numbers per observed value; give the decoder "
                f"{self.num_params} times as many outputs as the data have {axis}."
            )

        if self.num_params == 1:
            return params
        return params.unflatten(first, (self.num_params, -1)).movedim(first - 1, -1)

    def extra_repr(self) -> str:
        return f"num_params={self.num_params}, event_dim={self.event_dim}"


class PositiveParameter(nn.Module):
    """A positive number or tensor, ``floor + exp(raw)``, shared by all data: a frozen buffer or a parameter.

    Every value above the floor is reached exactly, so an optimum above it is not displaced.

    Arguments:
        value: Initial value, greater than ``floor``.
        learn: Whether ``raw`` is a parameter.
        shape: () for one number, or a shape that broadcasts to the datum's.
        event_dim: Number of dimensions of the datum.
        floor: The lower bound, which keeps a density bounded where data are constant.
        name: What the value is called in the error messages.

    Raises:
        ValueError: ``value`` is not greater than ``floor``, or ``shape`` has more dimensions than a datum.
    """

    raw: Tensor

    def __init__(
        self,
        value: float,
        *,
        learn: bool,
        shape: Sequence[int],
        event_dim: int,
        floor: float = 1e-4,
        name: str = "scale",
    ) -> None:
        super().__init__()
        if not floor < value < math.inf:
            raise ValueError(
                f"{name} must be a finite number above its floor of {floor:g}, but got {value!r}; for data "
                "with less spread than that, rescale the data?"
            )

        if len(shape) > event_dim:
            raise ValueError(
                f"shape={tuple(shape)} is the shape of {name} within one datum, but has more dimensions than "
                f"event_dim={event_dim}; pass the datum's shape, without the batch?"
            )

        self.floor, self.event_dim, self.name = floor, event_dim, name
        raw = torch.full(tuple(shape), math.log(value - floor))
        if learn:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw)

    def forward(self) -> Tensor:
        return self.floor + self.raw.exp()

    def expand_as(self, params: Tensor) -> Tensor:
        """The value for each element of ``params``, whose last ``event_dim`` dimensions are one datum."""
        event_shape = params.shape[-self.event_dim :]
        try:
            self.raw.expand(event_shape)
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} has shape {tuple(self.raw.shape)}, but the decoder returns data with shape "
                f"{tuple(event_shape)}, to which it does not broadcast; pass the data's shape to the "
                "likelihood, or shape=() for one number?"
            ) from error
        return self().expand_as(params)

    def extra_repr(self) -> str:
        learn = isinstance(self.raw, nn.Parameter)
        return f"shape={tuple(self.raw.shape)}, floor={self.floor:g}, learn={learn}"
