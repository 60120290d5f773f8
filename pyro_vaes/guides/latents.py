"""The latent sites of a program, seen as one unconstrained vector per datum."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import (
    Delta,
    Normal,
    TorchDistribution,
    TransformedDistribution,
    constraints,
)
from pyro.distributions.util import sum_rightmost
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ReshapeTransform, Transform

from pyro_vaes.programs import (
    marks,
)

from .plate_shapes import Layout


@dataclass(frozen=True)
class LatentSite:
    """One latent site: its name, event shape, and the map from unconstrained reals onto its support."""

    name: str
    event_shape: torch.Size
    unconstrained_shape: torch.Size
    transform: Transform
    is_real: bool

    @property
    def numel(self) -> int:
        return self.unconstrained_shape.numel()

    def constrain(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(..., numel)`` reals to the value ``(..., *event_shape)`` and the log |det| of that map ``(...)``."""
        unconstrained = flat.reshape(flat.shape[:-1] + self.unconstrained_shape)
        value = self.transform(unconstrained)
        log_det = self.transform.log_abs_det_jacobian(unconstrained, value)
        extra = log_det.dim() - (flat.dim() - 1)
        return value, sum_rightmost(log_det, extra)

    def unconstrain(self, value: Tensor) -> Tensor:
        """The inverse: ``(..., *event_shape)`` to ``(..., numel)`` reals."""
        flat = self.transform.inv(value)
        return flat.reshape(*value.shape[: value.dim() - len(self.event_shape)], self.numel)

    def normal(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """A diagonal normal over the unconstrained site, pushed onto the support; loc and scale ``(..., numel)``."""
        shape = loc.shape[:-1] + self.unconstrained_shape
        fn = Normal(loc.reshape(shape), scale.reshape(shape)).to_event(len(self.unconstrained_shape))
        return self.transformed(fn)

    def push(self, q: TorchDistribution) -> TorchDistribution:
        """A distribution over flat vectors of reals, ``(numel,)``, pushed onto the support."""
        maps: list[Transform] = []
        if self.unconstrained_shape != (self.numel,):
            flat = torch.Size([self.numel])
            maps.append(ReshapeTransform(flat, self.unconstrained_shape))
        if not self.is_real:
            maps.append(self.transform)
        return TransformedDistribution(q, maps) if maps else q

    def transformed(self, q: TorchDistribution) -> TorchDistribution:
        """A distribution over reals of the unconstrained shape, pushed onto the support."""
        return q if self.is_real else TransformedDistribution(q, [self.transform])


class SiteDraw(NamedTuple):
    """How one latent site is drawn: its distribution, and its marks."""

    fn: TorchDistribution
    infer: dict[str, object]


@dataclass(frozen=True)
class Latents:
    """The latent sites of a program in trace order, and the plate that holds them.

    Attributes:
        sites: The latent sites.
        plate: Name of the data plate.
        dim: Batch dimension of the plate, negative.
        full_size: Number of data the plate stands for; None when it is the number of rows of the batch.
        subsample_size: Rows drawn by a subsampling plate; None when the plate does not subsample.
        rows: Number of rows of the arguments with which they were found; None where there was no tensor.
        around: Names of all plates around the sites, where there are several or none.
        is_masked: Whether some rows of a site may be masked.
        scales_differ: Whether sites have different scales of their own.
    """

    sites: tuple[LatentSite, ...]
    plate: str
    dim: int
    full_size: int | None
    subsample_size: int | None
    rows: int | None
    around: tuple[str, ...] | None = None
    is_masked: bool = False
    scales_differ: bool = False

    @property
    def numel(self) -> int:
        return sum(site.numel for site in self.sites)

    @property
    def follows_batch(self) -> bool:
        """Whether the plate held as many rows as the arguments, so that it may be another one for another batch."""
        return self.rows is not None and (self.full_size is None or self.subsample_size == self.rows)

    @property
    def all_plates(self) -> tuple[str, ...]:
        """Names of the plates around the sites."""
        return (self.plate,) if self.around is None else self.around

    @property
    def names(self) -> list[str]:
        return [site.name for site in self.sites]

    @property
    def inner(self) -> tuple[int, ...]:
        """Batch dimensions to the right of the data plate: those of the plates inside it, which hold no latent."""
        return (1,) * (-self.dim - 1)

    def data_plate(self, rows: int | None) -> pyro.plate:
        """A plate like that of the data, for a batch with that many rows."""
        size, drawn = self.full_size or rows, self.subsample_size
        if drawn is not None and rows != self.full_size:
            drawn = rows
        return pyro.plate(self.plate, size, drawn, dim=self.dim)

    def rows_to_hold(self, size: int | None, rows: Tensor | None) -> Tensor | None:
        """The rows that the program's own plate is to hold for arguments of a size.

        Raises:
            ValueError: The program would draw some of its rows, and it is not known which.
        """
        drawn = self.subsample_size
        if drawn is None or rows is not None or size is None:
            return rows
        if size == self.full_size:
            _refuse_unknown_rows(drawn, size)
        return torch.arange(size)

    def layout(self, rows: int) -> Layout:
        """Where so many rows of the data plate lie."""
        return Layout((self.dim,), (rows,))

    def describe(self) -> str:
        return ", ".join(f"{s.name} {tuple(s.event_shape)}" for s in self.sites)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cut the vector ``(..., numel)`` into the sites' parts ``(..., site.numel)``."""
        return list(flat.split([site.numel for site in self.sites], dim=-1))

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """The vector ``(..., numel)`` of the sites' values ``(..., *event_shape)``: what they were split from."""
        return torch.cat([site.unconstrain(values[site.name]) for site in self.sites], dim=-1)

    def draws(self, posterior: TorchDistribution, *, analytic_kl: bool = True) -> dict[str, SiteDraw]:
        """How the sites are drawn that have one joint distribution over the unconstrained vector.

        A single real vector site is drawn from it directly. Otherwise one auxiliary site, which is sampled here, holds
        the vector, and each latent site is a :class:`~pyro.distributions.Delta` whose density carries the inverse
        log-determinant.

        Arguments:
            posterior: The distribution, with event shape ``(numel,)``.
            analytic_kl: Whether bounds may take the expectation of log q - log p; False marks the site for ``check``.
        """
        first = self.sites[0]
        alone = len(self.sites) == 1 and first.is_real
        if alone and first.event_shape == posterior.event_shape:
            return {first.name: SiteDraw(posterior, marks(analytic_kl=analytic_kl))}

        if self.scales_differ:
            raise ValueError(
                f"The latent sites {self.names} have different scales in the model, so no scale of their joint "
                "density fits all of them. Use the same poutine.scale for all, or a guide that draws each by itself?"
            )

        name = "_" + "_".join(self.names)
        infer = marks(auxiliary=True, analytic_kl=analytic_kl)
        flat = pyro.sample(name, posterior, infer=infer)

        found = {}
        for site, part in zip(self.sites, self.split(flat), strict=True):
            value, log_det = site.constrain(part)
            event_dim = len(site.event_shape)
            point = Delta(value, log_density=-log_det, event_dim=event_dim)
            found[site.name] = SiteDraw(point, {})
        return found


def _refuse_unknown_rows(drawn: int, size: int) -> None:
    message = (
        f"The model draws {drawn} of its {size} rows itself, so a posterior needs to know "
        "which: pass rows=torch.arange(...) with that many indices, or call the guide."
    )
    raise ValueError(message)


def sample_all(draws: Mapping[str, SiteDraw]) -> dict[str, Tensor]:
    """Sample all these sites here."""
    values = {}
    for name, draw in draws.items():
        values[name] = pyro.sample(name, draw.fn, infer=draw.infer)
    return values


def are_equal(scales: list[float | Tensor]) -> bool:
    """Whether all these scales are the same number."""
    first, *rest = map(torch.as_tensor, scales)
    return all(torch.equal(first, scale) for scale in rest)


def latent_site(message: Message) -> LatentSite:
    """What a latent site is that a joint posterior may cover.

    Raises:
        ValueError: It is discrete, or its support depends on other variables.
    """
    name, fn = message["name"], message["fn"]
    if fn.has_enumerate_support or getattr(fn.support, "is_discrete", False):
        raise ValueError(
            f"The latent site {name!r} is discrete ({type(fn).__name__}); an amortized guide needs continuous latents. "
            "Sum it out in the program (a Mixture as the prior of what depends on it), or write a guide: one of the "
            "other sites for TraceEnum_ELBO and infer={'enumerate': 'parallel'}, one with this site for Trace_ELBO?"
        )
    support = _same_for_all(fn.support)
    if support is None:
        raise ValueError(
            f"The support of the latent site {name!r} ({fn.support}) is not constant, so no fixed map onto it exists. "
            "Rescale the site: sample from a fixed support and transform the value?"
        )

    return read_site(name, fn.event_shape, support)


def read_site(name: str, event_shape: torch.Size, support: constraints.Constraint) -> LatentSite:
    """What a continuous latent site is, whose support may be one that its parents set."""
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint

    transform = biject_to(support)
    # bounds that differ from row to row broadcast on the left of the event
    changed = transform.domain.event_dim - transform.codomain.event_dim
    shape = transform.inverse_shape(event_shape)
    unconstrained = shape[len(shape) - len(event_shape) - changed :]

    return LatentSite(
        name=name,
        event_shape=event_shape,
        unconstrained_shape=torch.Size(unconstrained),
        transform=transform,
        is_real=isinstance(inner, type(constraints.real)),
    )


def _same_for_all(support: constraints.Constraint) -> constraints.Constraint | None:
    """The support with its bounds as numbers, if all data and units have the same, constant ones."""
    if isinstance(support, constraints.independent):
        inner = _same_for_all(support.base_constraint)
        if inner is None:
            return None
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    # newer versions of torch wrap the support of a mixture's components
    if hasattr(support, "base_constraint"):
        return _same_for_all(support.base_constraint)

    bounds = {n: v for n, v in vars(support).items() if isinstance(v, Tensor)}
    for value in bounds.values():
        if value.requires_grad or not bool((value == value.flatten()[0]).all()):
            return None

    same = copy.copy(support)
    vars(same).update({n: v.flatten()[0] for n, v in bounds.items()})
    return same
