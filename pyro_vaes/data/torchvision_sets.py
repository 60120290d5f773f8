"""Data sets that torchvision (for one of them, scikit-learn) reads, downloads and checks."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vaes.errors import Cure, UsageError

from .convert import as_part
from .files import SHA256, Library
from .folder import read_pictures
from .image_data import Provenance
from .published import OMNIGLOT_BITS, read_omniglot_bits
from .raw import RawImages
from .types import Size

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, MNIST

_DIGITS = tuple("0123456789")


class _Deferred:
    """A module of another library, which takes seconds to import: it is at its first use."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        return getattr(importlib.import_module(self.name), name)


public = _Deferred("torchvision.datasets")
bundled = _Deferred("sklearn.datasets")


def read_digits(library: Library) -> RawImages:
    """1,797 handwritten digits, 8 x 8, 17 grey levels; part of scikit-learn, needs no file.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        | https://doi.org/10.24432/C50P49
    """
    digits = bundled.load_digits()
    whole = as_part(digits.images.astype(np.uint8), digits.target, "digits")
    provenance = Provenance("the UCI digits test set bundled with scikit-learn", "CC BY 4.0 (UCI)")
    return RawImages("digits", {"train": whole}, provenance, (0, 16), _DIGITS)


def _read_labelled(
    library: Library,
    name: str,
    dataset: "type[MNIST] | type[CIFAR10]",
    marker: str,
    source: str,
    licence: str = "not stated",
) -> RawImages:
    """Both parts of a labelled data set of torchvision's; files with known hashes are compared with them first."""
    folder, _, _ = marker.partition("/")
    hashes = {file: known for file, known in SHA256.items() if file.startswith(f"{folder}/")}
    for file in hashes:
        path = library.find(file)
        if path is not None:
            library.check(path, file)
    if not library.verify:
        hashes = {}

    def read(root: str, download: bool) -> RawImages:
        parts = {}
        for part in ("train", "test"):
            data = dataset(root, train=part == "train", download=download)
            parts[part] = as_part(data.data, data.targets, name)

        origin = f"{source}, through torchvision, read from {root}"
        provenance = Provenance(origin, licence, sha256=hashes)
        return RawImages(name, parts, provenance, (0, 255), tuple(data.classes))

    return library.obtain(name, marker, read)


def read_mnist(library: Library) -> RawImages:
    """MNIST: 60,000 + 10,000 handwritten digits, 28 x 28, grey.

    References:
        | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791
    """
    marker = "MNIST/raw/train-images-idx3-ubyte"
    dataset = public.MNIST
    return _read_labelled(library, "mnist", dataset, marker, "MNIST", "CC BY-SA 3.0")


def read_fashion_mnist(library: Library) -> RawImages:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28, grey.

    References:
        | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al.,
        2017) | https://arxiv.org/abs/1708.07747
    """
    marker = "FashionMNIST/raw/train-images-idx3-ubyte"
    dataset, name = public.FashionMNIST, "fashion_mnist"
    return _read_labelled(library, name, dataset, marker, "FashionMNIST", "MIT")


def read_omniglot(library: Library) -> RawImages:
    """Omniglot: 19,280 + 13,180 handwritten characters, 105 x 105, ink bright; the label is the character.

    References:
        | Human-level concept learning through probabilistic program induction (Lake et al., 2015)
        | https://doi.org/10.1126/science.aab3050
    """
    marker = "omniglot-py/images_background"
    if library.find(marker) is None and library.find(OMNIGLOT_BITS) is not None:
        return read_omniglot_bits(library)

    def read(root: str, download: bool) -> RawImages:
        parts, offset = {}, 0
        for part in ("train", "test"):
            background = part == "train"
            data = public.Omniglot(root, background=background, download=download)
            characters = data._flat_character_images
            paths = [Path(data.target_folder, data._characters[y], file) for file, y in characters]
            labels = [y for _, y in characters]

            # torchvision's pictures have dark ink, and number the characters within each part
            ink = (255 - read_pictures(paths, grey=True)) // 255
            parts[part] = as_part(ink, np.add(labels, offset), "omniglot")
            offset += max(labels) + 1
        provenance = Provenance("Omniglot, through torchvision, ink = 1", "MIT")
        return RawImages("omniglot", parts, provenance, (0, 1))

    return library.obtain("omniglot", marker, read)


def read_svhn(library: Library) -> RawImages:
    """Street View House Numbers: 73,257 + 26,032 cropped digits, 32 x 32, colour.

    References:
        | Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011)
        | http://ufldl.stanford.edu/housenumbers
    """

    def read(root: str, download: bool) -> RawImages:
        parts = {}
        for part in ("train", "test"):
            data = public.SVHN(root, part, download=download)
            parts[part] = as_part(data.data, data.labels, "svhn")
        provenance = Provenance("SVHN cropped digits, through torchvision", "non-commercial use (SVHN authors)")
        return RawImages("svhn", parts, provenance, (0, 255), _DIGITS)

    return library.obtain("svhn", "train_32x32.mat", read)


def read_cifar10(library: Library) -> RawImages:
    """CIFAR-10: 50,000 + 10,000 pictures of ten classes, 32 x 32, colour.

    References:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
        | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
    """
    dataset = public.CIFAR10
    return _read_labelled(library, "cifar10", dataset, "cifar-10-batches-py", "CIFAR-10")


def read_celeba(library: Library, resize: Size | None = None, grey: bool = False) -> RawImages:
    """CelebA, aligned: 202,599 faces in three official parts; the label is a row of 40 attributes.

    References:
        | Deep Learning Face Attributes in the Wild (Liu et al., 2015)
        | https://arxiv.org/abs/1411.7766
    """
    if resize is None:
        smaller = Cure("resize", 64, detail=", which takes 2.5 GB")
        own = Cure("loader", words="for full size pass your own DataLoader to fit()")
        size = "202,599 images of 218 x 178 x 3 bytes, 24 GB in all"
        raise UsageError(f"celeba has {size}, so a size has to be given.", smaller, own)

    def read(root: str, download: bool) -> RawImages:
        parts = {}
        for part in ("train", "valid", "test"):
            data = public.CelebA(root, part, "attr", download=download)
            folder = Path(root, data.base_folder, "img_align_celeba")
            paths = [folder / file for file in data.filename]
            images = read_pictures(paths, resize, grey)
            parts[part] = as_part(images, data.attr, f"celeba ({part})")
        provenance = Provenance("CelebA, aligned, through torchvision", "non-commercial research (CelebA authors)")
        return RawImages("celeba", parts, provenance, (0, 255))

    return library.obtain("celeba", "celeba/img_align_celeba", read)


def read_lfw(library: Library, grey: bool = False) -> RawImages:
    """Labeled Faces in the Wild: 13,233 faces of 5,749 people, cropped to 62 x 47; the label is the person.

    torchvision no longer downloads this data set, so that scikit-learn does, which checks the same pictures
    by SHA-256.

    References:
        | Labeled Faces in the Wild (Huang et al., 2007)
        | https://vis-www.cs.umass.edu/lfw/
    """

    def read(root: str, download: bool) -> RawImages:
        people = bundled.fetch_lfw_people(data_home=root, color=not grey, download_if_missing=download)
        # scikit-learn returns floats, 255ths in [0, 1]
        images = (people.images * 255).round().astype(np.uint8)
        whole = as_part(images, people.target, "lfw")
        provenance = Provenance("LFW, funneled, cropped to the face and halved, through scikit-learn")
        class_names = tuple(map(str, people.target_names))
        return RawImages("lfw", {"train": whole}, provenance, (0, 255), class_names)

    return library.obtain("lfw", "lfw_home", read)
