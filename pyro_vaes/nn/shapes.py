"""Shapes of data: images, flat or not, and networks behind any number of leading dimensions (particles, batch)."""

import math
from collections.abc import Callable

from torch import Tensor

ImageShape = tuple[int, int, int]
"""Channels, height and width."""


def as_images(image: Tensor, image_shape: ImageShape) -> Tensor:
    """Images ``(..., C, H, W)``, given like that or flat as ``(..., C*H*W)``.

    Raises:
        ValueError: The tensor has neither shape.
    """
    numel = math.prod(image_shape)
    if image.shape[-3:] == image_shape:
        return image
    if image.shape[-1:] == (numel,):
        return image.unflatten(-1, image_shape)
    raise ValueError(
        f"The network takes images of shape {image_shape} or flat ones with {numel} values, but got a "
        f"tensor of shape {tuple(image.shape)}; pass the data's image_shape to it?"
    )


def over_leading_dims(function: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """Apply a function of tensors ``(N, *event_shape)`` to one with shape ``(..., *event_shape)``.

    Arguments:
        function: Keeps the first dimension, and nothing passes along it.
        x: With any number of leading dimensions, also none.
        event_dim: Number of dimensions of ``event_shape``.
    """
    lead = x.shape[: x.dim() - event_dim]
    out = function(x.reshape(-1, *x.shape[len(lead) :]))
    return out.reshape(*lead, *out.shape[1:])
