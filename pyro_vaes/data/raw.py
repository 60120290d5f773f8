"""From what a reader finds to an `ImageData`: parts, range of pixels, split, preprocessing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .image_data import ImageData, Provenance
from .partition import PARTS, Partition, partition
from .split import Split
from .steps.base import CHUNK, PixelInfo, Step, as_steps, fit_steps
from .steps.geometry import Grey, Resize
from .steps.pixelwise import ToUnit
from .types import Size, SplitSizes, ValueRange

PART_NAMES = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
"""What users call the parts; of two names for one part the last one counts."""


class RawImages(NamedTuple):
    """What a reader returns: the parts that came with the data, and what is known about them.

    Arguments:
        name: The name of the data set.
        parts: The official parts by name: `train`, which may hold all rows, and, if there are any, `valid` and `test`;
            their images are raw.
        provenance: Where they are from.
        value_range: The range that pixels can have; for None, 0 to 255 or what is found in the data.
        class_names: The names of the labels 0, 1, ..., if known.
    """

    name: str
    parts: dict[str, Split]
    provenance: Provenance
    value_range: ValueRange | None = None
    class_names: tuple[str, ...] | None = None


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


def _with_one_dtype(parts: dict[str, Split], name: str) -> dict[str, Split]:
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


def _split(
    parts: dict[str, Split],
    sizes: SplitSizes,
    seed: int,
) -> tuple[dict[str, Split], Partition]:
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
    rows = partition(len(whole), valid, test, seed)
    found = dict(parts)
    if len(rows) > 1:  # otherwise all are for training, and need no copy
        for name, index in rows.items():
            found[name] = whole.select(index)

    rows |= {name: torch.arange(len(parts[name])) for name in official}
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
    raw = raw._replace(parts=_with_one_dtype(raw.parts, raw.name))
    info = _pixel_info(raw)
    parts, splits = _split(raw.parts, split, seed)

    # colour and size change once for all
    once: list[Step] = [Grey()] if grey else []
    if resize is not None:
        once.append(Resize(resize))

    for name, part in parts.items():
        images = part.images
        for step in once:
            step.fit([images[:1]], info)
            images = torch.cat([step(x) for x in images.split(CHUNK)])
        parts[name] = replace(part, images=images)

    if preprocess is None:
        preprocess = () if info.levels is None else ToUnit()
    steps, after = fit_steps(as_steps(preprocess), parts["train"].images, info)

    first_row = 0
    for name in PARTS:
        if name in parts:
            part = parts[name]
            parts[name] = replace(part, steps=steps, flatten=flatten, first_row=first_row)
            first_row += len(part)

    data = ImageData(
        raw.name,
        parts["train"],
        parts.get("valid"),
        parts.get("test"),
        info,
        after,
        splits,
        raw.provenance,
        raw.class_names,
    )
    return data.with_labels() if labels else data
