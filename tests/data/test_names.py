"""Data sets by name: the real files where they are, and what is said where they are not."""

import shutil

import numpy as np
import pytest
import torch

from pyro_vaes.data import NAMES, data_set_states, load_data
from pyro_vaes.data.files import SHA256, Library

# name: sizes of train, valid (drawn or official), test; image shape; largest pixel; classes
SETS = {
    "mnist": ((54_000, 6_000, 10_000), (1, 28, 28), 255, 10),
    "fashion_mnist": ((54_000, 6_000, 10_000), (1, 28, 28), 255, 10),
    "binarized_mnist": ((50_000, 10_000, 10_000), (1, 28, 28), 1, None),
    "caltech101_silhouettes": ((6_937, 867, 867), (1, 28, 28), 1, 101),
    "frey_faces": ((1_573, 196, 196), (1, 28, 20), 255, None),
    "omniglot28": ((17_352, 1_928, 13_180), (1, 28, 28), 255, 1623),
    "cifar10_subset": ((10_000, 1_000, 1_000), (3, 32, 32), 255, 10),
    "svhn_subset": ((810, 90, 183), (3, 32, 32), 255, 10),
    "lfw64": ((8_100, 900, 1_000), (1, 64, 64), 255, 4738),
    "att_faces": ((320, 40, 40), (1, 112, 92), 255, 40),
}


@pytest.mark.parametrize("name", SETS)
def test_real_files(data_root, name):
    sizes, shape, high, classes = SETS[name]
    data = load_data(name, root=data_root)
    assert tuple(len(part) for part in data.parts.values()) == sizes
    assert data.image_shape == shape and data.num_classes == classes
    assert tuple(data.raw) == (0, high, high + 1)
    assert all(part.images.dtype == torch.uint8 for part in data.parts.values())
    assert int(data.train.images.max()) > 0.9 * high and int(data.train.images.min()) <= 0.04 * high
    x = data.train[:500]
    assert x.min() >= 0 and x.max() <= 1
    if classes is not None:
        assert data.train.labels.max() < classes and len(data.train.labels) == sizes[0]
    for word in ("Licence", "SHA-256"):
        assert word in repr(data)


def mean_image(data):
    return data.train.images.float().mean((0, 1)) / data.raw.high


def test_mnist_labels_and_looks(data_root):
    data = load_data("mnist", root=data_root, split=(0, 0))
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.labels.bincount().tolist() == counts
    assert data.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # the mean and standard deviation that everyone normalises MNIST with
    pixels = data.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
    # the first training image is a five
    assert data.train.labels[0] == 5 and data.train.images[0, 0].float().mean() == pytest.approx(35.1, abs=0.1)


def test_binarized_mnist_are_upright_digits(data_root):
    bits, grey = (mean_image(load_data(name, root=data_root)) for name in ("binarized_mnist", "mnist"))
    assert torch.corrcoef(torch.stack([bits.flatten(), grey.flatten()]))[0, 1] > 0.999


def test_the_sorted_test_part_of_binarized_mnist(data_root):
    """The mean of its first rows, zeros, is far off that of all; 500 rows at random are off by their variance / 500."""
    data = load_data("binarized_mnist", root=data_root)
    assert "sorted by digit" in repr(data)
    whole = data.test.images.float()

    def off(part):
        return (part.images.float().mean(0) - whole.mean(0)).square().sum().item()

    expected = whole.var(0).sum().item() / 500
    assert off(data.take(1, test=500).test) > 20 * expected
    assert off(data.take(1, test=500, seed=0).test) < 2 * expected


def test_caltech_is_upright_bright_and_mixed(data_root):
    data = load_data("caltech101_silhouettes", root=data_root)
    mean = mean_image(data)
    # objects fill the middle and leave the corners
    assert mean[10:18, 10:18].min() > 0.7 > 0.4 > max(mean[0, 0], mean[0, -1], mean[-1, 0], mean[-1, -1])
    faces = data.train.images[data.train.labels == data.class_names.index("Faces 2")][:, 0].float().mean(0)
    # upright heads: the outline is symmetric left to right and not top to bottom
    assert (faces - faces.flip(1)).abs().mean() < (faces - faces.flip(0)).abs().mean()
    assert data.train.labels[:500].unique().numel() > 50


def test_frey_faces_are_upright(data_root):
    data = load_data("frey_faces", root=data_root, split=(0, 0))
    mean = mean_image(data)
    assert (mean - mean.flip(1)).abs().mean() < (mean - mean.flip(0)).abs().mean()
    # frames follow each other in the file, and neighbours in an image are alike
    x = data.train.images.float()
    assert (x[1:] - x[:-1]).abs().mean() < 0.5 * (x[1:] - x.flip(0)[1:]).abs().mean()
    assert (x[..., 1:] - x[..., :-1]).abs().mean() < 20


def test_colour_channels_are_in_front(data_root):
    x = load_data("cifar10_subset", root=data_root).train.images.float()
    # frog 0, truck 1: red, green and blue of one pixel are alike, neighbouring pixels too
    assert (x[:, 0] - x[:, 1]).abs().mean() < 25 and (x[..., 1:] - x[..., :-1]).abs().mean() < 25
    assert load_data("cifar10_subset", root=data_root, grey=True, resize=16).image_shape == (1, 16, 16)


def test_omniglot_test_characters_have_numbers_of_their_own(data_root):
    data = load_data("omniglot28", root=data_root, split=(0, 0))
    assert torch.equal(data.train.labels.unique(), torch.arange(964))
    assert torch.equal(data.test.labels.unique(), torch.arange(964, 1623))
    # ink is bright and rare
    assert data.train.images.float().mean() < 40


@pytest.mark.slow
def test_omniglot_from_its_bits(data_root):
    data = load_data("omniglot", root=data_root)
    assert data.image_shape == (1, 105, 105) and data.num_classes == 1623
    assert data.train.images[:1000].float().mean() < 0.1


def test_people_of_lfw_are_disjoint(data_root):
    data = load_data("lfw64", root=data_root, split=(0, 0))
    train, test = (set(part.labels.tolist()) for part in (data.train, data.test))
    assert not train & test and len(test) == 481


def test_environment_variable_names_the_folder(data_root, monkeypatch):
    monkeypatch.setenv("PYRO_VAES_DATA", str(data_root))
    assert len(load_data("frey-faces").train) == 1_573


def test_digits_need_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_VAES_DATA", str(tmp_path / "nothing"))
    data = load_data()
    assert load_data("Digits").name == "digits"
    assert data.name == "digits" and data.raw.high == 16 and data.image_shape == (1, 8, 8)
    assert sum(len(part) for part in data.parts.values()) == 1_797
    assert torch.cat([part.labels for part in data.parts.values()]).bincount().tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mnits", ValueError, "did you mean 'mnist'"),
        ("Fashion-MNIST2", ValueError, "'fashion_mnist'"),
        ("zzz", ValueError, "The names are att_faces, binarized_mnist"),
        ("no/such/folder", FileNotFoundError, "neither a file nor a folder"),
        ("nothing.npz", FileNotFoundError, "neither a file nor a folder"),
    ],
)
def test_unknown_names(name, error, message):
    with pytest.raises(error, match=message):
        load_data(name)


@pytest.mark.parametrize("x", [np.zeros((5, 4)), torch.zeros(5, 4), [0.0, 1.0]])
def test_arrays_are_no_names(x):
    with pytest.raises(
        ValueError,
        match=r"load_data takes a name or a path, but got a .*; for an array use pyro_vaes\.data\.from_tensors\(x, y\)",
    ):
        load_data(x)


def test_wrong_kind_of_file_and_arguments(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match="kind that cannot be loaded"):
        load_data(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"not a file of arrays.*Leave out key\."):
        load_data("digits", key="x")


@pytest.mark.parametrize("name", sorted({*SETS, "omniglot", "svhn", "cifar10", "lfw"} - {"digits"}))
def test_missing_files(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{name} needs .*{tmp_path}.* root= or set"):
        load_data(name, root=tmp_path, download=False)
    assert not list(tmp_path.iterdir())


def test_every_name_has_a_test():
    assert {*SETS, "digits", "omniglot", "svhn", "cifar10", "lfw", "celeba"} == set(NAMES)


def save_bits(root, **arrays):
    (root / "BinarizedMNIST").mkdir()
    path = root / "BinarizedMNIST" / "binarized_mnist.npz"
    np.savez(path, **arrays)
    return path


def test_wrong_hash_and_truncation(tmp_path):
    arrays = {part: np.zeros((n, 98), np.uint8) for part, n in (("train", 4), ("valid", 2), ("test", 3))}
    path = save_bits(tmp_path, **arrays)
    with pytest.raises(ValueError, match=r"(?s)SHA-256 \w{64}, but df14.*verify=False"):
        load_data("binarized_mnist", root=tmp_path)
    data = load_data("binarized_mnist", root=tmp_path, verify=False)
    assert len(data.test) == 3 and data.provenance.sha256 == {}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        load_data("binarized_mnist", root=tmp_path, verify=False)


def test_truncated_mnist(data_root, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(data_root / "MNIST" / "raw", raw, copy_function=shutil.copyfile)
    raw.chmod(0o755)
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:5_000])
    with pytest.raises(ValueError, match=r"5,000 bytes .*truncated or altered"):
        load_data("mnist", root=tmp_path)
    with pytest.raises(ValueError, match="incomplete, truncated or altered"):
        load_data("mnist", root=tmp_path, verify=False, download=False)


def test_known_hashes_match_the_folder(data_root):
    sums = dict(reversed(line.split()) for line in (data_root / "SHA256SUMS").read_text().splitlines())
    assert sums == SHA256


def test_folders_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRO_VAES_DATA", str(tmp_path / "env"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Library().folders == [tmp_path / "env", tmp_path / ".cache" / "pyro_vaes"]
    assert Library(tmp_path / "here").folders == [tmp_path / "here"]
    monkeypatch.delenv("PYRO_VAES_DATA")
    assert Library().target == tmp_path / ".cache" / "pyro_vaes"
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="can be written to"):
        _ = Library(tmp_path / "file").target


def test_states_say_of_every_name_whether_its_files_are_here(tmp_path):
    (tmp_path / "FreyFaces").mkdir()
    (tmp_path / "FreyFaces" / "frey_rawface.mat").write_bytes(b"whatever: nothing is read")
    found = {state.name: state for state in data_set_states(tmp_path)}
    assert tuple(found) == NAMES
    assert found["digits"].state == "here (bundled)" and found["frey_faces"].state == "here"
    assert found["att_faces"].state == "not here"
    assert found["celeba"].state == "not here; downloads on first use"
    assert found["celeba"].about.startswith("CelebA, aligned: 202,599 faces")
    assert not list(tmp_path.glob("celeba*"))
