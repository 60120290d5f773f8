"""Distributions that Pyro and torch lack, or have wrong in a corner; each is usable alone."""

from pyro_vaes.distributions.aggregate import AggregateGaussian, MixturePosterior, Moment
from pyro_vaes.distributions.autoregressive import Autoregressive
from pyro_vaes.distributions.autoregressive_flow import AutoregressiveFlow
from pyro_vaes.distributions.bernoulli import Bernoulli
from pyro_vaes.distributions.constraints import grid
from pyro_vaes.distributions.continuous_bernoulli import ContinuousBernoulli
from pyro_vaes.distributions.discretized_logistic import DiscretizedLogisticMixture
from pyro_vaes.distributions.householder_normal import HouseholderNormal
from pyro_vaes.distributions.integer_categorical import IntegerCategorical
from pyro_vaes.distributions.inverse_autoregressive import InverseAutoregressive
from pyro_vaes.distributions.map_parameters import event_elements, has_transforms, map_parameters
from pyro_vaes.distributions.mixture import Mixture
from pyro_vaes.distributions.precision_normal import PrecisionNormal
from pyro_vaes.distributions.recursive_mixture import RecursiveMixture, log_weights

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
