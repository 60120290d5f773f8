"""Stacks of convolutions and fully connected layers, written as tables in papers are: layer by layer, shapes inferred.

LayerBuilder((1, 28, 28)).conv(64).conv(128).fc(1024).linear(10).build()
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from .conv import same_conv, same_deconv
from .glorot import glorot
from .heads import SigmoidNormalHead
from .mlp import Activation, Chain
from .shapes import over_leading_dims

leaky_relu = partial(nn.LeakyReLU, 0.1)  # the slope of the authors of the ladder


class ShapedSequential(nn.Sequential):
    """Layers that take data of one shape, behind any number of leading dimensions (particles, batch).

    Arguments:
        layers: The layers, for inputs with one leading dimension.
        in_shape: Shape of one datum, ``(F,)`` or ``(C, H, W)``.
        out_shape: Shape of what becomes of it.
    """

    def __init__(self, layers: Sequence[nn.Module], in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(*layers)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    def forward(self, x: Tensor) -> Tensor:
        leading = x.dim() - len(self.in_shape)
        if leading < 0 or x.shape[leading:] != self.in_shape:
            raise ValueError(
                f"This network takes data of shape {self.in_shape} behind the leading dimensions, but got a tensor of "
                f"shape {tuple(x.shape)}; build it for the data's shape, or load images unflattened (flatten=False)?"
            )
        return over_leading_dims(super().forward, x, len(self.in_shape))


class LayerBuilder:
    """Collects layers and keeps track of the shape; each method returns the collection itself.

    Hidden layers are followed by batch normalisation, if wanted, and an activation. Batch normalisation is that of
    ``tf.contrib.layers``: a shift but no scale is learned and epsilon is 1e-3; its running averages follow with torch's
    0.1 rather than with 0.001, which takes thousands of steps until evaluation means something. Before it weights start
    at N(0, 0.02²); linear outputs start at Xavier's with zero biases.

    Arguments:
        shape: Shape of one datum, ``(F,)`` or ``(C, H, W)``.
        batch_norm: Whether hidden layers are normalised over the batch.

    Example:
        >>> import torch
        >>> LayerBuilder((1, 9, 9), batch_norm=False).conv(4).fc(8).linear(2).build()(torch.zeros(7, 5, 1, 9, 9)).shape
        torch.Size([7, 5, 2])
    """

    def __init__(self, shape: Sequence[int], *, batch_norm: bool) -> None:
        self.shape = self.in_shape = tuple(shape)
        self.batch_norm = batch_norm
        self.layers: list[nn.Module] = []

    def conv(self, channels: int, stride: int = 2) -> Self:
        """A 4 × 4 convolution (SAME) to this many channels, and a leaky ReLU."""
        below, height, width = self.shape
        padding, layer = same_conv(below, channels, (height, width), stride=stride)
        self.layers += [padding, layer]
        self.shape = (channels, math.ceil(height / stride), math.ceil(width / stride))
        return self._hidden(layer, leaky_relu)

    def deconv(self, channels: int, size: Sequence[int]) -> Self:
        """A 4 × 4 transposed convolution (SAME) to this (height, width), which is kept or doubled; a leaky ReLU."""
        return self._hidden(self._deconv(channels, size), leaky_relu)

    def image(self, shape: Sequence[int]) -> Self:
        """A transposed convolution whose output is the image: nothing behind it."""
        glorot(self._deconv(shape[0], shape[1:]))
        return self

    def _deconv(self, channels: int, size: Sequence[int]) -> nn.ConvTranspose2d:
        stride = 1 if self.shape[1:] == tuple(size) else 2
        layer, crop = same_deconv(self.shape[0], channels, size, stride=stride)
        self.layers += [layer, crop]
        self.shape = (channels, *size)
        return layer

    def fc(self, width: int, activation: Activation = leaky_relu) -> Self:
        """A fully connected layer with an activation, a leaky ReLU by default."""
        return self._hidden(self._linear(width), activation)

    def feature_map(self, shape: Sequence[int], activation: Activation = leaky_relu) -> Self:
        """A fully connected layer whose output is read as (C, H, W)."""
        self.fc(math.prod(shape), activation)
        self.shape = tuple(shape)
        return self.add(nn.Unflatten(1, self.shape))

    def linear(self, width: int) -> Self:
        """A linear layer without an activation."""
        glorot(self._linear(width))
        return self

    def _linear(self, width: int) -> nn.Linear:
        layer = nn.Linear(self._flatten(), width)
        self.layers.append(layer)
        self.shape = (width,)
        return layer

    def _flatten(self) -> int:
        """Read what there is as a vector, and return its length."""
        if len(self.shape) > 1:
            self.layers.append(nn.Flatten())
        return math.prod(self.shape)

    def add(self, layer: nn.Module) -> Self:
        """A layer that keeps the shape."""
        self.layers.append(layer)
        return self

    def build(self) -> ShapedSequential:
        """The network."""
        return ShapedSequential(self.layers, self.in_shape, self.shape)

    def head(self, dim: int) -> Chain:
        """The network with a diagonal normal over ``dim`` dimensions behind it."""
        features = self._flatten()
        self.shape = (features,)
        return Chain(self.build(), SigmoidNormalHead(features, dim))

    def _hidden(self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, activation: Activation) -> Self:
        if self.batch_norm:
            nn.init.normal_(layer.weight, std=0.02)
            layer.register_parameter("bias", None)  # the normalisation would take it away again
            kind = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
            norm = kind(self.shape[0], eps=1e-3, affine=False)
            norm.bias = nn.Parameter(torch.zeros(self.shape[0]))
            self.layers.append(norm)
        return self.add(activation())
