"""Data sets of arrays in memory: shapes, dtypes, splits, refusals."""

import numpy as np
import pytest
import torch

from pyro_vaes.data import Binarize, Dequantize, Logit, MeanCentre, ToUnit, from_tensors, load_data

RNG = np.random.default_rng(0)


def grey(n=40, high=256, shape=(6, 5)):
    x = RNG.integers(0, high, (n, *shape), dtype=np.uint8)
    x[0, 0, 0] = high - 1
    return x


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((9, 5), (1, 1, 5)),
        ((9, 6, 5), (1, 6, 5)),
        ((9, 1, 6, 5), (1, 6, 5)),
        ((9, 3, 6, 5), (3, 6, 5)),
        ((9, 6, 5, 3), (3, 6, 5)),
    ],
)
def test_shapes(shape, expected):
    x = RNG.random(shape)
    data = from_tensors(x, split=(0, 0), flatten=False)
    assert data.image_shape == expected
    wanted = np.moveaxis(x, -1, 1) if shape[-1] == 3 else x.reshape(9, *expected)
    torch.testing.assert_close(data.train.x, torch.tensor(wanted, dtype=torch.float32))


@pytest.mark.parametrize(
    ("x", "raw_dtype", "raw", "levels", "batch"),
    [
        (grey(), torch.uint8, (0, 255), 256, (0, 1)),
        (grey(high=2), torch.uint8, (0, 1), 2, (0, 1)),
        (grey(high=2).astype(bool), torch.uint8, (0, 1), 2, (0, 1)),
        (grey().astype(np.int64), torch.uint8, (0, 255), 256, (0, 1)),
        (grey().astype(">i2"), torch.uint8, (0, 255), 256, (0, 1)),
        (np.array([[0, 300], [7, 5]] * 5, np.uint16), torch.int64, (0, 300), 301, (0, 1)),
        (np.array([[-1.5, 2.0]] * 10, ">f8"), torch.float32, (-1.5, 2), None, (-1.5, 2)),
    ],
)
def test_dtypes_and_ranges(x, raw_dtype, raw, levels, batch):
    before = x.copy()
    data = from_tensors(x)
    assert data.train.images.dtype == raw_dtype
    assert tuple(data.raw) == (*raw, levels)
    assert data.value_range == batch
    assert data.train.x.dtype == torch.float32
    assert np.array_equal(x, before)


def test_counts_without_steps():
    counts = torch.tensor([[0, 700], [3, 12]] * 10)
    data = from_tensors(counts, preprocess=(), split=(0, 0), test=torch.tensor([[1, 2]]))
    torch.testing.assert_close(data.train.x, counts.float())
    assert data.test.images.dtype == torch.int64


def test_splits_are_seeded_disjoint_and_recorded():
    x = torch.arange(200).reshape(200, 1)
    data, again, other = (from_tensors(x, split=(0.2, 30), seed=seed) for seed in (1, 1, 2))
    assert [len(part) for part in data.parts.values()] == [130, 40, 30]
    rows = [data.splits.train, data.splits.valid, data.splits.test]
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(200))
    for part, index, repeated in zip(
        data.parts.values(), rows, (again.splits.train, again.splits.valid, again.splits.test), strict=True
    ):
        assert torch.equal(part.images.flatten(), index) and torch.equal(index, repeated)
    assert not torch.equal(other.splits.test, data.splits.test)
    assert data.splits.seed == 1 and "seed 1" in str(data.splits)


def test_nothing_drawn_keeps_the_order():
    data = from_tensors(torch.arange(20).reshape(20, 1), split=(0, 0.0))
    assert torch.equal(data.train.images.flatten(), torch.arange(20))
    assert torch.equal(data.splits.train, torch.arange(20))
    assert data.valid is None and data.test is None
    assert "in their order" in str(data.splits)
    assert data.take(3).valid is None


def test_given_parts_are_kept():
    x, y = grey(), RNG.integers(0, 4, 40)
    data = from_tensors(x, y, valid=(x[:7], y[:7]), test=(x[7:12], y[7:12]), split=(0.5, 0.5), labels=True)
    assert [len(part) for part in data.parts.values()] == [40, 7, 5]
    assert torch.equal(data.test[:][1], torch.tensor(y[7:12]))
    assert str(data.splits) == "official valid and test" and data.num_classes == 4


def test_labels_of_several_kinds():
    x = grey()
    y = RNG.integers(0, 3, 40)
    for labels in (y.tolist(), y.astype(float), torch.tensor(y), y[:, None], y.astype(np.uint8), y[None]):
        assert torch.equal(from_tensors(x, labels, split=(0, 0)).train.labels, torch.tensor(y))
    attributes = RNG.integers(0, 2, (40, 5))
    data = from_tensors(x, attributes, labels=True)
    assert data.num_classes is None and data.train[:3][1].shape == (3, 5)
    named = from_tensors(x, y, class_names=["a", "b", "c", "d"])
    assert named.num_classes == 4 and named.class_names[3] == "d"


def test_views():
    data = load_data("digits")
    bits = data.preprocess(ToUnit(), Binarize(seed=3))
    assert bits.steps[1].seed == 3 and len(data.steps) == 1
    assert bits.train.images is data.train.images
    assert [len(part) for part in data.take(5, 4, 3).parts.values()] == [5, 4, 3]
    assert torch.equal(bits.to_images(bits.train[:3]).flatten(1), bits.train[:3])
    for seed in (None, 2):
        drawn = data.take(50, test=40, seed=seed)
        assert [len(part) for part in drawn.parts.values()] == [50, 180, 40]
        assert torch.equal(drawn.train.images, data.train.take(50, seed=seed).images)
        assert torch.equal(drawn.test.labels, data.test.take(40, seed=seed).labels)
        assert drawn.valid is data.valid
    samples = torch.rand(7, 2, 64)
    assert data.to_images(samples).shape == (7, 2, 1, 8, 8)


def test_words():
    data = load_data("digits", preprocess=[ToUnit(), Dequantize(), Logit(), MeanCentre()])
    assert data.space == (
        "nats of pixels as stored (0 to 16, 17 levels), scaled to [0, 1], dequantised with uniform noise "
        "(17 levels), logit-transformed (lam = 0.05), minus the mean training image"
    )
    text = repr(load_data("digits", labels=True))
    words = [
        "'digits'",
        "1,437 train",
        "1 x 8 x 8",
        "10 classes",
        "(B, 64), (B,)",
        "[0, 1]",
        "seed 0",
        "CC BY",
    ]
    for word in words:
        assert word in text
    assert "no labels" in repr(from_tensors(grey()))


NAN = np.zeros((5, 3, 3))
NAN[3, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_tensors(NAN), ValueError, "1 of 5 images, the first of which is image 3"),
        (lambda: from_tensors(np.zeros((0, 3, 3))), ValueError, "empty"),
        (lambda: from_tensors(np.float32(3)), ValueError, "empty"),
        (lambda: from_tensors(np.zeros(7)), ValueError, "axes cannot be told"),
        (lambda: from_tensors(np.zeros((9, 3, 5, 3))), ValueError, "axes cannot be told"),
        (lambda: from_tensors(np.zeros((32, 32, 3, 9))), ValueError, "axes cannot be told"),
        (lambda: from_tensors(np.array([None, 1])), ValueError, "different sizes"),
        (lambda: from_tensors(np.array(["a", "b"])), TypeError, "<U1"),
        (lambda: from_tensors(torch.zeros(4, 4, dtype=torch.complex64)), TypeError, "complex"),
        (lambda: from_tensors(grey(), image_shape=(1, 5, 5)), ValueError, "30 pixels per image"),
        (lambda: from_tensors(grey(), np.zeros(39)), ValueError, "there are 40 images"),
        (lambda: from_tensors(grey(), np.full(40, -1)), ValueError, "from 0"),
        (lambda: from_tensors(grey(), np.full(40, 0.5)), ValueError, "from 0"),
        (lambda: from_tensors(grey(), ["a"] * 40), TypeError, "np.unique"),
        (lambda: from_tensors(grey(), np.full(40, 3), class_names=["a", "b"]), ValueError, "2 class_names"),
        (lambda: from_tensors(grey(), labels=True), ValueError, "no labels"),
        (lambda: from_tensors(grey(), np.zeros(40), test=grey()).with_labels(), ValueError, "its test part"),
        (lambda: from_tensors(grey(), test=grey(shape=(6, 6))), ValueError, "have shape"),
        (lambda: from_tensors(grey(), test=grey() / 255), ValueError, "kind of pixels"),
        (lambda: from_tensors(grey(), value_range=(0, 16)), ValueError, "value_range"),
        (lambda: from_tensors(grey(), split=(1.0, 0)), ValueError, r"\[0, 1\)"),
        (lambda: from_tensors(grey(), split=(-0.1, 0)), ValueError, r"\[0, 1\)"),
        (lambda: from_tensors(grey(), split=(0, -1)), ValueError, r"\[0, 1\)"),
        (lambda: from_tensors(grey(), split=(True, 0)), TypeError, "True"),
        (lambda: from_tensors(grey(), split=("0.1", 0)), TypeError, "0.1"),
        (lambda: from_tensors(grey(), split=0.1), ValueError, "two sizes"),
        (lambda: from_tensors(grey(), split=(0.5, 0.5)), ValueError, "leaves none"),
        (lambda: from_tensors(grey(), split=(0, 41)), ValueError, "leaves none"),
        (lambda: from_tensors(grey()).take(0), ValueError, "at least one row"),
        (lambda: from_tensors(grey()).to_images(torch.zeros(3, 29)), ValueError, "30"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
