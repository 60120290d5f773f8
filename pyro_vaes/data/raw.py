"""From what a reader finds to an `ImageData`: parts, range of pixels, split, preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from .convert import as_images, as_labels
from .image_data import ImageData
from .partition import PARTS, Partition, partition
from .provenance import Provenance
from .split import Split
from .steps.base import CHUNK, PixelInfo, Step, as_steps, fit_steps
from .steps.geometry import Grey, Resize
from .steps.scale import ToUnit
from .types import ImageShape, Size, SplitSizes, ValueRange

PART_NAMES = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
"""What users call the parts; of two names for one part the last one counts."""


@dataclass(frozen=True, eq=False)
class Part:
    """Raw images, shape `(N, C, H, W)`, and their labels, shape `(N,)` or `(N, K)`, int64, or None."""

    images: Tensor
    labels: Tensor | None = None

    @staticmethod
    def checked(
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | Sequence[int] | None,
        name: str,
        image_shape: ImageShape | None = None,
    ) -> "Part":
        """Images and labels from arrays of any layout; `name` is for errors."""
        x = as_images(images, name, image_shape)
        if labels is None:
            return Part(x)
        return Part(x, as_labels(labels, len(x), f"the labels of {name}"))

    def select(self, rows: Tensor) -> "Part":
        """Some of the rows in their order, without a copy where they are all."""
        if len(rows) == len(self.images):
            return self
        return Part(self.images[rows], None if self.labels is None else self.labels[rows])


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a reader returns: the parts that came with the data, and what is known about them.

    Arguments:
        name: The name of the data set.
        parts: The official parts by name: `train`, which may hold all rows, and, if there are any, `valid` and `test`.
        provenance: Where they are from.
        value_range: The range that pixels can have; for None, 0 to 255 or what is found in the data.
        class_names: The names of the labels 0, 1, ..., if known.
    """

    name: str
    parts: dict[str, Part]
    provenance: Provenance
    value_range: ValueRange | None = None
    class_names: tuple[str, ...] | None = None


def _changed(part: Part, steps: Sequence[Step], info: PixelInfo) -> Part:
    """The images changed once for all, in their dtype."""
    for step in steps:
        step.fit([part.images[:1]], info)
        part = replace(part, images=torch.cat([step(x) for x in part.images.split(CHUNK)]))
    return part


def _pixel_info(raw: RawImages) -> PixelInfo:
    """The range of the raw pixels, and how many levels there are if they are integers."""
    train = raw.parts["train"].images
    least = min(part.images.min().item() for part in raw.parts.values())
    most = max(part.images.max().item() for part in raw.parts.values())

    low, high = raw.value_range or (least, most)
    if raw.value_range is None and train.dtype == torch.uint8:
        # bits are usually stored as bytes: all pixels below two of 256 levels would be all but black
        low, high = 0, 1 if most <= 1 else 255
    if least < low or most > high:
        raise ValueError(
            f"value_range is [{low:g}, {high:g}], but {raw.name} has pixels in [{least:g}, "
            f"{most:g}]: give the range that pixels can have, or leave value_range out."
        )

    levels = None if train.is_floating_point() else round(high - low) + 1
    return PixelInfo(float(low), float(high), levels)


def _with_one_dtype(parts: dict[str, Part], name: str) -> dict[str, Part]:
    """The parts with one dtype, after checking that they have one shape and one kind of pixels."""
    layout = _layout(parts["train"].images)
    for part_name, part in parts.items():
        for what, found in _layout(part.images).items():
            wanted = layout[what]
            if wanted != found:
                raise ValueError(
                    f"the {part_name} images of {name} have {what} {found}, but the training "
                    f"images have {wanted}: bring both to the same {what} first."
                )

    dtype = reduce(torch.promote_types, (part.images.dtype for part in parts.values()))
    return {n: replace(part, images=part.images.to(dtype)) for n, part in parts.items()}


def _layout(x: Tensor) -> dict[str, object]:
    return {
        "shape": tuple(x.shape[1:]),
        "kind of pixels": "float" if x.is_floating_point() else "integer",
    }


def _split(parts: dict[str, Part], sizes: SplitSizes, seed: int) -> tuple[dict[str, Part], Partition]:
    """All parts; official ones as they came, the others drawn from the training rows."""
    try:
        valid, test = sizes
    except (TypeError, ValueError):
        raise ValueError(
            f"split is {sizes!r}, but two sizes are wanted, (valid, test), as fractions or counts: for "
            "instance split=(0.1, 0.1), or split=(500, 500)."
        ) from None

    whole = parts["train"]
    official = tuple(name for name in PARTS[1:] if name in parts)
    valid, test = 0 if "valid" in parts else valid, 0 if "test" in parts else test
    rows = partition(len(whole.images), valid, test, seed)
    rows |= {name: torch.arange(len(parts[name].images)) for name in official}

    found = {}
    for name in PARTS:
        if name in rows:
            found[name] = parts[name] if name in official else whole.select(rows[name])
    return found, Partition(seed, official=official, **rows)


def build(
    raw: RawImages,
    *,
    split: SplitSizes,
    seed: int,
    preprocess: Sequence[Step] | Step | None,
    labels: bool,
    flatten: bool,
    resize: Size | None = None,
    grey: bool = False,
) -> ImageData:
    """Splits, checks and preprocesses what a reader found; the arguments are those of `load_data`."""
    raw = replace(raw, parts=_with_one_dtype(raw.parts, raw.name))
    info = _pixel_info(raw)
    parts, splits = _split(raw.parts, split, seed)

    # colour and size change once for all
    once: list[Step] = [Grey()] if grey else []
    if resize is not None:
        once.append(Resize(resize))
    parts = {name: _changed(part, once, info) for name, part in parts.items()}

    if preprocess is None:
        preprocess = () if info.levels is None else ToUnit()
    steps, after = fit_steps(as_steps(preprocess), parts["train"].images, info)

    sources = {}
    first_row = 0
    for name, part in parts.items():
        sources[name] = Split(part.images, part.labels, steps, flatten, first_row=first_row)
        first_row += len(part.images)

    data = ImageData(
        raw.name,
        sources["train"],
        sources.get("valid"),
        sources.get("test"),
        info,
        after,
        splits,
        raw.provenance,
        raw.class_names,
    )
    return data.with_labels() if labels else data
