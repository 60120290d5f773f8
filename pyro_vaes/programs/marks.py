"""The marks that sample statements carry in ``infer={...}``: set and read here alone.

Pyro's own marks say how a site is inferred (``is_auxiliary``, ``enumerate``). This
library adds four:

    objective_only   a factor that is added to what is trained, but is no log-density
    evidence_for     the site whose KL weight a factor goes by
    analytic_kl      False where bounds must not take the expectation of log q - log p
    may_be_point     the site is a point for some data, for example where it is labelled
"""

from collections.abc import Mapping

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

AUXILIARY = "is_auxiliary"  # Pyro's
DETERMINISTIC = "_deterministic"  # Pyro's
ENUMERATE = "enumerate"  # Pyro's
OBJECTIVE_ONLY = "objective_only"
EVIDENCE_FOR = "evidence_for"
ANALYTIC_KL = "analytic_kl"
MAY_BE_POINT = "may_be_point"


def marks(
    *,
    auxiliary: bool = False,
    objective_only: bool = False,
    evidence_for: str | None = None,
    analytic_kl: bool = True,
    enumerated: bool = False,
    may_be_point: bool = False,
) -> dict[str, object]:
    """The entries of ``infer={...}`` for one sample statement.

    Arguments:
        auxiliary: Whether the guide draws the site although the model does not have it.
        objective_only: Whether the site, a factor, is added to what is trained without
            being a log-density. Bounds count it once for each datum, whatever their
            number of particles; importance weights leave it out.
        evidence_for: Name of the latent site whose KL weight the factor goes by.
        analytic_kl: Whether bounds may take the expectation of log q - log p.
        enumerated: Whether :class:`~pyro.infer.TraceEnum_ELBO` is to sum over the site.
        may_be_point: Whether the site is a point for some data, such as labelled ones.

    Example:
        >>> marks(auxiliary=True, analytic_kl=False)
        {'is_auxiliary': True, 'analytic_kl': False}
    """
    found: dict[str, object] = {}

    if auxiliary:
        found[AUXILIARY] = True
    if objective_only:
        found[OBJECTIVE_ONLY] = True
    if evidence_for is not None:
        found[EVIDENCE_FOR] = evidence_for
    if not analytic_kl:
        found[ANALYTIC_KL] = False
    if enumerated:
        found[ENUMERATE] = "parallel"
    if may_be_point:
        found[MAY_BE_POINT] = True

    return found


def mark_statements(entries: Mapping[str, object]) -> Messenger:
    """A context in which all sample statements carry these :func:`marks`."""
    return poutine.infer_config(config_fn=lambda _: dict(entries))


def is_auxiliary(site: Message) -> bool:
    """Whether the guide draws a site that the model does not have."""
    return bool(site["infer"].get(AUXILIARY))


def is_enumerated(site: Message) -> bool:
    """Whether a site is to be summed over rather than drawn."""
    return site["infer"].get(ENUMERATE) is not None


def evidence_for(site: Message) -> str | None:
    """Name of the latent site whose KL weight a factor goes by."""
    name = site["infer"].get(EVIDENCE_FOR)
    return None if name is None else str(name)


def has_analytic_kl(site: Message) -> bool:
    """Whether bounds may take the expectation of log q - log p at this site."""
    return site["infer"].get(ANALYTIC_KL) is not False


def may_be_point(site: Message) -> bool:
    """Whether a site is a point for some data."""
    return bool(site["infer"].get(MAY_BE_POINT))


def was_observed(site: Message) -> bool:
    """Whether a site of a program that is run without its data had some."""
    return bool(site["infer"].get("was_observed"))


def replaced_observation(site: Message) -> Tensor:
    """The data of a site of a program that is run without them."""
    value = site["infer"]["obs"]
    assert isinstance(value, Tensor)
    return value
