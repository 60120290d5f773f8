r"""The residual networks of the mutual-posterior-divergence paper: an encoder, and a PixelCNN as the decoder.

The encoder, without batch normalisation:

    h <- act(skip(h) + conv(act(conv(h))))    for each entry of channels; the first convolution has stride 2
    features = act(conv(h))                   with a kernel as large as what is left of the image

The PixelCNN, of bottlenecks, with connections that skip two layers:

    h_0 = act(conv_A(x) + conv(F))
    h_l = block_l(h_{l-1} + skip_l(h_{l-3})),    parameters = conv_1x1(act(conv_1x1(h_{L-1} + skip_L(h_{L-3}))))
    block(h) = act(h + conv_1x1(act(conv_B(act(conv_1x1(h))))))    with half as many channels around conv_B

for L layers, the first included; skip_l is a block with the kernel of layer l - 2, and there is none below l = 3.

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm as length_norm

from .causal_conv import POINT, CausalBlock, Reach, causal_conv, stacked_groups
from .mlp import Activation
from .pixel_cnn import PixelCNN
from .shapes import ImageShape


class _Block(nn.Module):
    """Halves height and width, rounding up; 3 × 3 kernels, and 1 × 1 beside."""

    def __init__(self, below: int, above: int, activation: Activation) -> None:
        super().__init__()
        self.body = nn.Sequential(
            length_norm(nn.Conv2d(below, above, 3, stride=2, padding=1)),
            activation(),
            length_norm(nn.Conv2d(above, above, 3, padding=1)),
        )
        self.skip = length_norm(nn.Conv2d(below, above, 1, stride=2))
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
        blocks = (_Block(*pair, activation) for pair in pairwise(widths))
        left = tuple(math.ceil(n / 2 ** len(channels)) for n in image_shape[1:])
        super().__init__(
            *blocks,
            length_norm(nn.Conv2d(widths[-1], out_features, left)),
            activation(),
            nn.Flatten(),
        )


def bottleneck_block(
    groups: Tensor,
    reach: Reach,
    activation: Activation,
    weight_norm: bool,
) -> CausalBlock:
    """``act(h + conv1x1(act(conv(act(conv1x1(h))))))`` with half as many channels around the convolution."""
    half = groups[::2]
    before = nn.Sequential(causal_conv(groups, half, POINT, weight_norm), activation())
    after = nn.Sequential(activation(), causal_conv(half, groups, POINT, weight_norm))
    middle = causal_conv(half, half, reach, weight_norm)
    return CausalBlock(before, middle, after, reach, activation=activation())


class ResidualPixelCNN(PixelCNN):
    """A :class:`PixelCNN` of bottleneck blocks with skipping connections.

    Arguments:
        image_shape: (C, H, W).
        channels: Hidden channels, at least 2 C and a multiple of it.
        kernel_sizes: Odd sizes of the masked kernels, three at least; the context's kernel is as large as the first.
            The paper's "small" network for 28 x 28 pixels has 7, 7, 7, 5, 5, 3, 3.
        num_params: Numbers P per pixel and channel, as many as the likelihood takes.
        context_channels: Maps K of the context; 0 for none.
        activation: Constructor of the activation.
        weight_norm: Whether lengths and directions of the weights are separate parameters.

    Raises:
        ValueError: A size is not a positive whole number, or the arguments do not fit together.

    Example:
        >>> import torch
        >>> net = ResidualPixelCNN((1, 28, 28), 64, [7, 7, 7, 5, 5, 3, 3], context_channels=4)
        >>> max(-row for row, _ in net.receptive_field())
        15
        >>> net(torch.zeros(2, 1, 28, 28), torch.zeros(2, 4, 28, 28)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        channels: int,
        kernel_sizes: Sequence[int],
        num_params: int = 1,
        *,
        context_channels: int = 0,
        activation: Activation = nn.ELU,
        weight_norm: bool = True,
    ) -> None:
        odd = all(size > 0 and size % 2 for size in kernel_sizes)
        if len(kernel_sizes) < 3 or not odd:
            found = f"but got {list(kernel_sizes)}"
            raise ValueError(f"kernel_sizes are at least three odd numbers, {found}.")
        if channels % (2 * image_shape[0]):
            found = f"multiple of the image's {image_shape[0]}, but got {channels}"
            raise ValueError(f"Half of the hidden channels must be a {found}.")

        reaches = [Reach(size // 2, size // 2, size // 2) for size in kernel_sizes]
        super().__init__(
            image_shape,
            channels,
            reaches,
            num_params,
            context_channels=context_channels,
            context_size=kernel_sizes[0],
            block=bottleneck_block,
            activation=activation,
            weight_norm=weight_norm,
        )

        # layers 1 .. L - 1, then the skips to layers 3 .. L
        hidden = stacked_groups(channels, image_shape[0])
        for reach in reaches[1:-1]:
            skip = bottleneck_block(hidden, reach, activation, weight_norm)
            self.blocks.append(skip)
            self._sequence.append(skip)

        last = causal_conv(hidden, hidden, POINT, weight_norm)
        self.output.insert(0, last)
        self.first_activation = activation()

    def _through(
        self,
        h: Tensor,
        blocks: Sequence[Callable[..., Tensor]],
        *pixel: int,
    ) -> Tensor:
        num_layers = len(self.reaches)
        outputs = [self.first_activation(h)]
        for layer in range(1, num_layers + 1):
            h = outputs[-1]
            if layer >= 3:
                h = h + blocks[num_layers + layer - 4](outputs[layer - 3], *pixel)
            if layer < num_layers:
                outputs.append(blocks[layer - 1](h, *pixel))
        return h
