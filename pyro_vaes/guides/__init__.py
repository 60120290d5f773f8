"""Recognition programs q for any Pyro program with continuous latents in a data plate."""

from pyro_vaes.guides.amortized import AmortizedGuide, AmortizedMultivariateNormal, AmortizedNormal
from pyro_vaes.guides.fisher import register_fisher
from pyro_vaes.guides.laplace import AmortizedLaplace, decaying
from pyro_vaes.guides.mixture import AmortizedMixture

__all__ = [
    "AmortizedGuide",
    "AmortizedLaplace",
    "AmortizedMixture",
    "AmortizedMultivariateNormal",
    "AmortizedNormal",
    "decaying",
    "register_fisher",
]
