"""Arrays in `.npz`, `.npy` and `.mat` files of a user's."""

from pathlib import Path

import numpy as np

from pyro_vaes.errors import Cure, UsageError

from .convert import as_part
from .files import sha256
from .image_data import Provenance
from .raw import PART_NAMES, RawImages
from .types import ImageShape, ValueRange

SUFFIXES = (".npz", ".npy", ".mat")

_IMAGE_KEYS = ("x", "images", "image", "data", "imgs")
_LABEL_KEYS = ("y", "labels", "label", "targets", "target")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz`, `.npy` or `.mat` file by their names; nothing is unpickled.

    Raises:
        ValueError: If the file is truncated, or not of its kind.
    """
    try:
        if path.suffix.lower() == ".mat":
            import scipy.io

            found = scipy.io.loadmat(path)
            arrays = {key: x for key, x in found.items() if not key.startswith("__")}
        else:
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    loaded = {"": loaded}
                arrays = dict(loaded)
        if not arrays:
            raise EOFError("no arrays in it")
        return arrays

    except NotImplementedError:
        raise ValueError(
            f"{path} is a MATLAB file of version 7.3, which SciPy does not read: save it with '-v7', or "
            "convert it to .npz (h5py reads it)."
        ) from None
    except Exception as error:  # all kinds, for truncated and foreign files
        raise ValueError(
            f"{path} could not be read as {path.suffix} ({error}): it is truncated, of another format, or "
            "holds pickled objects, which are never loaded. Save plain numeric arrays, or copy the file "
            "again."
        ) from error


def read_array_file(
    path: Path,
    key: str | None = None,
    label_key: str | None = None,
    image_shape: ImageShape | None = None,
    value_range: ValueRange | None = None,
) -> RawImages:
    """Images, and labels if there are some, from a file of arrays.

    Without `key` the images are, in this order: the only array; `x_train`, with `x_valid` (or `x_val`) and
    `x_test` if present; the only array with one of the usual names `x`, `images`, `data` in any case; the
    only array with more than two axes. Labels have the same name with `y` or `labels` in place of `x` or
    `images`.

    Arguments:
        path: The file.
        key: The name of the array of images.
        label_key: The name of the array of labels.
        image_shape: The shape `(C, H, W)` of one image, where it cannot be seen from the array.
        value_range: The range that pixels can have.

    Raises:
        ValueError: If the file cannot be read, or if it is ambiguous which array has the images.
    """
    arrays = read_arrays(path)
    for given in (key, label_key):
        if given is not None and given not in arrays:
            problem = f"{path} has no array {given!r}: it has {_listing(arrays)}"
            raise ValueError(f"{problem}. Give one of these names.")
    keys = _find_images(arrays, path) if key is None else {"train": key}

    parts = {}
    for part, image_key in keys.items():
        if label_key is None:
            found = _find_labels(arrays, image_key)
        else:  # the rows of one part, that of training
            found = label_key if part == "train" else None
        labels = None if found is None else arrays[found]
        parts[part] = as_part(arrays[image_key], labels, image_key or path.name, image_shape)

    provenance = Provenance(f"the file {path}", "the user's", sha256={path.name: sha256(path)})
    return RawImages(path.stem, parts, provenance, value_range)


def _listing(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{key!r} {array.shape} {array.dtype}" for key, array in arrays.items())


def _find_images(arrays: dict[str, np.ndarray], path: Path) -> dict[str, str]:
    """The keys of the images by part: `train` holds all rows if the file is not split."""
    if len(arrays) == 1:
        return {"train": next(iter(arrays))}
    lower = {key.lower(): key for key in arrays}

    # x_train, with x_valid and x_test
    for prefix in _IMAGE_KEYS:
        keys = {f"{prefix}_{word}": part for word, part in PART_NAMES.items()}
        found = {part: lower[key] for key, part in keys.items() if key in lower}
        if "train" in found:
            return found

    named = [lower[key] for key in _IMAGE_KEYS if key in lower]
    shaped = [key for key, array in arrays.items() if array.ndim > 2]
    for candidates in (named, shaped):
        if len(candidates) == 1:
            return {"train": candidates[0]}
    raise UsageError(
        f"{path} has {_listing(arrays)}, and it is not clear which of them holds the images.",
        Cure("key", next(iter(arrays)), detail=", for instance"),
    )


def _find_labels(arrays: dict[str, np.ndarray], image_key: str) -> str | None:
    """The key that is named like the images, with a word for labels in place of the word for images."""
    lower = {key.lower(): key for key in arrays}

    word, underscore, part = image_key.lower().partition("_")
    if word not in _IMAGE_KEYS:
        return None
    candidates = [f"{label}{underscore}{part}" for label in _LABEL_KEYS]
    return next((lower[key] for key in candidates if key in lower), None)
