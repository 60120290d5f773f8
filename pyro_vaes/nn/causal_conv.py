"""Convolutions that see the pixels before a pixel alone, and the blocks that are built of them."""

import copy
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from .mlp import Activation

M = TypeVar("M", bound=nn.Module)


class Reach(NamedTuple):
    """How far a causal layer sees: rows above (with columns -left..right), and to the left in its own row.

    In raster order these are the pixels before the current one, without those further to the right above it.
    """

    above: int
    left: int
    right: int

    def pad(self, image: Tensor) -> Tensor:
        """Zeros around an image ``(N, C, H, W)``, so that each pixel has a whole patch."""
        return pad(image, (self.left, self.right, self.above, 0))

    def patch(self, padded: Tensor, row: int, column: int) -> Tensor:
        """What the layer sees at a pixel, ``(N, C, above + 1, left + 1 + right)``."""
        return padded[..., row : row + self.above + 1, column : column + self.left + 1 + self.right]


POINT = Reach(0, 0, 0)


class MaskedConv2d(nn.Module):
    """A convolution without padding of which only the weights in a mask count, with weight normalisation if wanted.

        w = g v / ||v||,    one length g for each output channel, that of v at the start

    Arguments:
        mask: Ones and zeros, shape ``(out_channels, in_channels, height, width)``.
        weight_norm: Whether lengths and directions of the weights are separate parameters.

    References:
        | Weight Normalization (Salimans & Kingma, 2016)
        | https://arxiv.org/abs/1602.07868
    """

    def __init__(self, mask: Tensor, *, weight_norm: bool = True) -> None:
        super().__init__()
        self.mask = nn.Buffer(mask.to(torch.get_default_dtype()), persistent=False)
        bound = self.mask.sum((1, 2, 3), keepdim=True).clamp(min=1).rsqrt()  # PyTorch's, with the fan-in that counts
        self.weight = nn.Parameter((2 * torch.rand_like(self.mask) - 1) * bound)
        self.bias = nn.Parameter((2 * torch.rand(len(mask)) - 1) * bound.flatten())
        self.gain = nn.Parameter(self._length().detach()) if weight_norm else None

    def _length(self) -> Tensor:
        """||v||, 1 where nothing is in the mask."""
        square = (self.weight * self.mask).square().sum((1, 2, 3), keepdim=True)
        return square.where(self.mask.sum((1, 2, 3), keepdim=True) > 0, 1.0).sqrt()

    def forward(self, image: Tensor) -> Tensor:
        kernel = self.kernel()
        if kernel.shape[-2:] == (1, 1):  # a product of matrices: twice as fast on a CPU for few channels
            return torch.einsum("oc,...chw->...ohw", kernel[..., 0, 0], image) + self.bias[:, None, None]
        return conv2d(image, kernel, self.bias)

    def kernel(self) -> Tensor:
        """w, masked and normalised."""
        weight = self.weight * self.mask
        return weight if self.gain is None else weight * (self.gain / self._length())


def causal_conv(
    in_groups: Tensor, out_groups: Tensor, reach: Reach, weight_norm: bool, *, strict: bool = False
) -> MaskedConv2d:
    """A convolution whose output at a pixel depends on the pixels before it, and on the lower groups of its own.

    Arguments:
        in_groups, out_groups: For each channel, the image channel that it stands for.
        reach: The kernel.
        weight_norm: Whether lengths and directions of the weights are separate parameters.
        strict: Whether a pixel is hidden from its own group (mask A of the PixelRNN paper, else mask B).
    """
    mask = torch.ones(len(out_groups), len(in_groups), reach.above + 1, reach.left + 1 + reach.right)
    mask[..., -1, reach.left + 1 :] = 0

    above = out_groups.unsqueeze(-1)
    seen = in_groups < above if strict else in_groups <= above
    mask[..., -1, reach.left] = seen.to(mask.dtype)
    return MaskedConv2d(mask, weight_norm=weight_norm)


class _PatchMap(nn.Module):
    """A masked convolution at one pixel, its kernel computed once: a matrix product over the patch."""

    def __init__(self, conv: MaskedConv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.kernel().detach().flatten(1).T.contiguous(), conv.bias.detach()

    def forward(self, patch: Tensor) -> Tensor:
        return torch.addmm(self.bias, patch.flatten(1), self.weight)[..., None, None]


def at_pixels(module: M) -> M:
    """A copy of a network for single pixels: its masked convolutions take patches, and no gradient."""
    copied = copy.deepcopy(module)
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MaskedConv2d):
                setattr(parent, name, _PatchMap(child))
    return copied


class CausalBlock(nn.Module):
    """``h + after(conv(before(h)))``, with ``before`` and ``after`` pixel by pixel; without ``h +`` if not ``skip``.

    Arguments:
        before: Module applied to each pixel.
        conv: Convolution without padding.
        after: Module applied to each pixel.
        reach: The convolution's kernel.
        skip: Whether the input is added.
        activation: What is applied to the output.
    """

    def __init__(
        self,
        before: nn.Module,
        conv: MaskedConv2d,
        after: nn.Module,
        reach: Reach,
        *,
        skip: bool = True,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before, self.conv, self.after, self.reach, self.skip = before, conv, after, reach, skip
        self.activation = nn.Identity() if activation is None else activation
        self.inner_channels = conv.mask.shape[1]

    def forward(self, h: Tensor) -> Tensor:
        return self.finish(h, self.reach.pad(self.before(h)))

    def finish(self, h: Tensor, padded: Tensor) -> Tensor:
        """The output from ``before(h)`` with its surroundings, for a whole image or for one pixel."""
        out = self.after(self.conv(padded))
        return self.activation(h + out if self.skip else out)


class _Gate(nn.Module):
    """tanh(a) sigmoid(b) of the two halves of the channels."""

    def forward(self, h: Tensor) -> Tensor:
        a, b = h.chunk(2, dim=-3)
        return torch.tanh(a) * torch.sigmoid(b)


Block = Callable[[Tensor, Reach, Activation, bool], CausalBlock]


def plain_block(groups: Tensor, reach: Reach, activation: Activation, weight_norm: bool) -> CausalBlock:
    """``conv(act(h))``, as in the PixelRNN paper's stack of masked convolutions."""
    conv = causal_conv(groups, groups, reach, weight_norm)
    return CausalBlock(activation(), conv, nn.Identity(), reach, skip=False)


def residual_block(groups: Tensor, reach: Reach, activation: Activation, weight_norm: bool) -> CausalBlock:
    """``h + conv1x1(act(conv(act(h))))``, with as many channels throughout."""
    after = nn.Sequential(activation(), causal_conv(groups, groups, POINT, weight_norm))
    conv = causal_conv(groups, groups, reach, weight_norm)
    return CausalBlock(activation(), conv, after, reach)


def gated_block(groups: Tensor, reach: Reach, activation: Activation, weight_norm: bool) -> CausalBlock:
    """``h + conv1x1(tanh(a) sigmoid(b))`` with ``a, b = conv(h)``; the activation is not used.

    References:
        | Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016)
        | https://arxiv.org/abs/1606.05328
    """
    after = nn.Sequential(_Gate(), causal_conv(groups, groups, POINT, weight_norm))
    conv = causal_conv(groups, groups.repeat(2), reach, weight_norm)
    return CausalBlock(nn.Identity(), conv, after, reach)


def stacked_groups(channels: int, image_channels: int) -> Tensor:
    """For each hidden channel the image channel that it stands for: as many, in order, for each."""
    return torch.arange(channels) * image_channels // channels
