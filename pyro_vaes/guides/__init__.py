"""Recognition programs q for any Pyro program with continuous latents in a data plate."""

from pyro_vaes.guides.amortized import AmortizedGuide, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vaes.guides.flows import AmortizedHouseholder, AmortizedIAF
from pyro_vaes.guides.given import batch_rows
from pyro_vaes.guides.laplace.fisher import register_fisher
from pyro_vaes.guides.laplace.guide import AmortizedLaplace
from pyro_vaes.guides.laplace.schedules import decaying, geometric
from pyro_vaes.guides.latents import Latents, LatentSite, find_latents
from pyro_vaes.guides.mixture import AmortizedMixture
from pyro_vaes.guides.semi_amortized import SemiAmortized

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
