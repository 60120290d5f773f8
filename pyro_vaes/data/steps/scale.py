"""Affine steps: to [0, 1], and minus the mean image."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import Fitted, PixelInfo, Step, constant, floating


@dataclass(frozen=True, eq=False)
class ToUnit(Step):
    r"""Scales integer pixels to [0, 1].

    .. math:: y = (x - l) / (h - l)

    Arguments:
        low: The smallest pixel value that the data can have. Taken from the data set if None.
        high: The largest pixel value that the data can have. Taken from the data set if None.

    Example:
        >>> ToUnit(0, 16)(torch.tensor([[[[0, 8, 16]]]])).flatten().tolist()
        [0.0, 0.5, 1.0]
    """

    space: ClassVar[str] = "scaled to [0, 1]"
    low: float | None = None
    high: float | None = None

    @property
    def _bounds(self) -> tuple[float, float]:
        return (0.0 if self.low is None else self.low, 255.0 if self.high is None else self.high)

    def transform(self, x: Tensor) -> Tensor:
        low, high = self._bounds
        x = x.to(floating(x.dtype))
        return (x - low if low else x) / (high - low)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        low = info.low if self.low is None else self.low
        high = info.high if self.high is None else self.high
        if not high > low:
            raise ValueError(
                f"ToUnit cannot scale from [{low:g}, {high:g}] to [0, 1]: the range is empty. Are all "
                "pixels equal? Give the range that pixels can have with value_range=(low, high)."
            )
        step = replace(self, low=low, high=high)
        least, most = step.transform(torch.tensor(info[:2], dtype=torch.float64)).tolist()
        return step, PixelInfo(least, most, info.levels)

    def inverse(self, y: Tensor) -> Tensor:
        low, high = self._bounds
        return y * (high - low) + low

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        low, high = self._bounds
        return constant(y, -math.log(high - low))


@dataclass(frozen=True, eq=False)
class ToSigned(ToUnit):
    r"""Scales integer pixels to [-1, 1].

    .. math:: y = 2 (x - l) / (h - l) - 1

    Takes the arguments of `ToUnit`.

    Example:
        >>> ToSigned(0, 16)(torch.tensor([[[[0, 8, 16]]]])).flatten().tolist()
        [-1.0, 0.0, 1.0]
    """

    space: ClassVar[str] = "scaled to [-1, 1]"

    def transform(self, x: Tensor) -> Tensor:
        return 2 * super().transform(x) - 1

    def inverse(self, y: Tensor) -> Tensor:
        return super().inverse((y + 1) / 2)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return super().log_abs_det_jacobian(x, y) + constant(y, math.log(2.0))


@dataclass(frozen=True, eq=False)
class MeanCentre(Step):
    r"""Subtracts the mean of the training images, pixel by pixel.

    .. math:: y = x - \frac{1}{N} \sum_n x_n

    Arguments:
        mean: The mean image, with shape `(C, H, W)`. Computed from the training set if None.

    Example:
        >>> MeanCentre(torch.full((1, 1, 2), 0.25))(torch.ones(1, 1, 1, 2)).flatten().tolist()
        [0.75, 0.75]
    """

    space: ClassVar[str] = "minus the mean training image"
    mean: Tensor | None = field(default=None, repr=False)

    @property
    def _fitted(self) -> Tensor:
        if self.mean is None:
            raise ValueError(
                "MeanCentre has no mean yet: give MeanCentre(mean=...) of shape (C, H, W), or pass the "
                "step to load_data(..., preprocess=) or ImageData.preprocess(), which compute it from the "
                "training images."
            )
        return self.mean

    def transform(self, x: Tensor) -> Tensor:
        return x - self._fitted

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        mean = self.mean
        if mean is None:
            total, count = torch.zeros((), dtype=torch.float64), 0
            for chunk in chunks:
                total, count = total + chunk.double().sum(0), count + len(chunk)
            mean = (total / count).to(torch.get_default_dtype())
        low, high = info.low - float(mean.max()), info.high - float(mean.min())
        return replace(self, mean=mean), PixelInfo(low, high, None)

    def inverse(self, y: Tensor) -> Tensor:
        return y + self._fitted

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return constant(y, 0.0)

    def to(self, device: torch.device | str) -> Step:
        return self if self.mean is None else replace(self, mean=self.mean.to(device))
