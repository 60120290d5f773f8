"""The cases of the collapse paper's non-linear experiments: data, pair, weights, training, measurement.

    E5  complete an image from its bottom left quarter         E8  two latent levels
    E6  the same for one digit                                 E9  a VAE, its encoder's scale learnt or fixed
    E7  normal vectors with a covariate of known correlation

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from papers.posterior_collapse.conv_pairs import conv_cvae, conv_hierarchical_vae
from papers.posterior_collapse.measures import measured
from papers.posterior_collapse.pairs import relu_cvae, relu_hierarchical_vae, relu_vae
from papers.posterior_collapse.training import kl_weights, train
from papers.study import Job, Result
from pyro_vaes import plots
from pyro_vaes.data import ImageData, Split, assemble, load_data
from pyro_vaes.diagnostics import reconstruct
from pyro_vaes.models import ConditionalVAE, HierarchicalVAE
from pyro_vaes.programs import preserve_rng

__all__ = [
    "CollapseSetting",
    "Network",
    "conditional",
    "correlated",
    "hierarchical",
    "plain",
]

Network = Literal["ReLU", "linear", "CNN"]
LINEAR_HIDDEN = 16  # between the two linear layers of E6
CONV_HIDDEN = 64  # of E8 with convolutions


@dataclass(frozen=True)
class CollapseSetting:
    """What the cases share; Adam with learning rate 1e-3 unless said otherwise.

    Attributes:
        budget: Which sweeps.
        data: Name of the data set.
        latent_dim: Units of each latent site but those of E7.
        hidden: Width of hidden layers: of E5, of E6 and the forecasts, of E8 and E9.
        epochs: Of E5, of E6, of E7, of E8, of E9 and the forecasts.
        vae_lr: Learning rate of E9 and the forecasts.
        correlated: Rows and features of E7, and its batch size.
        test_images: Images that are measured; None for all.
        likelihood: Images and particles of the importance-weighted estimate.
    """

    budget: str
    data: str
    latent_dim: int = 16
    hidden: tuple[int, int, int] = (16, 100, 256)
    epochs: tuple[int, int, int, int, int] = (100, 100, 1000, 100, 100)
    vae_lr: float = 1e-4
    correlated: tuple[int, int, int] = (1000, 128, 16)
    test_images: int | None = None
    likelihood: tuple[int, int] = (10000, 1000)

    def load(self, job: Job) -> ImageData:
        """The data; those without a test part of their own lend a tenth."""
        data = load_data(self.data, job.root, split=(0.0, 0.1))
        return data if self.test_images is None else data.take(len(data.train), test=self.test_images)


def conditional(
    s: CollapseSetting,
    job: Job,
    *,
    beta: float,
    noise: float,
    digit: int | None = None,
    network: Network = "ReLU",
    released: bool = False,
) -> Result:
    """E5, and E6 where a digit is given: complete an image from its bottom left quarter."""
    data = s.load(job)
    train_rows, test_rows = (_quarters(part, digit) for part in (data.train, data.test))

    if digit is None:
        prior_scale, hidden, epochs, clip = 1.0, s.hidden[0], s.epochs[0], 0.01
    else:
        prior_scale, hidden, epochs, clip = 0.5, s.hidden[1], s.epochs[1], 0.1

    target, covariate = (rows.shape[1] for rows in train_rows)
    relu = partial(relu_cvae, target, covariate, s.latent_dim)
    with preserve_rng(job.seed):
        if network == "CNN":
            pair = conv_cvae(
                data.image_shape,
                s.latent_dim,
                hidden,
                noise=noise,
                prior_scale=prior_scale,
            )
        elif network == "linear":
            pair = relu(
                LINEAR_HIDDEN,
                noise=noise,
                prior_scale=prior_scale,
                activation=nn.Identity,
            )
        else:
            pair = relu(hidden, noise=noise, prior_scale=prior_scale)

    fitted = train(
        pair,
        train_rows,
        kl_weights({"z": beta}, released=released),
        TraceMeanField_ELBO(),
        job,
        epochs=epochs,
        clip=clip,
    )
    completions = _completions(pair, test_rows, data)
    return measured(fitted, test_rows, *s.likelihood, pictures={"completions": completions})


def _quarters(part: Split | None, digit: int | None) -> tuple[Tensor, Tensor]:
    """Three quarters and the bottom left one, of all images or of one class."""
    assert part is not None and part.labels is not None
    chosen = slice(None) if digit is None else part.labels == digit
    target, covariate = replace(part, observed="bottom_left")[chosen]
    return target, covariate


def correlated(s: CollapseSetting, job: Job, *, rho: float, released: bool = False) -> Result:
    """E7: y ~ N(0, I) given x = rho y + sqrt(1 - rho²) epsilon; with rho = 1 nothing is left for z to tell."""
    rows, features, batch_size = s.correlated
    generator = torch.Generator().manual_seed(job.seed)
    y, epsilon = torch.randn(2, rows, features, generator=generator)
    x = rho * y + (1 - rho**2) ** 0.5 * epsilon

    with preserve_rng(job.seed):
        pair = relu_cvae(features, features, features, features, noise=0.5)
    fitted = train(
        pair,
        (y, x),
        kl_weights({"z": 1.0}, released=released),
        TraceMeanField_ELBO(),
        job,
        epochs=s.epochs[2],
        clip=0.01,
        batch_size=batch_size,
    )
    return measured(fitted, (y, x), *s.likelihood)


def hierarchical(
    s: CollapseSetting,
    job: Job,
    *,
    betas: tuple[float, float],
    noise: float,
    convolutional: bool = False,
    released: bool = False,
) -> Result:
    """E8: does z2 collapse? Reconstructions through z1 do not tell, those through z2 do."""
    data = s.load(job)
    assert data.test is not None
    x, test = data.train.x, data.test.x
    dims = (s.latent_dim, s.latent_dim)
    scales = {"noise": noise, "prior_scale": 0.5, "encoder_scale": 0.5}
    with preserve_rng(job.seed):
        if convolutional:
            pair = conv_hierarchical_vae(data.image_shape, dims, CONV_HIDDEN, **scales)
        else:
            pair = relu_hierarchical_vae(x.shape[1], dims, s.hidden[2], **scales)

    fitted = train(
        pair,
        x,
        kl_weights({"z_1": betas[0], "z_2": betas[1]}, released=released),
        Trace_ELBO(),
        job,
        epochs=s.epochs[3],
        clip=0.1,
        encoder_scales=(0.5, None),
    )
    through_top = _through_top(pair, test[:10], data)
    return measured(fitted, test, *s.likelihood, pictures={"through z2": through_top})


def plain(
    s: CollapseSetting,
    job: Job,
    *,
    beta: float = 1.0,
    noise: float = 1.0,
    scale: float | None = None,
    narrow: bool = False,
    released: bool = False,
) -> Result:
    """E9 and, narrow, the forecasts: a VAE whose encoder has an amortised or a fixed scale."""
    data = s.load(job)
    assert data.test is not None
    x = data.train.x
    hidden = s.hidden[1] if narrow else s.hidden[2]
    with preserve_rng(job.seed):
        pair = relu_vae(x.shape[1], s.latent_dim, hidden, noise=noise, scale=scale)

    fitted = train(
        pair,
        x,
        kl_weights({"z": beta}, released=released),
        TraceMeanField_ELBO(),
        job,
        epochs=s.epochs[4],
        lr=s.vae_lr,
        encoder_scales=(scale, None),
    )
    return measured(fitted, data.test.x, *s.likelihood)


def _completions(pair: ConditionalVAE, rows: tuple[Tensor, Tensor], data: ImageData) -> Figure:
    """Images, and three completions of their bottom left quarter with z from the prior."""
    target, covariate = rows[0][:10], rows[1][:10]
    shown = [target]
    for seed in range(3):
        drawn = reconstruct(pair.model, pair.guide, (target, covariate), through=(), seed=seed)
        shown.append(drawn["x"])
    return _grid([assemble(y, covariate, data.image_shape) for y in shown])


def _through_top(pair: HierarchicalVAE, x: Tensor, data: ImageData) -> Figure:
    """Images, their reconstructions, and what z_2 alone remembers of them: z_1 is drawn from p(z_1 | z_2)."""
    shown = [x]
    for seed, through in enumerate((None, ["z_2"], ["z_2"])):
        drawn = reconstruct(pair.model, pair.guide, x, through=through, seed=seed)
        shown.append(drawn["x"])
    return _grid([data.to_images(images) for images in shown])


def _grid(rows: Sequence[Tensor]) -> Figure:
    figure = Figure(figsize=(6, 0.62 * len(rows)), layout="constrained")
    plots.image_grid(torch.cat(list(rows)).clamp(0, 1), columns=len(rows[0]), ax=figure.subplots())
    return figure
