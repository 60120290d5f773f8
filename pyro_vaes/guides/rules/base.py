"""Rules: how the posterior of a latent site is made."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from .site import KnownSite, Site


class Rule(nn.Module):
    """A rule of a :class:`~pyro_vaes.guides.ComposedGuide`.

    Called with a :class:`~pyro_vaes.guides.rules.Site`, it returns a distribution over
    the site's values.

    Attributes:
        in_guide: Whether the guide draws the site.
    """

    in_guide: ClassVar[bool] = True

    def prepare(self, known: KnownSite) -> None:
        """Make what the rule needs for a site; called before its first draw."""

    def marks(self, infer: Mapping[str, object]) -> Mapping[str, object]:
        """The marks of the guide's site, from those of the model's."""
        return infer


class FromPrior(Rule):
    """Draws a site from its prior given what is upstream: its density cancels.

    Example:
        >>> FromPrior()
        FromPrior()
    """

    def forward(self, site: Site) -> object:
        if site.prior is None:
            raise ValueError(
                f"The site {site.name!r} follows its prior, so it cannot be drawn "
                "before the model draws it, but another rule is given its value. "
                "Leave it out of that rule's given, or give it a rule of its own?"
            )
        return site.prior


class Enumerated(Rule):
    """Leaves a discrete site out of the guide.

    :class:`~pyro.infer.TraceEnum_ELBO` then sums it out in the model, where the site is
    marked with ``infer={"enumerate": "parallel"}``. No other rule may be given its
    value.

    Example:
        >>> Enumerated()
        Enumerated()
    """

    in_guide = False
