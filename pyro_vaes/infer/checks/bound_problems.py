"""What a bound would do wrong with a pair, in words: sites it does not sum over, KLs, parameters out of its reach."""

import math
from collections.abc import Iterator

import pyro
import torch
from pyro.infer import ELBO

from pyro_vaes.errors import Cure, use_bound
from pyro_vaes.infer.bounds.facts import facts_of
from pyro_vaes.infer.bounds.host_sync import without_host_sync
from pyro_vaes.infer.checks.problems import Problem
from pyro_vaes.infer.checks.tables import explain, site_table
from pyro_vaes.programs import (
    Pair,
    Program,
    Sites,
    has_analytic_kl,
    is_enumerated,
    is_latent,
    mean_field_violations,
)

__all__ = ["density_problems", "enumeration_problems", "gradient_problems", "mean_field_problems", "value_problems"]


def enumeration_problems(guide: Sites, model: Sites, bound: ELBO) -> Iterator[Problem]:
    """Sites that are left to a bound that sums over them, with a bound that does not."""
    if facts_of(bound).enumerates:
        return
    for name, site in {**model, **guide}.items():
        if is_latent(site) and is_enumerated(site):
            does = "draw it, at a high variance" if name in guide else "draw it from the prior"
            yield Problem(
                f"The site {name!r} is to be enumerated, but {type(bound).__name__} does not sum over it: it would "
                f"{does}.",
                cures=(
                    use_bound("TraceEnum_ELBO"),
                    Cure("model", words="a model without the site, whose prior is the mixture itself"),
                ),
            )


def mean_field_problems(model: Program, guide: Program, args: tuple[object, ...]) -> Iterator[Problem]:
    """Sites at which TraceMeanField_ELBO would use an analytic KL that is wrong for this pair."""
    violating, _ = mean_field_violations(model, guide, args)
    for name in sorted(violating):
        yield Problem(
            f"TraceMeanField_ELBO is wrong for this pair: it would use the analytic KL of {name!r}, whose prior "
            f"depends on a latent that the guide draws after and from {name!r}.",
            cures=(use_bound(), Cure("guide", "top-down", words="a top-down guide")),
        )


def density_problems(guide: Sites) -> Iterator[Problem]:
    """Guides whose densities do not suit analytic KLs."""
    for name, site in guide.items():
        if not has_analytic_kl(site):
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
    """A loss that fails or is not finite, and parameters that it does not reach.

    The loss is computed once, under Pyro's validation, and finds the pair's parameters.
    """
    try:
        with without_host_sync(), pyro.validation_enabled(True):
            value = pair.find_parameters(loss, args)
    except Exception as error:
        yield _failure(loss, error)
        return

    if value is not None and not torch.isfinite(value):
        yield _not_finite(pair, value.item(), args)
        return
    if pair.unreached:
        yield Problem(
            f"No gradient reaches {len(pair.unreached)} parameters: "
            f"{', '.join(pair.unreached[:6])}. They will stay as they are; is that part of the "
            "network used?",
            fatal=False,
        )


def value_problems(pair: Pair, loss: ELBO, args: tuple[object, ...]) -> Iterator[Problem]:
    """A loss that fails or is not finite where nothing is to be trained."""
    try:
        with torch.no_grad(), pyro.validation_enabled(True):
            value = loss.loss(pair.model, pair.guide, *args)
    except Exception as error:
        yield _failure(loss, error)
        return
    if not math.isfinite(value):
        yield _not_finite(pair, value, args)


def _failure(loss: ELBO, error: Exception) -> Problem:
    message, cures = explain(error)
    return Problem(f"{type(loss).__name__} fails on this pair: {message}", cures=cures)


def _not_finite(pair: Pair, value: float, args: tuple[object, ...]) -> Problem:
    return Problem(
        f"The loss is {value} on this batch. Is a scale zero, or a logarithm taken of 0?\n{site_table(pair, args)}"
    )
