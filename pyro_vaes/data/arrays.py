"""Images that are in memory already."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .convert import as_part
from .image_data import ImageData, Provenance
from .raw import RawImages, build
from .steps.base import Step
from .types import ImageShape, SplitSizes, ValueRange

_Array = Tensor | np.ndarray
_Labels = _Array | Sequence[int]
_Part = _Array | tuple[_Array, _Labels]


def from_tensors(
    x: _Array,
    y: _Labels | None = None,
    *,
    valid: _Part | None = None,
    test: _Part | None = None,
    name: str = "tensors",
    split: SplitSizes = (0.1, 0.1),
    seed: int = 0,
    preprocess: Sequence[Step] | Step | None = None,
    labels: bool = False,
    flatten: bool = True,
    image_shape: ImageShape | None = None,
    value_range: ValueRange | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageData:
    """Makes a data set of tensors or arrays.

    Arguments:
        x: Images with shape `(N, H, W)`, `(N, C, H, W)` or `(N, H, W, C)`, or vectors with shape `(N, D)`.
            Integers are scaled to [0, 1] unless `preprocess` says otherwise, floats are taken as they are.
        y: Labels from 0, with shape `(N,)` or `(N, K)`.
        valid: Validation images, or images and labels, if they are separate already.
        test: Test images, or images and labels, if they are separate already.
        name: The name of the data set.
        split: The sizes of the validation and test parts, as fractions or counts, drawn from the rows of `x`
            unless the parts are given. `(0, 0)` keeps all rows, in their order, for training.
        seed: The seed of the split.
        preprocess: Preprocessing steps in place of the default; `()` for none.
        labels: Whether batches are `(x, y)`.
        flatten: Whether batches are `(B, C * H * W)` rather than `(B, C, H, W)`.
        image_shape: The shape `(C, H, W)` of one image, where it cannot be seen from `x`.
        value_range: The range that pixels can have. By default 0 to 255 for bytes (0 to 1 if no byte is
            larger), and what is found for all others.
        class_names: The names of the labels 0, 1, ...

    Returns:
        The data set.

    Raises:
        TypeError: If the arrays are not made of numbers.
        ValueError: If shapes, labels or fractions do not fit, or if pixels are NaN or infinite.

    Example:
        >>> import torch
        >>> data = from_tensors(torch.rand(100, 8, 8), torch.arange(100) % 2, split=(0.2, 0.2))
        >>> len(data.train), len(data.valid), len(data.test), data.image_shape
        (60, 20, 20, (1, 8, 8))
    """
    given = {"train": x if y is None else (x, y), "valid": valid, "test": test}
    parts = {}
    for part, arrays in given.items():
        if arrays is not None:
            images, numbers = arrays if isinstance(arrays, tuple) else (arrays, None)
            called = "x" if part == "train" else part
            parts[part] = as_part(images, numbers, called, image_shape)

    names = None if class_names is None else tuple(class_names)
    for found in parts.values():
        if names is not None and found.labels is not None and found.labels.max() >= len(names):
            raise ValueError(
                f"labels go up to {found.labels.max()}, but there are {len(names)} class_names: "
                "labels are integers from 0 to the number of classes minus 1."
            )
    raw = RawImages(name, parts, Provenance("arrays in memory"), value_range, names)
    return build(raw, split=split, seed=seed, preprocess=preprocess, labels=labels, flatten=flatten)
