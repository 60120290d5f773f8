"""Posteriors from networks: for continuous sites, and for discrete ones."""

from collections.abc import Callable, Mapping
from typing import Literal

from pyro.distributions import (
    Bernoulli,
    Categorical,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    TorchDistribution,
)
from torch import Size, Tensor, nn
from torch.distributions.distribution import Distribution

from .base import Rule
from .site import Site
from .upstream import Upstream

FunctionRule = Callable[[Site], TorchDistribution]
ONE_HOT = (OneHotCategorical, OneHotCategoricalStraightThrough)


class NetworkRule(Rule):
    """A rule that asks a network.

    Arguments:
        network: A network, or a function.
        given: What it is given beside the model's arguments, see :class:`Amortized`.
    """

    network: Callable[..., object]

    def __init__(self, network: Callable[..., object], given: Upstream = ()) -> None:
        super().__init__()
        if not callable(network):
            raise ValueError(
                f"{type(self).__name__} needs a network, which is called with the "
                f"model's arguments and the given values, but got {network!r}."
            )
        if isinstance(given, str):
            raise ValueError(
                f"given is a list of names of sites, but got the text {given!r}. Write "
                f"it as a list of one name, given=[{given!r}]?"
            )

        if isinstance(network, nn.Module):
            self.network = network
        else:
            object.__setattr__(self, "network", network)
        self.given = given


class Amortized(NetworkRule):
    r"""The posterior that a network makes of the data, and of what is drawn already.

        q(z | x, upstream) = N(loc, diag scale²), pushed onto the support of z

    Arguments:
        network: Called with the model's arguments by position and the ``given`` values
            as keywords, and with ``site=`` (:class:`~pyro_vaes.guides.rules.Site`) or
            ``context=`` if its forward names them. Returns a pair ``(loc, scale)`` or a
            distribution in the unconstrained space of the site: on the right the site's
            unconstrained event shape (none for a scalar), on the left batch dimensions
            that broadcast to the site's plates, or one for each plate, outermost first.
        given: Sites whose values the network gets: a list of names; a mapping from name
            to keyword; or a function of the site's name that returns one of these,
            whose names need not exist. Deterministic sites may be named, and latent
            sites that the model draws later, which are then drawn first.

    Raises:
        ValueError: At the first call: the shapes do not fit the site, or a site in
            ``given`` does not exist.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vaes.guides import Amortized, ComposedGuide
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = ComposedGuide(model, {"z": Amortized(lambda x: (x / 2, torch.tensor(0.5).sqrt()))})
        >>> guide(torch.zeros(5))["z"].shape
        torch.Size([5])
    """

    def forward(self, site: Site) -> TorchDistribution:
        event_dim = len(site.reals.unconstrained_shape)
        output = site.outputs(self.network, self.given, event_dim)
        match output:
            case (Tensor() as loc, Tensor() as scale):
                return site.normal(loc, scale)
        return site.pushed(output)  # type: ignore[arg-type]


class AmortizedCategorical(NetworkRule):
    """The posterior of a discrete site from a network's logits, in the family of its prior.

    Arguments:
        network: Called as that of :class:`Amortized`; returns logits with shape ``(...,
            K)``: of the K categories; for a Bernoulli site K is 1, or its number of
            elements.
        given: Upstream sites, see :class:`Amortized`.
        enumerate: ``"parallel"`` or ``"sequential"`` for
            :class:`~pyro.infer.TraceEnum_ELBO` to sum over the site in the guide; False
            to draw it; None for what the model's site says.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vaes.guides import AmortizedCategorical, ComposedGuide
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         c = pyro.sample("c", dist.Categorical(torch.ones(3)))
        ...         pyro.sample("x", dist.Normal(c.to(x.dtype), 1.0), obs=x)
        >>> network = lambda x: -(x.unsqueeze(-1) - torch.arange(3.0)) ** 2 / 2
        >>> ComposedGuide(model, {"c": AmortizedCategorical(network)})(torch.zeros(5))["c"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        network: Callable[..., object],
        given: Upstream = (),
        enumerate: Literal["parallel", "sequential", False] | None = None,
    ) -> None:
        super().__init__(network, given)
        if enumerate not in (None, False, "parallel", "sequential"):
            raise ValueError(
                f"enumerate says how TraceEnum_ELBO sums over the site: 'parallel', "
                f"'sequential', False or None, but got {enumerate!r}."
            )
        self.enumerate = enumerate

    def marks(self, infer: Mapping[str, object]) -> Mapping[str, object]:
        if self.enumerate is None:
            return infer
        marks = {name: value for name, value in infer.items() if name != "enumerate"}
        return {**marks, "enumerate": self.enumerate} if self.enumerate else marks

    def forward(self, site: Site) -> TorchDistribution:
        family, event = _elements(site.known.fn), site.event_shape
        is_bernoulli = isinstance(family, Bernoulli)
        is_one_hot = isinstance(family, ONE_HOT)
        if not isinstance(family, (Bernoulli, Categorical, *ONE_HOT)):
            raise ValueError(
                "AmortizedCategorical is for Categorical, OneHotCategorical and "
                f"Bernoulli sites, but {site.name!r} is a {type(family).__name__}. Use "
                "FromPrior(), Enumerated(), or a function of the site?"
            )

        event_dim = max(len(event), 1) if is_bernoulli or is_one_hot else len(event) + 1
        logits = site.outputs(self.network, self.given, event_dim)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"The network of the site {site.name!r} must return a tensor of "
                f"logits, but it returned {type(logits).__name__}. Leave its last "
                "head out?"
            )
        if is_bernoulli:
            return self._bernoulli(site, logits, event)

        assert isinstance(family, (Categorical, *ONE_HOT))
        num_categories = family.param_shape[-1]
        wanted = event if is_one_hot else Size([*event, num_categories])
        if logits.shape[logits.dim() - event_dim :] != wanted:
            raise ValueError(
                f"The logits of the site {site.name!r} have the shape "
                f"{tuple(logits.shape)}, but {tuple(wanted)} is wanted on the right, "
                f"{num_categories} categories. Give the network's last layer that many "
                "outputs?"
            )

        q = type(family)(logits=_placed(site, logits, event_dim))
        extra = len(event) - is_one_hot
        return q.to_event(extra) if extra else q

    def _bernoulli(self, site: Site, logits: Tensor, event: Size) -> TorchDistribution:
        if not event:
            if not logits.dim() or logits.shape[-1] != 1:
                raise ValueError(
                    f"The logits of the Bernoulli site {site.name!r} have the shape "
                    f"{tuple(logits.shape)}, but one logit for each row is wanted, "
                    "(..., 1). Give the network's last layer one output?"
                )
            return Bernoulli(logits=_placed(site, logits, 1).squeeze(-1))

        if logits.shape[logits.dim() - len(event) :] != event:
            raise ValueError(
                f"The logits of the site {site.name!r} have the shape "
                f"{tuple(logits.shape)}, but {tuple(event)} is wanted on the right. "
                "Give the network's last layer that many outputs?"
            )
        return Bernoulli(logits=_placed(site, logits, len(event))).to_event(len(event))


def _placed(site: Site, logits: Tensor, event_dim: int) -> Tensor:
    move = site.placement.move(logits.shape[: logits.dim() - event_dim])
    return logits if move is None else move(logits, event_dim)


def _elements(fn: Distribution) -> Distribution:
    """A distribution without its wrappers."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn
