"""Image completion: a part of an image is the covariate, the other pixels are the target."""

import torch
from torch import Tensor

from pyro_vaes.data.types import ImageShape

__all__ = ["assemble", "complete"]

_Region = tuple[int, int, int, int]  # first row, last row + 1, first column, last column + 1

_QUARTERS = ("top_left", "top_right", "bottom_right", "bottom_left")
_HALVES = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def _region(name: str, height: int, width: int) -> _Region:
    """A quarter or a half of the image; a middle row or column goes to the bottom or the right."""
    top, bottom = (0, height // 2), (height // 2, height)
    left, right = (0, width // 2), (width // 2, width)
    rows, columns = (0, height), (0, width)
    if "top" in name or "bottom" in name:
        rows = top if "top" in name else bottom
    if "left" in name or "right" in name:
        columns = left if "left" in name else right
    return (*rows, *columns)


def _regions(observed: str, height: int, width: int) -> tuple[list[_Region], _Region]:
    """The regions of the target, clockwise from the top left, and the observed region."""
    if observed in _QUARTERS:
        others = [name for name in _QUARTERS if name != observed]
    elif observed in _HALVES:
        others = [_HALVES[observed]]
    else:
        raise ValueError(
            f"observed is {observed!r}, but the observed part is a quarter ({', '.join(_QUARTERS)}) or a "
            f"half ({', '.join(_HALVES)}) of the image."
        )

    if height < 2 or width < 2:
        raise ValueError(
            f"images of {height} x {width} pixels have no quarters: image completion wants at least 2 x 2 "
            "pixels. For data that are stored as vectors, give image_shape=(C, H, W)."
        )

    return [_region(name, height, width) for name in others], _region(observed, height, width)


def _cut(images: Tensor, region: _Region) -> Tensor:
    top, bottom, left, right = region
    return images[..., top:bottom, left:right].flatten(-3)


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
    if image_shape is not None:
        channels, height, width = image_shape
        if images.shape[-1] != channels * height * width:
            raise ValueError(
                f"images have {images.shape[-1]} pixels, but image_shape {tuple(image_shape)} has "
                f"{channels * height * width}: pass flattened images, or leave image_shape out."
            )
        images = images.unflatten(-1, image_shape)
    elif images.dim() < 3:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, but (..., C, H, W) is wanted: for flattened images "
            "give image_shape=(C, H, W)."
        )

    targets, given = _regions(observed, *images.shape[-2:])
    return torch.cat([_cut(images, region) for region in targets], -1), _cut(images, given)


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
    channels, height, width = image_shape
    targets, given = _regions(observed, height, width)
    sizes = [channels * (bottom - top) * (right - left) for top, bottom, left, right in [*targets, given]]
    if target.shape[-1] != sum(sizes[:-1]) or covariate.shape[-1] != sizes[-1]:
        raise ValueError(
            f"target and covariate have {target.shape[-1]} and {covariate.shape[-1]} pixels, but for images "
            f"of shape {tuple(image_shape)} with the {observed} part observed {sum(sizes[:-1])} and "
            f"{sizes[-1]} are wanted: use the image_shape and the observed that complete() was called with."
        )

    batch = torch.broadcast_shapes(target.shape[:-1], covariate.shape[:-1])
    images = target.new_empty((*batch, channels, height, width))

    pieces = [*target.split(sizes[:-1], -1), covariate]
    for (top, bottom, left, right), piece in zip([*targets, given], pieces, strict=True):
        images[..., top:bottom, left:right] = piece.unflatten(-1, (channels, bottom - top, right - left))
    return images.flatten(-3) if flatten else images
