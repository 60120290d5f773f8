"""A discriminator of image patches (PatchGAN): each of its logits judges one part of the image.

    six times: conv 3 × 3, batch norm, LeakyReLU(0.3) except after the last, dropout

Batch norm is frozen and dropout off by default, as they are in the authors' training step; see
:mod:`~pyro_vaes.nn.resnet_v2`. The slope is Keras's; PyTorch's own default is 0.01.

References:
    | How to train your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
    | Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017)
    | https://arxiv.org/abs/1611.07004
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .glorot import glorot
from .resnet_v2 import batch_norm
from .shapes import ImageShape, as_images, over_leading_dims

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
            raise ValueError(f"filters are the channels of the first five convolutions, but got {tuple(filters)}.")
        if min(image_shape[1:]) < 8:
            raise ValueError(f"Three of the convolutions halve the image, so it needs 8 x 8 pixels; got {image_shape}.")

        self.image_shape = image_shape
        layers: list[nn.Module] = []
        widths = (image_shape[0], *filters, 1)

        for number, stride in enumerate(STRIDES):
            i, o = widths[number : number + 2]
            layers += [nn.Conv2d(i, o, 3, stride=stride, padding=1), batch_norm(o, live=live_batch_norm)]
            layers += [nn.LeakyReLU(0.3, inplace=True)] if number < len(filters) else []
            layers += [nn.Dropout(dropout)] if dropout else []

        self.trunk = nn.Sequential(*layers)
        glorot(self)

    def forward(self, image: Tensor) -> Tensor:
        return over_leading_dims(self.trunk, as_images(image, self.image_shape), 3)
