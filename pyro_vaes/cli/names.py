"""The table: names of models, networks, likelihoods, guides and bounds, and what each constructs."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vaes.data import PixelInfo
from pyro_vaes.guides import (
    AmortizedGuide,
    AmortizedHouseholder,
    AmortizedIAF,
    AmortizedLaplace,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    SemiAmortized,
)
from pyro_vaes.infer import (
    AggregatePosterior_ELBO,
    DReG_ELBO,
    FreeBits_ELBO,
    ImportanceWeighted_ELBO,
    StickingTheLanding_ELBO,
)
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    ConvNetworks,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    HouseholderHead,
    IAFHead,
    LaplaceLikelihood,
    Likelihood,
    LinearNetworks,
    MLPNetworks,
    MultivariateNormalHead,
    NegativeBinomialLikelihood,
    Networks,
    NormalHead,
    PoissonLikelihood,
)

__all__ = [
    "BOUNDS",
    "GUIDES",
    "LIKELIHOODS",
    "MODELS",
    "NETWORKS",
    "LikelihoodEntry",
    "choose",
    "suggest",
]

T = TypeVar("T")
OWN = "own"


@dataclass(frozen=True)
class LikelihoodEntry:
    """A likelihood by name.

    Arguments:
        build: From what is known about the pixels to the likelihood of flat images.
        about: In words.
        raw: Whether the pixels are whole numbers as stored rather than scaled to [0, 1].
        discrete: Whether it is a probability (so that bits per dimension mean something) rather than a density.
    """

    build: Callable[[PixelInfo], Likelihood]
    about: str
    raw: bool = False
    discrete: bool = False


@dataclass(frozen=True)
class GuideEntry:
    """An amortised guide by name: its constructor, its head, and what it is in words."""

    build: Callable[[Callable[..., object], nn.Module], AmortizedGuide]
    head: Callable[[int, int], nn.Module]
    about: str


@dataclass(frozen=True)
class BoundEntry:
    """A bound by name: from particles and free nats to the ELBO, what it is in words, and whether it has a KL term."""

    build: Callable[[int, float], ELBO]
    about: str
    particles: int = 1
    has_kl: bool = True


def _levels(info: PixelInfo) -> int:
    if info.levels is None:
        raise ValueError(
            "this likelihood is for pixels with finitely many levels, but the data are continuous: choose --likelihood "
            "gaussian, laplace or continuous_bernoulli."
        )
    return info.levels


MODELS: dict[str, tuple[type[nn.Module], str]] = {
    "vae": (VAE, "one latent vector per datum, prior N(0, I)"),
    "conditional_vae": (ConditionalVAE, "given the label; samples by class"),
    "hierarchical_vae": (HierarchicalVAE, "several levels of latents: --latent-dim 16,8, from the data upwards"),
}

NETWORKS: dict[str, tuple[type[Networks], str]] = {
    "linear": (LinearNetworks, "no hidden layer: probabilistic PCA with a Gaussian likelihood"),
    "mlp": (MLPNetworks, "fully connected; --hidden are widths (256,256)"),
    "conv": (ConvNetworks, "convolutional; --hidden are channels of stride-2 layers (32,64)"),
}

LIKELIHOODS: dict[str, LikelihoodEntry] = {
    "bernoulli": LikelihoodEntry(
        lambda _: BernoulliLikelihood(), "pixels 0 or 1; for grey ones add --binarize", discrete=True
    ),
    "continuous_bernoulli": LikelihoodEntry(lambda _: ContinuousBernoulliLikelihood(), "a density on [0, 1]"),
    "gaussian": LikelihoodEntry(lambda _: GaussianLikelihood(0.3, learn_scale=True), "with one learned scale"),
    "laplace": LikelihoodEntry(
        lambda _: LaplaceLikelihood(0.3, learn_scale=True), "double exponential with one learned scale"
    ),
    "poisson": LikelihoodEntry(lambda _: PoissonLikelihood(), "pixels as counts", raw=True, discrete=True),
    "negative_binomial": LikelihoodEntry(
        lambda _: NegativeBinomialLikelihood(), "pixels as counts, overdispersed", raw=True, discrete=True
    ),
    "categorical": LikelihoodEntry(
        lambda info: CategoricalLikelihood(_levels(info)), "one class for each grey level", raw=True, discrete=True
    ),
    "discretized_logistic_mixture": LikelihoodEntry(
        lambda info: DiscretizedLogisticMixtureLikelihood(5, _levels(info)),
        "5 components, for grey levels",
        discrete=True,
    ),
}

GUIDES: dict[str, GuideEntry | None] = {
    OWN: None,
    "amortized_normal": GuideEntry(AmortizedNormal, NormalHead, "a diagonal normal over all latents"),
    "amortized_multivariate_normal": GuideEntry(
        AmortizedMultivariateNormal, MultivariateNormalHead, "a normal with full covariance over all latents"
    ),
    "amortized_householder": GuideEntry(AmortizedHouseholder, HouseholderHead, "4 reflections of a diagonal normal"),
    "amortized_iaf": GuideEntry(AmortizedIAF, IAFHead, "4 inverse autoregressive flows"),
    "semi_amortized": GuideEntry(
        lambda model, encoder: SemiAmortized(AmortizedNormal(model, encoder)),
        NormalHead,
        "4 gradient steps on each image's bound from a diagonal normal",
    ),
    "amortized_laplace": GuideEntry(
        AmortizedLaplace, nn.Linear, "4 Newton steps to the mode, and the curvature there; not for batch norm"
    ),
}

BOUNDS: dict[str, BoundEntry] = {
    "trace": BoundEntry(
        lambda particles, _: Trace_ELBO(particles, vectorize_particles=particles > 1),
        "the ELBO by sampling, for any pair",
    ),
    "mean_field": BoundEntry(
        lambda particles, _: TraceMeanField_ELBO(particles, vectorize_particles=particles > 1),
        "the ELBO with closed-form KL where there is one",
    ),
    "importance_weighted": BoundEntry(
        lambda particles, _: ImportanceWeighted_ELBO(particles),
        "importance weighted, --particles 5",
        particles=5,
        has_kl=False,
    ),
    "sticking_the_landing": BoundEntry(
        lambda particles, _: StickingTheLanding_ELBO(particles), "the ELBO with path derivatives only for the guide"
    ),
    "dreg": BoundEntry(
        lambda particles, _: DReG_ELBO(particles),
        "importance weighted, with doubly reparameterised gradients, --particles 5",
        particles=5,
        has_kl=False,
    ),
    "aggregate_posterior": BoundEntry(
        lambda _, __: AggregatePosterior_ELBO(), "KL of the batch's aggregate Gaussian instead of each image's own"
    ),
    "free_bits": BoundEntry(lambda _, nats: FreeBits_ELBO(nats), "KL below --free-bits nats per site costs nothing"),
}


def suggest(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """The nearest known names as a question, empty if none is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=2, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """What a name stands for.

    Arguments:
        kind: What the names are names of, for the error.
        name: The name.
        table: The known names.

    Raises:
        ValueError: If the name is unknown; the message suggests the nearest.

    Example:
        >>> choose("bound", "mean_feild", BOUNDS)
        Traceback (most recent call last):
            ...
        ValueError: there is no bound 'mean_feild': did you mean 'mean_field'? The names are trace, mean_field, ...
    """
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}: {suggest(name, table)}The names are {', '.join(table)}.")
    return table[name]
