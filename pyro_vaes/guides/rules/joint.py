"""A joint posterior over several sites: any of the library's guides as a rule."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pyro_vaes.programs import Program

from .upstream import Upstream


@dataclass(frozen=True)
class JointRule:
    """One guide over a tuple of sites, as ``AmortizedLaplace.rule(start)`` returns it.

    Attributes:
        make: Makes the guide for a model.
        given: Upstream sites whose values its networks get as keywords.
    """

    make: Callable[[Program], nn.Module]
    given: Upstream = ()
