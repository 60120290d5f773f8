"""Recognition programs q for any Pyro program with continuous latents in a data
plate."""

from .amortized import AmortizedGuide, AmortizedMultivariateNormal, AmortizedNormal
from .composed import ComposedGuide
from .find_latents import find_latents
from .flows import AmortizedHouseholder, AmortizedIAF
from .given import batch_rows
from .laplace.fisher import register_fisher
from .laplace.guide import AmortizedLaplace
from .laplace.schedules import decaying, geometric
from .latents import Latents, LatentSite, sample_all
from .mixture import AmortizedMixture
from .rules import (
    Amortized,
    AmortizedCategorical,
    Enumerated,
    Free,
    FromPrior,
    JointRule,
    Rule,
    Site,
)
from .semi_amortized import SemiAmortized

__all__ = [
    "Amortized",
    "AmortizedCategorical",
    "AmortizedGuide",
    "AmortizedHouseholder",
    "AmortizedIAF",
    "AmortizedLaplace",
    "AmortizedMixture",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "ComposedGuide",
    "Enumerated",
    "Free",
    "FromPrior",
    "JointRule",
    "LatentSite",
    "Latents",
    "Rule",
    "SemiAmortized",
    "Site",
    "batch_rows",
    "decaying",
    "find_latents",
    "geometric",
    "register_fisher",
    "sample_all",
]
