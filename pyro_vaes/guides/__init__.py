"""Recognition programs q for any Pyro program with continuous latents in a data plate."""

from pyro_vaes.guides.amortized import AmortizedGuide, AmortizedMultivariateNormal, AmortizedNormal

__all__ = ["AmortizedGuide", "AmortizedMultivariateNormal", "AmortizedNormal"]
