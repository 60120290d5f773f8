r"""A residual encoder without batch normalisation, as the mutual-posterior-divergence paper's.

    h <- act(skip(h) + conv(act(conv(h))))    for each entry of channels; the first convolution has stride 2
    features = act(conv(h))                   with a kernel as large as what is left of the image

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .mlp import Activation
from .shapes import ImageShape


class _Block(nn.Module):
    """Halves height and width, rounding up; 3 × 3 kernels, and 1 × 1 beside."""

    def __init__(self, below: int, above: int, activation: Activation) -> None:
        super().__init__()
        self.body = nn.Sequential(
            weight_norm(nn.Conv2d(below, above, 3, stride=2, padding=1)),
            activation(),
            weight_norm(nn.Conv2d(above, above, 3, padding=1)),
        )
        self.skip = weight_norm(nn.Conv2d(below, above, 1, stride=2))
        self.activation = activation()

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(self.skip(h) + self.body(h))


class ResidualEncoder(nn.Sequential):
    """Residual blocks with stride 2, and a convolution over all that is left: ``(B, C, H, W)`` to ``(B, F)``.

    All convolutions are weight-normalised.

    Arguments:
        image_shape: (C, H, W).
        channels: Channels behind each block; the paper's network for 28 x 28 pixels has 32, 64, 64.
        out_features: Number F of features; the paper has 512.
        activation: Constructor of the activation.

    Example:
        >>> import torch
        >>> ResidualEncoder((1, 28, 28), [32, 64, 64], 512)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 512])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        channels: Sequence[int],
        out_features: int,
        *,
        activation: Activation = nn.ELU,
    ) -> None:
        widths = [image_shape[0], *channels]
        left = tuple(math.ceil(n / 2 ** len(channels)) for n in image_shape[1:])
        super().__init__(
            *(_Block(below, above, activation) for below, above in zip(widths, channels, strict=False)),
            weight_norm(nn.Conv2d(widths[-1], out_features, left)),
            activation(),
            nn.Flatten(),
        )
