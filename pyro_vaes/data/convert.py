"""From arrays of a user's or of a file's to tensors: shapes, dtypes, checks."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError

from .split import Split
from .types import ImageShape


def as_part(
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int] | None,
    name: str,
    image_shape: ImageShape | None = None,
) -> Split:
    """Raw images and their labels from arrays of any layout, see `as_images` and `as_labels`."""
    x = as_images(images, name, image_shape)
    y = None if labels is None else as_labels(labels, len(x), f"the labels of {name}")
    return Split(x, y)


def as_images(array: Tensor | np.ndarray, name: str, image_shape: ImageShape | None = None) -> Tensor:
    """Brings an array of images or vectors to shape `(N, C, H, W)`.

    Arguments:
        array: Images with shape `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)`, or vectors with shape `(N,
            D)`.
        name: What to call the array in errors.
        image_shape: The shape `(C, H, W)` of the rows. Found from the shape of the array if None.

    Returns:
        uint8 for integers in 0 to 255, torch's default floating dtype for floats.

    Raises:
        TypeError: If the array is not made of numbers.
        ValueError: If the shape cannot be understood, if the array is empty, or if pixels are NaN or
            infinite.
    """
    if not isinstance(array, Tensor) and np.asarray(array).dtype == object:
        raise ValueError(
            f"{name} is an array of objects, as NumPy makes of images of different sizes: bring the images "
            "to one size first, or put them in a folder and give load_data(folder, resize=...)."
        )

    x = _as_tensor(array, name, "images are arrays of integers, floats or bools.")
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, which is empty: at least one image is needed.")

    if image_shape is None:
        x = _with_channels(x, name)
    elif x[0].numel() == math.prod(image_shape):
        x = x.reshape(-1, *image_shape)
    else:
        raise UsageError(
            f"{name} has shape {tuple(x.shape)}, which is {x[0].numel()} pixels per image, but an image of shape "
            f"{tuple(image_shape)} has {math.prod(image_shape)}.",
            Cure("image_shape", words="pass image_shape=(C, H, W)", detail=" with the shape of one image"),
        )

    # no NaN, no infinity; integers as uint8 where they fit, floats in the default dtype
    if x.is_complex():
        raise TypeError(f"{name} has dtype {x.dtype}, but images are arrays of integers, floats or bools.")

    if x.is_floating_point():
        finite = torch.isfinite(x).flatten(1).all(1)
        if not finite.all():
            raise ValueError(
                f"{name} has pixels that are NaN or infinite in {int((~finite).sum())} of {len(x)} images, "
                f"the first of which is image {int(finite.int().argmin())}: drop those images or fill the "
                "pixels in."
            )
        x = x.to(torch.get_default_dtype())
    elif x.dtype == torch.bool or (x.min() >= 0 and x.max() <= 255):
        x = x.to(torch.uint8)
    return x.contiguous()


def _with_channels(x: Tensor, name: str) -> Tensor:
    """The axes `(N, C, H, W)` from those that there are."""
    if x.dim() == 2:
        return x[:, None, None, :]
    if x.dim() == 3:
        return x[:, None]

    if x.dim() == 4:
        channels = (1, 3, 4)
        first, last = x.shape[1] in channels, x.shape[3] in channels
        if first != last:
            return x if first else x.permute(0, 3, 1, 2)

    raise UsageError(
        f"{name} has shape {tuple(x.shape)}, from which the axes cannot be told: (N, D), (N, H, W), (N, C, H, W) "
        "or (N, H, W, C) with 1, 3 or 4 channels is wanted.",
        Cure("array", "transposed", words="transpose the array"),
        Cure("image_shape", words="pass image_shape=(C, H, W)", detail=" if its rows are images in that order"),
    )


def _as_tensor(array: Tensor | np.ndarray | Sequence[int], name: str, wanted: str) -> Tensor:
    """Numbers as a tensor of their dtype, or of one that torch has."""
    if isinstance(array, Tensor):
        return array.detach()
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}, but {wanted}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    # torch wants the machine's byte order and memory that it may write to
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def as_labels(array: Tensor | np.ndarray | Sequence[int], num_rows: int, name: str) -> Tensor:
    """Labels as int64, with shape `(N,)` or `(N, K)`.

    Arguments:
        array: Integers (also as floats) from 0.
        num_rows: The number of images.
        name: What to call the labels in errors.

    Raises:
        TypeError: If the labels are no numbers.
        ValueError: If there is not one label per image, or if a label is negative or no integer.
    """
    numbered = "np.unique(labels, return_inverse=True)[1] numbers names."
    labels = _as_tensor(array, name, f"labels are integers from 0: {numbered}")
    if labels.dim() == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.dim() not in (1, 2) or len(labels) != num_rows:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, but there are {num_rows} images: one label for each "
            f"is wanted, with shape ({num_rows},)."
        )

    if (labels < 0).any() or (labels.is_floating_point() and (labels != labels.round()).any()):
        raise ValueError(
            f"{name} has values in [{labels.min().item():g}, {labels.max().item():g}], but labels are "
            "integers from 0 to the number of classes minus 1: number the classes from 0."
        )
    return labels.to(torch.int64, copy=True)
