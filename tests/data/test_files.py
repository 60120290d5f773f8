"""Files of a user's: arrays and folders of images."""

import numpy as np
import PIL.Image
import pytest
import scipy.io
import torch

from pyro_vaes.data import load_data

X = np.random.default_rng(1).integers(0, 256, (30, 6, 5), dtype=np.uint8)
Y = np.arange(30) % 3


@pytest.mark.parametrize(
    ("arrays", "labelled"),
    [
        ({"anything": X}, False),
        ({"x": X, "y": Y}, True),
        ({"Images": X, "Labels": Y}, True),
        ({"x": X, "x_mean": X[0]}, False),
        ({"pictures": X, "numbers": Y, "names": np.array(["a"] * 30)}, False),
        ({"data": X, "target": Y, "other": X}, True),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".mat"])
def test_keys_are_chosen_where_they_are_clear(tmp_path, arrays, labelled, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, arrays)
    else:
        np.savez(path, **arrays)
    data = load_data(path, split=(0, 0))
    assert data.name == "mine"
    assert torch.equal(data.train.images[:, 0], torch.tensor(X))
    assert (data.train.labels is not None) == labelled
    if labelled:
        assert torch.equal(data.train.labels, torch.tensor(Y))
    assert len(data.provenance.sha256["mine" + suffix]) == 64


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", X.reshape(30, 30))
    data = load_data(tmp_path / "x.npy", image_shape=(1, 6, 5), split=(0, 0))
    assert torch.equal(data.train.images[:, 0], torch.tensor(X))


def test_official_parts_in_a_file(tmp_path):
    np.savez(tmp_path / "s.npz", x_train=X[:20], y_train=Y[:20], x_val=X[20:24], y_val=Y[20:24], x_test=X[24:])
    data = load_data(tmp_path / "s.npz")
    assert [len(part) for part in data.parts.values()] == [20, 4, 6]
    assert torch.equal(data.valid.labels, torch.tensor(Y[20:24])) and data.test.labels is None


def test_named_keys(tmp_path):
    np.savez(tmp_path / "k.npz", a=X, b=X[::-1], c=Y)
    with pytest.raises(ValueError, match=r"'a' \(30, 6, 5\) uint8, 'b'.*key="):
        load_data(tmp_path / "k.npz")
    data = load_data(tmp_path / "k.npz", key="b", label_key="c", split=(0, 0), labels=True)
    assert torch.equal(data.train[:][1], torch.tensor(Y))
    assert torch.equal(data.train.images[:, 0], torch.tensor(X[::-1].copy()))
    with pytest.raises(ValueError, match="no array 'd'"):
        load_data(tmp_path / "k.npz", key="d")
    with pytest.raises(ValueError, match="no array 'e'"):
        load_data(tmp_path / "k.npz", key="a", label_key="e")


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".mat"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_files(tmp_path, suffix, keep):
    path = tmp_path / f"t{suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, {"x": X})
    else:
        (np.savez_compressed if suffix == ".npz" else np.save)(path, X)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match="truncated"):
        load_data(path)


def test_matlab_files_of_the_newest_kind(tmp_path):
    path = tmp_path / "new.mat"
    # the header of a version 7.3 file: a text of 124 bytes, the version 0x0200, the byte order
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    with pytest.raises(ValueError, match=r"version 7\.3"):
        load_data(path)


def test_empty_files_and_pickles(tmp_path):
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="no arrays in it"):
        load_data(tmp_path / "none.npz")
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="never loaded"):
        load_data(tmp_path / "p.npy")


def write(folder, n=4, mode="L", size=(5, 6), suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(folder)))
    for i in range(n):
        pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).convert(mode).save(folder / f"{i}{suffix}")


def test_folder_in_order_of_names(tmp_path):
    write(tmp_path / "pics", mode="RGB")
    (tmp_path / "pics" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    data = load_data(tmp_path / "pics", split=(0, 0))
    assert data.name == "pics" and data.image_shape == (3, 6, 5) and data.train.labels is None
    for i in range(4):
        with PIL.Image.open(tmp_path / "pics" / f"{i}.png") as picture:
            assert np.array_equal(np.asarray(picture), data.train.images[i].permute(1, 2, 0))
    assert load_data(tmp_path / "pics", grey=True).image_shape == (1, 6, 5)
    assert load_data(tmp_path / "pics", resize=(3, 4)).image_shape == (3, 3, 4)


def test_sub_folders_are_labels(tmp_path):
    for name in ("cat", "dog"):
        write(tmp_path / name / "deep")
    data = load_data(tmp_path, split=(0, 0))
    assert data.class_names == ("cat", "dog") and data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.image_shape == (1, 6, 5)
    write(tmp_path, n=1)
    assert load_data(tmp_path).train.labels is None


def test_sub_folders_may_be_parts(tmp_path):
    for part, n in (("train", 6), ("val", 2), ("test", 3)):
        for name in ("cat", "dog"):
            write(tmp_path / part / name, n)
    data = load_data(tmp_path)
    assert [len(part) for part in data.parts.values()] == [12, 4, 6]
    assert data.class_names == ("cat", "dog") and data.test.labels.tolist() == [0] * 3 + [1] * 3


def test_grey_and_colour_mixed(tmp_path):
    write(tmp_path / "a", mode="L")
    write(tmp_path / "b", mode="RGB")
    data = load_data(tmp_path, split=(0, 0))
    assert data.image_shape == (3, 6, 5)
    assert (data.train.images[:4, 0] == data.train.images[:4, 2]).all()


def test_folder_refusals(tmp_path):
    write(tmp_path / "ragged")
    write(tmp_path / "ragged" / "more", size=(7, 7))
    with pytest.raises(ValueError, match=r"7 x 7 pixels, but .* resize="):
        load_data(tmp_path / "ragged")
    assert load_data(tmp_path / "ragged", resize=4).image_shape == (1, 4, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no images"):
        load_data(tmp_path / "empty")
    write(tmp_path / "broken")
    picture = tmp_path / "broken" / "2.png"
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"2\.png could not be read"):
        load_data(tmp_path / "broken")
