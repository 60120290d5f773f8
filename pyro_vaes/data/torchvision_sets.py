"""Data sets that torchvision (for one of them, scikit-learn) reads, downloads and checks."""

from pathlib import Path

import numpy as np
import sklearn.datasets
import torchvision.datasets
from torch import Tensor

from pyro_vaes.data.convert import as_images, as_labels
from pyro_vaes.data.files import SHA256, Library
from pyro_vaes.data.folder import read_pictures
from pyro_vaes.data.provenance import Provenance
from pyro_vaes.data.published import OMNIGLOT_BITS, read_omniglot_bits
from pyro_vaes.data.raw import Part, RawImages
from pyro_vaes.errors import Cure, UsageError

__all__ = [
    "read_celeba",
    "read_cifar10",
    "read_digits",
    "read_fashion_mnist",
    "read_lfw",
    "read_mnist",
    "read_omniglot",
    "read_svhn",
]


def _part(images: Tensor | np.ndarray, labels: Tensor | np.ndarray | list[int], name: str) -> Part:
    x = as_images(images, name)
    return Part(x, as_labels(labels, len(x), f"the labels of {name}"))


def read_digits(library: Library) -> RawImages:
    """1,797 handwritten digits, 8 x 8, 17 grey levels; part of scikit-learn, needs no file.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        | https://doi.org/10.24432/C50P49
    """
    digits = sklearn.datasets.load_digits()
    return RawImages(
        "digits",
        _part(digits.images.astype(np.uint8), digits.target, "digits"),
        Provenance("the UCI digits test set bundled with scikit-learn", "CC BY 4.0 (UCI)"),
        value_range=(0, 16),
        class_names=tuple("0123456789"),
    )


def _read_idx(library: Library, name: str, dataset: type[torchvision.datasets.MNIST], licence: str) -> RawImages:
    """A data set in MNIST's format; its files are compared with their known hashes before they are read."""
    files = [file for file in SHA256 if file.startswith(f"{dataset.__name__}/")]
    for file in files:
        path = library.find(file)
        if path is not None:
            library.check(path, file)

    def read(root: str, download: bool) -> RawImages:
        train, test = (dataset(root, train=train, download=download) for train in (True, False))
        hashes = {file: SHA256[file] for file in files} if library.verify else {}
        return RawImages(
            name,
            _part(train.data, train.targets, name),
            Provenance(f"{dataset.__name__}, through torchvision, read from {root}", licence, sha256=hashes),
            test=_part(test.data, test.targets, f"{name} (test)"),
            value_range=(0, 255),
            class_names=tuple(train.classes),
        )

    return library.obtain(name, f"{dataset.__name__}/raw/train-images-idx3-ubyte", read)


def read_mnist(library: Library) -> RawImages:
    """MNIST: 60,000 + 10,000 handwritten digits, 28 x 28, grey.

    References:
        | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791
    """
    return _read_idx(library, "mnist", torchvision.datasets.MNIST, "CC BY-SA 3.0")


def read_fashion_mnist(library: Library) -> RawImages:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes, 28 x 28, grey.

    References:
        | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al.,
        2017) | https://arxiv.org/abs/1708.07747
    """
    return _read_idx(library, "fashion_mnist", torchvision.datasets.FashionMNIST, "MIT")


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
        parts, offset = [], 0
        for background in (True, False):
            data = torchvision.datasets.Omniglot(root, background=background, download=download)
            paths = [Path(data.target_folder, data._characters[y], file) for file, y in data._flat_character_images]
            # torchvision's pictures have dark ink, and number the characters within each part
            ink = (255 - read_pictures(paths, grey=True)) // 255
            labels = [offset + y for _, y in data._flat_character_images]
            parts.append(_part(ink, labels, "omniglot"))
            offset = max(labels) + 1
        provenance = Provenance("Omniglot, through torchvision, ink = 1", "MIT")
        return RawImages("omniglot", parts[0], provenance, test=parts[1], value_range=(0, 1))

    return library.obtain("omniglot", marker, read)


def read_svhn(library: Library) -> RawImages:
    """Street View House Numbers: 73,257 + 26,032 cropped digits, 32 x 32, colour.

    References:
        | Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011)
        | http://ufldl.stanford.edu/housenumbers
    """

    def read(root: str, download: bool) -> RawImages:
        train, test = (torchvision.datasets.SVHN(root, part, download=download) for part in ("train", "test"))
        return RawImages(
            "svhn",
            _part(train.data, train.labels, "svhn"),
            Provenance("SVHN cropped digits, through torchvision", "non-commercial use (SVHN authors)"),
            test=_part(test.data, test.labels, "svhn (test)"),
            value_range=(0, 255),
            class_names=tuple("0123456789"),
        )

    return library.obtain("svhn", "train_32x32.mat", read)


def read_cifar10(library: Library) -> RawImages:
    """CIFAR-10: 50,000 + 10,000 pictures of ten classes, 32 x 32, colour.

    References:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
        | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
    """

    def read(root: str, download: bool) -> RawImages:
        train, test = (torchvision.datasets.CIFAR10(root, train=train, download=download) for train in (True, False))
        return RawImages(
            "cifar10",
            _part(train.data, train.targets, "cifar10"),
            Provenance("CIFAR-10, through torchvision", "not stated"),
            test=_part(test.data, test.targets, "cifar10 (test)"),
            value_range=(0, 255),
            class_names=tuple(train.classes),
        )

    return library.obtain("cifar10", "cifar-10-batches-py", read)


def read_celeba(library: Library, resize: int | tuple[int, int] | None = None, grey: bool = False) -> RawImages:
    """CelebA, aligned: 202,599 faces in three official parts; the label is a row of 40 attributes.

    References:
        | Deep Learning Face Attributes in the Wild (Liu et al., 2015)
        | https://arxiv.org/abs/1411.7766
    """
    if resize is None:
        raise UsageError(
            "celeba has 202,599 images of 218 x 178 x 3 bytes, 24 GB in all, so a size has to be given.",
            Cure("resize", 64, detail=", which takes 2.5 GB"),
            Cure("loader", words="for full size pass your own DataLoader to fit()"),
        )

    def read(root: str, download: bool) -> RawImages:
        parts = []
        for part in ("train", "valid", "test"):
            data = torchvision.datasets.CelebA(root, part, "attr", download=download)
            folder = Path(root, data.base_folder, "img_align_celeba")
            images = read_pictures([folder / file for file in data.filename], resize, grey)
            parts.append(_part(images, data.attr, f"celeba ({part})"))
        provenance = Provenance("CelebA, aligned, through torchvision", "non-commercial research (CelebA authors)")
        return RawImages("celeba", parts[0], provenance, parts[1], parts[2], value_range=(0, 255))

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
        people = sklearn.datasets.fetch_lfw_people(data_home=root, color=not grey, download_if_missing=download)
        return RawImages(
            "lfw",
            # scikit-learn returns floats, 255ths in [0, 1]
            _part((people.images * 255).round().astype(np.uint8), people.target, "lfw"),
            Provenance("LFW, funneled, cropped to the face and halved, through scikit-learn", "not stated"),
            value_range=(0, 255),
            class_names=tuple(map(str, people.target_names)),
        )

    return library.obtain("lfw", "lfw_home", read)
