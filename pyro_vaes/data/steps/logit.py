"""From [0, 1] to the real line."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Fitted, PixelInfo, Step, want_unit


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
                f"lam is {self.lam:g}, but it is a margin in (0, 0.5) that keeps the logits of 0 and 1 "
                "finite: 0.05 is usual for colour images, 1e-6 for MNIST."
            )

    @property
    def space(self) -> str:
        return f"logit-transformed (lam = {self.lam:g})"

    def transform(self, x: Tensor) -> Tensor:
        return torch.logit(self.lam + (1 - 2 * self.lam) * x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        low, high = self(torch.tensor([info.low, info.high], dtype=torch.float64)).tolist()
        return self, PixelInfo(low, high, None)

    def inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.lam) / (1 - 2 * self.lam)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # d logit(p) / dp = 1 / (p (1 - p)), and -log(p (1 - p)) = softplus(y) + softplus(-y) without
        # cancellation
        per_pixel = F.softplus(y) + F.softplus(-y) + math.log1p(-2 * self.lam)
        return per_pixel.flatten(1).sum(-1)
