"""From what a reader finds to an `ImageData`: parts, range of pixels, split, preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vaes.data.image_data import ImageData
from pyro_vaes.data.partition import Partition, partition
from pyro_vaes.data.provenance import Provenance
from pyro_vaes.data.split import Split
from pyro_vaes.data.steps.base import PixelInfo, Step, as_steps, fit_steps
from pyro_vaes.data.steps.geometry import Grey, Resize
from pyro_vaes.data.steps.scale import ToUnit

__all__ = ["Part", "RawImages", "build"]

_CHUNK = 4096  # images changed at a time, to bound the memory of float intermediates


@dataclass(frozen=True, eq=False)
class Part:
    """Raw images, shape `(N, C, H, W)`, and their labels, shape `(N,)` or `(N, K)`, int64, or None."""

    images: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RawImages:
    """What a reader returns: the parts that came with the data, and what is known about them.

    Arguments:
        name: The name of the data set.
        train: All rows, or the official training rows.
        provenance: Where they are from.
        valid: The official validation rows, if any.
        test: The official test rows, if any.
        value_range: The range that pixels can have; for None, 0 to 255 or what is found in the data.
        class_names: The names of the labels 0, 1, ..., if known.
    """

    name: str
    train: Part
    provenance: Provenance
    valid: Part | None = None
    test: Part | None = None
    value_range: tuple[float, float] | None = None
    class_names: tuple[str, ...] | None = None


def _resized(part: Part, steps: Sequence[Step], info: PixelInfo) -> Part:
    """The images changed once for all, in their dtype."""
    for step in steps:
        step.fit([part.images[:1]], info)
        chunks = [step(part.images[i : i + _CHUNK]) for i in range(0, len(part.images), _CHUNK)]
        part = replace(part, images=torch.cat(chunks))
    return part


def _pixel_info(raw: RawImages) -> PixelInfo:
    """The range of the raw pixels, and how many levels there are if they are integers."""
    parts = [part.images for part in (raw.train, raw.valid, raw.test) if part is not None]
    found = min(x.min().item() for x in parts), max(x.max().item() for x in parts)
    if raw.value_range is not None:
        low, high = raw.value_range
    elif parts[0].dtype == torch.uint8:
        # bits are usually stored as bytes: all pixels below two of 256 levels would be all but black
        low, high = (0, 1) if found[1] <= 1 else (0, 255)
    else:
        low, high = found
    if found[0] < low or found[1] > high:
        raise ValueError(
            f"value_range is [{low:g}, {high:g}], but {raw.name} has pixels in [{found[0]:g}, "
            f"{found[1]:g}]: give the range that pixels can have, or leave value_range out."
        )
    levels = None if parts[0].is_floating_point() else round(high - low) + 1
    return PixelInfo(float(low), float(high), levels)


def _alike(raw: RawImages) -> RawImages:
    """The parts with one dtype, after checking that they have one shape and one kind of pixels."""
    train = raw.train.images
    dtype = train.dtype
    for name, part in (("valid", raw.valid), ("test", raw.test)):
        if part is None:
            continue
        for what, wanted, got in (
            ("shape", tuple(train.shape[1:]), tuple(part.images.shape[1:])),
            ("kind of pixels", _kind(train), _kind(part.images)),
        ):
            if wanted != got:
                raise ValueError(
                    f"the {name} images of {raw.name} have {what} {got}, but the training images have "
                    f"{wanted}: bring both to the same {what} first."
                )
        dtype = torch.promote_types(dtype, part.images.dtype)

    def cast(part: Part | None) -> Part | None:
        return None if part is None else replace(part, images=part.images.to(dtype))

    return replace(raw, train=replace(raw.train, images=train.to(dtype)), valid=cast(raw.valid), test=cast(raw.test))


def _kind(x: Tensor) -> str:
    return "float" if x.is_floating_point() else "integer"


def _split_rows(
    raw: RawImages, split: tuple[float | int, float | int], seed: int
) -> tuple[list[Part | None], Partition]:
    """The three parts; official ones as they came, the others drawn from the training rows."""
    official = {name: part for name, part in (("valid", raw.valid), ("test", raw.test)) if part is not None}
    try:
        valid_size, test_size = split
    except (TypeError, ValueError):
        raise ValueError(
            f"split is {split!r}, but two sizes are wanted, (valid, test), as fractions or counts: for "
            "instance split=(0.1, 0.1), or split=(500, 500)."
        ) from None
    rows = partition(
        len(raw.train.images),
        0 if "valid" in official else valid_size,
        0 if "test" in official else test_size,
        seed,
    )
    drawn = dict(zip(("train", "valid", "test"), rows, strict=True))
    whole = raw.train
    parts: list[Part | None] = []
    for name, index in drawn.items():
        if name in official:
            parts.append(official[name])
            drawn[name] = torch.arange(len(official[name].images))
        elif index is None:
            parts.append(None)
        elif len(index) == len(whole.images):
            parts.append(whole)
        else:
            parts.append(Part(whole.images[index], None if whole.labels is None else whole.labels[index]))
    train_rows = drawn["train"]
    assert train_rows is not None, "partition() leaves rows for training"
    return parts, Partition(seed, train_rows, drawn["valid"], drawn["test"], tuple(official))


def build(
    raw: RawImages,
    *,
    split: tuple[float | int, float | int] = (0.1, 0.1),
    seed: int = 0,
    preprocess: Sequence[Step] | Step | None = None,
    labels: bool = False,
    flatten: bool = True,
    resize: int | tuple[int, int] | None = None,
    grey: bool = False,
) -> ImageData:
    """Splits, checks and preprocesses what a reader found; the arguments are those of `load`."""
    raw = _alike(raw)
    info = _pixel_info(raw)
    once: list[Step] = [*([Grey()] if grey else []), *([Resize(resize)] if resize is not None else [])]
    found, splits = _split_rows(raw, split, seed)
    parts = [None if part is None else _resized(part, once, info) for part in found]
    train = parts[0]
    assert train is not None, "partition() leaves rows for training"
    if preprocess is None:
        steps: tuple[Step, ...] = () if info.levels is None else (ToUnit(),)
    else:
        steps = as_steps(preprocess)
    fitted, after = fit_steps(steps, train.images, info)
    sources: list[Split | None] = []
    first_row = 0
    for part in parts:
        if part is None:
            sources.append(None)
            continue
        sources.append(Split(part.images, part.labels, fitted, flatten, first_row=first_row))
        first_row += len(part.images)
    source, valid, test = sources
    assert source is not None, "partition() leaves rows for training"
    data = ImageData(raw.name, source, valid, test, info, after, splits, raw.provenance, raw.class_names)
    return data.with_labels() if labels else data
