r"""Distances between two sets of images, through features of each image.

    FID   |m_x - m_y|² + tr(S_x + S_y - 2 (S_x S_y)^{1/2})            means m and covariances S of the features
    KID   MMD² with k(x, y) = (xᵀy / d + 1)³, unbiased:
          mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)

FID is the squared 2-Wasserstein distance between Gaussians and is biased upwards in small sets; KID is unbiased, so it
can be negative. Published figures take the features of an Inception network trained on ImageNet, whose weights are a
download (:func:`inception_distance`). Features of a small network trained in place (:func:`classifier_features`) rank
models on one data set; they compare with no figure elsewhere.

References:
    | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017)
    | https://arxiv.org/abs/1706.08500
    | Demystifying MMD GANs (Bińkowski et al., 2018)
    | https://arxiv.org/abs/1801.01401
"""

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyro_vaes.infer import fit
from pyro_vaes.nn import ConvEncoder

Features = Callable[[Tensor], Tensor]


def _features(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, after a look at their shapes."""
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"The distances are between features (N, d) and (M, d) with N, M at least 2, but got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}; pass images through a network first, classifier_features(...)?"
        )
    return x.double(), y.double()


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """FID of features ``(N, d)`` and ``(M, d)``: 0 for equal means and covariances.

    Raises:
        ValueError: These are not two sets of features of one size.

    Example:
        >>> x = torch.randn(100, 3)
        >>> round(frechet_distance(x, x + 2), 4)
        12.0
    """
    x, y = _features(x, y)
    covariance, other = (torch.atleast_2d(torch.cov(features.mT)) for features in (x, y))
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()  # tr (S_x S_y)^{1/2}
    return ((x.mean(0) - y.mean(0)).square().sum() + covariance.trace() + other.trace() - 2 * cross).item()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """KID of features ``(N, d)`` and ``(M, d)``: 0 in expectation for features of one distribution.

    Raises:
        ValueError: These are not two sets of features of one size.

    Example:
        >>> kernel_distance(torch.zeros(3, 2), torch.ones(3, 2))
        7.0
    """
    x, y = _features(x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        gram = kernel(a, a)
        return (gram.sum() - gram.trace()) / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * kernel(x, y).mean()).item()


class _Classifier(nn.Module):
    """p(y | x), a Pyro program without latents, on the features that it is there for."""

    def __init__(self, image_shape: tuple[int, int, int], channels: tuple[int, ...], num: int, classes: int) -> None:
        super().__init__()
        self.features = ConvEncoder(image_shape, channels, num)
        self.logits = nn.Linear(num, classes)

    def forward(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", Categorical(logits=self.logits(self.features(x))), obs=y)


def classifier_features(
    images: Tensor,
    labels: Tensor,
    *,
    channels: tuple[int, ...] = (16, 32, 64),
    num_features: int = 64,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Features:
    """Train a small convolutional classifier and take its last hidden layer as features, standardised over its images.

    Arguments:
        images: ``(N, C, H, W)``.
        labels: Their classes, whole numbers ``(N,)``, in any numbering, two different ones at least.
        channels: Of its stride-2 convolutions.
        num_features: d.
        epochs, batch_size: Of its training by Adam, learning rate 1e-3.
        seed: Of its weights and order; the global generators' states come back.
        progress: Whether to show a progress bar.

    Returns:
        A function of images ``(M, C, H, W)`` that returns features ``(M, d)`` on their device.

    Raises:
        ValueError: The shapes do not fit, or there is one class only.

    Example:
        >>> x = torch.rand(40, 1, 8, 8)
        >>> features = classifier_features(x, torch.arange(40) % 2, channels=(4,), num_features=8, epochs=1)
        >>> features(x[:3]).shape
        torch.Size([3, 8])
    """
    if images.dim() != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Wanted images (N, C, H, W) and labels (N,), but got {tuple(images.shape)} and {tuple(labels.shape)}."
        )
    classes, number = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("A classifier needs two classes at least, but all labels are one; is the data set labelled?")
    _, channels_in, height, width = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Classifier((channels_in, height, width), channels, num_features, len(classes)).to(images.device)
    fit(network, _nothing, (images, number), epochs=epochs, batch_size=batch_size, seed=seed, progress=progress)
    network.eval()

    @torch.no_grad()
    def raw(x: Tensor) -> Tensor:
        return torch.cat([network.features(part) for part in x.split(512)])

    known = raw(images)
    loc, scale = known.mean(0), known.std(0)
    scale = torch.where(scale > 0, scale, 1.0)  # of features that are never active
    return lambda x: (raw(x) - loc) / scale


def _nothing(x: Tensor, y: Tensor) -> None:
    """The guide of a program without latents."""


def inception_distance(x: Tensor, y: Tensor, *, batch_size: int = 64) -> float:
    """FID with torchmetrics' Inception features; needs the extra ``fid`` and downloads the network's weights once.

    Arguments:
        x: Images in [0, 1], ``(N, 3, H, W)``, or grey ``(N, 1, H, W)``; the real ones.
        y: Images to compare with, likewise.
        batch_size: Images per pass.

    Raises:
        ImportError: The extra is not installed.
        ValueError: The images have another shape or range.
    """
    for images in (x, y):
        if images.dim() != 4 or images.shape[1] not in (1, 3) or images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"Wanted images (N, 1 or 3, H, W) in [0, 1], but got shape {tuple(images.shape)} in "
                f"[{images.min().item():.3g}, {images.max().item():.3g}]; data.to_images(x) maps them back?"
            )
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(normalize=True).to(x.device)
    except ImportError as error:  # torchmetrics, or the network that it takes from torch-fidelity
        raise ImportError(
            "The Inception features need torchmetrics with torch-fidelity: pip install 'pyro-vaes[fid]'. Without them, "
            "frechet_distance and kernel_distance work on any features, such as those of classifier_features."
        ) from error
    for images, real in ((x, True), (y, False)):
        for part in images.split(batch_size):
            metric.update(part.expand(-1, 3, -1, -1), real=real)
    return float(metric.compute())
