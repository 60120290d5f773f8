"""What a bound states about itself, read from any bound: ours, Pyro's, a user's own.

A class states a fact as an attribute of that name. A bound that states nothing, such as
one that wraps another in an attribute of any name, has the facts of the bounds inside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pyro.infer import (
    ELBO,
    ReweightedWakeSleep,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
)


@dataclass(frozen=True)
class BoundFacts:
    """Facts of a bound; the defaults are those of :class:`~pyro.infer.Trace_ELBO`.

    Attributes:
        has_kl: Whether it has a KL term that a KL weight (``scale_latents``) can weigh.
        min_rows: Fewest rows of a batch for which it is defined. Where there must be
            several, it is a function of them together, and :func:`~pyro_vaes.infer.fit`
            leaves the last, short batch of an epoch out.
        one_loss: Whether a training step has one loss, rather than several that are
            stepped one after the other.
        enumerates: Whether it sums over the sites that are marked for it.
        analytic_kl: Whether it uses closed KL divergences of single sites.
        plain_draws: Whether the latents that the model meets are draws of the guide with
            their usual gradients.
        inner: The bounds that it is built on, one level down.
    """

    has_kl: bool = True
    min_rows: int = 1
    one_loss: bool = True
    enumerates: bool = False
    analytic_kl: bool = False
    plain_draws: bool = True
    inner: tuple[ELBO, ...] = ()


# Pyro's bounds state nothing; these differ from the defaults, and so do their subclasses.
OF_PYRO: dict[type[ELBO], dict[str, bool]] = {
    TraceEnum_ELBO: {"enumerates": True},
    TraceTMC_ELBO: {"enumerates": True, "has_kl": False},
    TraceMeanField_ELBO: {"analytic_kl": True},
    ReweightedWakeSleep: {"plain_draws": False},
}


def facts_of(bound: ELBO) -> BoundFacts:
    """The facts of a bound.

    Example:
        >>> facts_of(TraceMeanField_ELBO()).analytic_kl
        True
    """
    inner: list[ELBO] = []
    for value in vars(bound).values():
        parts = value if isinstance(value, list | tuple) else [value]
        inner.extend(part for part in parts if isinstance(part, ELBO))
    below = [facts_of(part) for part in inner] or [BoundFacts()]

    stated: dict[str, bool] = {}
    for kind, facts in OF_PYRO.items():
        if isinstance(bound, kind):
            stated |= facts

    known = {}
    for name in BoundFacts.__annotations__.keys() - {"inner"}:
        inherited = [getattr(part, name) for part in below]
        # needs add up; what one part cannot do, the whole cannot
        demanding = name in ("min_rows", "enumerates", "analytic_kl")
        combined = max(inherited) if demanding else min(inherited)
        known[name] = getattr(bound, name, stated.get(name, combined))
    return BoundFacts(**known, inner=tuple(inner))


def layers(bound: ELBO) -> Iterator[ELBO]:
    """A bound and the bounds that it is built on, from the outside inwards."""
    yield bound
    for part in facts_of(bound).inner:
        yield from layers(part)
