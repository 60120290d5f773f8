"""The networks of "How to train your VAE": residual encoder and decoder, and a discriminator of image patches.

    act_k(c -> f)   ReLU(BN(x)), then a k × k convolution to f channels
    triple(c -> f)  act_3(c -> f), act_3(f -> f), act_1(f -> f)
    identity        x + triple(x)
    down            triple(x) with stride 2 in its last convolution + act_1(x) with stride 2
    up              actᵀ_3(act_1(x)) + actᵀ_3(x), where actᵀ has a transposed convolution with stride 2
    encoder         LayerNorm, conv_3, stages of [identity × 2, down], conv_1 to d / 8 channels
    decoder         linear, conv_3, stages of [identity, up], conv_1; nothing bounds the output
    discriminator   six times: conv_3, BN, LeakyReLU(0.3) except after the last, dropout (PatchGAN)

A stage halves or doubles height and width; by default there are so many that the code is a map of 4 × 4. The layer
norm averages over the pixels of each channel, and all channels share its scale and shift of the image's size.

Batch norm is a trainable scale and shift of each channel: the authors' training step leaves it in inference mode, with
moving statistics that stay at 0 and 1. So an image's code does not depend on its batch. Dropout is off by default for
the same reason. The discriminator's slope is Keras's; PyTorch's own default is 0.01.

References:
    | How to train your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
    | Identity Mappings in Deep Residual Networks (He et al., 2016)
    | https://arxiv.org/abs/1603.05027
    | Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017)
    | https://arxiv.org/abs/1611.07004
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .glorot import glorot
from .mlp import concatenate
from .shapes import ImageShape, as_images, over_leading_dims

EPS = 1e-3  # of layer and batch norm, Keras's


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm in inference mode for good: the statistics are never updated, scale and shift are trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def batch_norm(channels: int, *, live: bool) -> nn.BatchNorm2d:
    """Batch norm with Keras's constants, frozen unless ``live``."""
    return (nn.BatchNorm2d if live else FrozenBatchNorm)(channels, eps=EPS, momentum=0.01)


class _Sum(nn.Module):
    """The sum of two modules of one input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.branches
        return first(x) + second(x)


def _conv(i: int, o: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(i, o, size, stride=stride, padding=size // 2)


def _deconv(i: int, o: int) -> nn.Module:
    return nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1)


@dataclass
class _Blocks:
    """Makes the blocks of one network."""

    live: bool

    def act(self, channels: int, conv: nn.Module) -> nn.Sequential:
        return nn.Sequential(batch_norm(channels, live=self.live), nn.ReLU(inplace=True), conv)

    def triple(self, c: int, stride: int = 1) -> nn.Sequential:
        convs = _conv(c, c, 3), _conv(c, c, 3), _conv(c, c, 1, stride)
        return nn.Sequential(*(self.act(c, conv) for conv in convs))

    def identity(self, c: int) -> nn.Module:
        return _Sum(nn.Identity(), self.triple(c))

    def down(self, c: int) -> nn.Module:
        return _Sum(self.triple(c, stride=2), self.act(c, _conv(c, c, 1, stride=2)))

    def up(self, c: int, f: int) -> nn.Module:
        narrow = nn.Sequential(self.act(c, _conv(c, f, 1)), self.act(f, _deconv(f, f)))
        return _Sum(narrow, self.act(c, _deconv(c, f)))


def _code_shape(image_shape: ImageShape, latent_dim: int, stages: int | None) -> tuple[int, ImageShape]:
    """The number of stages, and the shape of the map between encoder and latents."""
    _, height, width = image_shape
    number = round(math.log2(max(min(height, width) / 4, 1))) if stages is None else stages
    if number < 1 or height % 2**number or width % 2**number:
        raise ValueError(
            f"Each stage halves height and width, but {height} x {width} pixels cannot be halved {number} times: "
            f"resize the images (to {max(1, round(height / 8)) * 8} x {max(1, round(width / 8)) * 8}?), or pass "
            "another number of stages, at least 1."
        )
    if latent_dim < 8 or latent_dim % 8:
        raise ValueError(f"The code has latent_dim / 8 channels, but latent_dim={latent_dim}: take a multiple of 8.")
    return number, (latent_dim // 8, height // 2**number, width // 2**number)


class ResNetV2Encoder(nn.Module):
    """An image to a map of ``latent_dim / 8`` channels; behind it stands :class:`~pyro_vaes.nn.LogVarianceHead`.

    Arguments:
        image_shape: (C, H, W).
        latent_dim: d, a multiple of 8.
        filters: Channels of all stages.
        stages: Halvings of height and width; None for ``log2(size / 4)``.
        num_identity: Identity blocks in front of each down block.
        live_batch_norm: Whether batch norm takes its statistics from the batch in training mode.

    Attributes:
        code_shape: Shape of the map, (d / 8, H / 2^stages, W / 2^stages).

    Raises:
        ValueError: The image cannot be halved so often, or d is no multiple of 8.

    Example:
        >>> import torch
        >>> ResNetV2Encoder((1, 16, 16), 16, filters=4)(torch.zeros(5, 1, 16, 16)).shape
        torch.Size([5, 2, 4, 4])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: int,
        *,
        filters: int = 128,
        stages: int | None = None,
        num_identity: int = 2,
        live_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        number, self.code_shape = _code_shape(image_shape, latent_dim, stages)
        self.image_shape, blocks = image_shape, _Blocks(live_batch_norm)

        self.trunk = nn.Sequential(
            nn.LayerNorm(image_shape[1:], eps=EPS),
            _conv(image_shape[0], filters, 3),
        )

        for _ in range(number):
            self.trunk.extend(blocks.identity(filters) for _ in range(num_identity))
            self.trunk.append(blocks.down(filters))
        self.trunk.append(_conv(filters, self.code_shape[0], 1))
        glorot(self)

    def forward(self, image: Tensor) -> Tensor:
        return over_leading_dims(self.trunk, as_images(image, self.image_shape), 3)


class ResNetV2Decoder(nn.Module):
    """Latents ``(..., d)`` to images ``(..., C, H, W)``, linear in its last layer: clip the output to show it.

    Arguments:
        latent_dim: d, a multiple of 8.
        image_shape: (C, H, W), with C the data's channels times the likelihood's ``num_params``.
        filters: Channels of all stages but the last, whose up block has C.
        stages: Doublings of height and width; None for ``log2(size / 4)``.
        num_identity: Identity blocks in front of each up block (the paper's text says 2, the authors' code 1).
        live_batch_norm: Whether batch norm takes its statistics from the batch in training mode.

    Raises:
        ValueError: The image cannot be halved so often, or d is no multiple of 8.

    Example:
        >>> import torch
        >>> ResNetV2Decoder(16, (1, 16, 16), filters=4)(torch.zeros(3, 5, 16)).shape
        torch.Size([3, 5, 1, 16, 16])
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: ImageShape,
        *,
        filters: int = 128,
        stages: int | None = None,
        num_identity: int = 1,
        live_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        number, code_shape = _code_shape(image_shape, latent_dim, stages)
        self.image_shape, blocks = image_shape, _Blocks(live_batch_norm)
        channels = image_shape[0]

        self.trunk = nn.Sequential(
            nn.Linear(latent_dim, math.prod(code_shape)),
            nn.Unflatten(-1, code_shape),
            _conv(code_shape[0], filters, 3),
        )

        for width in [*[filters] * (number - 1), channels]:
            self.trunk.extend(blocks.identity(filters) for _ in range(num_identity))
            self.trunk.append(blocks.up(filters, width))

        self.trunk.append(_conv(channels, channels, 1))
        glorot(self)

    def forward(self, *inputs: Tensor) -> Tensor:
        return over_leading_dims(self.trunk, concatenate(inputs), 1)


STRIDES = (2, 2, 2, 1, 1, 1)


class PatchDiscriminator(nn.Module):
    """Images ``(..., C, H, W)`` to logits ``(..., 1, H / 8, W / 8)``, large for real patches.

    Arguments:
        image_shape: (C, H, W).
        filters: Channels of the first five convolutions; the sixth has 1.
        dropout: Share of values dropped after each layer in training mode, also after the last; the authors list 0.25,
            which is off in their training step.
        live_batch_norm: Whether batch norm takes its statistics from the batch in training mode.

    Raises:
        ValueError: There are not five numbers of filters, or the image is too small.

    Example:
        >>> import torch
        >>> PatchDiscriminator((1, 64, 64), (8, 8, 8, 4, 4))(torch.zeros(5, 1, 64, 64)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: ImageShape,
        filters: Sequence[int] = (128, 128, 128, 64, 64),
        *,
        dropout: float = 0.0,
        live_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(filters) != len(STRIDES) - 1:
            found = f"but got {tuple(filters)}"
            raise ValueError(f"filters are the channels of the first five convolutions, {found}.")
        if min(image_shape[1:]) < 8:
            found = f"so it needs 8 x 8 pixels; got {image_shape}"
            raise ValueError(f"Three of the convolutions halve the image, {found}.")

        self.image_shape = image_shape
        self.trunk = nn.Sequential()
        widths = image_shape[0], *filters, 1

        for number, (i, o) in enumerate(pairwise(widths)):
            self.trunk.append(_conv(i, o, 3, STRIDES[number]))
            self.trunk.append(batch_norm(o, live=live_batch_norm))
            if number < len(filters):
                self.trunk.append(nn.LeakyReLU(0.3, inplace=True))
            if dropout:
                self.trunk.append(nn.Dropout(dropout))
        glorot(self)

    forward = ResNetV2Encoder.forward
