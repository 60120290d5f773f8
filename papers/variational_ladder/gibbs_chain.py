"""The Gibbs chain of a hierarchical model: how far its bottom level alone represents the data.

    z_1 ~ q(z_1 | x),    x ~ p(x | z_1),    z_1 ~ q(z_1 | x),    ...

Where the bound is tight this chain leaves p(x) as it is and, if it can get everywhere, tends to p(x) from any image: no
level above z_1 is needed. Finite tables, for which all is exact; and a trained hierarchy of three levels, as training
leaves it, and with q fitted on to samples of p, since the argument is about q on what p draws rather than on images.
How near samples of the chain and of p are is measured by a classifier between the two, five nearest neighbours on the
pixels: accuracy 1/2 where it cannot tell them apart.

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
    | Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017)
    | https://arxiv.org/abs/1610.06545
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from papers.study import Case, Job, Result, Study
from pyro_vaes.data import Binarize, ToUnit, load_data
from pyro_vaes.diagnostics import collapse_report, knn_accuracy
from pyro_vaes.infer import fit
from pyro_vaes.models import HierarchicalVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
from pyro_vaes.plots import image_grid
from pyro_vaes.programs import preserve_rng
from pyro_vaes.theory import gibbs_chain

__all__ = ["GIBBS_CHAIN", "GibbsSetting", "two_sample_accuracy", "walk"]

SHOWN = 10  # pictures in a row
FITTED = "q fitted on to p"


@dataclass(frozen=True)
class GibbsSetting:
    """What the cases share.

    Attributes:
        data: Name of the data set, whose pixels are made bits at random.
        width, latent_dims: Of the hierarchy's perceptrons, and of z_1, z_2, z_3.
        epochs, batch_size, lr: Of training with Adam.
        train_images: How many training images are used; None for all.
        samples: Images in each sample that is compared; half of them fit the classifier.
        steps: Steps of the chain after which it is compared.
        states: Numbers of states of z_3, z_2, z_1 and x in the tables.
    """

    data: str
    width: int = 512
    latent_dims: tuple[int, int, int] = (2, 2, 2)
    epochs: int = 100
    batch_size: int = 100
    lr: float = 1e-3
    train_images: int | None = None
    samples: int = 4000
    steps: tuple[int, ...] = (1, 10, 100, 1000)
    states: tuple[int, int, int, int] = (4, 6, 8, 16)


def setting(budget: str, data: str) -> GibbsSetting:
    """All training data at ``"gpu"``; the paper has no such experiment, so no setting."""
    if budget == "smoke":
        return GibbsSetting(
            data,
            width=16,
            epochs=1,
            train_images=300,
            samples=100,
            steps=(1, 3),
        )

    if budget == "cpu":
        return GibbsSetting(
            data,
            width=256,
            epochs=8,
            train_images=20_000,
            samples=1000,
            steps=(1, 10, 100, 300),
        )

    return GibbsSetting(data)


def tables(blocks: int, setting: GibbsSetting, job: Job) -> Result:
    """Random tables; with several blocks z_1 and x fall into groups between which the chain cannot move."""
    generator = torch.Generator().manual_seed(job.seed)

    def table(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64).softmax(-1)

    *above, (states, values) = pairwise((1, *setting.states))
    top, *between = (table(*shape) for shape in above)
    groups = [table(states // blocks, values // blocks) for _ in range(blocks)]
    chain = gibbs_chain(top[0], *between, torch.block_diag(*groups))

    moved = chain.marginal @ chain.transition
    figures = {
        "largest |pT - p|": (moved - chain.marginal).abs().max().item(),
        "classes": chain.num_classes,
        "spectral gap": chain.spectral_gap,
    }

    start = torch.eye(len(chain.marginal), dtype=torch.float64)[0]
    for step in setting.steps:
        distance = 0.5 * (chain.run(start, step) - chain.marginal).abs().sum()
        figures[f"total variation @{step}"] = distance.item()
    return Result(figures)


def build(setting: GibbsSetting, pixels: int) -> HierarchicalVAE:
    """Perceptrons with two hidden layers between x and z_1, z_1 and z_2, z_2 and z_3, in both directions."""
    width, dims = setting.width, setting.latent_dims

    def normal(width_in: int, dim: int) -> Chain:
        return Chain(MLP(width_in, [width], width, activate_output=True), NormalHead(width, dim))

    encoders = [normal(below, dim) for below, dim in pairwise((pixels, *dims))]
    priors = [normal(above, dim) for dim, above in pairwise(dims)]
    decoder = MLP(dims[0], [width, width], pixels)
    return HierarchicalVAE(encoders, decoder, BernoulliLikelihood(), dims, priors=priors)


@torch.no_grad()
def walk(model: HierarchicalVAE, x: Tensor, steps: int) -> Tensor:
    """x after so many steps of z_1 ~ q(z_1 | x), x ~ p(x | z_1), each row a chain of its own, ``(N, D)``."""
    for _ in range(steps):
        z_1 = model.encoders[0](x).sample()
        x = model.likelihood(model.decoder(z_1)).sample()
    return x


def two_sample_accuracy(first: Tensor, second: Tensor) -> float:
    """How often five nearest neighbours in one half of two samples tell from which of them a row of the other half is.

    Arguments:
        first, second: Samples with shape ``(2N, D)`` each. The standard error is at most ``0.35 / sqrt(N)``.

    Example:
        >>> two_sample_accuracy(torch.zeros(20, 3), torch.ones(20, 3))
        1.0
    """
    half = len(first) // 2
    labels = torch.tensor([0, 1]).repeat_interleave(half)
    known = torch.cat([first[:half], second[:half]])
    asked = torch.cat([first[half : 2 * half], second[half : 2 * half]])
    return knn_accuracy(known, labels, asked, labels)


def trained(setting: GibbsSetting, job: Job) -> Result:
    """A trained hierarchy, and beside it the same p with q fitted on to samples of p: data of which p is the truth."""
    data = load_data(setting.data, job.root, preprocess=[ToUnit(), Binarize()]).to(job.device)
    used = data.train.take(setting.train_images or len(data.train))
    with preserve_rng(job.seed):
        model = build(setting, math.prod(data.image_shape))
    train = partial(
        fit,
        model.model,
        model.guide,
        optim=partial(torch.optim.Adam, lr=setting.lr),
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        device=job.device,
        seed=job.seed,
        progress=job.progress,
    )

    train(used)
    real = used[: setting.samples]
    assert isinstance(real, Tensor)
    figures, picture = compare(model, real, setting, job.seed)

    with preserve_rng(job.seed), torch.no_grad():
        samples = model.model(size=len(used))
    for part in (model.priors, model.decoder):
        part.requires_grad_(False)
    train(samples)
    model.requires_grad_(True)

    fitted, second = compare(model, real, setting, job.seed)
    return Result(figures, {"q": picture, FITTED: second}, beside={f"HVAE, {FITTED}": fitted})


def compare(model: HierarchicalVAE, real: Tensor, setting: GibbsSetting, seed: int) -> tuple[dict[str, float], Figure]:
    """Ancestral samples, which start at z_3, beside the chain, which never sees z_2 or z_3.

    Started at samples of the model it shows whether it leaves them as they are; started at one image, whether it also
    gets everywhere.
    """
    report = collapse_report(model.model, model.guide, real)
    sites = [f"z_{level}" for level in range(1, len(setting.latent_dims) + 1)]
    figures = {f"KL {site}": report[site].total_kl for site in sites}

    with preserve_rng(seed), torch.no_grad():
        ancestral, again = (model.model(size=len(real)) for _ in range(2))
        figures["model | data"] = two_sample_accuracy(ancestral, real)
        figures["model | model"] = two_sample_accuracy(ancestral, again)

        one, rows = real[:1].expand_as(real), []
        for before, step in pairwise((0, *setting.steps)):
            one, again = (walk(model, x, step - before) for x in (one, again))
            figures[f"from model | model @{step}"] = two_sample_accuracy(again, ancestral)
            figures[f"from image | model @{step}"] = two_sample_accuracy(one, ancestral)
            rows.append(one[:SHOWN])
    return figures, _picture(ancestral[: SHOWN * len(rows)], torch.cat(rows), setting)


def _picture(ancestral: Tensor, chains: Tensor, setting: GibbsSetting) -> Figure:
    height = 0.9 + 0.42 * len(setting.steps)
    figure, axes = plt.subplots(1, 2, figsize=(9, height), layout="constrained")
    image_grid(ancestral, columns=SHOWN, title="From the top of the hierarchy", ax=axes[0])
    steps = ", ".join(map(str, setting.steps))
    image_grid(
        chains,
        columns=SHOWN,
        title=f"From one image, by z_1 alone, after {steps} steps",
        ax=axes[1],
    )
    return figure


def cases(_: GibbsSetting) -> Mapping[str, Case[GibbsSetting]]:
    """Tables that are connected and tables that are not; a trained model."""
    return {
        "tables": partial(tables, 1),
        "tables, two blocks": partial(tables, 2),
        "HVAE": trained,
    }


def remark(setting: GibbsSetting) -> str:
    """How to read the columns."""
    return (
        "The paper publishes no figure. a | b: accuracy of a classifier between samples of a and b, 0.5 where they "
        f"look alike, standard error at most {0.5 / math.sqrt(setting.samples):.3f}; from model, from image @n: the "
        "chain after n steps from samples of the model, from one image; total variation: from one state."
    )


GIBBS_CHAIN = Study(
    "gibbs_chain",
    "whether the bottom level of a hierarchy represents the data by itself",
    ("mnist", "fashion_mnist", "digits"),
    setting,
    cases,
    remark=remark,
)
