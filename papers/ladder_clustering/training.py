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

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from papers.study import Job
from pyro_vaes.data import Binarize, ImageData, Split, ToUnit, load_data
from pyro_vaes.infer import KLWarmup, ProgressiveRungs, fit
from pyro_vaes.models import LadderClusteringVAE, LadderVAE
from pyro_vaes.nn import (
    BernoulliLikelihood,
    GaussianLikelihood,
    MixturePrior,
    mlp_ladder,
)

__all__ = [
    "LadderClusteringSetting",
    "clusters_of",
    "component_images",
    "grey",
    "setting",
    "train_vlac",
]


@dataclass(frozen=True)
class LadderClusteringSetting:
    """What the cases share.

    Attributes:
        data: Name of the data set.
        gaussian: Whether pixels are normal with standard deviation 0.3; else they are bits, drawn anew in each pass.
        width: Width of all hidden layers.
        latent_dims, clusters: Dimensions and numbers of clusters of the rungs, from the data upwards.
        epochs: Passes over the data in each of the four phases.
        warm_beta, beta: KL weights of the phases in which rungs are new, (1) and (3), and of the others.
        start: Where a mixture starts: K-means or a mixture of normals fitted to the codes, "kmeans" or "gmm".
        scale: Standard deviation at which it starts; None for that of the fit.
        learn_weights: Whether the mixtures' weights are learned; else they are uniform.
        batch_size: Images per step in all training.
        warm_lr, lr: Learning rates of Adam in the phases of warm_beta and of beta.
        train_images: How many images VLAC is trained on; None for all.
        dgm_images, dgm_width, dgm_latent_dim, dgm_epochs: The same of GM-DGM, which has the clusters of the top rung
            and needs a pass of the decoder for each.
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
        steps = [ToUnit()] if self.gaussian else [ToUnit(), Binarize()]
        data = load_data(self.data, job.root, preprocess=steps)
        if images is not None and images < len(data.train):
            data = data.take(images)
        return replace(data, valid=None)

    def likelihood(self) -> nn.Module:
        return GaussianLikelihood(0.3) if self.gaussian else BernoulliLikelihood()


def setting(budget: str, data: str) -> LadderClusteringSetting:
    """The settings of the multi-facet model's code at "gpu", with widths of 500: VLAC's own are not known."""
    full = LadderClusteringSetting(data, gaussian=data == "svhn_subset")
    if budget == "smoke":
        return replace(
            full,
            width=16,
            latent_dims=(2, 3),
            clusters=(6, 6),
            epochs=(2, 2, 1, 1),
            train_images=300,
            batch_size=50,
            dgm_images=200,
            dgm_width=16,
            dgm_latent_dim=3,
            dgm_epochs=2,
        )

    if budget == "gpu":
        return replace(
            full,
            width=500,
            epochs=(100, 100, 60, 140),
            batch_size=512,
            warm_lr=5e-4,
            lr=5e-4,
            train_images=None,
            dgm_images=None,
            dgm_width=500,
            dgm_latent_dim=100,
            dgm_epochs=300,
        )

    if data == "svhn_subset":
        return replace(
            full,
            epochs=(60, 20, 15, 10),
            batch_size=50,
            dgm_images=None,
            dgm_epochs=20,
        )

    return full


def train_vlac(s: LadderClusteringSetting, data: ImageData, job: Job) -> tuple[LadderClusteringVAE, Tensor]:
    """The four phases.

    Returns:
        The trained model, and the clusters of the training data where the top mixture started.
    """
    warm, vlac = _models(s, math.prod(data.image_shape))
    warm, vlac = warm.to(job.device), vlac.to(job.device)

    def train(model: LadderVAE, phase: int, rungs: ProgressiveRungs | None, *, new: bool) -> None:
        beta, lr = (s.warm_beta, s.warm_lr) if new else (s.beta, s.lr)
        weight = KLWarmup(1, start=beta, end=beta)
        fit(
            model.model,
            model.guide,
            data,
            optim=functools.partial(torch.optim.Adam, lr=lr),
            epochs=s.epochs[phase - 1],
            batch_size=s.batch_size,
            callbacks=[weight] if rungs is None else [rungs, weight],
            seed=job.seed,
            progress=job.progress,
        )

    def start(rungs: Sequence[int]) -> None:
        vlac.start_from(some, rungs=rungs, method=s.start, scale=s.scale, seed=job.seed)

    top = len(s.latent_dims)
    sites = [[f"z_{level}"] for level in range(1, top + 1)]
    injections = [merge.get_submodule("network") for merge in vlac.merges]
    steps = math.ceil(len(data.train) / s.batch_size)
    alone = ProgressiveRungs(sites, injections, 1, stage=10**9)
    fading = ProgressiveRungs(sites, injections, steps, stage=0)
    some = grey(data.train.take(10_000), data, job)

    # (1) and (2): the top rung
    train(warm, 1, alone, new=True)
    start([top])
    started = clusters_of(vlac.responsibilities, grey(data.train, data, job))[-1]
    train(vlac, 2, alone, new=False)

    # (3) and (4): those below
    train(vlac, 3, fading, new=True)
    start(range(1, top))
    train(vlac, 4, None, new=False)
    return vlac, started


def _models(s: LadderClusteringSetting, pixels: int) -> tuple[LadderVAE, LadderClusteringVAE]:
    """The ladder under N(0, I) and the one with mixtures, which share their networks."""
    networks = mlp_ladder(pixels, s.latent_dims, width=s.width)
    likelihood = s.likelihood()

    priors = []
    for clusters, dim in zip(s.clusters, s.latent_dims, strict=True):
        prior = MixturePrior(dim, clusters, learn_weights=s.learn_weights)
        prior.place(0.01 * prior.loc, 1.0)  # N(0, I) until it starts
        priors.append(prior)

    warm = LadderVAE(*networks, likelihood, s.latent_dims)
    vlac = LadderClusteringVAE(*networks, likelihood, s.latent_dims, priors=priors)
    return warm, vlac


def grey(part: Split, data: ImageData, job: Job) -> Tensor:
    """Images as stored, in the units of the pixels: clusters are read off without the noise of bits."""
    images = replace(part, steps=data.preprocess(ToUnit()).train.steps)[:]
    assert isinstance(images, Tensor)
    return images.to(job.device)


@torch.no_grad()
def clusters_of(responsibilities: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    """The most responsible cluster of every image on each rung, on the CPU."""
    parts = []
    for batch in x.split(2000):
        parts.append([rung.argmax(-1).cpu() for rung in responsibilities(batch)])
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
    drawn = poutine.trace(model.cluster_model).get_trace(size=columns).nodes

    device = next(model.parameters()).device
    component = torch.arange(clusters, device=device).repeat_interleave(columns)
    given = {f"y_{level}": component}
    for other in range(1, len(model.num_clusters) + 1):
        if other != level:
            site = f"z_{other}"
            given[site] = drawn[site]["value"].repeat(clusters, 1)

    program = poutine.condition(model.cluster_model, given)
    trace = poutine.trace(program).get_trace(size=len(component))
    return trace.nodes["x"]["fn"].mean.cpu(), component.cpu()
