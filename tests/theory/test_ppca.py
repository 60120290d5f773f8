"""Probabilistic PCA against scikit-learn, autograd-free optimality, and published sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from pyro_vaes.theory import ProbabilisticPCA, probabilistic_pca

DIGITS = torch.as_tensor(load_digits().data) / 16


def random_model(features: int = 7, k: int = 3) -> ProbabilisticPCA:
    mean, loadings = torch.randn(features, dtype=torch.float64), torch.randn(features, k, dtype=torch.float64)
    return ProbabilisticPCA(mean, loadings, 0.37)


@pytest.mark.parametrize(("k", "noise_var", "log_likelihood"), [(2, 0.054117, 0.006), (10, 0.022751, 17.452)])
def test_digits(k: int, noise_var: float, log_likelihood: float):
    model = probabilistic_pca(DIGITS, k)
    assert model.noise_var == pytest.approx(noise_var, abs=5e-7)
    assert model.log_likelihood == pytest.approx(log_likelihood, abs=5e-4)
    assert model.log_prob(DIGITS).mean().item() == pytest.approx(model.log_likelihood, abs=1e-9)


def idx_images(path: Path) -> torch.Tensor:
    """MNIST's file format: 16 bytes of header, then the pixels."""
    return torch.as_tensor(np.fromfile(path, dtype=np.uint8, offset=16).reshape(-1, 784).astype(np.float64) / 255)


@pytest.mark.parametrize(
    ("k", "noise_var", "train", "test"), [(10, 0.034867, 182.155, 186.024), (50, 0.012596, 507.905, 517.603)]
)
def test_mnist(data_root: Path, k: int, noise_var: float, train: float, test: float):
    raw = data_root / "MNIST" / "raw"
    model = probabilistic_pca(idx_images(raw / "train-images-idx3-ubyte"), k)
    assert model.noise_var == pytest.approx(noise_var, abs=5e-7)
    assert model.log_likelihood == pytest.approx(train, abs=5e-4)
    held_out = model.log_prob(idx_images(raw / "t10k-images-idx3-ubyte")).mean().item()
    assert held_out == pytest.approx(test, abs=5e-4)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_agrees_with_scikit_learn(k: int):
    x = torch.randn(40, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    model, pca = probabilistic_pca(x, k), PCA(k).fit(x.numpy())
    # scikit-learn divides by N - 1: the same model with every variance times N / (N - 1)
    ratio = 40 / 39
    assert model.noise_var * ratio == pytest.approx(pca.noise_variance_, rel=1e-9)
    scaled = ProbabilisticPCA(model.mean, model.loadings * ratio**0.5, model.noise_var * ratio)
    assert scaled.log_prob(x).mean().item() == pytest.approx(pca.score(x.numpy()), rel=1e-9)
    # and the maximum of the likelihood is ours
    assert model.log_likelihood > pca.score(x.numpy())


def test_is_a_maximum():
    """The gradient of the likelihood vanishes in all parameters at the closed form."""
    model = probabilistic_pca(DIGITS[:, 20:30], 4)
    mean, loadings = model.mean.clone().requires_grad_(), model.loadings.clone().requires_grad_()
    noise_var = torch.tensor(model.noise_var, dtype=torch.float64, requires_grad=True)
    ProbabilisticPCA(mean, loadings, noise_var).log_prob(DIGITS[:, 20:30]).mean().backward()
    for parameter in (mean, loadings, noise_var):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter.grad), rtol=0, atol=1e-9)


def test_evidence_is_that_of_the_marginal_normal():
    model = random_model()
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    covariance = (model.loadings @ model.loadings.T + 0.37 * torch.eye(7)).numpy()
    expected = stats.multivariate_normal.logpdf(x.numpy(), model.mean.numpy(), covariance)
    torch.testing.assert_close(model.log_prob(x), torch.as_tensor(expected))


def test_posterior_satisfies_bayes_rule():
    """log p(x) = log p(z) + log p(x|z) - log p(z|x) for every z."""
    model = random_model()
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    posterior = model.posterior(x)
    assert posterior.batch_shape == (2, 5) and posterior.event_shape == (3,)
    z = torch.randn(2, 5, 3, dtype=torch.float64)
    prior = stats.norm.logpdf(z).sum(-1)
    likelihood = stats.norm.logpdf(x, z @ model.loadings.T + model.mean, 0.37**0.5).sum(-1)
    evidence = torch.as_tensor(prior + likelihood) - posterior.log_prob(z)
    torch.testing.assert_close(evidence, model.log_prob(x))


def test_takes_the_weights_of_a_linear_decoder():
    decoder = torch.nn.Linear(3, 7)
    scale = torch.tensor(0.2, requires_grad=True)
    model = ProbabilisticPCA(decoder.bias, decoder.weight, scale**2)
    x = torch.randn(5, 7)
    (model.log_prob(x).sum() + model.posterior(x).mean.sum()).backward()
    assert scale.grad is not None and decoder.weight.grad is not None
    assert model.log_prob(x).dtype == torch.float32
    with pytest.raises(ValueError, match="no training data"):
        _ = model.log_likelihood


def test_prints_itself():
    assert "D=64, k=2, noise variance 0.054117, log-likelihood 0.006 nats" in repr(probabilistic_pca(DIGITS, 2))


def test_plot():
    model = probabilistic_pca(DIGITS, 10)
    ax = model.plot()
    assert ax.get_yscale() == "log" and len(ax.lines) == 3
    np.testing.assert_allclose(ax.lines[0].get_ydata(), model.spectrum)
    # built from weights: the spectrum of the model, which is that of the data up to the floor
    bare = ProbabilisticPCA(model.mean, model.loadings, model.noise_var).plot(ax)
    assert bare is ax
    np.testing.assert_allclose(ax.lines[3].get_ydata()[:10], model.spectrum[:10])
    np.testing.assert_allclose(ax.lines[3].get_ydata()[10:], model.noise_var)


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (torch.randn(10, 8, 8), 2, "flatten"),
        (torch.randn(1, 5), 2, "N >= 2"),
        (torch.tensor([[0.0, float("nan")], [1.0, 2.0]]), 1, "1 values that are NaN"),
        (torch.randn(10, 5), 0, "from 1 to D - 1 = 4"),
        (torch.randn(10, 5), 5, "from 1 to D - 1 = 4"),
        (torch.randn(3, 5), 3, "unbounded as the noise vanishes"),
        (torch.zeros(10, 5), 1, "unbounded"),
    ],
)
def test_bad_data(x: torch.Tensor, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        probabilistic_pca(x, k)


def test_bad_models():
    with pytest.raises(ValueError, match="transpose the loadings"):
        ProbabilisticPCA(torch.zeros(7), torch.zeros(3, 7), 1.0)
    with pytest.raises(ValueError, match="one positive variance"):
        ProbabilisticPCA(torch.zeros(7), torch.zeros(7, 3), 0.0)
    with pytest.raises(ValueError, match="7 features"):
        random_model().log_prob(torch.zeros(2, 8))
