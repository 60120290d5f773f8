"""What is measured of a code: its size, how far its posteriors lie apart, and what it knows of labels."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_vaes.data import ImageData
from pyro_vaes.diagnostics import (
    collapse_report,
    log_likelihood,
    posterior_means,
    representation_report,
)
from pyro_vaes.infer import MutualPosterior_ELBO, PosteriorPairs
from pyro_vaes.models import VAE
from pyro_vaes.ops import off_diagonal

__all__ = ["code_figures", "divergence_figures", "probe_figures"]


def code_figures(vae: VAE, x: Tensor, *, likelihood_images: int, num_particles: int) -> dict[str, float]:
    """Likelihood of the first images of x, and the size of the code of all, in nats per datum."""
    collapse = collapse_report(vae.model, vae.guide, x)["z"]
    estimate = log_likelihood(vae.model, vae.guide, x[:likelihood_images], num_particles)
    return {
        "NLL": -estimate.log_likelihood.mean().item(),
        "-ELBO": -estimate.elbo.mean().item(),
        "KL": collapse.total_kl,
        "MI": collapse.mutual_information,
        "active units": float(collapse.active_units),
    }


@torch.no_grad()
def divergence_figures(vae: VAE, x: Tensor) -> tuple[dict[str, float], Tensor]:
    """KL(q_i || q_j) over the pairs of images in figures, and all pairs' ``(n (n - 1),)``.

    "by j" and "by i" are the shares of its variance over the pairs that its means over one of the two indices account
    for; nan where all pairs are equal.
    """
    pairs: PosteriorPairs = MutualPosterior_ELBO().pairs(vae.guide, x)
    total = pairs.total.double().cpu()  # (n, n), the diagonal is 0
    each = off_diagonal(total)  # (n (n - 1),)
    by_j, by_i = (total.sum(dim) / (len(total) - 1) for dim in (0, 1))
    figures = {
        "MPD": pairs.mean.sum().item(),
        "L_div / (D ln 2)": pairs.diversity().item() / (len(pairs.mean) * math.log(2)),
        "S": pairs.smoothness().item(),
        "pairs: median": each.median().item(),
        "pairs: max / median": (each.max() / each.median()).item(),
        "pairs: by j": (by_j.var() / each.var()).item(),
        "pairs: by i": (by_i.var() / each.var()).item(),
    }
    return figures, each


def probe_figures(vae: VAE, data: ImageData, num_labels: Sequence[int]) -> Mapping[str, float]:
    """What posterior means of test images know about labels, with probes fitted on so many and on all labels.

    Empty where the training images have no labels, or others than the test images.
    """
    train, test = data.train, data.test
    if test is None or train.labels is None or test.labels is None:
        return {}
    if not torch.isin(test.labels, train.labels).all():
        return {}

    sizes = (*num_labels, None)
    report = representation_report(
        posterior_means(vae.model, vae.guide, train.x),
        train.labels.cpu(),
        posterior_means(vae.model, vae.guide, test.x),
        test.labels.cpu(),
        num_labels=sizes,
    )

    figures = {"K-means": report.kmeans_accuracy, "K-means F1": report.kmeans_f1}
    for name, probes in (("kNN", report.knn), ("linear", report.linear)):
        for probe, size in zip(probes, sizes, strict=True):
            figures[f"{name} {size or 'all'}"] = probe.mean
    return figures
