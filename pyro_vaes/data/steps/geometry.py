"""Size, colour and orientation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..types import Size
from .base import Fitted, PixelInfo, Step, floating


@dataclass(frozen=True, eq=False)
class Resize(Step):
    """Bilinear resizing with antialiasing; the aspect ratio is not kept. Integer pixels stay integer.

    Arguments:
        size: The new height and width in pixels; one number means a square.

    Example:
        >>> Resize((4, 6))(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 4, 6])
    """

    size: Size

    def __post_init__(self) -> None:
        if min(self.height_width) < 1:
            raise ValueError(
                f"size is {self.size}, but images have at least one pixel: give resize=(height, width) or one number."
            )

    @property
    def height_width(self) -> tuple[int, int]:
        """The new height and width in pixels."""
        if isinstance(self.size, int):
            return self.size, self.size
        return self.size

    @property
    def space(self) -> str:
        return "resized to {} x {}".format(*self.height_width)

    def transform(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) == self.height_width:
            return x
        y = F.interpolate(x.to(floating(x.dtype)), self.height_width, mode="bilinear", antialias=True)
        return _keep_dtype(y, x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        return self, _averaged(next(iter(chunks)), info)


class Grey(Step):
    r"""Luminance of red, green and blue. Integer pixels stay integer, grey images stay as they are.

    .. math:: y = 0.299 r + 0.587 g + 0.114 b

    References:
        | Recommendation ITU-R BT.601
        | https://www.itu.int/rec/R-REC-BT.601

    Example:
        >>> Grey()(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """

    space: ClassVar[str] = "made grey"

    def transform(self, x: Tensor) -> Tensor:
        if x.shape[-3] == 1:
            return x
        # a fourth channel would be transparency, which luminance leaves out
        weights = (0.299, 0.587, 0.114)
        red, green, blue = (w * x[..., i, :, :].to(floating(x.dtype)) for i, w in enumerate(weights))
        return _keep_dtype((red + green + blue).unsqueeze(-3), x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> Fitted:
        first = next(iter(chunks))
        channels = first.shape[-3]
        if channels not in (1, 3, 4):
            raise ValueError(
                f"Grey got images with {channels} channels, but luminance is defined for red, green and "
                "blue: select or average the channels before loading."
            )
        return self, _averaged(first, info)


class HorizontalFlip(Step):
    """Mirrors each training image left to right with probability 1/2, anew in each epoch; an augmentation.

    In evaluation, where there is no generator, images stay as they are.

    Example:
        >>> x = torch.tensor([[[[0.0, 1.0]]]]).expand(200, 1, 1, 2)
        >>> 60 < HorizontalFlip()(x, torch.Generator().manual_seed(0))[:, 0, 0, 0].sum() < 140
        tensor(True)
    """

    space: ClassVar[str] = "mirrored at random in training"
    log_slope: ClassVar[float] = 0.0

    def __call__(self, x: Tensor, generator: Generator | None = None, rows: Tensor | None = None) -> Tensor:
        if generator is None:
            return x
        mirrored = torch.rand(len(x), 1, 1, 1, device=x.device, generator=generator) < 0.5
        return torch.where(mirrored, x.flip(-1), x)


def _keep_dtype(y: Tensor, x: Tensor) -> Tensor:
    """Back to the dtype of x, rounded to integers: averages of pixels never leave their range."""
    return y if x.is_floating_point() else y.round().to(x.dtype)


def _averaged(x: Tensor, info: PixelInfo) -> PixelInfo:
    """Averages of integer pixels are rounded, so levels remain; averages of float pixels are continuous."""
    return info._replace(levels=None) if x.is_floating_point() else info
