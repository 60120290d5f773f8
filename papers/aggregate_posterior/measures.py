"""What is measured and drawn of an auto-encoder of faces; pixels in [-1, 1]."""

import functools
import os
from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vaes import plots
from pyro_vaes.data import ImageData, ToSigned, load_data
from pyro_vaes.diagnostics import (
    AggregateReport,
    aggregate_report,
    classifier_features,
    draw_from_aggregate,
    kernel_distance,
    posterior_means,
    reconstruction_report,
)
from pyro_vaes.models import VAE
from pyro_vaes.programs import preserve_rng

__all__ = [
    "correlated",
    "discriminator_accuracy",
    "effective_units",
    "fitted_aggregate",
    "generate",
    "measure",
    "pictures",
    "portraits_of",
    "samplers",
]

RANGE = (-1.0, 1.0)
SENSITIVE = 0.01
"""A unit is in use if a step of 1 changes the pixels by this much on average: a 200th of their range."""
OFTEN = 10
"""People with fewer training pictures are left out of the classifier whose features KID takes."""
FITTED = 2000
"""Training images over which the aggregate is fitted that samples are drawn from."""

Root = str | os.PathLike[str] | None


def portraits_of(root: Root = None) -> tuple[Tensor, Tensor]:
    """AT&T's faces cut to squares and averaged down to 64 x 64, ``(400, 1, 64, 64)``, and their persons ``(400,)``."""
    data = load_data("att_faces", root, flatten=False, split=(0, 0), preprocess=ToSigned())
    assert data.train.labels is not None
    return F.interpolate(data.train.x[..., 10:102, :], (64, 64), mode="area"), data.train.labels


def fitted_aggregate(vae: VAE, data: ImageData) -> AggregateReport:
    """The aggregate posterior of training images, to draw latents from."""
    return aggregate_report(vae.model, vae.guide, data.train[:FITTED], num_sensitivity=0, max_mixture=2)


@torch.no_grad()
def correlated(vae: VAE, x: Tensor) -> Callable[..., object]:
    """The model with latents from a normal with all covariances of the aggregate posterior of x, ``(N, C, H, W)``.

    The objective, and so the diagonal aggregate, sees one unit at a time: units may all say the same.
    """
    q = vae.posterior(x)
    covariance = torch.cov(q.mean.mT, correction=0) + q.variance.mean(0).diag()
    joint = MultivariateNormal(q.mean.mean(0), covariance)
    return lambda size: poutine.condition(vae.model, data={"z": joint.sample((size,))})(size=size)


def effective_units(means: Tensor) -> float:
    """How many independent units of one variance would vary as much: (sum of eigenvalues)² / sum of their squares.

    Arguments:
        means: Posterior means ``(N, d)``; the eigenvalues are those of their covariance.

    Example:
        >>> round(effective_units(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])), 3)
        1.0
    """
    values = torch.linalg.eigvalsh(torch.cov(means.double().mT))
    return (values.sum().square() / values.square().sum()).item()


@torch.no_grad()
def generate(program: Callable[..., object], size: int, *, seed: int = 0) -> Tensor:
    """New images ``(size, C, H, W)``, the means of p(x | z) cut to [-1, 1], for latents as the program draws them."""
    with preserve_rng(seed):
        parts = [min(256, size - start) for start in range(0, size, 256)]
        traces = [poutine.trace(program).get_trace(size=part) for part in parts]
    return torch.cat([t.nodes["x"]["fn"].mean for t in traces]).clamp(*RANGE)


def samplers(vae: VAE, data: ImageData, fitted: AggregateReport) -> dict[str, Callable[..., object]]:
    """Three ways to draw the latents of new images: prior, diagonal aggregate, and aggregate with all covariances."""
    train = data.train[:FITTED]
    assert isinstance(train, Tensor)
    return {
        "N(0, I)": vae.model,
        "aggregate": draw_from_aggregate(fitted)(vae.model),
        "correlated": correlated(vae, train),
    }


def measure(
    vae: VAE,
    data: ImageData,
    fitted: AggregateReport,
    *,
    portraits: bool = False,
    root: Root = None,
    seed: int = 0,
) -> dict[str, float]:
    """The columns of the table, on the test images (and on AT&T's faces)."""
    test = _test(data)
    errors = reconstruction_report(vae.model, vae.guide, test, seed=seed)
    report = aggregate_report(vae.model, vae.guide, test, num_sensitivity=16, seed=seed)
    figures = {
        "L1 mean": errors.l1_mean,
        "L1 sample": errors.l1_sample,
        "sharpness": errors.high_frequency_ratio,
        "dead": float(report.num_dead),
        "Var min": report.mean_variance.min().item(),
        "Var median": report.mean_variance.median().item(),
        "sigma": report.mean_scale.mean().item(),
        "agg. var": report.variance.mean().item(),
        "KL": report.decomposition.mean_kl,
        "KL agg.": report.decomposition.aggregate_kl,
        "KL means": report.means_kl,
        "MI": report.mutual_information,
        "effective": effective_units(posterior_means(vae.model, vae.guide, test)),
        "sensitivity": report.sensitivity.median().item(),
        "in use": float((report.sensitivity > SENSITIVE).sum()),
    }

    features = _features(data)
    if features is not None:
        real = features(test)
        for name, program in samplers(vae, data, fitted).items():
            images = generate(program, len(test), seed=seed)
            figures[f"KID {name}"] = kernel_distance(features(images), real)

    if portraits:
        faces, _ = portraits_of(root)
        others = reconstruction_report(vae.model, vae.guide, faces.to(test), seed=seed)
        figures["L1 AT&T"] = others.l1_mean
        figures["sharpness AT&T"] = others.high_frequency_ratio
    return figures


def _test(data: ImageData) -> Tensor:
    assert data.test is not None
    return data.test.x


def _features(data: ImageData) -> Callable[[Tensor], Tensor] | None:
    """Features of a classifier of the people with several training pictures; None for data without such labels."""
    labels = data.train.labels
    if labels is None or labels.dim() > 1:
        return None
    often = labels.bincount()[labels] >= OFTEN
    return classifier_features(data.train.x[often], labels[often])


@torch.no_grad()
def discriminator_accuracy(vae: VAE, discriminator: nn.Module, data: ImageData) -> dict[str, float]:
    """Shares of real patches and of patches of reconstructions that the discriminator judges right."""
    real, fake = [], []
    for x in _test(data).split(256):
        x_hat = vae.decoder(vae.posterior(x).mean)
        real.append(discriminator(x) > 0)
        fake.append(discriminator(x_hat) < 0)
    return {
        "real right": torch.cat(real).float().mean().item(),
        "fake right": torch.cat(fake).float().mean().item(),
    }


@torch.no_grad()
def pictures(
    vae: VAE,
    data: ImageData,
    fitted: AggregateReport,
    *,
    portraits: bool = False,
    root: Root = None,
) -> dict[str, Figure]:
    """Reconstructions, the paper's figures 4 and 5, and samples, of test images (and of AT&T's faces)."""
    x = _test(data)[:16]
    q = vae.posterior(x)

    row = functools.partial(plots.reconstructions, columns=8, value_range=RANGE)
    grid = functools.partial(plots.samples, columns=8, value_range=RANGE)
    walk = functools.partial(plots.transitions, vae.decoder, value_range=RANGE)
    shown = {
        "reconstructions": row(x, vae.decoder(q.mean)),
        "variants": plots.variants(vae.decoder, q.mean[0], q.variance.sqrt()[0], value_range=RANGE),
        "transitions": walk(q.mean[:4], q.mean[4:8]),
    }
    for name, program in samplers(vae, data, fitted).items():
        shown[f"samples {name}"] = grid(generate(program, 32), title=f"Latents from {name}")

    if portraits:
        faces, people = portraits_of(root)
        of_person = [faces[people == person] for person in range(8)]
        start, end = (torch.stack([shots[which] for shots in of_person]).to(x) for which in (0, -1))
        one, other = vae.posterior(start).mean, vae.posterior(end).mean
        shown["AT&T reconstructions"] = row(start, vae.decoder(one))
        shown["AT&T transitions"] = walk(one[:4], other[:4], title="From one picture of a person to another")

    figures = {}
    for name, ax in shown.items():
        assert isinstance(ax.figure, Figure)
        figures[name] = ax.figure
    return figures
