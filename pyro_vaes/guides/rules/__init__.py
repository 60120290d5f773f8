"""Rules of a composed guide: how the posterior of a latent site is made."""

from .base import Enumerated, FromPrior, Rule
from .free import Free
from .joint import JointRule
from .network import Amortized, AmortizedCategorical
from .site import KnownSite, Site
from .upstream import Upstream

__all__ = [
    "Amortized",
    "AmortizedCategorical",
    "Enumerated",
    "Free",
    "FromPrior",
    "JointRule",
    "KnownSite",
    "Rule",
    "Site",
    "Upstream",
]
