"""One row per distribution that a likelihood returns, and two of Pyro's own as controls of the suite."""

import functools
import itertools
import math
from typing import Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from scipy import special, stats
from torch import Tensor, nn

from pyro_vaes.distributions import (
    AggregateGaussian,
    Autoregressive,
    AutoregressiveFlow,
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    HouseholderNormal,
    IntegerCategorical,
    InverseAutoregressive,
    Mixture,
    MixturePosterior,
    PrecisionNormal,
    RecursiveMixture,
)
from pyro_vaes.nn import (
    MADE,
    AutoregressiveLikelihood,
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    PixelCNN,
    gated_block,
    pixel_cnn_layers,
    pixel_cnn_window,
)
from tests.distributions.suite import Args, NumpyArgs, Row, independent

Shape = tuple[int, ...]


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def between(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def location_scale_args(b: Shape) -> Args:
    return {"loc": real(*b), "scale": between(0.5, 1.5, *b)}


def around(loc: float, width: float) -> list[float]:
    """Breaks dense enough for 60 nodes each, with one at loc, where a Laplace has its kink."""
    return [loc + width * t for t in np.linspace(-1, 1, 9)]


def multivariate_args(b: Shape) -> Args:
    scale_tril = 0.3 * real(*b, 2, 2).tril(-1) + torch.diag_embed(between(0.6, 1.2, *b, 2))
    return {"loc": 0.3 * real(*b, 2), "scale_tril": scale_tril}


def counts(args: Args) -> Tensor:
    return torch.arange(400, dtype=torch.float64)


def levels(num_levels: int) -> Tensor:
    return torch.arange(num_levels, dtype=torch.float64) / (num_levels - 1)


def logistic_mixture(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    """The textbook form with 16 levels: a difference of logistic CDFs, the outer bins open."""
    level = np.round(x * 15)[:, None]
    upper = np.where(level == 15, np.inf, (level + 0.5) / 15)
    lower = np.where(level == 0, -np.inf, (level - 0.5) / 15)
    law = stats.logistic(a["loc"], a["scale"])
    # the upper tail from the survival function: the CDF is 1 to rounding there
    above = lower > a["loc"]
    mass = np.where(above, law.sf(lower) - law.sf(upper), law.cdf(upper) - law.cdf(lower))
    return np.log((special.softmax(a["logits"]) * mass).sum(-1))


def continuous_bernoulli(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    """A truncated exponential distribution, reflected for positive logits."""
    eta = float(a["logits"])
    return stats.truncexpon.logpdf(1 - x if eta > 0 else x, b=abs(eta), scale=1 / abs(eta))


PRECISION_NORMAL = Row(
    "PrecisionNormal",
    PrecisionNormal,
    lambda b: {"loc": (a := multivariate_args(b))["loc"], "chol_precision": a["scale_tril"]},
    lambda a, x: stats.multivariate_normal.logpdf(
        x, a["loc"], np.linalg.inv(a["chol_precision"] @ a["chol_precision"].T)
    ),
    breaks=lambda a: list(np.linspace(-15, 15, 5)),
    bad_args=(("chol_precision", -1.0), ("loc", math.nan)),
    event_shape=(2,),
    cls=PrecisionNormal,
)


def recursive_mixture(
    loc: Tensor, scale: Tensor, eps_logits: Tensor, validate_args: bool | None = None
) -> RecursiveMixture:
    """Diagonal normals, one for each row of loc and scale ``(..., M + 1, 2)``."""
    parts = zip(loc.unbind(-2), scale.unbind(-2), strict=True)
    components = [dist.Normal(*part, validate_args=validate_args).to_event(1) for part in parts]
    return RecursiveMixture(components, eps_logits, validate_args=validate_args)


def recursive_mixture_density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    """The recursion itself, in plain numbers."""
    density = np.zeros(len(x))
    for m, (loc, scale) in enumerate(zip(a["loc"], a["scale"], strict=True)):
        eps = special.expit(a["eps_logits"][m - 1]) if m else 1.0
        density = (1 - eps) * density + eps * stats.norm.pdf(x, loc, scale).prod(-1)
    return np.log(density)


def householder_density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    """The normal with the matrix of all reflections written out."""
    reflections = np.eye(2)
    for v in a["vectors"]:
        reflections = (np.eye(2) - 2 * np.outer(v, v) / (v @ v)) @ reflections
    covariance = reflections @ np.diag(a["scale"] ** 2) @ reflections.T
    return stats.multivariate_normal.logpdf(x, reflections @ a["loc"], covariance)


ORDERS = ([0, 1], [1, 0])


@functools.cache
def masked_networks(dtype: torch.dtype) -> list[nn.Module]:
    """Two steps' networks with one number of context; smooth, so that quadrature is exact."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        nets = [
            ConditionalAutoRegressiveNN(2, 1, [8], permutation=torch.tensor(o), nonlinearity=nn.Tanh()) for o in ORDERS
        ]
    return [net.to(dtype).requires_grad_(False) for net in nets]


def flow(loc: Tensor, scale: Tensor, context: Tensor, validate_args: bool | None = None) -> dist.TorchDistribution:
    base = dist.Normal(loc, scale, validate_args=validate_args).to_event(1)
    steps = [InverseAutoregressive(n, context, o) for n, o in zip(masked_networks(loc.dtype), ORDERS, strict=True)]
    return dist.TransformedDistribution(base, steps, validate_args=validate_args)


def flow_density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    """The change of variables with nothing known of triangles: Newton's method for z_0, and the whole Jacobian."""
    context = torch.as_tensor(a["context"])

    def forward(z: Tensor) -> Tensor:
        for net in masked_networks(torch.float64):
            m, s = net(z, context)
            z = torch.sigmoid(s) * z + (1 - torch.sigmoid(s)) * m
        return z

    jacobian, target = torch.func.vmap(torch.func.jacrev(forward)), torch.as_tensor(x)
    z = target
    for _ in range(50):
        z = z - torch.linalg.solve(jacobian(z), forward(z) - target)
    assert torch.allclose(forward(z), target, rtol=0, atol=1e-12)
    base = stats.norm.logpdf(z.numpy(), a["loc"], a["scale"]).sum(-1)
    return base - torch.linalg.slogdet(jacobian(z))[1].numpy()


NORMAL = Row(
    "Normal",
    dist.Normal,
    location_scale_args,
    lambda a, x: stats.norm.logpdf(x, a["loc"], a["scale"]),
    breaks=lambda a: around(a["loc"].item(), 9 * a["scale"].item()),
    bad_args=(("scale", -1.0), ("loc", math.nan)),
    cls=dist.Normal,
)
MULTIVARIATE_NORMAL = Row(
    "MultivariateNormal",
    dist.MultivariateNormal,
    multivariate_args,
    lambda a, x: stats.multivariate_normal.logpdf(x, a["loc"], a["scale_tril"] @ a["scale_tril"].T),
    breaks=lambda a: [-9.0, 0.0, 9.0],
    bad_args=(("scale_tril", -1.0),),
    event_shape=(2,),
    cls=dist.MultivariateNormal,
)
RECURSIVE_MIXTURE = Row(
    "RecursiveMixture",
    recursive_mixture,
    lambda b: {"loc": real(*b, 3, 2), "scale": between(0.5, 1.2, *b, 3, 2), "eps_logits": real(*b, 2)},
    recursive_mixture_density,
    breaks=lambda a: [-12.0, -4.0, 0.0, 4.0, 12.0],
    bad_args=(("scale", -1.0), ("loc", math.nan), ("eps_logits", math.nan)),
    event_shape=(2,),
)


def mixture(logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> Mixture:
    """Diagonal normals with loc and scale ``(..., K, 2)``."""
    components = dist.Normal(loc, scale, validate_args=validate_args).to_event(1)
    return Mixture(dist.Categorical(logits=logits, validate_args=validate_args), components, validate_args)


def mixture_density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    parts = [stats.norm.logpdf(x, m, s).sum(-1) for m, s in zip(a["loc"], a["scale"], strict=True)]
    return special.logsumexp(np.stack(parts, -1) + special.log_softmax(a["logits"]), axis=-1)


MIXTURE = Row(
    "Mixture",
    mixture,
    lambda b: {"logits": real(*b, 3), "loc": real(*b, 3, 2), "scale": between(0.5, 1.2, *b, 3, 2)},
    mixture_density,
    breaks=lambda a: [-12.0, -4.0, 0.0, 4.0, 12.0],
    bad_args=(("scale", -1.0), ("loc", math.nan), ("logits", math.nan)),
    event_shape=(2,),
)
HOUSEHOLDER_NORMAL = Row(
    "HouseholderNormal",
    HouseholderNormal,
    lambda b: {"loc": real(*b, 2), "scale": between(0.5, 1.5, *b, 2), "vectors": real(*b, 3, 2)},
    householder_density,
    breaks=lambda a: list(np.linspace(-18, 18, 7)),
    bad_args=(("scale", -1.0), ("loc", math.nan), ("vectors", math.nan)),
    event_shape=(2,),
    cls=HouseholderNormal,
)
INVERSE_AUTOREGRESSIVE = Row(
    "InverseAutoregressive",
    flow,
    lambda b: {"loc": real(*b, 2), "scale": between(0.5, 1.5, *b, 2), "context": real(*b, 1)},
    flow_density,
    breaks=lambda a: list(np.linspace(-14, 14, 7)),
    bad_args=(("scale", -1.0), ("loc", math.nan)),
    event_shape=(2,),
    moments=False,
)
LAPLACE = Row(
    "Laplace",
    dist.Laplace,
    location_scale_args,
    lambda a, x: stats.laplace.logpdf(x, a["loc"], a["scale"]),
    breaks=lambda a: around(a["loc"].item(), 40 * a["scale"].item()),
    bad_args=(("scale", 0.0),),
    cls=dist.Laplace,
)
BERNOULLI = Row(
    "Bernoulli",
    Bernoulli,
    lambda b: {"logits": real(*b)},
    lambda a, x: stats.bernoulli.logpmf(x, special.expit(a["logits"])),
    values=lambda a: torch.tensor([0.0, 1.0], dtype=torch.float64),
    bad_args=(("logits", math.nan),),
    bad_values=(0.5, 2.0, math.nan),
    cls=Bernoulli,
)
CONTINUOUS_BERNOULLI = Row(
    "ContinuousBernoulli",
    ContinuousBernoulli,
    lambda b: {"logits": 3 * real(*b)},
    continuous_bernoulli,
    breaks=lambda a: [0.0, 0.1, 0.9, 1.0],
    bad_args=(("logits", math.nan),),
    bad_values=(-0.1, 1.1, math.nan),
    cls=ContinuousBernoulli,
)
INTEGER_CATEGORICAL = Row(
    "IntegerCategorical",
    IntegerCategorical,
    lambda b: {"logits": real(*b, 4)},
    lambda a, x: special.log_softmax(a["logits"])[x.astype(int)],
    values=lambda a: torch.arange(4, dtype=torch.float64),
    bad_args=(("logits", math.nan),),
    bad_values=(-1.0, 4.0, 0.5),
    cls=IntegerCategorical,
)
POISSON = Row(
    "Poisson",
    dist.Poisson,
    lambda b: {"rate": between(0.5, 10.0, *b)},
    lambda a, x: stats.poisson.logpmf(x, a["rate"]),
    values=counts,
    bad_args=(("rate", -1.0),),
    bad_values=(-1.0, 0.5, math.nan),
    cls=dist.Poisson,
)
NEGATIVE_BINOMIAL = Row(
    "NegativeBinomial",
    dist.NegativeBinomial,
    lambda b: {"total_count": between(0.5, 4.0, *b), "logits": between(-1.0, 1.0, *b)},
    lambda a, x: stats.nbinom.logpmf(x, a["total_count"], special.expit(-a["logits"])),
    values=counts,
    bad_args=(("total_count", -1.0), ("logits", math.nan)),
    bad_values=(-1.0, 0.5, math.nan),
    cls=dist.NegativeBinomial,
)
DISCRETIZED_LOGISTIC_MIXTURE = Row(
    "DiscretizedLogisticMixture",
    lambda **args: DiscretizedLogisticMixture(num_levels=16, **args),
    lambda b: {"logits": real(*b, 3), "loc": between(-0.2, 1.2, *b, 3), "scale": between(0.01, 0.2, *b, 3)},
    logistic_mixture,
    values=lambda a: levels(16),
    bad_args=(("scale", 0.0), ("loc", math.nan), ("logits", math.nan)),
    bad_values=(0.5, -1 / 15, 16 / 15, math.nan),
    cls=DiscretizedLogisticMixture,
)


def running_sum(x: Tensor, h: Tensor) -> dist.Independent:
    """Logits h_i + x_1 + .. + x_{i-1} for bits."""
    return dist.Bernoulli(logits=h + x.cumsum(-1) - x, validate_args=False).to_event(1)


AUTOREGRESSIVE = Row(
    "Autoregressive",
    lambda context, validate_args=None: Autoregressive(
        running_sum,
        context,
        (3,),
        dist.constraints.independent(dist.constraints.boolean, 1),
        validate_args=validate_args,
    ),
    lambda b: {"context": real(*b, 3)},
    lambda a, x: stats.bernoulli.logpmf(x, special.expit(a["context"] + np.cumsum(x, -1) - x)).sum(-1),
    values=lambda a: torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3),
    bad_args=(("context", math.nan),),
    bad_values=(0.5, 2.0, math.nan),
    event_shape=(3,),
    moments=False,
)


def networks() -> dict[str, AutoregressiveLikelihood]:
    """Autoregressive networks under each kind of output, on so few elements that all values can be listed."""
    binary, classes = BernoulliLikelihood(event_dim=3), CategoricalLikelihood(3, event_dim=3)
    grey = DiscretizedLogisticMixtureLikelihood(2, 3, event_dim=3)
    return {
        "MADE": AutoregressiveLikelihood(BernoulliLikelihood(), MADE(4, [12], context_features=2)),
        "PixelCNN.binary": AutoregressiveLikelihood(
            binary, PixelCNN((1, 2, 2), 6, pixel_cnn_layers(2), context_channels=2)
        ),
        "PixelCNN.categorical": AutoregressiveLikelihood(
            classes, PixelCNN((2, 1, 2), 6, pixel_cnn_window(3, 1), 3, context_channels=1, num_pointwise=1)
        ),
        "PixelCNN.logistic": AutoregressiveLikelihood(
            grey, PixelCNN((1, 2, 2), 6, pixel_cnn_layers(2), 6, context_channels=1, block=gated_block)
        ),
    }


@functools.cache
def network(name: str, dtype: torch.dtype) -> AutoregressiveLikelihood:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return networks()[name].to(dtype).requires_grad_(False)


def autoregressive_row(name: str, levels: list[float]) -> Row:
    """The row of a network; the reference is the chain rule, with all that comes later set to another value."""
    double = network(name, torch.float64)
    values = torch.cartesian_prod(*[torch.tensor(levels, dtype=torch.float64)] * math.prod(double.event_shape))
    # row by row, the channels of a pixel one after the other
    order = sorted(itertools.product(*map(range, double.event_shape)), key=lambda i: i[1:] + i[:1])

    def chain_rule(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
        x, context = torch.as_tensor(x), torch.as_tensor(a["context"])
        total, known = torch.zeros(len(x), dtype=torch.float64), torch.full_like(x, levels[-1])
        for i in order:
            with torch.no_grad():
                law = double.likelihood(double.network(double.read(known), context))
                total += law.base_dist.log_prob(x)[(..., *i)]
            known[(..., *i)] = x[(..., *i)]
        return total.numpy()

    def make(context: Tensor, validate_args: bool | None = None) -> Autoregressive:
        p = network(name, context.dtype)(torch.zeros_like(context))
        given = p.conditionals, context, p.event_shape, p.support
        return Autoregressive(*given, context_dim=len(p.event_shape), validate_args=validate_args)

    return Row(
        f"Autoregressive.{name}",
        make,
        lambda b: {"context": real(*b, *double.context_shape)},
        chain_rule,
        values=lambda a: values.reshape(-1, *double.event_shape),
        bad_args=(("context", math.nan),),
        bad_values=(0.3, 7.0, math.nan),
        event_shape=double.event_shape,
        moments=False,
    )


def bend(y: Tensor) -> tuple[Tensor, None]:
    """A mean-only step of two dimensions: mu = (0.3, sin y_1)."""
    return torch.stack([torch.full_like(y[..., 0], 0.3), y[..., 0].sin()], -1), None


def stretch(y: Tensor) -> tuple[Tensor, Tensor]:
    """An affine step: mu = (-0.2, y_1 / 2), log sigma = (0.1, tanh(y_1) / 2)."""
    first = torch.full_like(y[..., 0], -0.2), torch.full_like(y[..., 0], 0.1)
    second = 0.5 * y[..., 0], 0.5 * y[..., 0].tanh()
    return torch.stack([first[0], second[0]], -1), torch.stack([first[1], second[1]], -1)


def flow_density(a: NumpyArgs, z: np.ndarray) -> np.ndarray:
    """First the step nearest z, then, with the order reversed, the other one."""
    b = np.stack([z[:, 0] - 0.3, z[:, 1] - np.sin(z[:, 0])], -1)[:, ::-1]
    log_scale = np.stack([np.full(len(b), 0.1), np.tanh(b[:, 0]) / 2], -1)
    eps = (b - np.stack([np.full(len(b), -0.2), b[:, 0] / 2], -1)) * np.exp(-log_scale)
    return (stats.norm.logpdf(eps, a["loc"], a["scale"]) - log_scale).sum(-1)


AUTOREGRESSIVE_FLOW = Row(
    "AutoregressiveFlow",
    lambda loc, scale, validate_args=None: AutoregressiveFlow(loc, scale, [bend, stretch], validate_args=validate_args),
    lambda b: {"loc": 0.3 * real(*b, 2), "scale": between(0.5, 1.0, *b, 2)},
    flow_density,
    breaks=lambda a: list(np.linspace(-14, 14, 9)),
    bad_args=(("scale", -1.0), ("loc", math.nan)),
    event_shape=(2,),
    cls=AutoregressiveFlow,
    moments=False,
)


def posteriors_args(b: Shape) -> Args:
    """Five diagonal normals over two numbers."""
    return {"loc": real(*b, 5, 2), "scale": between(0.4, 1.0, *b, 5, 2)}


def mixture_posterior_density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
    parts = [stats.norm.pdf(x, m, s).prod(-1) for m, s in zip(a["loc"], a["scale"], strict=True)]
    return np.log(np.mean(parts, axis=0))


def aggregate_row(moment: Literal["means", "mixture"]) -> Row:
    def density(a: NumpyArgs, x: np.ndarray) -> np.ndarray:
        variance = a["loc"].var(0) + (np.square(a["scale"]).mean(0) if moment == "mixture" else 0)
        return stats.norm.logpdf(x, a["loc"].mean(0), np.sqrt(variance)).sum(-1)

    return Row(
        f"AggregateGaussian.{moment}",
        functools.partial(AggregateGaussian, moment=moment),
        posteriors_args,
        density,
        breaks=lambda a: list(np.linspace(-18, 18, 13)),
        bad_args=(("scale", -1.0), ("loc", math.nan)),
        event_shape=(2,),
        cls=AggregateGaussian,
    )


MIXTURE_POSTERIOR = Row(
    "MixturePosterior",
    MixturePosterior,
    posteriors_args,
    mixture_posterior_density,
    breaks=lambda a: list(np.linspace(-12, 12, 9)),
    bad_args=(("scale", -1.0), ("loc", math.nan)),
    event_shape=(2,),
    cls=MixturePosterior,
)

UNIVARIATE = [
    NORMAL,
    LAPLACE,
    BERNOULLI,
    CONTINUOUS_BERNOULLI,
    INTEGER_CATEGORICAL,
    POISSON,
    NEGATIVE_BINOMIAL,
    DISCRETIZED_LOGISTIC_MIXTURE,
]
ROWS = [
    *UNIVARIATE,
    MULTIVARIATE_NORMAL,
    PRECISION_NORMAL,
    RECURSIVE_MIXTURE,
    MIXTURE,
    HOUSEHOLDER_NORMAL,
    INVERSE_AUTOREGRESSIVE,
    AUTOREGRESSIVE,
    AUTOREGRESSIVE_FLOW,
    aggregate_row("means"),
    aggregate_row("mixture"),
    MIXTURE_POSTERIOR,
    autoregressive_row("MADE", [0.0, 1.0]),
    autoregressive_row("PixelCNN.binary", [0.0, 1.0]),
    autoregressive_row("PixelCNN.categorical", [0.0, 1.0, 2.0]),
    autoregressive_row("PixelCNN.logistic", [0.0, 0.5, 1.0]),
    *(independent(row) for row in UNIVARIATE),
]
