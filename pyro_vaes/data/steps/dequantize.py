"""From integer levels to a density on [0, 1]."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Generator, Tensor

from .base import (
    Fitted,
    PixelInfo,
    Step,
    constant,
    uniform,
    want_unit,
)


@dataclass(frozen=True, eq=False)
class Dequantize(Step):
    r"""Uniform dequantisation: spreads L integer levels over their bins.

    .. math:: y = ((L - 1) x + u) / L, \quad u \sim U[0, 1)

    for x in [0, 1]. By Jensen's inequality the density of y, carried over to bins of width one, is a lower
    bound on the probability of the integer pixels: :math:`\log P(x) \geq E_u \log p(y) - D \log L`.

    Arguments:
        levels: The number L of integer levels, 256 for 8-bit images. Taken from the data set if None.
        seed: The seed of the fixed noise of evaluation.

    References:
        | RNADE: The real-valued neural autoregressive density-estimator (Uria et al., 2013)
        | https://arxiv.org/abs/1306.0186
        | A note on the evaluation of generative models (Theis et al., 2016)
        | https://arxiv.org/abs/1511.01844

    Example:
        >>> import torch
        >>> y = Dequantize(levels=256)(torch.tensor([[[[0.0, 1.0]]]])).flatten()
        >>> bool(0 <= y[0] < 1 / 256 and 255 / 256 <= y[1] < 1)
        True
    """

    levels: int | None = None
    seed: int = 0
    random: ClassVar[bool] = True

    @property
    def space(self) -> str:
        return f"dequantised with uniform noise ({self._levels} levels)"

    @property
    def _levels(self) -> int:
        return 256 if self.levels is None else self.levels

    def __call__(self, x: Tensor, generator: Generator | None = None, rows: Tensor | None = None) -> Tensor:
        u = uniform(x, generator, rows, self.seed, stream=1)
        return ((self._levels - 1) * x + u) / self._levels

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        levels = info.levels if self.levels is None else self.levels
        if levels is None:
            raise ValueError(
                "Dequantize got continuous pixels, but it works on integer levels: leave it out, load "
                "integer images, or say how many levels there are with Dequantize(levels=...)."
            )
        return replace(self, levels=levels), PixelInfo(0.0, 1.0, None)

    def inverse(self, y: Tensor) -> Tensor:
        return (y * self._levels).floor().clamp(0, self._levels - 1) / (self._levels - 1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return constant(y, math.log((self._levels - 1) / self._levels))
