"""Pure tensor functions: no Pyro, no parameters, no random numbers."""

from .bernoulli import log_bernoulli
from .capturing import assert_in_graph, capturing, is_capturing
from .hand_written import GradientContext
from .pairwise import (
    multivariate_normal_pairwise_kl,
    normal_mean_kl,
    normal_mean_softplus,
    normal_pairwise_kl,
    off_diagonal,
)

__all__ = [
    "GradientContext",
    "assert_in_graph",
    "capturing",
    "is_capturing",
    "log_bernoulli",
    "multivariate_normal_pairwise_kl",
    "normal_mean_kl",
    "normal_mean_softplus",
    "normal_pairwise_kl",
    "off_diagonal",
]
