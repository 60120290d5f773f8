"""Bits from grey values: drawn with the grey values as probabilities, or cut at a threshold."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from .base import Fitted, PixelInfo, Step, floating, uniform, want_unit


@dataclass(frozen=True, eq=False)
class Binarize(Step):
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

    def __call__(self, x: Tensor, generator: Generator | None = None, rows: Tensor | None = None) -> Tensor:
        return uniform(x, generator, rows, self.seed, stream=0).lt_(x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        return self, PixelInfo(0.0, 1.0, 2)


@dataclass(frozen=True, eq=False)
class Threshold(Step):
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
            raise ValueError(
                f"at is {self.at:g}, but pixels in [0, 1] are cut at a threshold in [0, 1): divide by 255 first?"
            )

    @property
    def space(self) -> str:
        return f"binarised at {self.at:g} (probabilities of bits)"

    def transform(self, x: Tensor) -> Tensor:
        return (x > self.at).to(floating(x.dtype))

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        want_unit(self, info)
        return self, PixelInfo(0.0, 1.0, 2)
