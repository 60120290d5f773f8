"""Normal posteriors in the coordinates of their own prior, in which every prior is N(0, I).

    q(z | x) = N(loc, S),    p(z) = N(loc_p, diag scale_p²)    ->    e = (z - loc_p) / scale_p,    p(e) = N(0, I)

Under a standard normal prior these are z itself. No divergence changes, and data with priors of their own (a
conditional model's) have one prior in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pyro.distributions import Delta
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyro_vaes.distributions import HouseholderNormal, PrecisionNormal, event_elements
from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import DRAWN, Program, Sites, dry_run_pair, sites

from .bound import Args
from .posteriors import OTHER_SITES, PosteriorSite, find_posteriors, sites_given_others

NORMAL_GUIDE = Cure("guide", "AmortizedNormal", words="AmortizedNormal")
NORMALS = (Normal, MultivariateNormal, PrecisionNormal, HouseholderNormal)


@dataclass(frozen=True)
class Standardised:
    """The posteriors of n data over U units (dimensions), and where their priors lie.

    Attributes:
        loc: Means in the prior's coordinates, ``(n, U)``.
        scale: Standard deviations of the single units there, likewise.
        entropy: Of each posterior there, nats, ``(n,)``.
        prior_loc: Means of the priors, ``(n, U)``.
        prior_scale: Standard deviations of the priors, likewise.
        diagonal: Whether the units of a posterior are independent.
    """

    loc: Tensor
    scale: Tensor
    entropy: Tensor
    prior_loc: Tensor
    prior_scale: Tensor
    diagonal: bool


@dataclass(frozen=True)
class NormalSite:
    """A site of the guide with normal posteriors, and the model's latents whose normal priors belong to it.

    Attributes:
        posterior: The guide's site.
        latents: The model's sites; several where the guide draws them together.
    """

    posterior: PosteriorSite
    latents: tuple[str, ...]

    def standardised(self, guide_sites: Sites, model_sites: Sites) -> Standardised:
        """The posteriors that a run of both programs has met."""
        q = event_elements(self.posterior.rows(guide_sites[self.posterior.name]))
        loc, scale, entropy = _flat(q.mean), _flat(q.stddev), _flat(q.entropy()).sum(1)
        priors = [event_elements(self.posterior.rows(model_sites[n])) for n in self.latents]
        prior_loc, prior_scale = (torch.cat([_flat(getattr(p, n)) for p in priors], 1) for n in ("loc", "scale"))
        loc, scale = (loc - prior_loc) / prior_scale, scale / prior_scale
        entropy = entropy - prior_scale.log().sum(1)
        return Standardised(loc, scale, entropy, prior_loc, prior_scale, isinstance(q, Normal))


def _flat(tensor: Tensor) -> Tensor:
    """``(n, everything else)``, in single precision at least."""
    return tensor.reshape(len(tensor), -1).to(torch.promote_types(tensor.dtype, torch.float32))


def find_normal_sites(
    model: Program, guide: Program, args: Args, names: Sequence[str] | None, bound: str
) -> tuple[NormalSite, ...]:
    """Run a pair once, aside, and find the guide's sites with normal posteriors and normal priors.

    Arguments:
        model: The model.
        guide: The guide.
        args: Their arguments.
        names: The guide's sites wanted; all by default.
        bound: Name of the bound that asks, for the error messages.

    Raises:
        ValueError: A posterior or a prior is not normal, a prior depends on other latents, or a joint draw is not that
            of the sites side by side.
    """
    found = find_posteriors(guide, args, names)
    traces = dry_run_pair(model, guide, args)
    guide_sites, model_sites = sites(traces.guide), sites(traces.model)

    conditional = sites_given_others(model, args, sites(traces.model, DRAWN))

    normal_sites = []
    for site in found:
        message = guide_sites[site.name]
        posterior = event_elements(message["fn"])
        if not isinstance(posterior, NORMALS):
            raise UsageError(
                f"{bound} needs normal posteriors, whose means and variances are their parameters, but the guide's "
                f"site {site.name!r} is {type(posterior).__name__}.",
                use_bound(),
                NORMAL_GUIDE,
            )

        latents: tuple[str, ...] = (site.name,)
        if site.name not in model_sites:
            shared = [s for n, s in guide_sites.items() if n in model_sites]
            parts = {s["name"]: s["value"] for s in shared if isinstance(s["fn"], Delta)}
            latents = _drawn_together(message, parts, bound)

        for name in latents:
            prior = event_elements(model_sites[name]["fn"])
            if not isinstance(prior, Normal):
                raise UsageError(
                    f"{bound} needs independent normal priors, from which the divergence of a Gaussian is a closed "
                    f"form, but that of {name!r} is {type(prior).__name__}.",
                    use_bound(),
                    OTHER_SITES,
                )
            if name in conditional:
                raise UsageError(
                    f"The prior of {name!r} depends on other latents, so there is no one prior to compare the data's "
                    "posteriors together with.",
                    use_bound(),
                    replace(OTHER_SITES, detail=" with the site of the top level"),
                )
        normal_sites.append(NormalSite(site, latents))

    return tuple(normal_sites)


def _drawn_together(message: Message, parts: dict[str, Tensor], bound: str) -> tuple[str, ...]:
    """The names of the parts, if they side by side are one joint draw."""
    value, values = message["value"], parts.values()
    rows = value.numel() // value.shape[-1]
    if len(message["fn"].event_shape) == 1 and sum(v.numel() for v in values) == value.numel():
        if torch.equal(torch.cat([v.reshape(rows, -1) for v in values], 1), value.reshape(rows, -1)):
            return tuple(parts)

    raise UsageError(
        f"{bound} needs the model's latents in the guide's joint draw {message['name']!r} side by side, but "
        f"{sorted(parts) or 'they'} are another function of it (a map onto a support?).",
        use_bound(),
        NORMAL_GUIDE,
    )
