"""Image completion: a part of an image is the covariate, the other pixels are the target."""

import math

import torch
from torch import Tensor

from .types import ImageShape


def _pixels(
    observed: str,
    image_shape: ImageShape,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Which pixels of a flattened image are target, clockwise from the top left, and which are observed."""
    height, width = image_shape[1:]
    if height < 2 or width < 2:
        raise ValueError(
            f"images of {height} x {width} pixels have no quarters: image completion wants at least 2 x 2 "
            "pixels. For data that are stored as vectors, give image_shape=(C, H, W)."
        )

    numbers = torch.arange(math.prod(image_shape), device=device).reshape(image_shape)

    # a middle row goes to the bottom, a middle column to the right
    top, bottom = numbers.tensor_split([height // 2], dim=1)
    left, right = numbers.tensor_split([width // 2], dim=2)
    top_left, top_right = top.tensor_split([width // 2], dim=2)
    bottom_left, bottom_right = bottom.tensor_split([width // 2], dim=2)

    quarters = {
        "top_left": top_left,
        "top_right": top_right,
        "bottom_right": bottom_right,
        "bottom_left": bottom_left,
    }
    for parts in (
        {"top": top, "bottom": bottom},
        {"left": left, "right": right},
        quarters,
    ):
        if observed in parts:
            given = parts.pop(observed)
            target = [part.flatten() for part in parts.values()]
            return torch.cat(target), given.flatten()

    raise ValueError(
        f"observed is {observed!r}, but the observed part is a quarter ({', '.join(quarters)}) or a "
        "half (top, bottom, left, right) of the image."
    )


def complete(
    images: Tensor, observed: str = "bottom_left", image_shape: ImageShape | None = None
) -> tuple[Tensor, Tensor]:
    """Cuts images into the pixels to complete and the pixels that are given.

    Arguments:
        images: Images, with shape `(..., C, H, W)`, or `(..., C * H * W)` if `image_shape` is given.
        observed: The part that is given: `top_left`, `top_right`, `bottom_right`, `bottom_left`, or one of
            the halves `top`, `bottom`, `left`, `right`.
        image_shape: The shape `(C, H, W)` of flattened images.

    Returns:
        The target, with shape `(..., T)`: the other regions, flattened and concatenated clockwise from the
        top left; and the covariate, with shape `(..., C * H * W - T)`: the observed region, flattened.

    Raises:
        ValueError: If there is no such part, or if the images do not have `image_shape`.

    References:
        | Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al.,
        2015) | https://papers.nips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

    Example:
        >>> target, covariate = complete(torch.arange(16.0).reshape(1, 1, 4, 4), "bottom_left")
        >>> covariate
        tensor([[ 8.,  9., 12., 13.]])
        >>> target
        tensor([[ 0.,  1.,  4.,  5.,  2.,  3.,  6.,  7., 10., 11., 14., 15.]])
    """
    if image_shape is None:
        if images.dim() < 3:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, but (..., C, H, W) is wanted: for flattened images "
                "give image_shape=(C, H, W)."
            )
        channels, height, width = images.shape[-3:]
        image_shape = channels, height, width
        images = images.flatten(-3)
    elif images.shape[-1] != math.prod(image_shape):
        raise ValueError(
            f"images have {images.shape[-1]} pixels, but image_shape {tuple(image_shape)} has "
            f"{math.prod(image_shape)}: pass flattened images, or leave image_shape out."
        )

    target, given = _pixels(observed, image_shape, images.device)
    return images[..., target], images[..., given]


def assemble(
    target: Tensor,
    covariate: Tensor,
    image_shape: ImageShape,
    observed: str = "bottom_left",
    flatten: bool = False,
) -> Tensor:
    """Puts completed pixels and given pixels together: the inverse of `complete`.

    Arguments:
        target: The completed pixels, with shape `(..., T)`. Leading dimensions broadcast against the
            covariate's, so that several completions of one image can be assembled at once.
        covariate: The given pixels, with shape `(..., C * H * W - T)`.
        image_shape: The shape `(C, H, W)` of the images.
        observed: The part that is given, as for `complete`.
        flatten: Whether to return flattened images.

    Returns:
        The images, with shape `(..., C, H, W)`, or `(..., C * H * W)` if flattened.

    Raises:
        ValueError: If the numbers of pixels do not fit.

    Example:
        >>> images = torch.rand(5, 3, 7, 6)
        >>> torch.equal(assemble(*complete(images, "top"), (3, 7, 6), "top"), images)
        True
    """
    hidden, given = _pixels(observed, image_shape, target.device)
    if target.shape[-1] != len(hidden) or covariate.shape[-1] != len(given):
        raise ValueError(
            f"target and covariate have {target.shape[-1]} and {covariate.shape[-1]} pixels, but for images "
            f"of shape {tuple(image_shape)} with the {observed} part observed {len(hidden)} and "
            f"{len(given)} are wanted: use the image_shape and the observed that complete() was called with."
        )

    batch = torch.broadcast_shapes(target.shape[:-1], covariate.shape[:-1])
    images = target.new_empty((*batch, math.prod(image_shape)))
    images[..., hidden] = target
    images[..., given] = covariate
    return images if flatten else images.unflatten(-1, image_shape)
