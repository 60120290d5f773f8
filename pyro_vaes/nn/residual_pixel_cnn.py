r"""The PixelCNN of the mutual-posterior-divergence paper: bottlenecks, and connections that skip two layers.

    h_0 = act(conv_A(x) + conv(F))
    h_l = block_l(h_{l-1} + skip_l(h_{l-3})),    parameters = conv_1x1(act(conv_1x1(h_{L-1} + skip_L(h_{L-3}))))
    block(h) = act(h + conv_1x1(act(conv_B(act(conv_1x1(h))))))    with half as many channels around conv_B

for L layers, the first included; skip_l is a block with the kernel of layer l - 2, and there is none below l = 3.

References:
    | MAE: Mutual Posterior-Divergence Regularization for Variational AutoEncoders (Ma, Zhou & Hovy, 2019)
    | https://arxiv.org/abs/1901.01498
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from .causal_conv import POINT, CausalBlock, Reach, causal_conv, stacked_groups
from .mlp import Activation
from .pixel_cnn import PixelCNN
from .shapes import ImageShape


def bottleneck_block(groups: Tensor, reach: Reach, activation: Activation, weight_norm: bool) -> CausalBlock:
    """``act(h + conv1x1(act(conv(act(conv1x1(h))))))`` with half as many channels around the convolution."""
    half = groups[::2]
    conv = partial(causal_conv, weight_norm=weight_norm)
    before = nn.Sequential(conv(groups, half, POINT), activation())
    after = nn.Sequential(activation(), conv(half, groups, POINT))
    return CausalBlock(before, conv(half, half, reach), after, reach, activation=activation())


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
        if len(kernel_sizes) < 3 or any(size < 1 or size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"kernel_sizes are at least three odd numbers, but got {list(kernel_sizes)}.")
        if channels % (2 * image_shape[0]):
            raise ValueError(
                f"Half of the hidden channels must be a multiple of the image's {image_shape[0]}, but got {channels}."
            )

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

        hidden = stacked_groups(channels, image_shape[0])
        skips = [bottleneck_block(hidden, reach, activation, weight_norm) for reach in reaches[1:-1]]
        self.blocks.extend(skips)
        self._sequence += skips  # layers 1 .. L - 1, then the skips to layers 3 .. L

        self.output.insert(0, causal_conv(hidden, hidden, POINT, weight_norm=weight_norm))
        self.first_activation = activation()

    def _through(self, h: Tensor, blocks: Sequence[Callable[..., Tensor]], *pixel: int) -> Tensor:
        num_layers = len(self.reaches)
        outputs = [self.first_activation(h)]
        for layer in range(1, num_layers + 1):
            h = outputs[-1]
            if layer >= 3:
                h = h + blocks[num_layers + layer - 4](outputs[layer - 3], *pixel)
            if layer < num_layers:
                outputs.append(blocks[layer - 1](h, *pixel))
        return h
