"""Recognition programs q for any Pyro program with continuous latents in a data plate."""

from .amortized import AmortizedGuide, AmortizedMultivariateNormal, AmortizedNormal
from .flows import AmortizedHouseholder, AmortizedIAF
from .given import batch_rows
from .laplace.fisher import register_fisher
from .laplace.guide import AmortizedLaplace
from .laplace.schedules import decaying, geometric
from .latents import Latents, LatentSite, find_latents
from .mixture import AmortizedMixture
from .semi_amortized import SemiAmortized

__all__ = [
    "AmortizedGuide",
    "AmortizedHouseholder",
    "AmortizedIAF",
    "AmortizedLaplace",
    "AmortizedMixture",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "LatentSite",
    "Latents",
    "SemiAmortized",
    "batch_rows",
    "decaying",
    "find_latents",
    "geometric",
    "register_fisher",
]
