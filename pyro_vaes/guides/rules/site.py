"""What a rule sees of a latent site, and what the guide makes of its answer."""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from pyro.distributions import Independent, Normal, TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vaes.programs import Plate, Program

from ..accepted_keywords import accepted_keywords
from ..latents import LatentSite, read_site
from ..masks import Mask, masked_posterior
from ..plate_shapes import Placement, place
from .upstream import Upstream, names_given


@dataclass(frozen=True)
class KnownSite:
    """What one look at a program has found of a latent site.

    Attributes:
        name: Its name.
        plates: The plates around it, outermost first.
        fn: Its prior in that run, without gradients.
        reals: How its support is mapped from the reals; None for a discrete site.
        is_masked: Whether some of its rows may be masked.
        scale: Its scale in that run.
        infer: Its marks.
    """

    name: str
    plates: tuple[Plate, ...]
    fn: TorchDistribution
    reals: LatentSite | None
    is_masked: bool
    scale: float | Tensor
    infer: Mapping[str, object]


class Call(Protocol):
    """One call of a composed guide, as its sites see it."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    @property
    def depth(self) -> int:
        """Number of batch dimensions that the plates of the model use."""

    @property
    def upstream(self) -> Mapping[str, Tensor]:
        """Values of the sites that are drawn already, by name."""

    @property
    def rows(self) -> Mapping[str, Tensor]:
        """The rows that plates hold, by name."""

    def value_of(self, name: str) -> Tensor | None:
        """The value of a site, which is drawn now if the model draws it later."""

    def context_of(self, site: "Site") -> object:
        """What the context network returned in this call."""

    def num_outer(self) -> int:
        """Number of dimensions on the left of all plates that some value has."""

    def outer_dims(self, name: str, value: Tensor) -> int:
        """Their number in the value of a site."""

    def in_plates(self, name: str, value: Tensor) -> Tensor:
        """A value with the rows of its plates, of which an enumerated one has but
        one."""


@dataclass(frozen=True)
class Site:
    """A latent site in the middle of a run of the model.

    Attributes:
        call: The call of the guide.
        known: What is known of the site.
        prior: Its prior given what is upstream; None where it is drawn ahead of its
            turn.
        plates: The plates around it, outermost first.
        mask: Its mask by handlers in the model.
    """

    call: Call
    known: KnownSite
    prior: TorchDistribution | None
    plates: tuple[Plate, ...]
    mask: Mask = None

    @property
    def name(self) -> str:
        return self.known.name

    @property
    def args(self) -> tuple[object, ...]:
        """The arguments of the model, of which a plate that draws its rows leaves
        these."""
        return tuple(self._drawn(value) for value in self.call.args)

    @property
    def upstream(self) -> Mapping[str, Tensor]:
        """Values of the sites that are drawn already, by name."""
        return self.call.upstream

    @property
    def context(self) -> object:
        """What the guide's ``context`` network returned in this call."""
        return self.call.context_of(self)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size(self.known.fn.event_shape)

    @property
    def reals(self) -> LatentSite:
        """How the site's support is mapped from the reals.

        Raises:
            ValueError: The site is discrete.
        """
        known = self.known.reals
        if known is None:
            raise ValueError(
                f"The latent site {self.name!r} is discrete "
                f"({type(self.known.fn).__name__}), but its rule is for continuous "
                "ones. Use AmortizedCategorical(network), FromPrior() or Enumerated()?"
            )

        if self.prior is None or known.is_real:
            return known
        support = self.prior.support
        assert support is not None
        return read_site(self.name, self.prior.event_shape, support)

    @property
    def placement(self) -> Placement:
        """Where the batch dimensions of a posterior belong."""
        call = self.call
        return Placement(self.name, self.plates, call.num_outer(), call.depth)

    def rows_of(self, plate: str) -> Tensor | None:
        """The rows that a plate holds; None where it is not known."""
        return self.call.rows.get(plate)

    # networks

    def outputs(self, network: Program, given: Upstream, event_dim: int) -> object:
        """What a network returns for this site: a distribution, or one or several tensors.

        Arguments:
            network: Called with the model's arguments and the upstream values.
            given: The upstream sites.
            event_dim: Number of dimensions on the right of its tensors that are no
                batch dimensions.
        """
        values = self.given(given)
        keywords = self._keywords(network)

        named = dict(values.values())
        self._refuse_keywords(network, named)
        try:
            return network(*self.args, **keywords, **named)
        except RuntimeError:
            if not any(self.call.outer_dims(n, v) for n, (_, v) in values.items()):
                raise

        # particles, or values that are enumerated, on the left of what the network was
        # written for: one call for each of them
        return self._one_by_one(network, keywords, values, event_dim)

    def _refuse_keywords(self, network: Program, named: Mapping[str, Tensor]) -> None:
        """Refuse values that the network has no parameter for."""
        taken = _parameters(network)
        missing = [name for name in named if name not in taken]
        if missing and taken and not _takes_any_keyword(network):
            raise ValueError(
                f"The network of the site {self.name!r} is given {missing[0]!r}, but "
                f"its forward takes {sorted(taken)}. Add a parameter of that name, or "
                f"name another with given={{{missing[0]!r}: 'keyword'}}?"
            )

    def given(self, given: Upstream) -> dict[str, tuple[str, Tensor]]:
        """The keyword and value of each upstream site that a network gets, by site."""
        found = {}
        for name, keyword in names_given(given, self.name).items():
            value = self.call.value_of(name)

            if value is not None:
                found[name] = keyword, value
            elif not callable(given):
                raise ValueError(
                    f"The rule of the site {self.name!r} is given {name!r}, but the "
                    "model has no such latent or deterministic site here; drawn so "
                    f"far are {sorted(self.upstream)}. Is it a typing error? A "
                    "function given=lambda name: [...] may name sites that are not "
                    "always there."
                )
        return found

    def _keywords(self, network: Program) -> dict[str, object]:
        """The model's keywords that a network takes, and the site or context if it
        asks."""
        keywords = accepted_keywords(network, len(self.call.args), self.call.kwargs)
        drawn = {name: self._drawn(value) for name, value in keywords.items()}

        asked = _parameters(network)
        if "site" in asked:
            drawn["site"] = self
        if "context" in asked:
            drawn["context"] = self.context
        return drawn

    def _drawn(self, value: object) -> object:
        """The rows of an argument that a plate around the site has drawn."""
        for plate in self.plates:
            rows = self.rows_of(plate.name)
            if not plate.subsamples or rows is None:
                continue
            if isinstance(value, Tensor) and value.shape[:1] == (plate.num_data,):
                return value[rows]
        return value

    def _one_by_one(
        self,
        network: Program,
        keywords: Mapping[str, object],
        values: Mapping[str, tuple[str, Tensor]],
        event_dim: int,
    ) -> object:
        num_outer = {n: self.call.outer_dims(n, v) for n, (_, v) in values.items()}
        shapes = [v.shape[: num_outer[n]] for n, (_, v) in values.items()]
        outer = torch.Size(broadcast_shape(*shapes))

        results = []
        for index in itertools.product(*map(range, outer)):
            named = {}
            for name, (keyword, value) in values.items():
                own = num_outer[name]
                if own:
                    value = value.expand(outer + value.shape[own:])[index]
                    value = self.call.in_plates(name, value)
                named[keyword] = value
            results.append(self._tensors(network(*self.args, **keywords, **named)))

        stacked = []
        for parts in zip(*results, strict=True):
            rows = [self._on_all_rows(part, event_dim) for part in parts]
            stacked.append(torch.stack(rows).reshape(outer + rows[0].shape))
        return tuple(stacked) if len(stacked) > 1 else stacked[0]

    def _tensors(self, output: object) -> tuple[Tensor, ...]:
        if isinstance(output, Independent) and isinstance(output.base_dist, Normal):
            return output.base_dist.loc, output.base_dist.scale
        if isinstance(output, Normal):
            return output.loc, output.scale

        parts = output if isinstance(output, tuple | list) else (output,)
        if all(isinstance(part, Tensor) for part in parts):
            return tuple(parts)

        raise ValueError(
            f"The network of the site {self.name!r} does not broadcast over particles "
            "or enumerated values of the sites that it is given, and its "
            f"{type(output).__name__} cannot be stacked. Return a pair (loc, scale), "
            "or let the network broadcast over dimensions on the left?"
        )

    def _on_all_rows(self, part: Tensor, event_dim: int) -> Tensor:
        """A network's tensor with one number for each row of the plates."""
        batch = part.shape[: part.dim() - event_dim]
        placement = Placement(self.name, self.plates)
        move = placement.move(batch)
        if move is not None:
            part = move(part, event_dim)

        event = part.shape[part.dim() - event_dim :]
        return part.expand(placement.shape + event)

    # posteriors

    def normal(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        """The normal over the unconstrained site, pushed onto the support.

        Arguments:
            loc, scale: Tensors with the unconstrained event shape on the right.
        """
        reals = self.reals
        parts = [self._flat(part, reals.unconstrained_shape) for part in (loc, scale)]
        return reals.normal(*torch.broadcast_tensors(*parts))

    def _flat(self, part: Tensor, event: torch.Size) -> Tensor:
        """A tensor with batch dimensions in their place, and its event as one
        dimension."""
        num_batch = part.dim() - len(event)
        is_flat = len(event) != 1 and part.dim() and part.shape[-1] == event.numel()
        if num_batch < 0 or part.shape[num_batch:] != event:
            if not is_flat or not event:
                self._refuse_event(tuple(part.shape), event)
            num_batch = part.dim() - 1
        part = part.reshape(*part.shape[:num_batch], event.numel())

        move = self.placement.move(part.shape[:-1])
        return part if move is None else move(part, 1)

    def pushed(self, q: TorchDistribution) -> TorchDistribution:
        """A distribution that a network returned, on the support of the site."""
        if not isinstance(q, TorchDistributionMixin):
            raise ValueError(
                f"The network of the site {self.name!r} returned {type(q).__name__}, "
                "but a distribution of pyro.distributions is wanted, or a pair (loc, "
                "scale) of tensors. Put a head behind the network, for example "
                "NormalHead?"
            )
        reals, event = self.reals, q.event_shape
        on_reals = _is_real(q.support)
        if not on_reals and event == self.event_shape:
            return q  # on the support of the site itself

        base = q.base_dist if isinstance(q, Independent) else q
        if isinstance(base, Normal):  # which stays one, so that its divergence is known
            return self.normal(base.loc, base.scale)
        if event == (reals.numel,):
            return reals.push(q)
        if event == reals.unconstrained_shape:
            return reals.transformed(q)
        return self._refuse_event(tuple(event), reals.unconstrained_shape)

    def posterior(self, answer: object) -> TorchDistribution:
        """The distribution to draw from, from what a rule answered.

        Raises:
            ValueError: It is no distribution over the site's values.
        """
        if not isinstance(answer, TorchDistributionMixin):
            raise ValueError(
                f"The rule of the site {self.name!r} returned {type(answer).__name__}, "
                "but a distribution of pyro.distributions is wanted. For a value, "
                "return dist.Delta(value, event_dim=...)?"
            )
        q = place(answer, self.placement)
        if q.event_shape != self.event_shape:
            self._refuse_event(tuple(q.event_shape), self.event_shape)

        shape = [q.batch_shape, self.placement.shape]
        if self.prior is not None and not self.call.num_outer():
            shape.append(self.prior.batch_shape)  # dimensions that no plate declares
        full = torch.Size(broadcast_shape(*shape))
        if q.batch_shape != full:
            q = q.expand(full)

        if self.prior is None:
            return q
        return masked_posterior(q, self.prior, self.mask)

    def _refuse_event(self, got: Sequence[int], event: torch.Size) -> TorchDistribution:
        raise ValueError(
            f"The posterior of the site {self.name!r} has the shape {tuple(got)}, but "
            f"the site needs the event shape {tuple(event)} on the right "
            f"({event.numel()} numbers for each row). Give the network's last layer "
            "that many outputs, or reshape what it returns?"
        )


def _is_real(support: constraints.Constraint | None) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _parameters(network: Program) -> Mapping[str, inspect.Parameter]:
    """The parameters of a network's forward, as far as its signature says."""
    function = network.forward if isinstance(network, nn.Module) else network
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _takes_any_keyword(network: Program) -> bool:
    found = _parameters(network).values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in found)
