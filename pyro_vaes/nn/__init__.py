"""Networks; a head's forward returns a distribution."""

from pyro_vaes.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from pyro_vaes.nn.conv_ladder import large_ladder, medium_ladder, small_ladder
from pyro_vaes.nn.flow_heads import HouseholderHead, IAFHead
from pyro_vaes.nn.heads import MultivariateNormalHead, NormalHead, SigmoidNormalHead, WeightHead
from pyro_vaes.nn.ladder import LadderNetworks, mlp_ladder
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
from pyro_vaes.nn.merge import Concatenate, GatedAdd
from pyro_vaes.nn.mlp import MLP, Chain, OneHot
from pyro_vaes.nn.module import Program, StandardNormal, as_posterior

__all__ = [
    "MLP",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "Chain",
    "Concatenate",
    "ContinuousBernoulliLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "DiscretizedLogisticMixtureLikelihood",
    "GatedAdd",
    "GaussianLikelihood",
    "HouseholderHead",
    "IAFHead",
    "LadderNetworks",
    "LaplaceLikelihood",
    "MultivariateNormalHead",
    "NegativeBinomialLikelihood",
    "NormalHead",
    "OneHot",
    "PoissonLikelihood",
    "Program",
    "ResidualBlock",
    "SigmoidNormalHead",
    "StandardNormal",
    "WeightHead",
    "as_posterior",
    "large_ladder",
    "medium_ladder",
    "mlp_ladder",
    "small_ladder",
]
