"""What a bound would do wrong with a pair, in words.

It looks at sites that the bound does not sum over, at KLs, and at parameters out of reach.
"""

import math
from collections.abc import Iterator

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vaes.errors import Cure, use_bound
from pyro_vaes.programs import (
    Pair,
    has_analytic_kl,
    is_enumerated,
    is_latent,
    mean_field_violations,
)

from ..bounds.host_sync import without_host_sync
from .problems import Problem
from .program_record import ProgramRecord
from .tables import Args, explain, site_table


def enumeration_problems(guide: ProgramRecord, model: ProgramRecord, bound: ELBO) -> Iterator[Problem]:
    """Sites that are left to be summed over, with a bound that does not sum."""
    for name, site in {**model.sites, **guide.sites}.items():
        if is_enumerated(site) and is_latent(site):
            does = "draw it from the prior"
            if name in guide.sites:
                does = "draw it, at a high variance"

            words = "a model without the site, whose prior is the mixture itself"
            yield Problem(
                f"The site {name!r} is to be enumerated, but {type(bound).__name__} does not "
                f"sum over it: it would {does}.",
                cures=(use_bound("TraceEnum_ELBO"), Cure("model", words=words)),
            )


def mean_field_problems(pair: Pair, args: Args) -> Iterator[Problem]:
    """Sites at which TraceMeanField_ELBO would use an analytic KL that is wrong."""
    violating, _ = mean_field_violations(pair.model, pair.guide, args)
    for name in sorted(violating):
        yield Problem(
            "TraceMeanField_ELBO is wrong for this pair: it would use the analytic KL of "
            f"{name!r}, whose prior depends on a latent that the guide draws after and from "
            f"{name!r}.",
            cures=(use_bound(), Cure("guide", "top-down", words="a top-down guide")),
        )


def density_problems(guide: ProgramRecord) -> Iterator[Problem]:
    """Guides whose densities do not suit analytic KLs."""
    for name, site in guide.sites.items():
        if not has_analytic_kl(site):
            yield Problem(
                f"TraceMeanField_ELBO does not suit the site {name!r} of this guide: log q(z) "
                "- log p(x, z) cancels at each draw of z, and an expected KL beside a sampled "
                "likelihood does not, so the bound's variance would be large even with the "
                "exact posterior.",
                cures=(use_bound(),),
            )

        fn = site["fn"]
        if not site["is_observed"] and not fn.has_rsample:
            yield Problem(
                f"TraceMeanField_ELBO is wrong for this pair: the guide draws {name!r} "
                f"({type(fn).__name__}) without reparameterisation, and its score function "
                "would be left out.",
                cures=(
                    use_bound(),
                    use_bound("StratifiedMixture_ELBO", " for a mixture"),
                ),
            )


def loss_problems(pair: Pair, loss: ELBO, args: Args, *, trains: bool) -> Iterator[Problem]:
    """A loss that fails or is not finite, and parameters that it does not reach.

    The loss is computed once, under Pyro's validation. Where the pair is to be trained,
    that finds its parameters.
    """
    value: Tensor | float | None

    try:
        with pyro.validation_enabled(True):
            if trains:
                with without_host_sync():
                    value = pair.find_parameters(loss, args)
            else:
                with torch.no_grad():
                    value = loss.loss(pair.model, pair.guide, *args)

    except Exception as error:
        message, cures = explain(error)
        yield Problem(f"{type(loss).__name__} fails on this pair: {message}", cures=cures)
        return

    if value is not None and not math.isfinite(value):
        yield Problem(
            f"The loss is {float(value)} on this batch. Is a scale zero, or a logarithm "
            f"taken of 0?\n{site_table(pair, args)}"
        )
    elif trains and pair.unreached:
        yield Problem(
            f"No gradient reaches {len(pair.unreached)} parameters: "
            f"{', '.join(pair.unreached[:6])}. They will stay as they are; is that part of the "
            "network used?",
            fatal=False,
        )
