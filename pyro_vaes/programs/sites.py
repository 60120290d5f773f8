"""What the sample sites of a trace are: the one place that tells them apart.

latent           drawn, and of interest: has a prior in the model, a posterior in the guide
auxiliary        drawn by the guide alone, on the way to its latent sites
enumerated       latent, but to be summed over
observed         has data
factor           ``pyro.factor``: a log-density without a value
objective only   a factor that is no log-density, see :mod:`pyro_vaes.programs.marks`
deterministic    ``pyro.deterministic``: a value without a density
subsampling      draws the rows of a plate
"""

import enum
from collections.abc import Callable

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .marks import (
    AUXILIARY,
    DETERMINISTIC,
    ENUMERATE,
    OBJECTIVE_ONLY,
)
from .plates import enclosing_plates

Sites = dict[str, Message]


class Role(enum.Enum):
    """What a sample site is, see :mod:`pyro_vaes.programs.sites`."""

    LATENT = "latent"
    AUXILIARY = "auxiliary"
    ENUMERATED = "enumerated"
    OBSERVED = "observed"
    FACTOR = "factor"
    OBJECTIVE_ONLY = "objective only"
    DETERMINISTIC = "deterministic"
    SUBSAMPLING = "subsampling"


DRAWN = frozenset({Role.LATENT, Role.AUXILIARY, Role.ENUMERATED})
VALUED = DRAWN | {Role.OBSERVED}  # sites with a random value
DENSITIES = VALUED | {Role.FACTOR}  # sites that log p and log q are made of
OBJECTIVE = DENSITIES | {Role.OBJECTIVE_ONLY}  # sites that a training objective is made of


def role(site: Message) -> Role:
    """The role of a sample site."""
    if site_is_subsample(site):
        return Role.SUBSAMPLING

    marked = site["infer"]
    if marked.get(DETERMINISTIC):
        return Role.DETERMINISTIC
    if marked.get(OBJECTIVE_ONLY):
        return Role.OBJECTIVE_ONLY
    if site["is_observed"]:
        return Role.FACTOR if _is_factor(site) else Role.OBSERVED
    if marked.get(AUXILIARY):
        return Role.AUXILIARY
    if marked.get(ENUMERATE) is not None:
        return Role.ENUMERATED
    return Role.LATENT


def sites(trace: Trace, roles: frozenset[Role] | Role | None = None) -> Sites:
    """The sample sites of a trace in the order of its run.

    Arguments:
        trace: The trace of a program.
        roles: Roles that are wanted; all but the subsampling of plates by default.

    Example:
        >>> import pyro, torch
        >>> from pyro.distributions import Normal
        >>> def model(x):
        ...     with pyro.plate("data", 9, subsample_size=len(x)):
        ...         z = pyro.sample("z", Normal(0.0, 1.0))
        ...         pyro.sample("x", Normal(z, 1.0), obs=x)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(3))
        >>> list(sites(trace)), list(sites(trace, Role.LATENT))
        (['z', 'x'], ['z'])
    """
    if roles is None:
        roles = frozenset(Role) - {Role.SUBSAMPLING}
    elif isinstance(roles, Role):
        roles = frozenset({roles})

    found = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and role(site) in roles:
            found[name] = site
    return found


def expanded(site: Message) -> Message:
    """A site whose value has all batch dimensions of its distribution (a view)."""
    value, event_shape = site["value"], site["fn"].event_shape
    own_shape = value.shape[: value.dim() - len(event_shape)]
    batch_shape = torch.broadcast_shapes(site["fn"].batch_shape, own_shape)
    return {**site, "value": value.expand(batch_shape + event_shape)}


def is_latent(site: Message) -> bool:
    """Whether a message is a statement that draws a latent or auxiliary variable."""
    return site["type"] == "sample" and role(site) in DRAWN


def _is_factor(site: Message) -> bool:
    fn = site["fn"]
    while isinstance(fn, ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, Unit)


def mask_of(site: Message) -> Tensor | None:
    """Which elements of a site's batch shape count; None where all do.

    It joins the mask of the handlers around the site (``poutine.mask``) with that of
    its distribution (``dist.mask()``).
    """
    masks = [site["mask"]]
    fn = site["fn"]
    while isinstance(fn, ExpandedDistribution | MaskedDistribution):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist

    found: Tensor | None = None
    for mask in masks:
        if mask is None or mask is True:
            continue
        mask = torch.as_tensor(mask).bool()
        if found is not None:
            mask = mask & found.to(mask.device)
        found = mask
    return found


def own_scale(site: Message) -> float:
    """The scale of a site beside that of its subsampling plates: a KL weight, say.

    Where it differs between elements, its mean.
    """
    scale = torch.as_tensor(site["scale"], dtype=torch.float64).mean().item()
    for plate in enclosing_plates(site):
        scale = scale / plate.scale
    return scale


def weighed_sites(found: Sites) -> dict[str, float]:
    """The sites with an :func:`own_scale`, and these scales."""
    weighed = {}
    for name, site in found.items():
        scale = own_scale(site)
        if abs(scale - 1) > 1e-6:
            weighed[name] = scale
    return weighed


def log_density(site: Message, *, scaled: bool = True) -> Tensor:
    """The log-density of a site at its value, masked, with the batch's shape.

    Arguments:
        site: The site.
        scaled: Whether its scale (subsampling, KL weights) multiplies it.
    """
    log_prob = site["fn"].log_prob(site["value"])
    return scale_and_mask(log_prob, site["scale"] if scaled else 1.0, site["mask"])


def log_density_sum(
    trace: Trace,
    roles: frozenset[Role] | Role,
    *,
    keep: Callable[[str], bool] = lambda name: True,
) -> Tensor | float:
    """The sum of a trace's scaled and masked log-densities; 0 without any.

    Arguments:
        trace: The trace of a program.
        roles: Roles of the sites that count.
        keep: Whether the site of a name counts.
    """
    total: Tensor | float = 0.0
    for name, site in sites(trace, roles).items():
        if keep(name):
            total = total + log_density(site).sum()
    return total
