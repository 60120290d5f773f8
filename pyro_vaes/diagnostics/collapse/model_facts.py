"""What the linear theory needs to know of a model, read off one trace of it on one batch."""

from dataclasses import dataclass

import torch
from pyro.distributions import Normal
from pyro.poutine.messenger import unwrap
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_vaes.programs import DRAWN, VALUED, Pair, Role, dependencies, plates, run, sites

from ..sites import Args, expanded, holds, innermost, rows_first


@dataclass(frozen=True)
class LatentFacts:
    """One latent site: its name, units per datum, prior standard deviation, and KL weight relative to the data."""

    name: str
    size: int
    scale: float
    weight: float


class Moments:
    """Running second moments of rows of features, in float64 where the rows are."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._square = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows with shape ``(B, features)``."""
        rows = rows.to(torch.float64)
        width, known = rows.shape[1], self._sum.numel()
        if self.count and width != known:
            raise ValueError(f"A batch has {width} features and covariates, but the first one {known}.")
        self._sum = self._sum + rows.sum(0)
        self._square = self._square + rows.mT @ rows
        self.count += len(rows)

    def second_moment(self, *, centred: bool) -> Tensor:
        """E[r rᵀ], or the covariance, with shape ``(features, features)``."""
        moment = self._square / self.count
        if centred:
            mean = self._sum / self.count
            moment = moment - torch.outer(mean, mean)
        return moment.cpu()


@dataclass(frozen=True)
class ModelFacts:
    """What one trace says.

    Attributes:
        sites: The latent sites, the one nearest the data first.
        noise: Standard deviation of the likelihood (root mean square over the features).
        num_features: Features of one datum.
        features: ``args -> (targets (B, T), covariates (B, K))``, K = 0 without covariates; targets in units in which
            every feature has the same noise.
    """

    sites: tuple[LatentFacts, ...]
    noise: float
    num_features: int
    features: "_Features"


@dataclass(frozen=True)
class _Features:
    pair: Pair
    observed: str
    scale: Tensor | None
    embedding: nn.Module | None
    position: int | None  # of the observed tensor among the arguments; None if the program makes it
    source: int | None  # of the argument that it is made from

    def __call__(self, args: Args) -> tuple[Tensor, Tensor]:
        tensors = _tensors(args)
        if self.position is None:  # made inside the program: read it off a run
            site = sites(run(self.pair.model, args), Role.OBSERVED)[self.observed]
            target = _rows(site, site["value"])
        else:
            target = tensors[self.position].flatten(1).to(torch.float64)

        covariates = [self._embedded(tensor) for i, tensor in tensors.items() if i != self.source]
        if any(len(c) != len(target) for c in covariates):
            raise ValueError(
                f"The target has {len(target)} rows but a covariate {[len(c) for c in covariates]}; they must belong "
                "together, so a model that draws its own rows needs its batch from outside."
            )
        if self.scale is not None:
            target = target / self.scale
        return target, torch.cat([target[:, :0], *covariates], 1)

    def _embedded(self, covariate: Tensor) -> Tensor:
        embedded = covariate if self.embedding is None else self.embedding(covariate)
        if not isinstance(embedded, Tensor) or not embedded.is_floating_point():
            raise ValueError(
                f"A covariate has dtype {covariate.dtype}, and the regression on it needs numbers: pass "
                "embedding=OneHot(num_classes) for labels."
            )
        return embedded.flatten(1).to(torch.float64)


def _tensors(args: Args) -> dict[int, Tensor]:
    """The arguments that have rows, by position."""
    return {i: a for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim()}


def _rows(site: Message, tensor: Tensor) -> Tensor:
    """Values of a site with the outermost plate's rows first, ``(B, everything else)``, float64."""
    around = plates(site)
    if not around:
        raise ValueError(f"The site {site['name']!r} lies in no plate, so there are no rows. Put it into a plate.")

    tensor = tensor.expand_as(expanded(site)["value"])
    return rows_first(tensor, len(site["fn"].event_shape), around[0].dim).to(torch.float64)


def _weight(site: Message) -> float:
    return torch.as_tensor(site["scale"], dtype=torch.float64).mean().item()


def model_facts(pair: Pair, args: Args, *, embedding: nn.Module | None, noise: float | None) -> ModelFacts:
    """Read off one batch what the closed forms need.

    Arguments:
        pair: The model, with any guide.
        args: One batch.
        embedding: Turns covariates into features; None for the model's own, if it has one.
        noise: Standard deviation of the likelihood; None to read it off.

    Raises:
        ValueError: The closed forms do not cover the model, or the noise cannot be read off.
    """
    trace = run(pair.model, args)
    observed, latent = sites(trace, Role.OBSERVED), sites(trace, DRAWN)
    if len(observed) != 1:
        raise ValueError(
            f"The closed forms know one observed site, but the model has {sorted(observed)}. Is obs= missing, or "
            "should the others be left out (poutine.block)?"
        )
    ((name, site),) = observed.items()
    order = _chain(pair, args, latent, name)

    relative = None
    if noise is None:
        noise, relative = _read_noise(site)
    elif not noise > 0:
        raise ValueError(f"noise is the standard deviation of the likelihood and must be positive, but got {noise}.")

    if embedding is None:
        own = getattr(getattr(unwrap(pair.model), "__self__", None), "embedding", None)
        embedding = own if isinstance(own, nn.Module) else None
    position = next((i for i, a in enumerate(args) if a is site["value"]), None)
    source = _source(args, site["value"]) if position is None else position
    features = _Features(pair, name, relative, embedding, position, source)

    target, _ = features(args)
    latents = tuple(_latent(latent[n], _weight(site)) for n in order)
    return ModelFacts(latents, noise, target.shape[1], features)


def _read_noise(site: Message) -> tuple[float, Tensor | None]:
    """The noise of all features together, and of each in units of that where they differ."""
    fn = innermost(site["fn"])
    if not isinstance(fn, Normal):
        raise ValueError(
            f"The closed forms are those of a normal likelihood, but {site['name']!r} is {type(fn).__name__}. Pass "
            "noise=, the standard deviation that the data are expected to keep around their reconstruction."
        )

    noise = _rows(site, fn.scale).square().mean(0).sqrt()  # root mean squares over the rows, (T,)
    overall = noise.square().mean().sqrt().item()
    relative = noise / overall
    alike = torch.allclose(relative, torch.ones_like(relative), rtol=1e-9, atol=0)
    return overall, None if alike else relative


def _source(args: Args, value: Tensor) -> int | None:
    """Which argument the program has made its observation from; None if none is a tensor.

    Raises:
        ValueError: Several may be.
    """
    tensors = _tensors(args)
    found = [i for i, tensor in tensors.items() if holds(tensor, value)] or list(tensors)
    if len(found) > 1:
        raise ValueError(
            f"The observation is made inside the model, and each of its arguments {found} may be what it is made from, "
            "the others covariates. Prepare the data outside and observe the argument itself (obs=x)?"
        )
    return found[0] if found else None


def _latent(site: Message, weight: float) -> LatentFacts:
    fn, scale = innermost(site["fn"]), 1.0
    if isinstance(fn, Normal):
        scale = fn.scale.to(torch.float64).square().mean().sqrt().item()
    return LatentFacts(site["name"], _rows(site, site["value"]).shape[1], scale, _weight(site) / weight)


def _chain(pair: Pair, args: Args, latent: dict[str, Message], observed: str) -> list[str]:
    """The latent sites, the one nearest the data first: one, or two in a Markov chain."""
    names = list(latent)
    if len(names) == 1:
        return names
    problem = f"The closed forms know one latent site, or two in a chain z_2 -> z_1 -> x, but the model has {names}"
    if len(names) != 2:
        raise ValueError(f"{problem}. Forecast a model with those that matter most.")

    trace = run(pair.model, args)
    values = {n: s["value"] for n, s in sites(trace, VALUED).items()}
    on = dependencies(pair.model, values, args)
    top, first = names
    if on[top] or on[first] != {top} or on[observed] != {first}:
        raise ValueError(f"{problem} and they are no such chain (skip connections, or independent sites).")
    return [first, top]
