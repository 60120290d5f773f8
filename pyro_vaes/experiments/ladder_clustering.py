"""Clusters on the rungs of a ladder: VLAC beside GM-DGM and K-means, scored against labels that training never sees.

A rung that is there alone learns all that there is to say, so training is progressive: (1) the top rung alone under
N(0, I), with a small KL weight; (2) its mixture starts at a mixture of normals fitted to its codes and is trained with
it; (3) the rung below fades in, and its mixture starts where its codes then lie; (4) both are trained on.

References:
    | Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019)
    | https://arxiv.org/abs/1909.11501
    | Semi-Unsupervised Learning: Clustering and Classifying using Ultra-Sparse Labels (Willetts et al., 2019)
    | https://arxiv.org/abs/1901.08560
    | Multi-Facet Clustering Variational Autoencoders (Falck et al., 2021)
    | https://arxiv.org/abs/2106.05241
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import matplotlib.pyplot as plt
import pyro
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from sklearn.cluster import KMeans
from torch import Tensor, nn

from pyro_vaes.data import Binarize, ImageData, Split, ToUnit, load
from pyro_vaes.diagnostics import clustering_scores
from pyro_vaes.experiments.study import Job, Result, Study
from pyro_vaes.infer import KLWarmup, ProgressiveRungs, evaluate, fit
from pyro_vaes.models import GaussianMixtureDGM, LadderClusteringVAE, LadderVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, MixturePrior, NormalHead, mlp_ladder
from pyro_vaes.plots import cluster_cards

__all__ = ["LADDER_CLUSTERING", "LadderClusteringSetting", "component_images", "train_vlac"]


@dataclass(frozen=True)
class LadderClusteringSetting:
    """What the cases share.

    Attributes:
        data: Name of the data set.
        gaussian: Whether pixels are normal with standard deviation 0.3; else they are bits, drawn anew in each pass.
        width: Of all hidden layers.
        latent_dims, clusters: Of the rungs, from the data upwards.
        epochs: Of the four phases.
        warm_beta, beta: KL weights of the first phase and of the others.
        scale: Standard deviation at which a mixture starts; None for that of the fit.
        learn_weights: Whether the mixtures' weights are learned; else they are uniform.
        batch_size, lr: Of all training.
        train_images: Of VLAC; None for all.
        dgm_images, dgm_width, dgm_latent_dim, dgm_epochs: Of GM-DGM, which has the clusters of the top rung and needs a
            pass of the decoder for each.
    """

    data: str
    gaussian: bool = False
    width: int = 256
    latent_dims: tuple[int, ...] = (5, 10)
    clusters: tuple[int, ...] = (25, 25)
    epochs: tuple[int, int, int, int] = (8, 10, 4, 2)
    warm_beta: float = 0.1
    beta: float = 0.3
    scale: float | None = 0.1
    learn_weights: bool = False
    batch_size: int = 256
    lr: float = 1e-3
    train_images: int | None = None
    dgm_images: int | None = 10_000
    dgm_width: int = 200
    dgm_latent_dim: int = 20
    dgm_epochs: int = 10

    def load(self, job: Job, images: int | None) -> ImageData:
        """Training data without a validation part, which nothing here chooses by."""
        data = load(self.data, job.root, preprocess=[ToUnit()] if self.gaussian else [ToUnit(), Binarize()])
        if images is not None and images < len(data.train):
            data = data.take(images)
        return dataclasses.replace(data, valid=None)

    def likelihood(self) -> nn.Module:
        return GaussianLikelihood(0.3) if self.gaussian else BernoulliLikelihood()


def setting(budget: str, data: str) -> LadderClusteringSetting:
    """The settings of the multi-facet model's code at "gpu", with widths of 500: VLAC's own are not known."""
    full = LadderClusteringSetting(data, gaussian=data == "svhn_subset")
    if budget == "smoke":
        return replace(
            full, width=16, latent_dims=(2, 3), clusters=(6, 6), epochs=(2, 2, 1, 1), train_images=300, batch_size=50,
            dgm_images=200, dgm_width=16, dgm_latent_dim=3, dgm_epochs=2,
        )  # fmt: skip
    if budget == "gpu":
        return replace(
            full, width=500, epochs=(100, 100, 60, 140), batch_size=512, lr=5e-4,
            dgm_images=None, dgm_width=500, dgm_latent_dim=100, dgm_epochs=300,
        )  # fmt: skip
    if data == "svhn_subset":
        return replace(full, epochs=(60, 60, 20, 20), batch_size=50, dgm_images=None, dgm_epochs=60)
    return full


def train_vlac(s: LadderClusteringSetting, data: ImageData, job: Job) -> tuple[LadderClusteringVAE, Tensor]:
    """The four phases.

    Returns:
        The trained model, and the clusters of the training data where the top mixture started.
    """
    pixels = math.prod(data.image_shape)
    networks, likelihood = mlp_ladder(pixels, s.latent_dims, width=s.width), s.likelihood()
    warm = LadderVAE(*networks, likelihood, s.latent_dims).to(job.device)
    priors = [MixturePrior(k, d, learn_weights=s.learn_weights) for k, d in zip(s.clusters, s.latent_dims, strict=True)]
    for prior in priors:
        prior.place(0.01 * prior.loc, 1.0)  # N(0, I) until it starts
    vlac = LadderClusteringVAE(*networks, likelihood, s.latent_dims, priors=priors).to(job.device)
    steps, top = math.ceil(len(data.train) / s.batch_size), len(s.latent_dims)
    sites, injections = [[f"z_{level}"] for level in range(1, top + 1)], [m.network for m in vlac.merges]
    alone = ProgressiveRungs(sites, injections, 1, stage=10**9)
    fading = ProgressiveRungs(sites, injections, max(1, steps * s.epochs[2] // (top - 1)))
    train = functools.partial(
        fit,
        batch_size=s.batch_size,
        seed=job.seed,
        progress=job.progress,
        optim=functools.partial(torch.optim.Adam, lr=s.lr),
    )
    weigh, warm_weigh = ([KLWarmup(1, start=b, end=b)] for b in (s.beta, s.warm_beta))
    some = grey(data.train.take(10_000), data, job)
    train(warm.model, warm.guide, data, epochs=s.epochs[0], callbacks=[alone, *warm_weigh])
    vlac.start_from(some, rungs=[top], scale=s.scale, seed=job.seed)
    started = clusters_of(vlac.responsibilities, grey(data.train, data, job))[-1]
    train(vlac.model, vlac.guide, data, epochs=s.epochs[1], callbacks=[alone, *weigh])
    train(vlac.model, vlac.guide, data, epochs=s.epochs[2], callbacks=[fading, *weigh])
    vlac.start_from(some, rungs=range(1, top), scale=s.scale, seed=job.seed)
    train(vlac.model, vlac.guide, data, epochs=s.epochs[3], callbacks=weigh)
    return vlac, started


def grey(part: Split, data: ImageData, job: Job) -> Tensor:
    """Images as stored, in the units of the pixels: clusters are read off without the noise of bits."""
    images = dataclasses.replace(part, steps=data.preprocess(ToUnit()).train.steps)[:]
    return cast(Tensor, images).to(job.device)


@torch.no_grad()
def clusters_of(responsibilities: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    """The most responsible cluster of every image on each rung, on the CPU."""
    parts = [[r.argmax(-1).cpu() for r in responsibilities(batch)] for batch in x.split(2000)]
    return [torch.cat(rung) for rung in zip(*parts, strict=True)]


def scores(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_clusters: int) -> dict[str, float]:
    """Agreement on the test data, by maps from clusters to labels that are learnt on the training data; in percent."""
    found = clustering_scores(*test, fitted=train, num_clusters=num_clusters)
    return {
        f"{name} majority %": 100 * found.majority_accuracy,
        f"{name} Hungarian %": 100 * found.hungarian_accuracy,
        f"{name} NMI": found.nmi,
        f"{name} ARI": found.ari,
        f"{name} used": float(found.used_clusters),
        f"{name} K": float(num_clusters),
    }


def labelled(data: ImageData) -> tuple[Tensor, Tensor]:
    """The labels of the training and of the test images."""
    assert data.train.labels is not None and data.test is not None and data.test.labels is not None
    return data.train.labels, data.test.labels


def vlac(s: LadderClusteringSetting, job: Job) -> Result:
    """Train VLAC and score each rung; rungs are named by their place, the top one first."""
    torch.manual_seed(job.seed)
    data = s.load(job, s.train_images)
    model, started = train_vlac(s, data, job)
    model.eval()
    assert data.test is not None
    (y, y_test), x, x_test = labelled(data), grey(data.train, data, job), grey(data.test, data, job)
    train, test = clusters_of(model.responsibilities, x), clusters_of(model.responsibilities, x_test)
    figures = {"start majority %": 100 * clustering_scores(started, y).majority_accuracy}
    pictures: dict[str, Figure] = {}
    for level in range(len(s.clusters), 0, -1):
        name = RUNGS.get(len(s.clusters) - level, f"z_{level}")
        k = s.clusters[level - 1]
        figures |= scores(name, (train[level - 1], y), (test[level - 1], y_test), k)
        pictures[f"clusters {name}"] = card(x_test.cpu(), test[level - 1], s, data, f"clusters of the {name} rung")
        images, component = component_images(model, level, seed=job.seed)
        pictures[f"components {name}"] = card(images, component, s, data, f"components of the {name} rung")
    figures["NELBO"] = evaluate(model.model, model.guide, data.test, seed=0)
    return Result(figures, pictures)


RUNGS = {0: "top", 1: "below"}


def card(images: Tensor, clusters: Tensor, s: LadderClusteringSetting, data: ImageData, title: str) -> Figure:
    """The twelve largest clusters, a row of images for each."""
    figure, ax = plt.subplots(figsize=(5.0, 6.0), layout="constrained")
    cluster_cards(
        images, clusters, largest=12, image_shape=data.image_shape, value_range=(0.0, 1.0), title=title, ax=ax
    )
    return figure


@torch.no_grad()
def component_images(
    model: LadderClusteringVAE, level: int, *, columns: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images generated from each component of one rung, the other rungs drawn from their priors, alike in each column.

    Returns:
        The means of the likelihood, K x columns of them, and the component of each.
    """
    pyro.set_rng_seed(seed)
    clusters = model.num_clusters[level - 1]
    others = poutine.trace(model.cluster_model).get_trace(size=columns).nodes
    given = {
        f"z_{other}": others[f"z_{other}"]["value"].repeat(clusters, 1)
        for other in range(1, len(model.num_clusters) + 1)
        if other != level
    }
    component = torch.arange(clusters, device=next(model.parameters()).device).repeat_interleave(columns)
    program = poutine.condition(model.cluster_model, {**given, f"y_{level}": component})
    trace = poutine.trace(program).get_trace(size=len(component))
    return trace.nodes["x"]["fn"].mean.cpu(), component.cpu()


def gmdgm(s: LadderClusteringSetting, job: Job) -> Result:
    """GM-DGM without labels, as the authors start it: component means alike, Adam 3e-4, a batch of 100."""
    torch.manual_seed(job.seed)
    data = s.load(job, s.dgm_images)
    pixels, width, dim, k = math.prod(data.image_shape), s.dgm_width, s.dgm_latent_dim, s.clusters[-1]
    prior = MixturePrior(k, dim, learn_weights=False)
    prior.place(1e-3 * prior.loc, 1.0)
    encoder = Chain(MLP(pixels + k, [width], width, activate_output=True), NormalHead(width, dim))
    classifier, decoder = MLP(pixels, [width, width], k), MLP(dim, [width, width], pixels)
    model = GaussianMixtureDGM(classifier, encoder, decoder, s.likelihood(), prior).to(job.device)
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    adam = functools.partial(torch.optim.Adam, lr=3e-4)
    fit(
        model.model, model.guide, data, loss=bound, optim=adam, epochs=s.dgm_epochs, batch_size=100, seed=job.seed,
        progress=job.progress,
    )  # fmt: skip
    model.eval()
    assert data.test is not None
    (y, y_test), x, x_test = labelled(data), grey(data.train, data, job), grey(data.test, data, job)
    (train,), (test,) = (clusters_of(lambda batch: [model.responsibilities(batch)], part) for part in (x, x_test))
    figures = scores("top", (train, y), (test, y_test), k)
    return Result(
        figures | {"NELBO": evaluate(model.model, model.guide, data.test, loss=bound, seed=0, batch_size=100)}
    )


def kmeans(s: LadderClusteringSetting, job: Job) -> Result:
    """K-means on the pixels, with as many clusters as the top rung: what a model has to beat."""
    data = s.load(job, min(10_000, s.train_images or 10_000))
    assert data.test is not None
    (y, y_test), x, x_test = labelled(data), grey(data.train, data, job), grey(data.test, data, job)
    fitted = KMeans(s.clusters[-1], n_init=1, random_state=job.seed).fit(x.cpu().numpy())
    train, test = (torch.as_tensor(fitted.predict(part.cpu().numpy())).long() for part in (x, x_test))
    return Result(scores("top", (train, y), (test, y_test), s.clusters[-1]))


def remark(s: LadderClusteringSetting) -> str:
    """Where the published figures are from."""
    said = (
        "Majority accuracies compare at equal K only. Labels enter no training; maps from clusters to labels are "
        "learnt on training images and scored on test images. Published, of majority votes unless it says Hungarian: "
        "GM-DGM from arXiv 1901.08560 (their K is not stated here); MFCVAE, K = 25 on each of two facets of MNIST, "
        "from the authors' readme; VaDE (K = 10) and GMVAE (their best K) recollected, not verified. VLAC's paper "
        "states no percentages in what is accessible."
    )
    if s.data == "svhn_subset":
        said += " This is a subset of 1,083 digits: nothing published on SVHN compares with it."
    return said


PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "mnist": {
        "GM-DGM": {"top majority %": 96.3},
        "MFCVAE": {"top majority %": 92.02, "top K": 25},
        "VaDE": {"top Hungarian %": 94.46, "top K": 10},
        "GMVAE": {"top majority %": 96.9, "top K": 16},
    },
    "fashion_mnist": {"GM-DGM": {"top majority %": 75.2}},
}


LADDER_CLUSTERING: Study[LadderClusteringSetting] = Study(
    "ladder_clustering",
    "clusters on each rung of a ladder, beside GM-DGM and K-means",
    ("mnist", "fashion_mnist", "svhn_subset", "digits"),
    setting,
    lambda s: {"VLAC": vlac, "GM-DGM": gmdgm, "K-means on pixels": kmeans},
    PUBLISHED,
    remark,
)
