"""Networks; a head's forward returns a distribution."""

from pyro_vaes.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from pyro_vaes.nn.flow_heads import HouseholderHead, IAFHead
from pyro_vaes.nn.heads import MultivariateNormalHead, NormalHead, WeightHead
from pyro_vaes.nn.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
)
from pyro_vaes.nn.mlp import MLP, Chain, OneHot
from pyro_vaes.nn.module import Program, StandardNormal, as_posterior

__all__ = [
    "MLP",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "Chain",
    "ContinuousBernoulliLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogisticMixtureLikelihood",
    "GaussianLikelihood",
    "HouseholderHead",
    "IAFHead",
    "LaplaceLikelihood",
    "MultivariateNormalHead",
    "NegativeBinomialLikelihood",
    "NormalHead",
    "OneHot",
    "PoissonLikelihood",
    "Program",
    "ResidualBlock",
    "StandardNormal",
    "WeightHead",
    "as_posterior",
]
