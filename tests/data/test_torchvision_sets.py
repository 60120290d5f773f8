"""The data sets that other packages read: what is done with what they return, without any network."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import torch
import torchvision.datasets

from pyro_vaes.data import load_data

RNG = np.random.default_rng(0)


def stub(**attributes):
    """A stand-in for a class of torchvision.datasets that records its calls."""
    calls = []

    def make(root, *args, download=False, **kwargs):
        calls.append((root, args, kwargs, download))
        values = {key: v(*args, **kwargs) if callable(v) else v for key, v in attributes.items()}
        return SimpleNamespace(**values)

    make.calls = calls
    return make


def test_svhn(monkeypatch, tmp_path):
    def images(part):
        return RNG.integers(0, 256, (20 if part == "train" else 5, 3, 32, 32), dtype=np.uint8)

    def labels(part):
        return np.arange(20 if part == "train" else 5) % 10

    monkeypatch.setattr(torchvision.datasets, "SVHN", stub(data=images, labels=labels))
    svhn = load_data("svhn", root=tmp_path, split=(4, 0))
    assert [len(part) for part in svhn.parts.values()] == [16, 4, 5]
    assert svhn.image_shape == (3, 32, 32) and svhn.num_classes == 10
    assert torchvision.datasets.SVHN.calls[0][3] is True


def test_cifar10_is_read_without_download_where_it_is(monkeypatch, tmp_path):
    x = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    cifar = stub(data=x, targets=[i % 10 for i in range(12)], classes=list("abcdefghij"))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar)
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = load_data("cifar10", root=tmp_path, split=(0, 0))
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), x) and data.class_names[2] == "c"
    assert [call[3] for call in cifar.calls] == [False, False]


def test_omniglot_ink_is_bright(monkeypatch, tmp_path):
    folder = tmp_path / "pictures" / "alphabet" / "character01"
    folder.mkdir(parents=True)
    paper = np.full((105, 105), 255, np.uint8)
    paper[50:60, 50:60] = 0
    for i in range(4):
        PIL.Image.fromarray(paper).convert("1").save(folder / f"{i}.png")
    omniglot = stub(
        target_folder=str(tmp_path / "pictures"),
        _characters=["alphabet/character01"],
        _flat_character_images=[(f"{i}.png", 0) for i in range(4)],
    )
    monkeypatch.setattr(torchvision.datasets, "Omniglot", omniglot)
    data = load_data("omniglot", root=tmp_path, split=(0, 0))
    assert data.train.images.float().mean() == pytest.approx(100 / 105**2)
    assert data.train.labels.tolist() == [0] * 4 and data.test.labels.tolist() == [1] * 4


def test_celeba_is_resized_while_it_is_read(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="resize=64"):
        load_data("celeba", root=tmp_path)
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(3):
        pixels = RNG.integers(0, 256, (218, 178, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i}.jpg")
    attributes = torch.randint(2, (3, 40), generator=torch.Generator().manual_seed(0))
    celeba = stub(base_folder="celeba", filename=[f"{i}.jpg" for i in range(3)], attr=attributes)
    monkeypatch.setattr(torchvision.datasets, "CelebA", celeba)
    data = load_data("celeba", root=tmp_path, resize=16, labels=True)
    x, y = data.test[:]
    assert data.image_shape == (3, 16, 16) and x.shape == (3, 768) and torch.equal(y, attributes)
    assert load_data("celeba", root=tmp_path, resize=16, grey=True).image_shape == (1, 16, 16)


def test_lfw(monkeypatch, tmp_path):
    bytes_ = RNG.integers(0, 256, (10, 62, 47, 3))

    def fetch(data_home, color, download_if_missing):
        assert color and download_if_missing
        return SimpleNamespace(
            images=(bytes_ / 255).astype(np.float32),
            target=np.arange(10) % 2,
            target_names=np.array(["A", "B"]),
        )

    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", fetch)
    data = load_data("lfw", root=tmp_path, split=(0, 0))
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), bytes_) and data.class_names == ("A", "B")


def test_failed_download(monkeypatch, tmp_path):
    def offline(root, *args, download=False, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision.datasets, "SVHN", offline)
    with pytest.raises(FileNotFoundError, match=rf"download to {tmp_path} failed .*unreachable.*load_data\('digits'\)"):
        load_data("svhn", root=tmp_path)
    # a damaged file is downloaded anew if that is allowed, and named if not
    (tmp_path / "train_32x32.mat").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="not whole"):
        load_data("svhn", root=tmp_path)
    with pytest.raises(ValueError, match="incomplete, truncated or altered"):
        load_data("svhn", root=tmp_path, download=False)


def test_mnist_downloads_what_is_missing(monkeypatch, tmp_path):
    x = torch.randint(256, (30, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mnist = stub(data=x, targets=torch.arange(30) % 10, classes=["0 - zero"] * 10)
    mnist.__name__ = "MNIST"
    monkeypatch.setattr(torchvision.datasets, "MNIST", mnist)
    data = load_data("mnist", root=tmp_path, split=(0.2, 0))
    assert [len(part) for part in data.parts.values()] == [24, 6, 30]
    assert all(call[3] for call in mnist.calls)
