"""The table: names of models, networks, likelihoods, guides and bounds, and what each constructs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vaes.data import PixelInfo
from pyro_vaes.errors import suggest
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
from pyro_vaes.programs import Program

T = TypeVar("T")
MOST_LEVELS = 2**16
"""More levels of pixels in [0, 1] are not told apart in single precision."""


@dataclass(frozen=True)
class Entry:
    """What a name stands for, in words."""

    about: str


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """A family of networks by name."""

    build: type[Networks]


@dataclass(frozen=True)
class LikelihoodEntry(Entry):
    """A likelihood by name.

    Arguments:
        build: From what is known about the pixels to the likelihood of flat images.
        about: In words.
        raw: Whether the pixels are whole numbers as stored rather than scaled to [0, 1].
        discrete: Whether it is a probability (so that bits per dimension mean something)
            rather than a density.
    """

    build: Callable[[PixelInfo], Likelihood]
    raw: bool = False
    discrete: bool = False


@dataclass(frozen=True)
class GuideEntry(Entry):
    """An amortised guide by name: its constructor and its head."""

    build: Callable[[Program, nn.Module], AmortizedGuide]
    head: Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class BoundEntry(Entry):
    """A bound by name: from particles and free nats to the ELBO."""

    build: Callable[[int, float], ELBO]
    particles: int = 1


def _levels(info: PixelInfo) -> int:
    if info.levels is None:
        raise ValueError(
            "this likelihood is for pixels with finitely many levels, but the data are "
            "continuous: choose --likelihood gaussian, laplace or continuous_bernoulli."
        )
    return info.levels


MODELS = {
    "vae": Entry("one latent vector per datum, prior N(0, I)"),
    "conditional_vae": Entry("given the label; samples by class"),
    "hierarchical_vae": Entry("several levels of latents: --latent-dim 16,8, from the data upwards"),
}

NETWORKS = {
    "linear": NetworkEntry("no hidden layer: probabilistic PCA with a Gaussian likelihood", LinearNetworks),
    "mlp": NetworkEntry("fully connected; --hidden are widths (256,256)", MLPNetworks),
    "conv": NetworkEntry("convolutional; --hidden are channels of stride-2 layers (32,64)", ConvNetworks),
}

LIKELIHOODS = {
    "bernoulli": LikelihoodEntry(
        "pixels 0 or 1; for grey ones add --binarize",
        lambda _: BernoulliLikelihood(),
        discrete=True,
    ),
    "continuous_bernoulli": LikelihoodEntry("a density on [0, 1]", lambda _: ContinuousBernoulliLikelihood()),
    "gaussian": LikelihoodEntry("with one learned scale", lambda _: GaussianLikelihood(0.3, learn_scale=True)),
    "laplace": LikelihoodEntry(
        "double exponential with one learned scale",
        lambda _: LaplaceLikelihood(0.3, learn_scale=True),
    ),
    "poisson": LikelihoodEntry("pixels as counts", lambda _: PoissonLikelihood(), raw=True, discrete=True),
    "negative_binomial": LikelihoodEntry(
        "pixels as counts, overdispersed",
        lambda _: NegativeBinomialLikelihood(),
        raw=True,
        discrete=True,
    ),
    "categorical": LikelihoodEntry(
        "one class for each grey level",
        lambda info: CategoricalLikelihood(_levels(info)),
        raw=True,
        discrete=True,
    ),
    "discretized_logistic_mixture": LikelihoodEntry(
        "5 components, for grey levels",
        lambda info: DiscretizedLogisticMixtureLikelihood(5, _levels(info)),
        discrete=True,
    ),
}

GUIDES = {
    "own": Entry("the guide that comes with the model"),
    "amortized_normal": GuideEntry("a diagonal normal over all latents", AmortizedNormal, NormalHead),
    "amortized_multivariate_normal": GuideEntry(
        "a normal with full covariance over all latents",
        AmortizedMultivariateNormal,
        MultivariateNormalHead,
    ),
    "amortized_householder": GuideEntry("4 reflections of a diagonal normal", AmortizedHouseholder, HouseholderHead),
    "amortized_iaf": GuideEntry("4 inverse autoregressive flows", AmortizedIAF, IAFHead),
    "semi_amortized": GuideEntry(
        "4 gradient steps on each image's bound from a diagonal normal",
        lambda model, encoder: SemiAmortized(AmortizedNormal(model, encoder)),
        NormalHead,
    ),
    "amortized_laplace": GuideEntry(
        "4 Newton steps to the mode, and the curvature there; not for batch norm",
        AmortizedLaplace,
        nn.Linear,
    ),
}

BOUNDS = {
    "trace": BoundEntry(
        "the ELBO by sampling, for any pair",
        lambda particles, _: Trace_ELBO(particles, vectorize_particles=particles > 1),
    ),
    "mean_field": BoundEntry(
        "the ELBO with closed-form KL where there is one",
        lambda particles, _: TraceMeanField_ELBO(particles, vectorize_particles=particles > 1),
    ),
    "importance_weighted": BoundEntry(
        "importance weighted, --particles 5",
        lambda particles, _: ImportanceWeighted_ELBO(particles),
        particles=5,
    ),
    "sticking_the_landing": BoundEntry(
        "the ELBO with path derivatives only for the guide",
        lambda particles, _: StickingTheLanding_ELBO(particles),
    ),
    "dreg": BoundEntry(
        "importance weighted, with doubly reparameterised gradients, --particles 5",
        lambda particles, _: DReG_ELBO(particles),
        particles=5,
    ),
    "aggregate_posterior": BoundEntry(
        "KL of the batch's aggregate Gaussian instead of each image's own",
        lambda _, __: AggregatePosterior_ELBO(),
    ),
    "free_bits": BoundEntry(
        "KL below --free-bits nats per site costs nothing",
        lambda _, nats: FreeBits_ELBO(nats),
    ),
}

TABLES: dict[str, Mapping[str, Entry]] = {
    "model": MODELS,
    "network": NETWORKS,
    "likelihood": LIKELIHOODS,
    "guide": GUIDES,
    "bound": BOUNDS,
}
"""All names, by the option that takes them."""


def suitable_likelihood(info: PixelInfo, guide: str = "own") -> str:
    """The name of a likelihood for the range and the levels of the pixels.

    Pixels of finitely many levels get a probability. A density could grow without limit
    at the levels that many pixels have, such as 0 and 1.

    Example:
        >>> suitable_likelihood(PixelInfo(0.0, 1.0, 17))
        'discretized_logistic_mixture'
    """
    if info.low < 0 or info.high > 1:
        return "gaussian"
    if info.levels == 2:
        return "bernoulli"
    if info.levels is None or info.levels > MOST_LEVELS:
        return "continuous_bernoulli"
    # the Laplace guide needs a Fisher information, and a mixture has none in closed form
    if guide == "amortized_laplace":
        return "continuous_bernoulli"
    return "discretized_logistic_mixture"


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
