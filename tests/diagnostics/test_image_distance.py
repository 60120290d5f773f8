"""Distances between sets of images: exact for Gaussians, unbiased where promised, and clear without the extra."""

import math
import sys
import types

import numpy as np
import pytest
import scipy.linalg
import torch

from pyro_vaes.data import load_data
from pyro_vaes.diagnostics import classifier_features, frechet_distance, inception_distance, kernel_distance


def with_moments(mean, covariance, n=200):
    """Points whose sample mean and covariance are exactly these."""
    white = torch.randn(n, len(mean), dtype=torch.float64)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.mT))).mT
    return white @ torch.linalg.cholesky(covariance).mT + mean


def covariance(d):
    root = torch.randn(d, 2 * d, dtype=torch.float64)
    return root @ root.mT / d


def test_frechet_distance_of_gaussians_is_exact():
    one, two = torch.randn(2, 4, dtype=torch.float64)
    first, second = covariance(4), covariance(4)
    cross = np.trace(scipy.linalg.sqrtm((first @ second).numpy()).real)
    expected = (one - two).square().sum() + first.trace() + second.trace() - 2 * cross
    found = frechet_distance(with_moments(one, first), with_moments(two, second, n=77))
    assert found == pytest.approx(expected.item(), rel=1e-10)
    # commuting covariances: the sum over axes of differences of means and of standard deviations
    scale, other = torch.rand(2, 4, dtype=torch.float64) + 0.1
    found = frechet_distance(with_moments(one, scale.square().diag()), with_moments(two, other.square().diag()))
    assert found == pytest.approx(((one - two).square() + (scale - other).square()).sum().item(), rel=1e-10)


def test_frechet_distance_survives_constant_features():
    x = torch.cat([torch.randn(50, 2), torch.ones(50, 1)], 1)
    assert abs(frechet_distance(x, x.flip(0))) < 1e-10


def test_kernel_distance_is_the_mean_over_pairs():
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    def pairs(a):
        return np.mean([k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j])

    expected = pairs(x) + pairs(y) - 2 * np.mean([k(u, v) for u in x for v in y])
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased_for_gaussians():
    """In one dimension MMD² is the sum over k of binom(3, k) (E x^k - E y^k)², with Gaussian moments.

    400 pairs of samples of 20, seed 0: within 4 standard errors of the exact value, and of 0 for equal distributions.
    """
    m, s = 0.7, 1.3
    moments = [m, m**2 + s**2, m**3 + 3 * m * s**2]
    exact = sum(math.comb(3, k) * (moments[k - 1] - standard) ** 2 for k, standard in ((1, 0.0), (2, 1.0), (3, 0.0)))
    for loc, scale, expected in ((m, s, exact), (0.0, 1.0, 0.0)):
        draws = [kernel_distance(loc + scale * torch.randn(20, 1), torch.randn(20, 1)) for _ in range(400)]
        assert abs(np.mean(draws) - expected) < 4 * np.std(draws) / math.sqrt(len(draws))


def test_features_tell_the_classes_that_they_were_trained_on_apart():
    digits = load_data("digits", flatten=False)
    x, y = digits.train.x[:800], digits.train.labels[:800]
    state = torch.get_rng_state()
    features = classifier_features(x, y, channels=(8, 16), num_features=16, epochs=8)
    assert torch.equal(torch.get_rng_state(), state)
    test, labels = digits.train.x[800:], digits.train.labels[800:]
    even, odd = features(test)[::2], features(test)[1::2]
    few = features(test[labels < 3])
    assert features(test).shape == (637, 16)
    known = features(x)
    assert known.mean(0).abs().max() < 1e-4 and ((known.std(0) - 1).abs() < 1e-4).sum() > 8  # the others are inactive
    assert kernel_distance(even, odd) < 0.1 * kernel_distance(even, few)
    assert frechet_distance(even, odd) < 0.5 * frechet_distance(even, few)
    assert torch.equal(features(test), classifier_features(x, y, channels=(8, 16), num_features=16, epochs=8)(test))


def test_inception_distance_names_the_extra_where_torchmetrics_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"pyro-vaes\[fid\]"):
        inception_distance(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8))


def test_inception_distance_feeds_torchmetrics_real_and_other_images_in_colour(monkeypatch):
    seen = []

    class Metric:
        def __init__(self, normalize):
            assert normalize  # images in [0, 1]

        def to(self, device):
            return self

        def update(self, images, real):
            seen.append((tuple(images.shape), real))

        def compute(self):
            return torch.tensor(1.5)

    module = types.ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = Metric
    monkeypatch.setitem(sys.modules, "torchmetrics", types.ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image", types.ModuleType("torchmetrics.image"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    assert inception_distance(torch.rand(3, 1, 8, 8), torch.rand(2, 3, 8, 8), batch_size=2) == 1.5
    assert seen == [((2, 3, 8, 8), True), ((1, 3, 8, 8), True), ((2, 3, 8, 8), False)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(torch.rand(3, 1, 8, 8), torch.rand(3, 64)), "classifier_features"),
        (lambda: kernel_distance(torch.rand(1, 3), torch.rand(5, 3)), "at least 2"),
        (lambda: classifier_features(torch.rand(3, 64), torch.zeros(3)), r"images \(N, C, H, W\)"),
        (lambda: classifier_features(torch.rand(3, 1, 8, 8), torch.zeros(3)), "is the data set labelled"),
        (lambda: inception_distance(torch.rand(2, 1, 8, 8) - 2, torch.rand(2, 1, 8, 8)), "to_images"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
