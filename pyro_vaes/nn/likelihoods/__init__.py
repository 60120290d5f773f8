"""Likelihoods p(x | z) as modules: they turn what the decoder returns into a distribution of x."""

from pyro_vaes.nn.likelihoods.autoregressive import AutoregressiveLikelihood
from pyro_vaes.nn.likelihoods.base import Likelihood
from pyro_vaes.nn.likelihoods.counts import NegativeBinomialLikelihood, PoissonLikelihood
from pyro_vaes.nn.likelihoods.levels import CategoricalLikelihood, DiscretizedLogisticMixtureLikelihood
from pyro_vaes.nn.likelihoods.real import GaussianLikelihood, LaplaceLikelihood
from pyro_vaes.nn.likelihoods.unit import BernoulliLikelihood, ContinuousBernoulliLikelihood

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
