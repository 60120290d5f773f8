"""The convolutional ladders of the paper, Small, Medium and Large, each a transcription of the authors' table.

"fc" is a fully connected layer with its normalisation and activation: a leaky ReLU in inference, a ReLU in generation
unless said.

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017), the authors' code
    | https://arxiv.org/abs/1702.08396
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import nn

from .ladder_networks import Concatenate, GatedAdd, LadderNetworks, Merge
from .layer_builder import LayerBuilder, ShapedSequential
from .mlp import Activation
from .shapes import ImageShape

Shape = tuple[int, ...]


def small_ladder(
    image_shape: ImageShape = (1, 28, 28),
    latent_dims: Sequence[int] = (2, 2, 2),
    *,
    channels: Sequence[int] = (64, 128),
    width: int = 1024,
    merge: Merge = GatedAdd,
    out_channels: int | None = None,
    output: Activation = nn.Sigmoid,
    batch_norm: bool = True,
) -> LadderNetworks:
    """The paper's networks for MNIST ("Small"): three rungs, of which the lowest is convolutional.

    Arguments:
        image_shape: (C, H, W) of x.
        latent_dims: Dimensions of z_1, z_2, z_3.
        channels: Channels of the two convolutions.
        width: Width of the fully connected layers.
        merge: :class:`~pyro_vaes.nn.GatedAdd` as in the paper, or :class:`~pyro_vaes.nn.Concatenate`.
        out_channels: Channels of the output: the image's times the likelihood's ``num_params``; None for one per
            channel.
        output: Constructor of what follows the last layer: a sigmoid for means in [0, 1], ``nn.Identity`` for logits.
        batch_norm: Whether hidden layers are normalised over the batch, as in the paper. Guides and bounds that need
            data that are independent given their latents (``AmortizedLaplace``) want none, or evaluation mode.

    Raises:
        ValueError: The numbers of latent dimensions or channels are not those of this setting.

    Example:
        >>> import torch
        >>> networks = small_ladder(width=32)
        >>> networks.rungs[0](torch.zeros(5, 1, 28, 28)).event_shape
        torch.Size([2])
    """
    _check_lengths("small_ladder", latent_dims=(latent_dims, 3), channels=(channels, 2))
    new = partial(LayerBuilder, batch_norm=batch_norm)
    low, high = channels
    bottom, middle, top = latent_dims

    def pixels() -> LayerBuilder:
        return new(image_shape).conv(low).conv(high)

    def features() -> LayerBuilder:
        return new((width,)).fc(width).fc(width)

    def generate(*shape: int) -> ShapedSequential:
        layers = new(shape).fc(width, nn.ReLU).fc(width, nn.ReLU)
        return layers.linear(width).build()

    half = new(image_shape).conv(low).shape[1:]

    merges = [
        merge(new((bottom,)).fc(width).build(), (width,)),
        merge(new((middle,)).fc(width, nn.ReLU).build(), (width,)),
    ]

    start = new(merges[0].out_shape).feature_map(pixels().shape, nn.ReLU)

    return LadderNetworks(
        encoders=[pixels().linear(width).build(), features().linear(width).build()],
        rungs=[pixels().head(bottom), features().head(middle), features().head(top)],
        merges=merges,
        decoders=[
            _image(start.deconv(low, half), image_shape, out_channels, output),
            generate(*merges[1].out_shape),
            generate(top),
        ],
    )


def medium_ladder(
    image_shape: ImageShape = (3, 32, 32),
    latent_dims: Sequence[int] = (5, 5, 5, 10),
    *,
    channels: Sequence[int] = (64, 128, 256),
    width: int = 1024,
    out_channels: int | None = None,
    output: Activation = nn.Sigmoid,
    batch_norm: bool = True,
) -> LadderNetworks:
    """The paper's networks for SVHN ("Medium"): four rungs, three of them convolutional, merged by concatenation.

    Arguments:
        image_shape: (C, H, W) of x.
        latent_dims: Dimensions of z_1 .. z_4.
        channels: Channels at the three scales.
        width, out_channels, output, batch_norm: As for :func:`small_ladder`.

    Raises:
        ValueError: The numbers of latent dimensions or channels are not those of this setting.

    Example:
        >>> import torch
        >>> networks = medium_ladder(channels=[4, 8, 16], width=32)
        >>> networks.encoders[1](networks.encoders[0](torch.zeros(5, 3, 32, 32))).shape
        torch.Size([5, 8, 8, 8])
    """
    _check_lengths("medium_ladder", latent_dims=(latent_dims, 4), channels=(channels, 3))
    new = partial(LayerBuilder, batch_norm=batch_norm)
    a, b, c = channels

    blocks = _Blocks(new, image_shape, *([(deep, 2), (deep, 1)] for deep in channels))
    maps = blocks.maps

    merges = [
        *blocks.merges(latent_dims[:2]),
        Concatenate(nn.Identity(), (width,), injected=latent_dims[2]),
    ]

    full, half, quarter = (m[1:] for m in maps[:3])
    start = [new(m.out_shape) for m in merges]

    return LadderNetworks(
        encoders=blocks.encoders(),
        rungs=blocks.rungs(latent_dims, width),
        merges=merges,
        decoders=[
            _image(start[0].deconv(a, full), image_shape, out_channels, output),
            start[1].deconv(b, half).deconv(a, half).build(),
            start[2].feature_map(maps[3], nn.ReLU).deconv(c, quarter).deconv(b, quarter).build(),
            new((latent_dims[3],)).fc(width, nn.ReLU).fc(width, nn.ReLU).fc(width, nn.ReLU).build(),
        ],
    )


def large_ladder(
    image_shape: ImageShape = (3, 64, 64),
    latent_dims: Sequence[int] = (10, 10, 10, 10),
    *,
    channels: Sequence[int] = (64, 128, 256, 512),
    width: int = 1024,
    out_channels: int | None = None,
    output: Activation = nn.Sigmoid,
    batch_norm: bool = True,
) -> LadderNetworks:
    """The paper's networks for CelebA ("Large"): four rungs, three of them convolutional, merged by concatenation.

    The authors' code puts a ReLU on the heads, so that no mean is negative; the heads here are linear.

    Arguments:
        image_shape: (C, H, W) of x.
        latent_dims: Dimensions of z_1 .. z_4.
        channels: Channels at the four scales.
        output: As for :func:`small_ladder`; the paper's images lie in [-1, 1], for which this is ``nn.Tanh``.
        width, out_channels, batch_norm: As for :func:`small_ladder`.

    Raises:
        ValueError: The numbers of latent dimensions or channels are not those of this setting.

    Example:
        >>> networks = large_ladder((1, 64, 64), channels=[2, 3, 4, 5], width=8)
        >>> networks.decoders[0].out_shape
        (1, 64, 64)
    """
    _check_lengths("large_ladder", latent_dims=(latent_dims, 4), channels=(channels, 4))
    new = partial(LayerBuilder, batch_norm=batch_norm)
    a, b, c, d = channels

    blocks = _Blocks(new, image_shape, [(a, 2), (a, 1)], [(b, 2), (b, 1), (c, 2)], [(c, 1), (d, 2), (d, 1)])
    maps = blocks.maps

    full, half, eighth, sixteenth = (m[1:] for m in maps)
    quarter = new(maps[1]).conv(b).shape[1:]

    merges = blocks.merges(latent_dims[:3])
    start = [new(m.out_shape) for m in merges]

    return LadderNetworks(
        encoders=blocks.encoders(),
        rungs=blocks.rungs(latent_dims, width),
        merges=merges,
        decoders=[
            _image(start[0].deconv(a, full), image_shape, out_channels, output),
            start[1].deconv(b, quarter).deconv(b, quarter).deconv(a, half).build(),
            start[2].deconv(d, sixteenth).deconv(c, eighth).deconv(c, eighth).build(),
            new((latent_dims[3],)).fc(width, nn.ReLU).fc(width, nn.ReLU).feature_map(maps[3], nn.ReLU).build(),
        ],
    )


class _Blocks:
    """Blocks of convolutions, x to h_1 to h_2 ..: each is built anew for an encoder and for a rung.

    Arguments:
        new: Starts layers for data of a shape.
        image_shape: (C, H, W) of x.
        blocks: For each block the channels and the stride of its convolutions.
    """

    def __init__(
        self,
        new: Callable[[Shape], LayerBuilder],
        image_shape: Shape,
        *blocks: Sequence[tuple[int, int]],
    ) -> None:
        self.new, self.blocks = new, blocks
        self.maps = [image_shape]  # x, h_1, h_2, ..; the decoders return the same shapes
        for block in blocks:
            self.maps.append(self._layers(self.maps[-1], block).shape)

    def _layers(self, shape: Shape, block: Sequence[tuple[int, int]]) -> LayerBuilder:
        layers = self.new(shape)
        for channels, stride in block:
            layers.conv(channels, stride)
        return layers

    def _each(self) -> Iterator[LayerBuilder]:
        return map(self._layers, self.maps, self.blocks)

    def encoders(self) -> list[ShapedSequential]:
        return [layers.build() for layers in self._each()]

    def merges(self, latent_dims: Sequence[int]) -> list[Concatenate]:
        """What puts z_1, z_2, .. beside feature maps of the shapes of h_1, h_2, .."""
        return [
            Concatenate(self.new((dim,)).feature_map(shape, nn.ReLU).build(), shape)
            for dim, shape in zip(latent_dims, self.maps[1:], strict=False)
        ]

    def rungs(self, latent_dims: Sequence[int], width: int) -> list[nn.Module]:
        """One head on each block, and a last one on two fully connected layers."""
        *below, top = latent_dims
        heads = [layers.head(dim) for layers, dim in zip(self._each(), below, strict=True)]
        return [*heads, self.new(self.maps[-1]).fc(width).fc(width).head(top)]


def _image(
    layers: LayerBuilder,
    image_shape: ImageShape,
    out_channels: int | None,
    output: Activation,
) -> ShapedSequential:
    """The network with a last layer that returns an image behind it."""
    channels, *size = image_shape
    channels = channels if out_channels is None else out_channels
    return layers.image((channels, *size)).add(output()).build()


def _check_lengths(setting: str, **wanted: tuple[Sequence[int], int]) -> None:
    for name, (given, number) in wanted.items():
        if len(given) != number:
            raise ValueError(
                f"{setting} is a setting of the paper with {number} {name}, but got {list(given)}; for other "
                "numbers of rungs use mlp_ladder, or pass networks of your own to LadderVAE."
            )
