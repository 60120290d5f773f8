"""Whether a guide is a proposal for importance weights."""

from pyro.distributions import Delta
from pyro.poutine import Trace

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.programs import Role, Sites, is_auxiliary, may_be_point, sites

from .sites import innermost

DATA = frozenset({Role.OBSERVED, Role.FACTOR})


def refuse_points(guide_sites: Sites, model_sites: Sites) -> None:
    """Raise where a continuous latent has no density at the guide's draws."""
    if any(map(is_auxiliary, guide_sites.values())):
        return  # other sites may be functions of these

    for name, site in guide_sites.items():
        if site["is_observed"] or name not in model_sites or may_be_point(site):
            continue

        is_discrete = model_sites[name]["fn"].support.is_discrete
        if isinstance(innermost(site["fn"]), Delta) and not is_discrete:
            raise UsageError(
                f"The guide's site {name!r} is a point (Delta), which has no density, "
                "so its draws are no proposal and have no importance weights.",
                Cure("guide", words="use one with a spread, such as AmortizedNormal"),
            )


def refuse_swapped(guide: Trace, model: Trace) -> None:
    """Raise where the guide observes the data and the model does not."""
    observed = sites(guide, DATA)
    if observed and not sites(model, DATA):
        raise UsageError(
            f"The guide observes {sorted(observed)}, and the model nothing. Are they "
            "in the wrong order (the wrong way round)?",
            Cure("model", words="pass the model first, then the guide"),
        )
