"""VLAC as the clustering experiment trains it, in four phases.

A rung that is there alone learns all that there is to say, so training is progressive: (1) the top rung alone under
N(0, I), with a small KL weight; (2) its mixture starts where its codes lie and is trained with it; (3) the rungs below
fade in within an epoch, again with a small KL weight, and their mixtures start where their codes then lie; (4) all are
trained on.

References:
    | Disentangling to Cluster: Gaussian Mixture Variational Ladder Autoencoders (Willetts, Roberts & Holmes, 2019)
    | https://arxiv.org/abs/1909.11501
    | Multi-Facet Clustering Variational Autoencoders (Falck et al., 2021), for the order and the start
    | https://arxiv.org/abs/2106.05241
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from papers.study import Job
from pyro_vaes.data import Binarize, ImageData, Split, ToUnit, load_data
from pyro_vaes.infer import KLWarmup, ProgressiveRungs, fit
from pyro_vaes.models import LadderClusteringVAE, LadderVAE
from pyro_vaes.nn import BernoulliLikelihood, GaussianLikelihood, MixturePrior, mlp_ladder

__all__ = ["LadderClusteringSetting", "clusters_of", "component_images", "grey", "setting", "train_vlac"]


@dataclass(frozen=True)
class LadderClusteringSetting:
    """What the cases share.

    Attributes:
        data: Name of the data set.
        gaussian: Whether pixels are normal with standard deviation 0.3; else they are bits, drawn anew in each pass.
        width: Of all hidden layers.
        latent_dims, clusters: Of the rungs, from the data upwards.
        epochs: Of the four phases.
        warm_beta, beta: KL weights of the phases in which rungs are new, (1) and (3), and of the others.
        start: Where a mixture starts: K-means or a mixture of normals fitted to the codes, "kmeans" or "gmm".
        scale: Standard deviation at which it starts; None for that of the fit.
        learn_weights: Whether the mixtures' weights are learned; else they are uniform.
        batch_size: Of all training.
        warm_lr, lr: Learning rates of Adam, likewise.
        train_images: Of VLAC; None for all.
        dgm_images, dgm_width, dgm_latent_dim, dgm_epochs: Of GM-DGM, which has the clusters of the top rung and needs a
            pass of the decoder for each.
    """

    data: str
    gaussian: bool = False
    width: int = 256
    latent_dims: tuple[int, ...] = (5, 10)
    clusters: tuple[int, ...] = (25, 25)
    epochs: tuple[int, int, int, int] = (8, 4, 4, 2)
    warm_beta: float = 0.05
    beta: float = 0.3
    start: str = "kmeans"
    scale: float | None = None
    learn_weights: bool = False
    batch_size: int = 128
    warm_lr: float = 3e-3
    lr: float = 1e-3
    train_images: int | None = 20_000
    dgm_images: int | None = 5_000
    dgm_width: int = 128
    dgm_latent_dim: int = 20
    dgm_epochs: int = 6

    def load(self, job: Job, images: int | None) -> ImageData:
        """Training data without a validation part, which nothing here chooses by."""
        data = load_data(self.data, job.root, preprocess=[ToUnit()] if self.gaussian else [ToUnit(), Binarize()])
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
            full, width=500, epochs=(100, 100, 60, 140), batch_size=512, warm_lr=5e-4, lr=5e-4, train_images=None,
            dgm_images=None, dgm_width=500, dgm_latent_dim=100, dgm_epochs=300,
        )  # fmt: skip
    if data == "svhn_subset":
        return replace(full, epochs=(60, 20, 15, 10), batch_size=50, dgm_images=None, dgm_epochs=20)
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
    sites = [[f"z_{level}"] for level in range(1, top + 1)]
    injections = [cast(nn.Module, merge.network) for merge in vlac.merges]
    alone = ProgressiveRungs(sites, injections, 1, stage=10**9)
    fading = ProgressiveRungs(sites, injections, steps, stage=0)
    train = functools.partial(
        fit,
        batch_size=s.batch_size,
        seed=job.seed,
        progress=job.progress,
    )
    weigh, warm_weigh = ([KLWarmup(1, start=b, end=b)] for b in (s.beta, s.warm_beta))
    some = grey(data.train.take(10_000), data, job)
    warm_optim, optim = (functools.partial(torch.optim.Adam, lr=lr) for lr in (s.warm_lr, s.lr))
    train(warm.model, warm.guide, data, optim=warm_optim, epochs=s.epochs[0], callbacks=[alone, *warm_weigh])
    start = functools.partial(vlac.start_from, some, method=s.start, scale=s.scale, seed=job.seed)
    start(rungs=[top])
    started = clusters_of(vlac.responsibilities, grey(data.train, data, job))[-1]
    train(vlac.model, vlac.guide, data, optim=optim, epochs=s.epochs[1], callbacks=[alone, *weigh])
    train(vlac.model, vlac.guide, data, optim=warm_optim, epochs=s.epochs[2], callbacks=[fading, *warm_weigh])
    start(rungs=range(1, top))
    train(vlac.model, vlac.guide, data, optim=optim, epochs=s.epochs[3], callbacks=weigh)
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
