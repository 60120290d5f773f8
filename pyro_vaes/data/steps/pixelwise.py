"""Smooth maps of each pixel: to [0, 1], minus the mean image, from [0, 1] to the real line."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Fitted, PixelInfo, Step, floating, want_unit


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

    def _bounds(self, low: float = 0.0, high: float = 255.0) -> tuple[float, float]:
        """The bounds given, and these in place of those not given."""
        return (
            low if self.low is None else self.low,
            high if self.high is None else self.high,
        )

    @property
    def log_slope(self) -> float:
        low, high = self._bounds()
        return -math.log(high - low)

    def transform(self, x: Tensor) -> Tensor:
        low, high = self._bounds()
        x = x.to(floating(x.dtype))
        return (x - low if low else x) / (high - low)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        low, high = self._bounds(info.low, info.high)
        if not high > low:
            raise ValueError(
                f"ToUnit cannot scale from [{low:g}, {high:g}] to [0, 1]: the range is "
                "empty. Are all pixels equal? Give the range that pixels can have with "
                "value_range=(low, high)."
            )
        step = replace(self, low=low, high=high)
        ends = torch.tensor(info[:2], dtype=torch.float64)
        least, most = step.transform(ends).tolist()
        return step, PixelInfo(least, most, info.levels)

    def inverse(self, y: Tensor) -> Tensor:
        low, high = self._bounds()
        return y * (high - low) + low


class ToSigned(ToUnit):
    r"""Scales integer pixels to [-1, 1].

    .. math:: y = 2 (x - l) / (h - l) - 1

    Takes the arguments of `ToUnit`.

    Example:
        >>> ToSigned(0, 16)(torch.tensor([[[[0, 8, 16]]]])).flatten().tolist()
        [-1.0, 0.0, 1.0]
    """

    space: ClassVar[str] = "scaled to [-1, 1]"

    @property
    def log_slope(self) -> float:
        return super().log_slope + math.log(2.0)

    def transform(self, x: Tensor) -> Tensor:
        return 2 * super().transform(x) - 1

    def inverse(self, y: Tensor) -> Tensor:
        return super().inverse((y + 1) / 2)


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
    log_slope: ClassVar[float] = 0.0
    mean: Tensor | None = field(default=None, repr=False)

    @property
    def _fitted(self) -> Tensor:
        if self.mean is None:
            raise ValueError(
                "MeanCentre has no mean yet: give MeanCentre(mean=...) of shape "
                "(C, H, W), or pass the step to load_data(..., preprocess=) or "
                "ImageData.preprocess(), which compute it from the training images."
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

    def to(self, device: torch.device | str) -> Step:
        return self if self.mean is None else replace(self, mean=self.mean.to(device))


@dataclass(frozen=True, eq=False)
class Logit(Step):
    r"""The logit transform, from [0, 1] to the real line.

    .. math:: y = \mathrm{logit}(\lambda + (1 - 2 \lambda) x)

    Arguments:
        lam: The margin :math:`\lambda` that keeps 0 and 1 finite, in (0, 0.5). RealNVP and MAF use 1e-6 for
            MNIST and 0.05 for CIFAR-10.

    References:
        | Density estimation using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Example:
        >>> Logit(0.05)(torch.tensor([[[[0.5]]]])).item()
        0.0
    """

    lam: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.lam < 0.5:
            raise ValueError(
                f"lam is {self.lam:g}, but it is a margin in (0, 0.5) that keeps the "
                "logits of 0 and 1 finite: 0.05 is usual for colour images, 1e-6 for "
                "MNIST."
            )

    @property
    def space(self) -> str:
        return f"logit-transformed (lam = {self.lam:g})"

    def transform(self, x: Tensor) -> Tensor:
        return torch.logit(self.lam + (1 - 2 * self.lam) * x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        ends = torch.tensor(info[:2], dtype=torch.float64)
        low, high = self.transform(ends).tolist()
        return self, PixelInfo(low, high, None)

    def inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.lam) / (1 - 2 * self.lam)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # d logit(p) / dp = 1 / (p (1 - p)), and -log(p (1 - p)) = softplus(y) + softplus(-y) without
        # cancellation
        per_pixel = F.softplus(y) + F.softplus(-y) + math.log1p(-2 * self.lam)
        return per_pixel.flatten(1).sum(-1)
