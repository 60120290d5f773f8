"""Published data sets in files that torchvision cannot read: each with the traps of its file undone."""

import numpy as np

from pyro_vaes.data.array_files import read_arrays
from pyro_vaes.data.convert import as_images, as_labels
from pyro_vaes.data.files import SHA256, Library
from pyro_vaes.data.provenance import Provenance
from pyro_vaes.data.raw import Part, RawImages

__all__ = [
    "read_att_faces",
    "read_binarized_mnist",
    "read_caltech101_silhouettes",
    "read_cifar10_subset",
    "read_frey_faces",
    "read_lfw64",
    "read_omniglot28",
    "read_omniglot_bits",
    "read_svhn_subset",
]

OMNIGLOT_BITS = "Omniglot/omniglot_105x105_bits.npz"


def _read(library: Library, relative: str, name: str) -> dict[str, np.ndarray]:
    return read_arrays(library.require(relative, name))


def _provenance(library: Library, relative: str, source: str, licence: str, remark: str = "") -> Provenance:
    hashes = {relative: SHA256[relative]} if library.verify else {}
    return Provenance(f"{source}, read from {library.find(relative)}", licence, remark, hashes)


def _part(images: np.ndarray, labels: np.ndarray | None, name: str) -> Part:
    x = as_images(images, name)
    return Part(x, None if labels is None else as_labels(labels, len(x), f"the labels of {name}"))


def _unpack(bits: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width)


def read_binarized_mnist(library: Library) -> RawImages:
    """MNIST with fixed bits, with its official three parts, of which the test part is sorted by digit.

    The first test rows are zeros: `take` with a seed for a part of them.

    References:
        | On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008)
        | https://www.cs.toronto.edu/~rsalakhu/papers/dbn_ais.pdf
        | The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        | https://proceedings.mlr.press/v15/larochelle11a.html
    """
    relative = "BinarizedMNIST/binarized_mnist.npz"
    z = _read(library, relative, "binarized_mnist")
    parts = {key: Part(as_images(_unpack(z[key], 28, 28), key)) for key in ("train", "valid", "test")}
    return RawImages(
        "binarized_mnist",
        parts["train"],
        _provenance(
            library,
            relative,
            "Fixed binarised MNIST (Larochelle's bits)",
            "not stated",
            "The test part is sorted by digit: for some of its rows take them at random, take(..., seed=0)",
        ),
        parts["valid"],
        parts["test"],
        value_range=(0, 1),
    )


def read_caltech101_silhouettes(library: Library) -> RawImages:
    """Silhouettes of 101 classes of objects, 28 x 28 bits, object = 1.

    References:
        | Inductive Principles for Restricted Boltzmann Machine Learning (Marlin et al., 2010)
        | https://proceedings.mlr.press/v9/marlin10a.html
    """
    relative = "Caltech101Silhouettes/caltech101_silhouettes_28.mat"
    z = _read(library, relative, "caltech101_silhouettes")
    # the file is column-major and has 0 for the object
    images = 1 - z["X"].reshape(-1, 28, 28).transpose(0, 2, 1)
    return RawImages(
        "caltech101_silhouettes",
        _part(images, z["Y"].astype(np.int64).reshape(-1) - 1, "caltech101_silhouettes"),
        _provenance(
            library,
            relative,
            "Caltech-101 Silhouettes 28 x 28",
            "not stated",
            "The split is ours, not the published split 1 (4,100 / 2,264 / 2,307): numbers are not comparable",
        ),
        value_range=(0, 1),
        class_names=tuple(str(name.item()) for name in z["classnames"].reshape(-1)),
    )


def read_frey_faces(library: Library) -> RawImages:
    """1,965 frames of a video of one face, 28 x 20, grey; they follow each other in time.

    References:
        | Nonlinear Dimensionality Reduction by Locally Linear Embedding (Roweis & Saul, 2000)
        | https://doi.org/10.1126/science.290.5500.2323
    """
    relative = "FreyFaces/frey_rawface.mat"
    images = _read(library, relative, "frey_faces")["ff"].T.reshape(-1, 28, 20)
    return RawImages(
        "frey_faces",
        _part(images, None, "frey_faces"),
        _provenance(
            library,
            relative,
            "Frey Face",
            "not stated",
            "Neighbouring frames are almost equal: a random split has near-copies in training and test",
        ),
        value_range=(0, 255),
    )


def _characters(z: dict[str, np.ndarray], part: str, offset: int = 0) -> np.ndarray:
    return z[f"character_{part}"].astype(np.int64) + offset


def read_omniglot28(library: Library) -> RawImages:
    """Omniglot at 28 x 28, area-averaged, ink = 255; training and test alphabets do not overlap.

    References:
        | Human-level concept learning through probabilistic program induction (Lake et al., 2015)
        | https://doi.org/10.1126/science.aab3050
    """
    relative = "Omniglot/omniglot_28x28.npz"
    z = _read(library, relative, "omniglot28")
    train = _characters(z, "train")
    # the file numbers characters within each part; here a number means one character
    test = _characters(z, "test", offset=int(train.max()) + 1)
    return RawImages(
        "omniglot28",
        _part(z["x_train"], train, "omniglot28 (train)"),
        _provenance(
            library,
            relative,
            "Omniglot, area-averaged from 105 x 105 to 28 x 28",
            "MIT (brendenlake/omniglot)",
            "Not the chardata.mat of the IWAE paper: log-likelihoods are not comparable with its tables",
        ),
        test=_part(z["x_test"], test, "omniglot28 (test)"),
        value_range=(0, 255),
    )


def read_omniglot_bits(library: Library) -> RawImages:
    """Omniglot at 105 x 105, bits, ink = 1, with the labels of the 28 x 28 file if that is there."""
    z = _read(library, OMNIGLOT_BITS, "omniglot")
    small = library.find("Omniglot/omniglot_28x28.npz")
    labels = {} if small is None else read_arrays(small)
    train = _characters(labels, "train") if labels else None
    test = None if train is None else _characters(labels, "test", offset=int(train.max()) + 1)
    return RawImages(
        "omniglot",
        _part(_unpack(z["train_bits"], 105, 105), train, "omniglot (train)"),
        _provenance(library, OMNIGLOT_BITS, "Omniglot at 105 x 105, ink = 1", "MIT (brendenlake/omniglot)"),
        test=_part(_unpack(z["test_bits"], 105, 105), test, "omniglot (test)"),
        value_range=(0, 1),
    )


def read_cifar10_subset(library: Library) -> RawImages:
    """The first 10,000 training, last 1,000 training and first 1,000 test images of CIFAR-10.

    References:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
        | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
    """
    relative = "CIFAR10subset/cifar10_subset.npz"
    z = _read(library, relative, "cifar10_subset")
    return RawImages(
        "cifar10_subset",
        _part(z["x_train"], z["y_train"], "cifar10_subset (train)"),
        _provenance(
            library,
            relative,
            "CIFAR-10, lossless subset",
            "not stated (CIFAR-10)",
            "SUBSET (10,000 of 50,000 training and 1,000 of 10,000 test images): no benchmark numbers",
        ),
        _part(z["x_valid"], z["y_valid"], "cifar10_subset (valid)"),
        _part(z["x_test"], z["y_test"], "cifar10_subset (test)"),
        value_range=(0, 255),
        class_names=tuple(map(str, z["class_names"])),
    )


def read_svhn_subset(library: Library) -> RawImages:
    """The first 1,083 digits of the training file of Street View House Numbers.

    References:
        | Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011)
        | http://ufldl.stanford.edu/housenumbers
    """
    relative = "SVHNsubset/svhn_subset.npz"
    z = _read(library, relative, "svhn_subset")
    return RawImages(
        "svhn_subset",
        _part(z["x_train"], z["y_train"], "svhn_subset (train)"),
        _provenance(
            library,
            relative,
            "SVHN cropped digits, lossless subset",
            "non-commercial use (SVHN authors)",
            "SUBSET (1,083 of 73,257 training digits; the test part is cut from them as well): no benchmark numbers",
        ),
        test=_part(z["x_test"], z["y_test"], "svhn_subset (test)"),
        value_range=(0, 255),
        class_names=tuple("0123456789"),
    )


def read_lfw64(library: Library) -> RawImages:
    """10,000 faces of Labeled Faces in the Wild, grey, 64 x 64; the label is the person.

    References:
        | Labeled Faces in the Wild (Huang et al., 2007)
        | https://vis-www.cs.umass.edu/lfw/
    """
    relative = "LFWgray64/lfw_gray64.npz"
    z = _read(library, relative, "lfw64")
    # a name is a person and the number of the picture, as in Aaron_Eckhart_0001
    people = {part: np.char.rpartition(z[f"name_{part}"], "_")[:, 0] for part in ("train", "test")}
    class_names, labels = np.unique(np.concatenate([people["train"], people["test"]]), return_inverse=True)
    num_train = len(z["x_train"])
    return RawImages(
        "lfw64",
        _part(z["x_train"], labels[:num_train], "lfw64 (train)"),
        _provenance(
            library,
            relative,
            "Labeled Faces in the Wild, cropped, grey, 64 x 64",
            "Apache-2.0 (source repository)",
            "RE-ENCODED SUBSET (10,000 pictures through JPEG): not the LFW benchmark; no person is in both parts",
        ),
        test=_part(z["x_test"], labels[num_train:], "lfw64 (test)"),
        value_range=(0, 255),
        class_names=tuple(map(str, class_names)),
    )


def read_att_faces(library: Library) -> RawImages:
    """Ten grey pictures, 112 x 92, of each of 40 people; the label is the person.

    References:
        | Parameterisation of a Stochastic Model for Human Face Identification (Samaria & Harter, 1994)
        | https://doi.org/10.1109/ACV.1994.341300
    """
    relative = "ATTFaces/att_faces.npz"
    z = _read(library, relative, "att_faces")
    return RawImages(
        "att_faces",
        _part(z["x"], z["subject"].astype(np.int64) - 1, "att_faces"),
        _provenance(
            library,
            relative,
            "AT&T / ORL faces (the pictures behind the Olivetti faces)",
            "free with credit to the Olivetti Research Laboratory",
        ),
        value_range=(0, 255),
    )
