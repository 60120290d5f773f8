"""Distributions that Pyro and torch lack, or have wrong in a corner; each is usable alone."""

from .aggregate import AggregateGaussian, MixturePosterior, Moment
from .autoregressive import Autoregressive
from .autoregressive_flow import AutoregressiveFlow
from .bernoulli import Bernoulli
from .continuous_bernoulli import ContinuousBernoulli
from .discretized_logistic import DiscretizedLogisticMixture, grid
from .full_normals import HouseholderNormal, PrecisionNormal
from .integer_categorical import IntegerCategorical
from .inverse_autoregressive import InverseAutoregressive
from .map_parameters import event_elements, has_transforms, map_parameters
from .mixture import Mixture
from .recursive_mixture import RecursiveMixture, log_weights

__all__ = [
    "AggregateGaussian",
    "Autoregressive",
    "AutoregressiveFlow",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "HouseholderNormal",
    "IntegerCategorical",
    "InverseAutoregressive",
    "Mixture",
    "MixturePosterior",
    "Moment",
    "PrecisionNormal",
    "RecursiveMixture",
    "event_elements",
    "grid",
    "has_transforms",
    "log_weights",
    "map_parameters",
]
