"""The variational lossy auto-encoder on binary images: what the decoder can do alone, what z adds, what z costs.

    q(z | x) diagonal normal,    z ~ N(0, I) or an autoregressive flow,    x ~ prod_i p(x_i | z, x_window(i))

Trained on the bound with a floor of 7.84 nats under the KL (the paper's "0.01 nats per dimension" of 784), measured on
averaged weights by importance weighting. The code of an image is what z takes, KL(q || p): in a decoder that sees no
other pixel it holds everything, behind a window what the window cannot tell.

References:
    | Variational Lossy Autoencoder (Chen et al., 2017)
    | https://arxiv.org/abs/1611.02731
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor

from papers.findings import Findings
from papers.study import Case, Job, Result, Study
from papers.variational_lossy.networks import (
    LossySetting,
    lossy_vae,
    unconditional_decoder,
)
from pyro_vaes.data import Binarize, Split, ToUnit, load_data
from pyro_vaes.diagnostics import code_length, collapse_report, log_likelihood
from pyro_vaes.infer import FreeBits_ELBO, WeightAverage, fit
from pyro_vaes.models import LossyVAE, UnconditionalDecoder
from pyro_vaes.nn import ImageShape, PixelCNN, initialise_weight_norm, pixel_cnn_layers, pixel_cnn_window
from pyro_vaes.plots import image_grid
from pyro_vaes.programs import preserve_rng

__all__ = ["VARIATIONAL_LOSSY", "Images", "cases", "remark", "setting", "summary"]

ALONE, NORMAL, FLOW = "unconditional decoder", "N(0, I) prior", "AF prior"
FACTORISED = "AF prior, factorised decoder"


def setting(budget: str, data: str) -> LossySetting:
    """The paper's networks at "gpu"; at "cpu" narrower ones, and a decoder that sees 4 pixels."""
    if budget == "gpu":
        return LossySetting(data, tied=data == "binarized_mnist")

    small = LossySetting(
        data,
        latent_dim=32,
        channels=(16, 32),
        num_residual=0,
        features=128,
        layers=1,
        num_pointwise=1,
        elu=False,
        windows=((4, 2),),
        flow=(128, 128),
        epochs=5,
        batch_size=32,
        lr=4e-3,
        average=0.99,
        train_images=20_000,
        test_images=1000,
        num_particles=32,
        with_validation=False,
    )
    if budget == "cpu":
        return small

    return replace(
        small,
        latent_dim=4,
        channels=(4, 4),
        features=16,
        width=4,
        flow=(16,),
        flow_steps=2,
        free_bits=0.64,
        epochs=1,
        train_images=256,
        test_images=64,
        num_particles=8,
    )


@dataclass(frozen=True)
class Images:
    """What is trained on, what is measured, and the shape of one."""

    train: Split | Tensor
    test: Split
    shape: ImageShape

    @classmethod
    def load(cls, s: LossySetting, job: Job) -> "Images":
        """Bits; where there is no test part, one is split off (2,307 of the silhouettes, a tenth else)."""
        split = (0, 2307) if s.data == "caltech101_silhouettes" else (0, 0.1)
        data = load_data(
            s.data,
            job.root,
            preprocess=[ToUnit(), Binarize()],
            flatten=False,
            split=split,
        )
        assert data.test is not None

        train: Split | Tensor = _some(data.train, s.train_images)
        if s.with_validation and data.valid is not None:
            # the bits of both are fixed: only static MNIST has such a part
            first, second = data.train[:], data.valid[:]
            assert isinstance(first, Tensor) and isinstance(second, Tensor)
            train = torch.cat([first, second])
        return cls(train, _some(data.test, s.test_images), data.image_shape)


def _some(part: Split, count: int | None) -> Split:
    """Rows drawn at random, the same in every run: the files of bits and of characters are sorted."""
    if count is None or count >= len(part):
        return part
    rows = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))[:count]
    return replace(part, images=part.images[rows], labels=None)


Build = Callable[[LossySetting, ImageShape], LossyVAE | UnconditionalDecoder]


def cases(s: LossySetting) -> Mapping[str, Case[LossySetting]]:
    """By name, what is trained and measured."""
    full = pixel_cnn_layers(s.layers)
    builds: dict[str, Build] = {
        ALONE: unconditional_decoder,
        NORMAL: functools.partial(lossy_vae, layers=full, flow=False),
        FLOW: functools.partial(lossy_vae, layers=full, flow=True),
    }
    for width, height in s.windows:
        seen = pixel_cnn_window(width, height)
        name = f"AF prior, window {width}x{height}"
        builds[name] = functools.partial(lossy_vae, layers=seen, flow=True)
    builds[FACTORISED] = functools.partial(lossy_vae, layers=None, flow=True)
    return {name: functools.partial(_case, build) for name, build in builds.items()}


def _case(build: Build, s: LossySetting, job: Job) -> Result:
    images = Images.load(s, job)
    with preserve_rng(job.seed):
        model = build(s, images.shape).to(job.device)
        _train(model, images, s, job)
        x = images.test[:]
        assert isinstance(x, Tensor)
        x = x.to(job.device)
        return Result(_figures(model, x, s), _pictures(model, x, images.shape))


def _train(model: LossyVAE | UnconditionalDecoder, images: Images, s: LossySetting, job: Job) -> None:
    first = images.train[: 4 * s.batch_size]
    assert isinstance(first, Tensor)
    initialise_weight_norm(
        model,
        first.to(job.device),
        call=lambda x: Trace_ELBO().loss(model.model, model.guide, x),
    )

    fit(
        model.model,
        model.guide,
        images.train,
        loss=FreeBits_ELBO(s.free_bits) if isinstance(model, LossyVAE) else Trace_ELBO(),
        optim=functools.partial(torch.optim.Adamax, lr=s.lr),
        epochs=s.epochs,
        batch_size=s.batch_size,
        callbacks=[WeightAverage(s.average)],
        seed=job.seed,
        device=job.device,
        progress=job.progress,
    )


def _figures(model: LossyVAE | UnconditionalDecoder, x: Tensor, s: LossySetting) -> dict[str, float]:
    """Nats per image unless said; the decoder alone is exact, and has no code."""
    pair = (model.model, model.guide)
    lengths = code_length(*pair, x, num_particles=4)
    num_particles = s.num_particles if isinstance(model, LossyVAE) else 1
    estimate = log_likelihood(*pair, x, num_particles, chunk_size=16)
    figures = {
        "NLL": -estimate.log_likelihood.mean().item(),
        "-ELBO": lengths.bits_back.mean().item(),
        "KL": lengths.code.mean().item(),
        "KL bits": lengths.code.mean().item() / math.log(2),
        "two-part": lengths.two_part.mean().item(),
    }
    if isinstance(model, LossyVAE):
        site = collapse_report(*pair, x)["z"]
        figures["I(x; z)"] = site.mutual_information
        figures["active"] = float(site.active_units)

    started = time.process_time()
    model.model(size=64)
    return {**figures, "s/64 drawn": time.process_time() - started}


def _pictures(model: LossyVAE | UnconditionalDecoder, x: Tensor, shape: ImageShape) -> dict[str, Figure]:
    """Draws of the model; and data above draws of p(x | z) with z from their codes, what the code keeps of them."""
    figures = {"samples": _grid(model.model(size=64), shape, 8)}
    if isinstance(model, LossyVAE):
        with torch.no_grad():
            z = model.posterior(x[:10]).sample()
            again = model.likelihood(model.decoder(z)).sample()
        figures["decoded"] = _grid(torch.cat([x[:10], again]), shape, 10)
    return figures


def _grid(images: Tensor, shape: ImageShape, columns: int) -> Figure:
    figure = image_grid(images, image_shape=shape, columns=columns).figure
    assert isinstance(figure, Figure)
    return figure


def summary(found: Findings) -> list[str]:
    """The three comparisons of the paper, over the seeds that both sides have."""
    lines = []
    for label, before, after, column in (
        ("z improves the NLL of the same decoder by", ALONE, NORMAL, "NLL"),
        ("the AF prior improves the NLL by", NORMAL, FLOW, "NLL"),
        ("the AF prior improves the bound by", NORMAL, FLOW, "-ELBO"),
    ):
        gains = _gains(found, before, after, column)
        if gains:
            each = ", ".join(f"{gain:.2f}" for gain in gains)
            spread = f" ± {statistics.stdev(gains):.2f}" if len(gains) > 1 else ""
            lines.append(f"{label} {statistics.fmean(gains):.2f}{spread} nats (by seed: {each})")

    codes = {case: statistics.fmean(values) for case, values in found.column("KL").items()}
    codes.pop(ALONE, None)
    if FACTORISED in codes:
        whole = codes.pop(FACTORISED)
        shares = [f"{case} {code / whole:.0%}" for case, code in codes.items()]
        lines.append(f"code in per cent of the factorised decoder's: {', '.join(shares)}")
    return lines


def _gains(found: Findings, before: str, after: str, column: str) -> list[float]:
    """How much smaller the figure is after than before, for each seed that both have."""
    rows = [row for row in found.rows if column in row.figures]
    by_seed = {(row.case, row.seed): row.figures[column] for row in rows}
    seeds = sorted(seed for case, seed in by_seed if case == before)
    shared = [seed for seed in seeds if (after, seed) in by_seed]
    return [by_seed[before, seed] - by_seed[after, seed] for seed in shared]


BITS = math.log(2)
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "mnist": {
        ALONE: {"NLL": 87.55, "KL": 0.0},
        NORMAL: {"NLL": 79.48, "KL": 10.60},
        FLOW: {"NLL": 78.94, "KL": 11.73},
        "AF prior, their best": {"NLL": 78.53},
    },
    "binarized_mnist": {
        FLOW: {"NLL": 79.03, "KL": 19.2 * BITS, "KL bits": 19.2},
        FACTORISED: {"NLL": 79.30, "KL": 37.3 * BITS, "KL bits": 37.3},
    },
    "omniglot28": {ALONE: {"NLL": 95.02}, FLOW: {"NLL": 90.98}},
    "caltech101_silhouettes": {ALONE: {"NLL": 89.26}, FLOW: {"NLL": 77.36}},
}
OTHER_SPLIT = "; here the split is another, so that the columns cannot be compared"
SOURCES = {
    "mnist": "Published: ablation on dynamically binarised MNIST (appendix D) and, as their best, the main table",
    "binarized_mnist": "Published: main table; code sizes of the decoder as it is and of a factorised one",
    "omniglot28": f"Published: main table{OTHER_SPLIT} (another 28 x 28 version too)",
    "caltech101_silhouettes": f"Published: main table{OTHER_SPLIT} (2,307 test images drawn at random)",
    "digits": "Nothing published on digits",
}


def remark(s: LossySetting) -> str:
    """Where the published figures are from, and what is smaller here."""
    images = "all" if s.train_images is None else f"{s.train_images:,}"
    tests = "all" if s.test_images is None else f"{s.test_images:,}"
    pixels = len(PixelCNN((1, 9, 9), 1, pixel_cnn_layers(s.layers)).receptive_field())
    return (
        f"{SOURCES[s.data]}. Theirs: 4096 importance samples, all images, a decoder that sees 69 pixels; batch size "
        f"and epochs are not stated. Here: {s.num_particles} samples on {tests} test images, {images} training images "
        f"for {s.epochs} epochs, a decoder that sees {pixels} "
        "pixels. NLL of few samples is too high by some tenths of a nat."
    )


VARIATIONAL_LOSSY: Study[LossySetting] = Study(
    "variational_lossy",
    "a decoder that sees some pixels: alone, with z, with a flow prior, and what the code holds",
    ("mnist", "binarized_mnist", "omniglot28", "caltech101_silhouettes", "digits"),
    setting,
    cases,
    PUBLISHED,
    remark,
    summary,
)
