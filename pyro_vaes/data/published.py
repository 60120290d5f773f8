"""Published data sets in files that torchvision cannot read: each with the traps of its file undone."""

from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np

from .array_files import read_arrays
from .convert import as_part
from .files import SHA256, Library
from .image_data import Provenance
from .partition import PARTS
from .raw import RawImages
from .types import ValueRange

OMNIGLOT_BITS = "Omniglot/omniglot_105x105_bits.npz"
OMNIGLOT_28 = "Omniglot/omniglot_28x28.npz"

_Arrays = dict[str, np.ndarray]


def _published(
    name: str,
    path: str,
    source: str,
    licence: str = "not stated",
    remark: str = "",
    value_range: ValueRange = (0, 255),
    beside: Sequence[str] = (),
) -> Callable[[Callable[[_Arrays], _Arrays]], Callable[[Library], RawImages]]:
    """Makes a reader of a data set in one file.

    What is decorated turns the arrays of the file into images `x_train`, with labels `y_train` and names of the labels
    `class_names` if there are any, and so on; others are left out.

    Arguments:
        name: The name of the data set.
        path: The path of the file under the data folder.
        source: What it is.
        licence: What is known about its licence.
        remark: What to know before reporting numbers.
        value_range: The range that pixels can have.
        beside: The paths of files whose arrays are read too if they are there.
    """

    def reader(arrange: Callable[[_Arrays], _Arrays]) -> Callable[[Library], RawImages]:
        @wraps(arrange)
        def read(library: Library) -> RawImages:
            file = library.require(path, name)
            arrays = read_arrays(file)
            for extra in filter(None, map(library.find, beside)):
                arrays |= read_arrays(extra)
            arrays = arrange(arrays)

            parts = {}
            for part in PARTS:
                if f"x_{part}" in arrays:
                    images, labels = arrays[f"x_{part}"], arrays.get(f"y_{part}")
                    parts[part] = as_part(images, labels, name)

            hashes = {path: SHA256[path]} if library.verify else {}
            origin = f"{source}, read from {file}"
            provenance = Provenance(origin, licence, remark, hashes)
            class_names = tuple(map(str, arrays.get("class_names", ()))) or None
            return RawImages(name, parts, provenance, value_range, class_names)

        return read

    return reader


def _unpack(bits: np.ndarray, size: int) -> np.ndarray:
    return np.unpackbits(bits, axis=1, count=size**2).reshape(-1, size, size)


@_published(
    "binarized_mnist",
    "BinarizedMNIST/binarized_mnist.npz",
    "Fixed binarised MNIST (Larochelle's bits)",
    remark="The test part is sorted by digit: for some of its rows take them at random, take(..., seed=0)",
    value_range=(0, 1),
)
def read_binarized_mnist(arrays: _Arrays) -> _Arrays:
    """MNIST with fixed bits, with its official three parts, of which the test part is sorted by digit.

    The first test rows are zeros: `take` with a seed for a part of them.

    References:
        | On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov & Murray, 2008)
        | https://www.cs.toronto.edu/~rsalakhu/papers/dbn_ais.pdf
        | The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        | https://proceedings.mlr.press/v15/larochelle11a.html
    """
    return {f"x_{part}": _unpack(bits, 28) for part, bits in arrays.items()}


@_published(
    "caltech101_silhouettes",
    "Caltech101Silhouettes/caltech101_silhouettes_28.mat",
    "Caltech-101 Silhouettes 28 x 28",
    remark="The split is ours, not the published split 1 (4,100 / 2,264 / 2,307): numbers are not comparable",
    value_range=(0, 1),
)
def read_caltech101_silhouettes(arrays: _Arrays) -> _Arrays:
    """Silhouettes of 101 classes of objects, 28 x 28 bits, object = 1.

    References:
        | Inductive Principles for Restricted Boltzmann Machine Learning (Marlin et al., 2010)
        | https://proceedings.mlr.press/v9/marlin10a.html
    """
    # the file is column-major, has 0 for the object, and counts from 1
    images = 1 - arrays["X"].reshape(-1, 28, 28).transpose(0, 2, 1)
    labels = arrays["Y"].astype(np.int64).reshape(-1) - 1
    class_names = np.concatenate(arrays["classnames"].ravel())
    return {"x_train": images, "y_train": labels, "class_names": class_names}


@_published(
    "frey_faces",
    "FreyFaces/frey_rawface.mat",
    "Frey Face",
    remark="Neighbouring frames are almost equal: a random split has near-copies in training and test",
)
def read_frey_faces(arrays: _Arrays) -> _Arrays:
    """1,965 frames of a video of one face, 28 x 20, grey; they follow each other in time.

    References:
        | Nonlinear Dimensionality Reduction by Locally Linear Embedding (Roweis & Saul, 2000)
        | https://doi.org/10.1126/science.290.5500.2323
    """
    return {"x_train": arrays["ff"].T.reshape(-1, 28, 20)}


def _characters(arrays: _Arrays) -> _Arrays:
    """The labels of Omniglot's training and test part: a number means one character.

    The file numbers characters within each part.
    """
    train, test = arrays["character_train"], arrays["character_test"].astype(np.int64)
    return {"y_train": train, "y_test": test + train.max() + 1}


@_published(
    "omniglot28",
    OMNIGLOT_28,
    "Omniglot, area-averaged from 105 x 105 to 28 x 28",
    "MIT (brendenlake/omniglot)",
    "Not the chardata.mat of the IWAE paper: log-likelihoods are not comparable with its tables",
)
def read_omniglot28(arrays: _Arrays) -> _Arrays:
    """Omniglot at 28 x 28, area-averaged, ink = 255; training and test alphabets do not overlap.

    References:
        | Human-level concept learning through probabilistic program induction (Lake et al., 2015)
        | https://doi.org/10.1126/science.aab3050
    """
    return arrays | _characters(arrays)


@_published(
    "omniglot",
    OMNIGLOT_BITS,
    "Omniglot at 105 x 105, ink = 1",
    "MIT (brendenlake/omniglot)",
    value_range=(0, 1),
    beside=[OMNIGLOT_28],
)
def read_omniglot_bits(arrays: _Arrays) -> _Arrays:
    """Omniglot at 105 x 105, bits, ink = 1, with the labels of the 28 x 28 file if that is there."""
    found = {f"x_{part}": _unpack(arrays[f"{part}_bits"], 105) for part in ("train", "test")}
    if "character_train" in arrays:
        found |= _characters(arrays)
    return found


@_published(
    "cifar10_subset",
    "CIFAR10subset/cifar10_subset.npz",
    "CIFAR-10, lossless subset",
    "not stated (CIFAR-10)",
    "SUBSET (10,000 of 50,000 training and 1,000 of 10,000 test images): no benchmark numbers",
)
def read_cifar10_subset(arrays: _Arrays) -> _Arrays:
    """The first 10,000 training, last 1,000 training and first 1,000 test images of CIFAR-10.

    References:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
        | https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
    """
    return arrays


@_published(
    "svhn_subset",
    "SVHNsubset/svhn_subset.npz",
    "SVHN cropped digits, lossless subset",
    "non-commercial use (SVHN authors)",
    "SUBSET (1,083 of 73,257 training digits; the test part is cut from them as well): no benchmark numbers",
)
def read_svhn_subset(arrays: _Arrays) -> _Arrays:
    """The first 1,083 digits of the training file of Street View House Numbers.

    References:
        | Reading Digits in Natural Images with Unsupervised Feature Learning (Netzer et al., 2011)
        | http://ufldl.stanford.edu/housenumbers
    """
    return arrays | {"class_names": np.arange(10)}


@_published(
    "lfw64",
    "LFWgray64/lfw_gray64.npz",
    "Labeled Faces in the Wild, cropped, grey, 64 x 64",
    "Apache-2.0 (source repository)",
    "RE-ENCODED SUBSET (10,000 pictures through JPEG): not the LFW benchmark; no person is in both parts",
)
def read_lfw64(arrays: _Arrays) -> _Arrays:
    """10,000 faces of Labeled Faces in the Wild, grey, 64 x 64; the label is the person.

    References:
        | Labeled Faces in the Wild (Huang et al., 2007)
        | https://vis-www.cs.umass.edu/lfw/
    """
    # a picture is named by the person and a number, as in Aaron_Eckhart_0001
    pictures = np.concatenate([arrays["name_train"], arrays["name_test"]])
    people = np.char.rpartition(pictures, "_")[:, 0]
    arrays["class_names"], labels = np.unique(people, return_inverse=True)
    arrays["y_train"], arrays["y_test"] = np.split(labels, [len(arrays["x_train"])])
    return arrays


@_published(
    "att_faces",
    "ATTFaces/att_faces.npz",
    "AT&T / ORL faces (the pictures behind the Olivetti faces)",
    "free with credit to the Olivetti Research Laboratory",
)
def read_att_faces(arrays: _Arrays) -> _Arrays:
    """Ten grey pictures, 112 x 92, of each of 40 people; the label is the person.

    References:
        | Parameterisation of a Stochastic Model for Human Face Identification (Samaria & Harter, 1994)
        | https://doi.org/10.1109/ACV.1994.341300
    """
    labels = arrays["subject"].astype(np.int64) - 1
    return {"x_train": arrays["x"], "y_train": labels}
