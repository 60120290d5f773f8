"""Convolutional encoders and decoders for images; any number of leading dimensions (particles, batch)."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .mlp import Activation, concatenate
from .shapes import ImageShape, as_images, over_leading_dims


class ResidualBlock(nn.Module):
    """``x + conv(act(conv(act(x))))`` with 3 × 3 kernels and as many channels out as in (He et al., 2016).

    References:
        | Identity Mappings in Deep Residual Networks (He et al., 2016)
        | https://arxiv.org/abs/1603.05027
    """

    def __init__(self, channels: int, *, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def same_conv(
    in_channels: int, out_channels: int, size: Sequence[int], *, stride: int = 2
) -> tuple[nn.ZeroPad2d, nn.Conv2d]:
    """A 4 × 4 convolution with TensorFlow's padding SAME: it divides an input of this (height, width), rounding up."""
    height, width = (n % 2 if stride == 2 else 1 for n in size)  # the surplus row and column go to the end
    return nn.ZeroPad2d((1, 1 + width, 1, 1 + height)), nn.Conv2d(in_channels, out_channels, 4, stride=stride)


def same_deconv(
    in_channels: int, out_channels: int, size: Sequence[int], *, stride: int = 2
) -> tuple[nn.ConvTranspose2d, nn.ZeroPad2d]:
    """The transpose of :func:`same_conv`, with an output of this (height, width)."""
    # an odd size was rounded up on the way down: cut the surplus row or column again
    height, width = (n % 2 if stride == 2 else 1 for n in size)
    layer = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=stride, padding=1)
    return layer, nn.ZeroPad2d((0, -width, 0, -height))


def _sizes(image_shape: ImageShape, num_layers: int) -> list[tuple[int, int]]:
    """Heights and widths before and after each stride-2 layer."""
    sizes = [image_shape[1:]]
    for _ in range(num_layers):
        height, width = sizes[-1]
        sizes.append((math.ceil(height / 2), math.ceil(width / 2)))
    return sizes


class ConvEncoder(nn.Module):
    """Stride-2 convolutions (4 × 4), residual blocks, and a linear layer: an image to ``out_features`` features.

    Images come as ``(..., C, H, W)`` or flat as ``(..., C*H*W)``; further inputs with shape ``(..., F)`` (labels,
    covariates, latents) join the features in front of the linear layer.

    Arguments:
        image_shape: (C, H, W).
        channels: Number of channels after each stride-2 layer.
        out_features: Width of the features.
        extra_features: Total width of the further inputs.
        num_residual: Residual blocks behind each stride-2 layer.
        activation: Constructor of the activation.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), [16, 32], 64)(torch.zeros(5, 784)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        channels: Sequence[int],
        out_features: int,
        *,
        extra_features: int = 0,
        num_residual: int = 0,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.trunk = nn.Sequential()
        sizes, widths = _sizes(image_shape, len(channels)), [image_shape[0], *channels]
        for size, i, o in zip(sizes, widths, channels, strict=False):
            self.trunk.extend(same_conv(i, o, size))
            self.trunk.extend(ResidualBlock(o, activation=activation) for _ in range(num_residual))
            self.trunk.append(activation())
        features = widths[-1] * math.prod(sizes[-1]) + extra_features
        self.output = nn.Sequential(nn.Linear(features, out_features), activation())

    def forward(self, image: Tensor, *extra: Tensor) -> Tensor:
        maps = over_leading_dims(self.trunk, as_images(image, self.image_shape), 3)
        return self.output(concatenate([maps.flatten(-3), *extra]))


class ConvDecoder(nn.Module):
    """The mirror of :class:`ConvEncoder`: latents ``(..., F)`` (several are concatenated) to images.

    Arguments:
        in_features: Total width of the inputs.
        channels: Channels from the smallest to the largest resolution, one per stride-2 layer.
        image_shape: (C, H, W) of the output, with C the data's channels times the likelihood's ``num_params``.
        num_residual: Residual blocks in front of each stride-2 layer.
        flat: Whether the output is ``(..., C*H*W)`` rather than ``(..., C, H, W)``.
        activation: Constructor of the activation.

    Example:
        >>> import torch
        >>> ConvDecoder(8, [32, 16], (1, 28, 28))(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 1, 28, 28])
    """

    def __init__(
        self,
        in_features: int,
        channels: Sequence[int],
        image_shape: ImageShape,
        *,
        num_residual: int = 0,
        flat: bool = False,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__()
        self.image_shape, self.flat = image_shape, flat
        sizes = _sizes(image_shape, len(channels))[::-1]
        self.start = (channels[0], *sizes[0])
        self.input = nn.Sequential(nn.Linear(in_features, math.prod(self.start)), activation())
        self.trunk = nn.Sequential()
        outputs = [*channels[1:], image_shape[0]]
        for size, i, o in zip(sizes[1:], channels, outputs, strict=True):
            self.trunk.extend(ResidualBlock(i, activation=activation) for _ in range(num_residual))
            self.trunk.extend([*same_deconv(i, o, size), activation()])
        del self.trunk[-1]  # nothing bounds the image

    def forward(self, *inputs: Tensor) -> Tensor:
        maps = self.input(concatenate(inputs)).unflatten(-1, self.start)
        image = over_leading_dims(self.trunk, maps, 3)
        return image.flatten(-3) if self.flat else image
