"""What a bound would do wrong with a pair, in words: sites it does not sum over, KLs, parameters out of its reach."""

from collections.abc import Iterator

import torch
from pyro.infer import ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.poutine import Trace

from pyro_vaes.errors import Cure, use_bound
from pyro_vaes.infer.bounds.host_sync import quiet_elbo
from pyro_vaes.infer.checks.mean_field import mean_field_violations
from pyro_vaes.infer.checks.problems import Problem
from pyro_vaes.infer.checks.tables import explain, random_sites, site_table
from pyro_vaes.infer.handlers import is_latent
from pyro_vaes.programs.pair import Pair

__all__ = ["density_problems", "enumeration_problems", "gradient_problems", "mean_field_problems"]


def enumeration_problems(guide_trace: Trace, model_trace: Trace, bound: ELBO) -> Iterator[Problem]:
    """Sites that are left to a bound that sums over them, with a bound that does not."""
    if isinstance(getattr(bound, "base", bound), TraceEnum_ELBO | TraceTMC_ELBO):
        return
    for name, site in {**random_sites(model_trace), **random_sites(guide_trace)}.items():
        if is_latent(site) and site["infer"].get("enumerate") is not None:
            does = "draw it, at a high variance" if name in guide_trace.nodes else "draw it from the prior"
            yield Problem(
                f"The site {name!r} is to be enumerated, but {type(bound).__name__} does not sum over it: it would "
                f"{does}.",
                cures=(
                    use_bound("TraceEnum_ELBO"),
                    Cure("model", words="a model without the site, whose prior is the mixture itself"),
                ),
            )


def mean_field_problems(pair: Pair, args: tuple[object, ...]) -> Iterator[Problem]:
    """Sites at which TraceMeanField_ELBO would use an analytic KL that is wrong for this pair."""
    violating, _ = mean_field_violations(pair, args)
    for name in sorted(violating):
        yield Problem(
            f"TraceMeanField_ELBO is wrong for this pair: it would use the analytic KL of {name!r}, whose prior "
            f"depends on a latent that the guide draws after and from {name!r}.",
            cures=(use_bound(), Cure("guide", "top-down", words="a top-down guide")),
        )


def density_problems(guide_trace: Trace) -> Iterator[Problem]:
    """Guides whose densities do not suit analytic KLs."""
    for name, site in random_sites(guide_trace).items():
        if site["infer"].get("analytic_kl") is False:
            yield Problem(
                f"TraceMeanField_ELBO does not suit the site {name!r} of this guide: log q(z) - log p(x, z) cancels at "
                "each draw of z, and an expected KL beside a sampled likelihood does not, so the bound's variance "
                "would be large even with the exact posterior.",
                cures=(use_bound(),),
            )

        if not site["is_observed"] and not site["fn"].has_rsample:
            yield Problem(
                f"TraceMeanField_ELBO is wrong for this pair: the guide draws {name!r} ({type(site['fn']).__name__}) "
                "without reparameterisation, and its score function would be left out.",
                cures=(use_bound(), use_bound("StratifiedMixture_ELBO", " for a mixture")),
            )


def gradient_problems(pair: Pair, loss: ELBO, args: tuple[object, ...]) -> Iterator[Problem]:
    """A loss that fails or is not finite, and parameters that it does not reach."""
    try:
        with quiet_elbo():
            value = pair.discover(loss, args)
    except Exception as error:
        message, cures = explain(error)
        yield Problem(f"{type(loss).__name__} fails on this pair: {message}", cures=cures)
        return

    if value is not None and not torch.isfinite(value):
        yield Problem(
            f"The loss is {value.item()} on this batch. Is a scale zero, or a logarithm taken of "
            f"0?\n{site_table(pair, args)}"
        )
        return
    if pair.unreached:
        yield Problem(
            f"No gradient reaches {len(pair.unreached)} parameters: {', '.join(pair.unreached[:6])}. They will stay "
            "as they are; is that part of the network used?",
            fatal=False,
        )
