"""`load_data`: a data set by its name, or from files of a user's."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pyro_vaes.errors import Cure, UsageError, leave_out, suggest

from . import published
from . import torchvision_sets as public
from .array_files import SUFFIXES, read_array_file
from .files import Library
from .folder import read_folder
from .image_data import ImageData
from .raw import RawImages, build
from .steps.base import Step, as_steps
from .types import ImageShape, Size, SplitSizes, ValueRange

Reader = Callable[[Library], RawImages]


def readers(resize: Size | None = None, grey: bool = False) -> dict[str, Reader]:
    """What reads each named data set, from a to z; two read picture by picture, in the size and colour wanted."""
    return {
        "att_faces": published.read_att_faces,
        "binarized_mnist": published.read_binarized_mnist,
        "caltech101_silhouettes": published.read_caltech101_silhouettes,
        "celeba": partial(public.read_celeba, resize=resize, grey=grey),
        "cifar10": public.read_cifar10,
        "cifar10_subset": published.read_cifar10_subset,
        "digits": public.read_digits,
        "fashion_mnist": public.read_fashion_mnist,
        "frey_faces": published.read_frey_faces,
        "lfw": partial(public.read_lfw, grey=grey),
        "lfw64": published.read_lfw64,
        "mnist": public.read_mnist,
        "omniglot": public.read_omniglot,
        "omniglot28": published.read_omniglot28,
        "svhn": public.read_svhn,
        "svhn_subset": published.read_svhn_subset,
    }


NAMES = tuple(readers())


def load_data(
    name_or_path: str | os.PathLike[str] = "digits",
    root: str | os.PathLike[str] | None = None,
    *,
    split: SplitSizes = (0.1, 0.1),
    seed: int = 0,
    preprocess: Sequence[Step] | Step | None = None,
    labels: bool = False,
    flatten: bool = True,
    resize: Size | None = None,
    grey: bool = False,
    download: bool = True,
    verify: bool = True,
    key: str | None = None,
    label_key: str | None = None,
    image_shape: ImageShape | None = None,
    value_range: ValueRange | None = None,
) -> ImageData:
    """Loads a data set of images into memory.

    Arguments:
        name_or_path: One of `NAMES`; or a file of arrays (`.npz`, `.npy`, `.mat`); or a folder of images,
            whose sub-folders are labels if all images are in sub-folders.
        root: Where the files of a named data set are, or go to. By default the folder named by the
            environment variable `PYRO_VAES_DATA`, then `~/.cache/pyro_vaes`.
        split: The sizes of the validation and test parts, as fractions or counts, drawn at random from the
            training rows. Parts that come with the data are kept as they are, whatever is asked for. `(0, 0)`
            draws none and keeps the rows in their order.
        seed: The seed of the split; `ImageData.splits` records the rows.
        preprocess: Preprocessing steps in place of the default, which is `ToUnit()` for integer pixels and
            none for floats; `()` for none.
        labels: Whether batches are `(x, y)`, as from `ImageData.with_labels()`.
        flatten: Whether batches are `(B, C * H * W)` rather than `(B, C, H, W)`.
        resize: Height and width (or one number for both) to bring images to, once for all.
        grey: Whether to make colour images grey, once for all.
        download: Whether a data set that is in no folder may be downloaded.
        verify: Whether files with a known SHA-256 have to match it.
        key: For files of arrays, the name of the images, where it is not clear.
        label_key: For files of arrays, the name of the labels, where it is not clear.
        image_shape: For files of arrays, the shape `(C, H, W)` of one image, where it cannot be seen.
        value_range: For files of arrays, the range that pixels can have.

    Returns:
        The data set, with parts `train`, `valid` and `test`.

    Raises:
        FileNotFoundError: If a file is missing and cannot be downloaded.
        TypeError: If an array is not made of numbers.
        ValueError: If the name is unknown, if a file is truncated or altered, or if an argument does not fit.

    Example:
        >>> digits = load_data("digits")
        >>> len(digits.train), len(digits.valid), len(digits.test)
        (1437, 180, 180)
        >>> digits.train[:2].shape
        torch.Size([2, 64])
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise ValueError(
            f"load_data takes a name or a path, but got a {type(name_or_path).__name__}; for an array use "
            "pyro_vaes.data.from_tensors(x, y)."
        )
    if preprocess is not None:
        preprocess = as_steps(preprocess)
    name = os.fspath(name_or_path)
    known = name.lower().replace("-", "_")
    path = Path(name).expanduser()
    is_array_file = known not in NAMES and path.suffix.lower() in SUFFIXES

    of_arrays = {
        "key": key,
        "label_key": label_key,
        "image_shape": image_shape,
        "value_range": value_range,
    }
    given = [argument for argument, value in of_arrays.items() if value is not None]
    if given and not is_array_file:
        raise UsageError(
            f"{name!r} is not a file of arrays ({', '.join(SUFFIXES)}), and only these need names and a shape.",
            leave_out(*given),
        )

    if known in NAMES:
        raw = readers(resize, grey)[known](Library(root, download, verify))
    elif is_array_file and path.is_file():
        raw = read_array_file(path, key, label_key, image_shape, value_range)
    elif path.is_dir():
        raw = read_folder(path, resize, grey)
    else:
        raise _unknown(name, path)

    return build(
        raw,
        split=split,
        seed=seed,
        preprocess=preprocess,
        labels=labels,
        flatten=flatten,
        resize=resize,
        grey=grey,
    )


def _unknown(name: str, path: Path) -> ValueError | FileNotFoundError:
    """What is wrong with a name that is neither a data set nor a readable path."""
    if path.is_file():
        return UsageError(
            f"{path} is a file of a kind that cannot be loaded: {', '.join(SUFFIXES)} or a folder of images is wanted.",
            Cure("array", words="for other formats read the array yourself and call from_tensors(x)"),
        )

    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        return FileNotFoundError(
            f"there is neither a file nor a folder {path} (looked up from {Path.cwd()}): check the path, or "
            f"give the name of a data set, one of {', '.join(NAMES)}."
        )

    near = suggest(name, NAMES, n=3, cutoff=0.6)
    return ValueError(
        f"there is no data set {name!r}: {near}The names are {', '.join(NAMES)}; a path to a .npz, .npy or "
        ".mat file or to a folder of images works as well."
    )
