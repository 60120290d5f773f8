"""Folders of image files."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError

from .image_data import Provenance
from .raw import PART_NAMES, RawImages
from .split import Split
from .steps.geometry import Resize
from .types import Size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm")

_GREY_MODES = ("1", "L", "LA")


def read_pictures(paths: Sequence[Path], resize: Size | None = None, grey: bool = False) -> Tensor:
    """Reads image files in parallel.

    Arguments:
        paths: The files.
        resize: The height and width to bring images to; None wants them to have one size.
        grey: Whether to make all images grey. Otherwise they are grey if all files are, and RGB if any is.

    Returns:
        uint8 pixels with shape `(N, C, H, W)`.

    Raises:
        ValueError: If a file cannot be read, or if sizes differ and `resize` is None.
    """
    height_width = None if resize is None else Resize(resize).height_width

    def read(path: Path) -> np.ndarray:
        try:
            with PIL.Image.open(path) as picture:
                image = picture.convert("L" if grey or picture.mode in _GREY_MODES else "RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"{path} could not be read as an image ({error}): it is truncated or of another format. "
                "Repair or remove it."
            ) from error

        if height_width is not None and image.size != height_width[::-1]:
            # Pillow's bilinear filter is antialiased, as that of Resize
            image = image.resize(height_width[::-1], PIL.Image.Resampling.BILINEAR)
        return np.atleast_3d(np.asarray(image))

    # decoding releases the interpreter lock, waiting for a disk does too
    with ThreadPoolExecutor() as pool:
        first = read(paths[0])
        height, width = first.shape[:2]
        channels = 1

        # filled in place: a list of arrays and their stack would take twice the memory
        images = np.empty((len(paths), height, width, 1 if grey else 3), np.uint8)
        for row, image in enumerate(pool.map(read, paths)):
            if image.shape[:2] != first.shape[:2]:
                raise UsageError(
                    f"{paths[row]} has {image.shape[0]} x {image.shape[1]} pixels, but {paths[0]} has "
                    f"{height} x {width}: images of one data set have one size.",
                    Cure("resize", 64, detail=", for instance"),
                )
            channels = max(channels, image.shape[2])
            images[row] = image
    return torch.from_numpy(images)[..., :channels].permute(0, 3, 1, 2).contiguous()


def read_folder(path: Path, resize: Size | None = None, grey: bool = False) -> RawImages:
    """All images under a folder, at any depth, in the order of their paths.

    Sub-folders are labels if all images are in sub-folders; sub-folders `train`, `valid` (or `val`) and
    `test` are parts of the data set instead, and may have labels as their sub-folders.

    Arguments:
        path: The folder.
        resize: The height and width to bring images to; None wants them to have one size.
        grey: Whether to make all images grey.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If a file cannot be read, or if sizes differ and `resize` is None.
    """
    files = []
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden:
            files.append(file)
    if not files:
        raise FileNotFoundError(
            f"{path} has no images, neither in itself nor in its sub-folders: files ending in "
            f"{', '.join(IMAGE_SUFFIXES)} are looked for."
        )

    # the part of each file, and its path inside the folder of that part
    places = [("train", file.relative_to(path).parts) for file in files]
    tops = {names[0] for _, names in places}
    if "train" in tops and tops <= PART_NAMES.keys():
        places = [(PART_NAMES[names[0]], names[1:]) for _, names in places]

    # a file's class is the first sub-folder it is in, if every file is in one
    class_names = labels = None
    if all(len(names) > 1 for _, names in places):
        class_names = tuple(sorted({names[0] for _, names in places}))
        labels = torch.tensor([class_names.index(names[0]) for _, names in places])

    # read in one go, so that one grey part does not get fewer channels than the others
    whole = Split(read_pictures(files, resize, grey), labels)

    parts = {}
    start = 0
    for part, size in Counter(part for part, _ in places).items():  # the files of one part follow each other
        parts[part] = whole.select(slice(start, start + size))
        start += size

    provenance = Provenance(f"{len(files):,} image files under {path}", "the user's")
    return RawImages(path.resolve().name, parts, provenance, (0, 255), class_names)
