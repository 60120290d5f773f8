"""Likelihoods p(x | z) as modules: they turn what the decoder returns into a distribution of x."""

from .autoregressive import AutoregressiveLikelihood
from .base import Likelihood
from .counts import NegativeBinomialLikelihood, PoissonLikelihood
from .levels import CategoricalLikelihood, DiscretizedLogisticMixtureLikelihood
from .real import GaussianLikelihood, LaplaceLikelihood
from .unit import BernoulliLikelihood, ContinuousBernoulliLikelihood

__all__ = [
    "Likelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "BernoulliLikelihood",
    "ContinuousBernoulliLikelihood",
    "CategoricalLikelihood",
    "DiscretizedLogisticMixtureLikelihood",
    "PoissonLikelihood",
    "NegativeBinomialLikelihood",
    "AutoregressiveLikelihood",
]
