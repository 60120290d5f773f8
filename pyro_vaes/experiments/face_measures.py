"""What is measured and drawn of an auto-encoder of faces; pixels in [-1, 1]."""

import os
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vaes import plots
from pyro_vaes.data import ImageData, ToSigned, load
from pyro_vaes.diagnostics import aggregate_report, classifier_features, kernel_distance, reconstruction_report
from pyro_vaes.models import VAE

__all__ = ["discriminator_accuracy", "generate", "measure", "pictures", "portraits_of"]

SENSITIVE = 0.01
"""A unit is in use if a step of 1 changes the pixels by this much on average: a 200th of their range."""
PICTURES_OF_A_CLASS = 10
"""People with fewer pictures are left out of the classifier whose features KID takes."""


def portraits_of(root: str | os.PathLike[str] | None = None) -> tuple[Tensor, Tensor]:
    """AT&T's faces cropped to squares and averaged down to 64 x 64, ``(400, 1, 64, 64)``, and their persons ``(400,)``."""
    data = load("att_faces", root, flatten=False, split=(0, 0), preprocess=ToSigned())
    assert data.train.labels is not None
    return F.interpolate(data.train.x[..., 10:102, :], (64, 64), mode="area"), data.train.labels


@torch.no_grad()
def generate(vae: VAE, loc: Tensor, scale: Tensor, size: int, *, seed: int = 0) -> Tensor:
    """Pictures decoded from draws of a diagonal normal, clipped to [-1, 1], ``(size, C, H, W)``."""
    noise = torch.randn(size, len(loc), generator=torch.Generator().manual_seed(seed)).to(loc)
    return torch.cat([vae.decoder(z).clamp(-1, 1) for z in (loc + scale * noise).split(256)])


def measure(
    vae: VAE, data: ImageData, *, portraits: bool = False, root: str | os.PathLike[str] | None = None, seed: int = 0
) -> dict[str, float]:
    """The columns of the table, on the test images (and on AT&T's faces)."""
    assert data.test is not None
    test = data.test.x
    errors, report = reconstruction_report(vae.model, vae.guide, test), aggregate_report(vae.model, vae.guide, test)
    assert report.sensitivity is not None
    figures = {
        "L1 mean": errors.l1_mean,
        "L1 sample": errors.l1_sample,
        "sharpness": errors.high_frequency_ratio,
        "dead": float(report.num_dead),
        "Var min": report.mean_variance.min().item(),
        "Var median": report.mean_variance.median().item(),
        "sigma": report.mean_scale.mean().item(),
        "agg. var": report.aggregate_variance.mean().item(),
        "KL": float(report.mean_kl),
        "KL agg.": float(report.aggregate_kl),
        "KL means": float(report.means_kl),
        "MI": float(report.mutual_information),
        "in use": float((report.sensitivity > SENSITIVE).sum()),
    }
    features = _features(data)
    if features is not None:
        real, zeros = features(test), torch.zeros_like(report.loc)
        prior = generate(vae, zeros.to(test), zeros.to(test) + 1, len(test), seed=seed)
        fitted = generate(vae, *_aggregate(report.loc, report.aggregate_variance, test), len(test), seed=seed)
        figures["KID N(0, I)"] = kernel_distance(features(prior), real)
        figures["KID aggregate"] = kernel_distance(features(fitted), real)
    if portraits:
        others = reconstruction_report(vae.model, vae.guide, portraits_of(root)[0].to(test))
        figures |= {"L1 AT&T": others.l1_mean, "sharpness AT&T": others.high_frequency_ratio}
    return figures


def _aggregate(loc: Tensor, variance: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    return loc.to(like), variance.sqrt().to(like)


def _features(data: ImageData) -> Callable[[Tensor], Tensor] | None:
    """Features of a classifier of the people with several training pictures; None for data without labels."""
    labels = data.train.labels
    if labels is None or labels.dim() > 1:
        return None
    often = labels.bincount()[labels] >= PICTURES_OF_A_CLASS
    return classifier_features(data.train.x[often], labels[often])


@torch.no_grad()
def discriminator_accuracy(vae: VAE, discriminator: nn.Module, data: ImageData) -> dict[str, float]:
    """Shares of real patches and of patches of reconstructions that the discriminator judges right."""
    assert data.test is not None
    x = data.test.x
    fake = vae.decoder(vae.posterior(x).mean)
    real_share, fake_share = (discriminator(images) > 0 for images in (x, fake))
    return {"real right": real_share.float().mean().item(), "fake right": 1 - fake_share.float().mean().item()}


@torch.no_grad()
def pictures(
    vae: VAE, data: ImageData, *, portraits: bool = False, root: str | os.PathLike[str] | None = None
) -> dict[str, Figure]:
    """Reconstructions, the paper's figures 4 and 5, and samples, of test images (and of AT&T's faces)."""
    assert data.test is not None
    test = data.test.x
    report = aggregate_report(vae.model, vae.guide, test, num_sensitivity=1)
    means = vae.posterior(test[:8]).mean
    scale = vae.posterior(test[:1]).variance.sqrt()
    zeros = torch.zeros_like(means[0])
    shown = {
        "reconstructions": plots.reconstructions(test[:16], vae.decoder(vae.posterior(test[:16]).mean), columns=8, value_range=RANGE),
        "variants": plots.variants(vae.decoder, means[:1], scale, value_range=RANGE),
        "transitions": plots.transitions(vae.decoder, means[:4], means[4:8], value_range=RANGE),
        "samples from N(0, I)": plots.samples(generate(vae, zeros, zeros + 1, 32), columns=8, value_range=RANGE, title="Latents from N(0, I)"),
        "samples from the aggregate": plots.samples(
            generate(vae, *_aggregate(report.loc, report.aggregate_variance, test), 32), columns=8, value_range=RANGE, title="Latents from the fitted aggregate"
        ),
    }
    if portraits:
        faces, people = portraits_of(root)
        first = torch.stack([(people == person).nonzero()[0, 0] for person in range(8)])
        last = torch.stack([(people == person).nonzero()[-1, 0] for person in range(8)])
        start, end = (faces[rows].to(test) for rows in (first, last))
        shown["AT&T reconstructions"] = plots.reconstructions(start, vae.decoder(vae.posterior(start).mean), columns=8, value_range=RANGE)
        shown["AT&T transitions"] = plots.transitions(
            vae.decoder, vae.posterior(start[:4]).mean, vae.posterior(end[:4]).mean, value_range=RANGE, title="From one picture of a person to another, a row for each"
        )
    return {name: ax.figure for name, ax in shown.items()}
