r"""PixelCNN: a stack of causal convolutions over images, with exactly the receptive field that is asked for.

    h = conv_A(x) + conv(F),    h <- block_l(h),    parameters = conv_1x1(act(h))

conv_A sees the pixels before a pixel (and its earlier channels); the context maps F are seen all around; the blocks see
the pixel itself and those before. Pixels are ordered row by row, the channels of a pixel one after the other.

References:
    | Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016)
    | https://arxiv.org/abs/1601.06759
    | Variational Lossy Autoencoder (Chen et al., 2017)
    | https://arxiv.org/abs/1611.02731
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .autoregressive import AutoregressiveNetwork, Elements
from .causal_conv import (
    POINT,
    Block,
    CausalBlock,
    MaskedConv2d,
    Reach,
    at_pixels,
    causal_conv,
    residual_block,
    stacked_groups,
)
from .mlp import Activation
from .shapes import ImageShape, over_leading_dims
from .sizes import check_sizes


def pixel_cnn_layers(num_layers: int, kernel_size: int = 3) -> list[Reach]:
    """The layers of a stack of masked convolutions with an odd kernel size.

    With n layers of 3 × 3 a pixel sees n + 3 n (n + 1) / 2 others: n to its left, and n + 1 + r in the r-th row above.
    The receptive field grows upwards and to the left, and leaves out what lies further to the right.

    Example:
        >>> pixel_cnn_layers(2)
        [Reach(above=1, left=1, right=1), Reach(above=1, left=1, right=1)]
    """
    if num_layers < 1 or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"A stack needs num_layers >= 1 and an odd kernel_size, but got {num_layers!r} and {kernel_size!r}."
        )
    return [Reach(kernel_size // 2, kernel_size // 2, kernel_size // 2)] * num_layers


def pixel_cnn_window(width: int, height: int) -> list[Reach]:
    """The one layer that sees a window ``width × height`` ("4x2"); layers behind it are pixel by pixel.

    The window is the block of that size immediately above a pixel and ceil((width - 1) / 2) pixels to its left. A block
    of even width reaches one further to the left than to the right; ``height`` 0 leaves the row alone.

    Example:
        >>> pixel_cnn_window(4, 2)
        [Reach(above=2, left=2, right=1)]
    """
    if width < 1 or height < 0:
        raise ValueError(f"A window needs width >= 1 and height >= 0, but got {width!r} and {height!r}.")
    return [Reach(height, width // 2, (width - 1) // 2 if height else 0)]


class PixelCNN(AutoregressiveNetwork):
    """An autoregressive network over images.

    Arguments:
        image_shape: (C, H, W).
        channels: Hidden channels, at least C.
        layers: What each masked convolution sees: ``pixel_cnn_layers(6)``, ``pixel_cnn_window(4, 2)``, or any list of
            :class:`Reach`.
        num_params: Numbers P per pixel and channel, as many as the likelihood takes.
        context_channels: Maps K of the context, with the image's height and width; 0 for none.
        context_size: Odd size of the kernel over the context.
        num_pointwise: 1 × 1 blocks spread evenly behind the masked layers.
        block: ``residual_block``, ``gated_block`` or ``plain_block``, or your own.
        tied: Whether all masked blocks share their weights (against overfitting); their reaches must be the same.
        activation: Constructor of the activation.
        weight_norm: Whether lengths and directions of the weights are separate parameters.

    Raises:
        ValueError: A size is not a positive whole number, or the arguments do not fit together.

    Example:
        >>> net = PixelCNN((1, 28, 28), 12, pixel_cnn_layers(6), context_channels=4, num_pointwise=4, tied=True)
        >>> net(torch.zeros(5, 1, 28, 28), torch.zeros(3, 5, 4, 28, 28)).shape
        torch.Size([3, 5, 1, 28, 28])
        >>> len(net.receptive_field())
        69
    """

    def __init__(
        self,
        image_shape: ImageShape,
        channels: int,
        layers: Sequence[Reach],
        num_params: int = 1,
        *,
        context_channels: int = 0,
        context_size: int = 3,
        num_pointwise: int = 0,
        block: Block = residual_block,
        tied: bool = False,
        activation: Activation = nn.ELU,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        image_channels, height, width = image_shape
        check_sizes(self, image_channels=image_channels, height=height, width=width, channels=channels)
        check_sizes(self, num_params=num_params, context_size=context_size)
        check_sizes(self, least=0, context_channels=context_channels, num_pointwise=num_pointwise)
        if channels < image_channels or context_size % 2 == 0 or not layers:
            raise ValueError(
                f"A PixelCNN needs at least one layer, an odd context_size and at least as many hidden channels as "
                f"the image has, but got {len(layers)} layers, context_size={context_size} and channels={channels} for "
                f"{image_channels} image channels."
            )

        first, *rest = (Reach(*reach) for reach in layers)
        if tied and len(set(rest)) > 1:
            raise ValueError(f"tied=True needs masked layers of one reach behind the first, but got {rest}.")

        self.event_shape, self.num_params = tuple(image_shape), num_params
        self.context_shape = (context_channels, height, width)
        self.reaches = [first, *rest]

        pixel, hidden = torch.arange(image_channels), stacked_groups(channels, image_channels)
        self.first = causal_conv(pixel, hidden, first, weight_norm, strict=True)

        kernel = (channels, context_channels, context_size, context_size)
        self.context = MaskedConv2d(torch.ones(kernel), weight_norm=weight_norm) if context_channels else None
        self.around = nn.ZeroPad2d(context_size // 2)

        self._sequence: list[CausalBlock] = []  # in the order of their use; a tied one comes several times
        for i in range(len(layers)):
            if i == 1 or (i and not tied):
                masked = block(hidden, rest[i - 1], activation, weight_norm)
            if i:  # the first layer is no block
                self._sequence.append(masked)
            for _ in range(num_pointwise * (i + 1) // len(layers) - num_pointwise * i // len(layers)):
                self._sequence.append(block(hidden, POINT, activation, weight_norm))
        self.blocks = nn.ModuleList(dict.fromkeys(self._sequence))

        outputs = pixel.repeat(num_params)  # laid out as (P, C)
        last = causal_conv(hidden, outputs, POINT, weight_norm)
        self.output = nn.Sequential(activation(), last)

    def receptive_field(self) -> set[tuple[int, int]]:
        """The other pixels that a pixel's parameters see, as offsets (row, column) from it."""
        first, *rest = (
            {(-r, c) for r in range(1, reach.above + 1) for c in range(-reach.left, reach.right + 1)}
            | {(0, -c) for c in range(1, reach.left + 1)}
            for reach in self.reaches
        )
        seen = first
        for layer in rest:
            seen = seen | {(r + s, c + d) for r, c in seen for s, d in layer}
        return seen

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = over_leading_dims(lambda image: self.first(self.reaches[0].pad(image)), x, 3)
        if self.context is not None:  # they broadcast here: x is read once for all particles
            h = h + over_leading_dims(self._features, context, 3)
        return over_leading_dims(self._after_first, h, 3)

    def _features(self, context: Tensor) -> Tensor:
        assert self.context is not None
        return self.context(self.around(context))

    def _after_first(self, h: Tensor) -> Tensor:
        return self.output(self._through(h, self._sequence))

    def _through(self, h: Tensor, blocks: Sequence[Callable[..., Tensor]], *pixel: int) -> Tensor:
        """What the blocks make of the first layer's output: whole images, or one pixel at a row and a column."""
        for block in blocks:
            h = block(h, *pixel)
        return h

    def walk(self, x: Tensor, context: Tensor) -> Elements:
        """See :meth:`AutoregressiveNetwork.walk`; each layer is computed at the current pixel alone, and kept."""
        lead, (channels, height, width) = x.shape[:-3], x.shape[-3:]
        x = x.reshape(-1, channels, height, width)  # a view: what the caller writes shows here
        features = None if self.context is None else self._features(context.reshape(-1, *context.shape[-3:]))

        net, first = at_pixels(self), self.reaches[0]
        image = first.pad(x)

        blocks = [
            partial(_at_pixel, b, b.reach.pad(x.new_zeros(len(x), b.inner_channels, height, width)))
            for b in net._sequence
        ]

        # earlier channels of a pixel change its later groups: each channel takes a pass of its own
        for row, column, channel in itertools.product(range(height), range(width), range(channels)):
            h = net.first(first.patch(image, row, column))
            if features is not None:
                h = h + features[..., row : row + 1, column : column + 1]

            h = self._through(h, blocks, row, column)
            params = net.output(h)[..., channel::channels, :, :]  # (N, P, 1, 1)
            yield (channel, row, column), params.reshape(*lead, *params.shape[1:])
            image[..., channel, row + first.above, column + first.left] = x[..., channel, row, column]


def _at_pixel(block: CausalBlock, padded: Tensor, h: Tensor, row: int, column: int) -> Tensor:
    """A block at one pixel; what it keeps for the pixels to come is written into ``padded``."""
    reach = block.reach
    padded[..., row + reach.above, column + reach.left] = block.before(h)[..., 0, 0]
    return block.finish(h, reach.patch(padded, row, column))
