"""The variational ladder: what each level of latents codes, beside a hierarchy made of the same blocks.

    LADDER:  p(z_1) .. p(z_L) r(x | z_1 .. z_L),                    q(z_1 | x) .. q(z_L | x)
    HVAE:    p(z_L) p(z_{L-1} | z_L) .. p(z_1 | z_2) p(x | z_1),    q(z_1 | x) q(z_2 | z_1) .. q(z_L | z_{L-1})

The paper's claims: the upper levels of a hierarchy carry nothing, for z_1 represents the data without them, where a
ladder uses every level; and what a level codes is set by the depth of the network at it, the digit by the deepest. The
paper shows pictures and no figures.

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from papers.study import Case, Job, Result, Study
from pyro_vaes.data import ImageData, load_data
from pyro_vaes.diagnostics import collapse_report, knn_accuracy, posterior_means
from pyro_vaes.infer import MMD_ELBO, Callback, KLWarmup, Run, evaluate, fit
from pyro_vaes.models import HierarchicalVAE, LadderVAE
from pyro_vaes.nn import (
    Chain,
    ImageShape,
    LaplaceLikelihood,
    LayerBuilder,
    NormalHead,
    small_ladder,
)
from pyro_vaes.plots import chart_axes, legend, level_manifolds
from pyro_vaes.programs import preserve_rng

__all__ = ["VARIATIONAL_LADDER", "LadderSetting", "build_hierarchy", "build_ladder"]

Levels = LadderVAE | HierarchicalVAE


@dataclass(frozen=True)
class LadderSetting:
    """What ladder and hierarchy share.

    Attributes:
        data: Name of the data set; pixels in [0, 1].
        channels, width: Of the paper's Small networks.
        latent_dims: Dimensions of z_1, z_2, z_3.
        loss_ratio: a, nats per unit of absolute error: the likelihood is Laplace with scale 1/a.
        warmup: The KL weight at step i = 1, 2, .. is 1 - exp(-i / warmup).
        epochs, batch_size, lr: Of training with Adam.
        watched: Epochs after which the accuracies are measured.
        train_images: How many training images are used; None for all.
        test_images: How many test images are measured; None for all.
        labels: How many training images, with their labels, kNN looks up.
    """

    data: str
    channels: tuple[int, int] = (64, 128)
    width: int = 1024
    latent_dims: tuple[int, int, int] = (2, 2, 2)
    loss_ratio: float = 8.0
    warmup: int = 2000
    epochs: int = 100
    batch_size: int = 100
    lr: float = 2e-4
    watched: tuple[int, ...] = (1, 10, 30, 100)
    train_images: int | None = None
    test_images: int | None = None
    labels: int = 10_000


def setting(budget: str, data: str) -> LadderSetting:
    """The paper's at ``"gpu"``, which names no number of epochs; narrow and short at ``"cpu"``."""
    if budget == "smoke":
        return LadderSetting(
            data,
            channels=(4, 8),
            width=16,
            warmup=10,
            epochs=2,
            watched=(1, 2),
            train_images=300,
            test_images=100,
            labels=200,
        )

    if budget == "cpu":
        return LadderSetting(
            data,
            channels=(16, 32),
            width=256,
            warmup=200,
            epochs=8,
            lr=1e-3,
            watched=(1, 2, 4, 8),
            train_images=20_000,
            test_images=2000,
            labels=5000,
        )

    return LadderSetting(data)


def build_ladder(setting: LadderSetting, image_shape: ImageShape) -> LadderVAE:
    """The paper's ladder for MNIST."""
    networks = small_ladder(image_shape, setting.latent_dims, channels=setting.channels, width=setting.width)
    return LadderVAE(*networks, _likelihood(setting), setting.latent_dims)


def build_hierarchy(setting: LadderSetting, image_shape: ImageShape) -> HierarchicalVAE:
    """A hierarchy of the ladder's blocks: where h_l or t_l ran between two of them, there is z_l instead."""
    s = setting
    networks = small_ladder(image_shape, s.latent_dims, channels=s.channels, width=s.width)

    def block(width_in: int, activation: Callable[[], nn.Module]) -> LayerBuilder:
        return LayerBuilder((width_in,), batch_norm=True).fc(s.width, activation).fc(s.width, activation)

    levels = list(pairwise(s.latent_dims))
    encoders = [networks.rungs[0]]
    for below, above in levels:
        encoders.append(block(below, partial(nn.LeakyReLU, 0.1)).head(above))

    priors = []
    for below, above in levels:
        priors.append(Chain(block(above, nn.ReLU).build(), NormalHead(s.width, below)))

    injection = networks.merges[0].get_submodule("network")
    decoder = nn.Sequential(injection, networks.decoders[0])
    return HierarchicalVAE(encoders, decoder, _likelihood(s), s.latent_dims, priors=priors)


def _likelihood(setting: LadderSetting) -> LaplaceLikelihood:
    return LaplaceLikelihood(1 / setting.loss_ratio, event_dim=3)


def decode(model: Levels, z: Sequence[Tensor]) -> Tensor:
    """The mean image of latents; for a hierarchy z_l is the noise of its level, z_l = loc + scale * noise."""
    if isinstance(model, LadderVAE):
        return model.decode(z)
    *noise, latent = z
    for prior, eps in zip(reversed(list(model.priors)), reversed(noise), strict=True):
        p = prior(latent).base_dist
        latent = p.loc + p.scale * eps
    return model.decoder(latent)


def kl_warmup(setting: LadderSetting) -> KLWarmup:
    """The weight 1 - exp(-i / warmup) at update i = 1, 2, .."""
    return KLWarmup(5 * setting.warmup, start=-math.expm1(-1 / setting.warmup), exponential=True)


def digit_accuracies(model: Levels, data: ImageData, setting: LadderSetting) -> list[float]:
    """How often the nearest posterior means of labelled training images tell a test image's digit, for each level."""
    known, asked = data.train.take(setting.labels), data.test
    assert asked is not None and known.labels is not None and asked.labels is not None

    means = partial(
        posterior_means,
        model.model,
        model.guide,
        sites=[f"z_{level}" for level in range(1, len(model.latent_dims) + 1)],
        # in a hierarchy E[z_2 | x] is an average over z_1
        num_particles=1 if isinstance(model, LadderVAE) else 4,
    )
    train, test = (means(part).split(model.latent_dims, dim=1) for part in (known, asked))
    return [
        knn_accuracy(of_known, known.labels, of_asked, asked.labels)
        for of_known, of_asked in zip(train, test, strict=True)
    ]


@dataclass
class Watch(Callback):
    """Digit accuracies after some epochs."""

    model: Levels
    data: ImageData
    setting: LadderSetting

    def __post_init__(self) -> None:
        self.found: dict[int, list[float]] = {}  # by epoch, one for each level

    def epoch(self, run: Run) -> None:
        if run.epoch in self.setting.watched:
            self.found[run.epoch] = digit_accuracies(self.model, self.data, self.setting)


def measure(
    build: Callable[[LadderSetting, ImageShape], Levels],
    bound: Callable[[int], ELBO],
    setting: LadderSetting,
    job: Job,
) -> Result:
    """Train a pair; what each of its levels carries and codes, and the manifold of each."""
    data = load_data(setting.data, job.root, flatten=False)
    data = data.take(setting.train_images or len(data.train), test=setting.test_images).to(job.device)
    assert data.test is not None
    with preserve_rng(job.seed):
        model = build(setting, data.image_shape)

    watch = Watch(model.to(job.device), data, setting)
    fit(
        model.model,
        model.guide,
        data.train,
        loss=bound(math.prod(data.image_shape)),
        optim=partial(torch.optim.Adam, lr=setting.lr),
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        callbacks=[kl_warmup(setting), watch],
        seed=job.seed,
        progress=job.progress,
    )

    report = collapse_report(model.model, model.guide, data.test)
    sites = [f"z_{level}" for level in range(1, len(setting.latent_dims) + 1)]
    figures = {"-ELBO": evaluate(model.model, model.guide, data.test)}
    figures |= {f"KL {site}": report[site].total_kl for site in sites}
    figures |= {f"active {site}": report[site].active_units for site in sites}
    for epoch, accuracies in watch.found.items():
        for site, accuracy in zip(sites, accuracies, strict=True):
            figures[f"kNN {site} @{epoch}"] = accuracy
    return Result(figures, {"manifolds": manifolds(model, job), "kNN": curves(watch.found)})


def manifolds(model: Levels, job: Job) -> Figure:
    """The paper's picture: each level on a grid, the others drawn."""
    generator = torch.Generator(job.device).manual_seed(job.seed)
    training = model.training

    model.eval()
    axes = level_manifolds(
        partial(decode, model),
        model.latent_dims,
        value_range=(0, 1),
        generator=generator,
        device=job.device,
    )
    model.train(training)

    figure = axes[0].figure
    assert isinstance(figure, Figure)
    return figure


def curves(found: Mapping[int, Sequence[float]]) -> Figure:
    """Accuracy of each level against epochs."""
    figure, ax = plt.subplots(figsize=(4.5, 3.0), layout="constrained")
    for level, accuracies in enumerate(zip(*found.values(), strict=True), start=1):
        ax.plot(list(found), accuracies, "o-", label=f"z_{level}")
    ax.set_ylim(0, 1)
    legend(ax, loc="upper left")
    chart_axes(ax, "Digit from the nearest posterior means", "epoch", "accuracy")
    return figure


def cases(setting: LadderSetting) -> Mapping[str, Case[LadderSetting]]:
    """Ladder and hierarchy by the bound; the ladder by MMD, with the authors' ratio of its weight to the error's."""

    def discrepancy(pixels: int) -> ELBO:
        return MMD_ELBO(pixels * setting.loss_ratio)

    return {
        "LADDER": partial(measure, build_ladder, lambda _: TraceMeanField_ELBO()),
        "HVAE": partial(measure, build_hierarchy, lambda _: Trace_ELBO()),
        "LADDER, MMD": partial(measure, build_ladder, discrepancy),
    }


def remark(_: LadderSetting) -> str:
    """How far the figures are the paper's."""
    return (
        "The paper shows pictures only, so there is no published figure; -ELBO is in nats per image under the Laplace "
        "density that the authors' absolute error stands for, KL in nats, kNN the digit's accuracy at @epochs."
    )


VARIATIONAL_LADDER = Study(
    "variational_ladder",
    "what each level of a ladder codes, beside a hierarchy of the same blocks",
    ("mnist", "fashion_mnist", "digits"),
    setting,
    cases,
    remark=remark,
)
