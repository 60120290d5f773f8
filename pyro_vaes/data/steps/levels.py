"""Between grey levels, bits and densities: binarisation and dequantisation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Generator, Tensor

from .base import Fitted, PixelInfo, Step, floating, uniform, want_unit


class _ToBits(Step):
    """Pixels in [0, 1] to bits."""

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        return self, PixelInfo(0.0, 1.0, 2)


@dataclass(frozen=True, eq=False)
class Binarize(_ToBits):
    r"""Dynamic binarisation: bits drawn with the grey values as probabilities.

    .. math:: y \sim \mathrm{Bernoulli}(x)

    Training sees fresh bits in every pass; evaluation (no generator) sees bits that are fixed for each row.

    Arguments:
        seed: The seed of the fixed bits.

    References:
        | On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008)
        | https://www.cs.toronto.edu/~rsalakhu/papers/dbn_ais.pdf

    Example:
        >>> import torch
        >>> Binarize()(torch.tensor([[[[0.0, 1.0]]]])).flatten().tolist()
        [0.0, 1.0]
    """

    seed: int = 0
    random: ClassVar[bool] = True
    space: ClassVar[str] = "binarised at random (probabilities of bits)"

    def __call__(
        self,
        x: Tensor,
        generator: Generator | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        return uniform(x, generator, rows, self.seed, stream=0).lt_(x)


@dataclass(frozen=True, eq=False)
class Threshold(_ToBits):
    r"""Deterministic binarisation.

    .. math:: y = [x > t]

    Arguments:
        at: The threshold t, in [0, 1).

    Example:
        >>> import torch
        >>> Threshold(at=0.5)(torch.tensor([[[[0.5, 0.6]]]])).flatten().tolist()
        [0.0, 1.0]
    """

    at: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.at < 1:
            wanted = "pixels in [0, 1] are cut at a threshold in [0, 1)"
            raise ValueError(f"at is {self.at:g}, but {wanted}: divide by 255 first?")

    @property
    def space(self) -> str:
        return f"binarised at {self.at:g} (probabilities of bits)"

    def transform(self, x: Tensor) -> Tensor:
        return (x > self.at).to(floating(x.dtype))


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
    def log_slope(self) -> float:
        return math.log((self._levels - 1) / self._levels)

    @property
    def _levels(self) -> int:
        return 256 if self.levels is None else self.levels

    def __call__(
        self,
        x: Tensor,
        generator: Generator | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        u = uniform(x, generator, rows, self.seed, stream=1)
        return ((self._levels - 1) * x + u) / self._levels

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        levels = info.levels if self.levels is None else self.levels
        if levels is None:
            raise ValueError(
                "Dequantize got continuous pixels, but it works on integer levels: "
                "leave it out, load integer images, or say how many levels there are "
                "with Dequantize(levels=...)."
            )
        return replace(self, levels=levels), PixelInfo(0.0, 1.0, None)

    def inverse(self, y: Tensor) -> Tensor:
        highest = self._levels - 1
        return (y * self._levels).floor().clamp(0, highest) / highest
