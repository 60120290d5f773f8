"""Encoders and decoders by the family of their networks: linear, multilayer perceptron, convolutional.

Images are flat, with shape ``(..., C*H*W)``, for every family, so that models and likelihoods are built alike.
"""

import abc
import math

from torch import Tensor, nn

from pyro_vaes.errors import Cure, UsageError, leave_out

from .conv import ConvDecoder, ConvEncoder
from .heads import NormalHead
from .mlp import MLP, Chain, OneHot, concatenate
from .shapes import ImageShape

Trunk = tuple[nn.Module, int]
"""A module from inputs to features, and the number of features."""


class Scaled(nn.Module):
    """Divides the image among the inputs of a network, and puts it in front of the others.

    Arguments:
        net: Called with the image first.
        divisor: What the image is divided by: counts and grey levels reach the network as numbers in [0, 1].
        image_last: Whether the image comes last rather than first.

    Example:
        >>> import torch
        >>> Scaled(nn.Identity(), 16.0)(torch.tensor([8.0]))
        tensor([0.5000])
    """

    def __init__(self, net: nn.Module, divisor: float, *, image_last: bool = False) -> None:
        super().__init__()
        self.net, self.divisor, self.image_last = net, divisor, image_last

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.image_last:
            *others, image = inputs
        else:
            image, *others = inputs
        return self.net(image / self.divisor, *others)


class Labelled(nn.Module):
    """A network of an image and indicators, as one of an image and labels.

    Arguments:
        net: Called with the image and the indicators ``(..., K)``.
        num_classes: Number K of classes; the labels are 0, .., K - 1, with shape ``(...)``.

    Example:
        >>> import torch
        >>> Labelled(MLP(64 + 10, [32], 8), 10)(torch.zeros(5, 64), torch.arange(5)).shape
        torch.Size([5, 8])
    """

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net, self.embedding = net, OneHot(num_classes)

    def forward(self, image: Tensor, labels: Tensor) -> Tensor:
        return self.net(image, self.embedding(labels))


class _Joined(nn.Module):
    """Several inputs as one vector; the body of a linear network."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return concatenate(inputs)


class Networks(abc.ABC):
    """A family of networks for flat images ``(..., C*H*W)``; a subclass is one family.

    Arguments:
        image_shape: (C, H, W).
        hidden: Widths, what they mean is up to the family; empty for its default.
        divisor: The largest value of the pixels as the model sees them, by which encoders divide.

    Raises:
        ValueError: There are widths, but the family has no hidden layers.
    """

    default: tuple[int, ...] = ()
    """The widths where none are given; empty for a family without hidden layers."""
    scale: float | None = None
    """Where a standard deviation that all data share starts; None for one that depends on the datum."""

    def __init__(self, image_shape: ImageShape, hidden: tuple[int, ...], divisor: float = 1.0) -> None:
        if hidden and not self.default:
            raise UsageError(
                f"{type(self).__name__} have no hidden layers, but got hidden={hidden}.",
                leave_out("hidden"),
                Cure("network", "mlp", words="use MLPNetworks"),
            )
        self.image_shape, self.divisor = image_shape, divisor
        self.hidden = hidden or self.default
        self.pixels = math.prod(image_shape)

    @abc.abstractmethod
    def vector_trunk(self, in_features: int) -> Trunk:
        """Vectors of total width ``in_features`` to features."""

    @abc.abstractmethod
    def decoder(self, in_features: int, num_params: int) -> nn.Module:
        """Latents (and indicators) of total width ``in_features`` to ``(..., num_params * C*H*W)``."""

    def _image_trunk(self, extra: int) -> Trunk:
        """An image and further inputs of total width ``extra`` to features."""
        return self.vector_trunk(self.pixels + extra)

    def trunk(self, extra: int = 0, *, image_last: bool = False) -> Trunk:
        """Features of an image and further inputs of total width ``extra``, with pixels brought to [0, 1]."""
        net, width = self._image_trunk(extra)
        return Scaled(net, self.divisor, image_last=image_last), width

    def head(self, trunk: Trunk, out_features: int) -> nn.Module:
        """A diagonal normal over ``out_features`` dimensions behind a trunk."""
        net, width = trunk
        shared = self.scale is not None
        return Chain(net, NormalHead(width, out_features, scale=self.scale, learn_scale=shared))


class LinearNetworks(Networks):
    """No hidden layer; recognition variances that all data share, as in probabilistic PCA.

    Example:
        >>> import torch
        >>> networks = LinearNetworks((1, 8, 8), ())
        >>> networks.head(networks.trunk(), 2)(torch.zeros(5, 64)).event_shape
        torch.Size([2])
    """

    scale = 1.0

    def vector_trunk(self, in_features: int) -> Trunk:
        return _Joined(), in_features

    def decoder(self, in_features: int, num_params: int) -> nn.Module:
        return MLP(in_features, [], num_params * self.pixels)


class MLPNetworks(Networks):
    """Fully connected layers; ``hidden`` are their widths, reversed in the decoder.

    Example:
        >>> import torch
        >>> MLPNetworks((1, 8, 8), (32, 16)).decoder(2, 1)(torch.zeros(5, 2)).shape
        torch.Size([5, 64])
    """

    default = (256, 256)

    def vector_trunk(self, in_features: int) -> Trunk:
        *widths, last = self.hidden
        return MLP(in_features, widths, last, activate_output=True), last

    def decoder(self, in_features: int, num_params: int) -> nn.Module:
        return MLP(in_features, self.hidden[::-1], num_params * self.pixels)


class ConvNetworks(Networks):
    """Stride-2 convolutions; ``hidden`` are their channels, reversed in the decoder.

    Example:
        >>> import torch
        >>> ConvNetworks((1, 8, 8), (8, 16)).decoder(2, 3)(torch.zeros(5, 2)).shape
        torch.Size([5, 192])
    """

    default = (32, 64)

    @property
    def width(self) -> int:
        """Features between the convolutions and the head."""
        return 4 * self.hidden[-1]

    def _image_trunk(self, extra: int) -> Trunk:
        return ConvEncoder(self.image_shape, self.hidden, self.width, extra_features=extra), self.width

    def vector_trunk(self, in_features: int) -> Trunk:
        return MLP(in_features, [self.width], self.width, activate_output=True), self.width

    def decoder(self, in_features: int, num_params: int) -> nn.Module:
        channels, height, width = self.image_shape
        return ConvDecoder(in_features, self.hidden[::-1], (num_params * channels, height, width), flat=True)
