"""How to train your VAE, and how not to, on faces.

    proposed  w mean|x - dec(z)| + K_g + K_i, and 100 BCE(1, dis(dec(z))) where a discriminator takes part
    standard  w mean|x - dec(z)| + mean_i KL(q(z | x_i) || N(0, I)), with the same networks ("how not to")

The first is :class:`~pyro_vaes.infer.AggregatePosterior_ELBO`, the second the usual bound; both have a Laplace
likelihood of scale D / w. The weight w multiplies a mean over the D values of an image, so w = 5000 prices an error
alike at all sizes; the other weight, 5000 D / 196608, keeps the paper's price per pixel and regularises much more.

References:
    | How to train your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
"""

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from papers.aggregate_posterior.measures import (
    discriminator_accuracy,
    fitted_aggregate,
    measure,
    pictures,
)
from papers.findings import Findings
from papers.study import Job, Result, Study
from pyro_vaes.data import HorizontalFlip, ImageData, Library, ToSigned, load_data
from pyro_vaes.infer import Adversarial_ELBO, AggregatePosterior_ELBO, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import (
    MLP,
    Chain,
    LaplaceLikelihood,
    LogVarianceHead,
    PatchDiscriminator,
    ResNetV2Decoder,
    ResNetV2Encoder,
)
from pyro_vaes.programs import preserve_rng

__all__ = ["AGGREGATE_POSTERIOR", "Case", "FaceSetting", "faces"]

FULL_SIZE = 256 * 256 * 3
SHAPES = {
    "lfw64": (1, 64, 64),
    "digits": (1, 8, 8),
    "celeba": (3, 64, 64),
    "celeba_hq": (3, 64, 64),
}
FOLDERS = {"celeba_hq": "CelebAMask-HQ/CelebA-HQ-img"}


@dataclass(frozen=True)
class FaceSetting:
    """What the cases share.

    Attributes:
        data: Name of the data set.
        image_shape: (C, H, W).
        latent_dim: d.
        filters: Of the residual networks and the first layers of the discriminator.
        hidden: Widths of the dense networks.
        residual_weights, dense_weights: The w that residual and dense networks are trained at.
        epochs, lr: Of residual networks and discriminator.
        dense_epochs, dense_lr: Of dense networks.
        batch_size: Images per step; a short last batch is left out.
        variance_weight, adversarial_weight: Of K_i and of the discriminator.
        train_images, test_images: How many are used; None for all.
        portraits: Whether AT&T's faces, from another source, are reconstructed too.
        bfloat16: Whether the residual networks' convolutions are trained in half precision, which halves their time on
            processors that know it.
    """

    data: str
    image_shape: tuple[int, int, int] = (1, 64, 64)
    latent_dim: int = 128
    filters: int = 64
    hidden: tuple[int, ...] = (256, 256)
    residual_weights: tuple[float, ...] = (5000.0,)
    dense_weights: tuple[float, ...] = ()
    epochs: int = 100
    lr: float = 2e-4
    dense_epochs: int = 10
    dense_lr: float = 1e-3
    batch_size: int = 64
    variance_weight: float = 0.1
    adversarial_weight: float = 100.0
    train_images: int | None = None
    test_images: int | None = None
    portraits: bool = False
    bfloat16: bool = False


def setting(budget: str, data: str) -> FaceSetting:
    """``"gpu"``: the published configuration on CelebA-HQ, its scaled version on smaller images.

    ``"cpu"``: the scaled version with few filters and epochs and a higher learning rate, and the dense networks at both
    weights; ``"smoke"``: seconds.
    """
    shape = SHAPES[data]
    both = (5000.0, round(5000 * math.prod(shape) / FULL_SIZE, 1))
    scaled = FaceSetting(
        data,
        shape,
        portraits=data == "lfw64",
        test_images=1000 if "celeba" in data else None,
    )
    if budget == "smoke":
        return replace(
            scaled,
            latent_dim=8,
            filters=4,
            hidden=(16,),
            dense_weights=both[1:],
            epochs=1,
            dense_epochs=1,
            train_images=128,
            test_images=64,
            portraits=False,
        )

    if budget == "cpu":
        return replace(
            scaled,
            filters=16,
            epochs=3,
            lr=1e-3,
            bfloat16=True,
            dense_weights=both,
        )

    if data == "celeba_hq":
        return replace(
            scaled,
            image_shape=(3, 256, 256),
            latent_dim=512,
            filters=128,
            epochs=300,
            lr=1e-4,
            batch_size=10,
        )

    return replace(scaled, residual_weights=both)


def faces(s: FaceSetting, root: str | os.PathLike[str] | None = None) -> ImageData:
    """Images in [-1, 1], mirrored at random in training; 80 / 20 as in the paper where the data have no test part."""
    folder = FOLDERS.get(s.data)
    data = load_data(
        s.data if folder is None else _found(folder, s.data, root),
        root,
        split=(0, 0.2),
        seed=1967,
        preprocess=[ToSigned(), HorizontalFlip()],
        flatten=False,
        resize=None if s.data in ("lfw64", "digits") else s.image_shape[1],
    )
    return data.take(s.train_images or len(data.train), test=s.test_images)


def _found(folder: str, data: str, root: str | os.PathLike[str] | None) -> Path:
    """Where the folder of pictures is, in the first of the places for data that has it."""
    places = Library(root).folders
    for place in places:
        if (place / folder).is_dir():
            return place / folder
    raise FileNotFoundError(
        f"{data} is read from the folder {folder} in {places[0]}, which does not exist: put "
        "the pictures there, or pass the folder above as root."
    )


class TrainedInBfloat16(nn.Module):
    """A network whose convolutions run in bfloat16 while it is trained; parameters and output stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training):
            return self.network(x).to(x.dtype)


@dataclass(frozen=True)
class Case:
    """One objective with one kind of networks; called with setting and job it trains and measures.

    Attributes:
        proposed: Whether the KL is that of the aggregate, or the standard one.
        weight: w.
        dense: Whether encoder and decoder are perceptrons rather than residual networks.
        adversarial: Whether a discriminator takes part.
    """

    proposed: bool
    weight: float
    dense: bool = False
    adversarial: bool = False

    @property
    def name(self) -> str:
        """As it stands in the table."""
        parts = [
            "proposed" if self.proposed else "standard",
            "discriminator" if self.adversarial else "",
            f"w {self.weight:g}",
            "dense" if self.dense else "",
        ]
        return ", ".join(filter(None, parts))

    def vae(self, s: FaceSetting) -> VAE:
        """The pair, with a Laplace likelihood of scale D / w."""
        shape, d, size = s.image_shape, s.latent_dim, math.prod(s.image_shape)
        decoder: nn.Module
        if self.dense:
            trunk = MLP(size, s.hidden[:-1], s.hidden[-1], activate_output=True)
            encoder = Chain(nn.Flatten(-3), trunk, LogVarianceHead(s.hidden[-1], d))
            decoder = nn.Sequential(MLP(d, s.hidden[::-1], size), nn.Unflatten(-1, shape))
        else:
            residual = ResNetV2Encoder(shape, d, filters=s.filters)
            head = LogVarianceHead(math.prod(residual.code_shape), d, event_dim=3)
            decoder = ResNetV2Decoder(d, shape, filters=s.filters)
            if s.bfloat16:
                encoder = Chain(TrainedInBfloat16(residual), head)
                decoder = TrainedInBfloat16(decoder)
            else:
                encoder = Chain(residual, head)

        likelihood = LaplaceLikelihood(size / self.weight, event_dim=3)
        return VAE(encoder, decoder, likelihood, d)

    def train(self, s: FaceSetting, data: ImageData, job: Job) -> tuple[VAE, nn.Module | None]:
        """The fitted pair, and its discriminator if it has one."""
        discriminator = None
        with preserve_rng(job.seed):
            vae = self.vae(s)
            if self.adversarial:
                widths = (s.filters,) * 3 + (max(s.filters // 2, 1),) * 2
                discriminator = PatchDiscriminator(s.image_shape, widths).to(job.device)

        epochs, lr = (s.dense_epochs, s.dense_lr) if self.dense else (s.epochs, s.lr)
        adam = functools.partial(
            torch.optim.Adam,
            lr=lr,
            betas=(0.5, 0.999),
            fused=job.device.type in ("cpu", "cuda"),
        )

        loss: ELBO = TraceMeanField_ELBO()
        if self.proposed:
            loss = AggregatePosterior_ELBO(variance_weight=s.variance_weight)
        if discriminator is not None:
            loss = Adversarial_ELBO(loss, discriminator, weight=s.adversarial_weight, optim=adam)

        fit(
            vae.model,
            vae.guide,
            data.train,
            loss=loss,
            optim=adam,
            epochs=epochs,
            batch_size=s.batch_size,
            drop_last=True,
            seed=job.seed,
            device=job.device,
            progress=job.progress,
        )
        return vae.eval(), discriminator

    def __call__(self, s: FaceSetting, job: Job) -> Result:
        data = faces(s, job.root).to(job.device)
        vae, discriminator = self.train(s, data, job)
        fitted = fitted_aggregate(vae, data)
        figures = measure(vae, data, fitted, portraits=s.portraits, root=job.root, seed=job.seed)
        if discriminator is not None:
            figures |= discriminator_accuracy(vae, discriminator, data)
        return Result(figures, pictures(vae, data, fitted, portraits=s.portraits, root=job.root))


def cases(s: FaceSetting) -> Mapping[str, Case]:
    """Proposed with and without discriminator and standard; beside dense networks there is no discriminator."""
    found = [Case(p, w, dense=True) for w in s.dense_weights for p in (True, False)]
    for w in s.residual_weights:
        found += [Case(True, w, adversarial=True), Case(False, w), Case(True, w)]
    return {case.name: case for case in found}


def remark(s: FaceSetting) -> str:
    """What a reader of the figures must know."""
    notes = [
        "The paper prints no figure, so none stands beside these. Pixels in [-1, 1], all on the test images",
        "sharpness: variance of the Laplacian of reconstructions over that of data. dead: units with Var(mu) < 0.01. "
        "effective: independent units that would vary as much. in use: units whose step of 1 moves pixels by 0.01",
        "KID through the features of a small classifier trained on this data set compares with no KID elsewhere",
    ]
    if s.data == "lfw64":
        notes.append("LFW faces at 64 x 64, grey, are not CelebA-HQ; AT&T's are never trained on")
    if s.epochs < 100:
        notes.append(
            f"Residual networks of {s.filters} filters and {s.epochs} epochs at a learning rate of {s.lr:g}, for the "
            "paper's 128, some 300 and 1e-4"
        )

    return ". ".join(notes) + "."


def summary(findings: Findings) -> list[str]:
    """Proposed against standard with the same networks and weight."""
    columns = {
        "dead": "dead units",
        "L1 mean": "L1",
        "sharpness": "high-frequency ratio",
        "KID aggregate": "KID of samples drawn unit by unit",
        "KID correlated": "with correlations",
    }
    means = {}
    for column in columns:
        found = findings.column(column)
        means[column] = {case: sum(values) / len(values) for case, values in found.items()}

    lines = []
    for case in means["dead"]:
        other = case.replace("proposed, discriminator", "standard").replace("proposed", "standard")
        if other == case or other not in means["dead"]:
            continue

        told = []
        for column, name in columns.items():
            mean = means[column]
            if case in mean:
                told.append(f"{name} {mean[case]:.3g} against {mean[other]:.3g}")
        lines.append(f"{case} against {other}: {', '.join(told)}.")
    return lines


AGGREGATE_POSTERIOR: Study[FaceSetting] = Study(
    "aggregate_posterior",
    "how to train your VAE: the batch's aggregate posterior and a discriminator, on faces",
    tuple(SHAPES),
    setting,
    cases,
    remark=remark,
    summary=summary,
)
