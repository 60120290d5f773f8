"""Networks; a head's forward returns a distribution."""

from .autoregressive import AutoregressiveNetwork
from .autoregressive_likelihood import AutoregressiveLikelihood
from .causal_conv import Reach, gated_block, plain_block, residual_block
from .conv import ConvDecoder, ConvEncoder, ResidualBlock
from .conv_ladder import large_ladder, medium_ladder, small_ladder
from .default_networks import (
    ConvNetworks,
    Labelled,
    LinearNetworks,
    MLPNetworks,
    Networks,
    Scaled,
)
from .flow_heads import HouseholderHead, IAFHead
from .flow_prior import AutoregressivePrior
from .heads import (
    LogVarianceHead,
    MultivariateNormalHead,
    NormalHead,
    SigmoidNormalHead,
    WeightHead,
    bounded_scale,
)
from .ladder_networks import Concatenate, GatedAdd, LadderNetworks, mlp_ladder
from .layer_builder import LayerBuilder, ShapedSequential
from .likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticMixtureLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
)
from .made import MADE
from .mixture_prior import MixturePrior
from .mlp import MLP, Chain, OneHot, concatenate
from .module import ProgramModule, StandardNormal, as_posterior, observe, of_length
from .pixel_cnn import PixelCNN, pixel_cnn_layers, pixel_cnn_window
from .residual_networks import ResidualEncoder, ResidualPixelCNN, bottleneck_block
from .resnet_v2 import PatchDiscriminator, ResNetV2Decoder, ResNetV2Encoder
from .shapes import ImageShape
from .weight_norm import initialise_weight_norm, weight_norm

__all__ = [
    "MADE",
    "MLP",
    "MLPNetworks",
    "AutoregressiveLikelihood",
    "AutoregressiveNetwork",
    "AutoregressivePrior",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "Chain",
    "Concatenate",
    "ContinuousBernoulliLikelihood",
    "ConvDecoder",
    "ConvEncoder",
    "ConvNetworks",
    "DiscretizedLogisticMixtureLikelihood",
    "GatedAdd",
    "GaussianLikelihood",
    "HouseholderHead",
    "IAFHead",
    "ImageShape",
    "Labelled",
    "LadderNetworks",
    "LaplaceLikelihood",
    "LayerBuilder",
    "Likelihood",
    "LinearNetworks",
    "LogVarianceHead",
    "MixturePrior",
    "MultivariateNormalHead",
    "NegativeBinomialLikelihood",
    "Networks",
    "NormalHead",
    "OneHot",
    "PatchDiscriminator",
    "PixelCNN",
    "PoissonLikelihood",
    "ProgramModule",
    "Reach",
    "ResNetV2Decoder",
    "ResNetV2Encoder",
    "ResidualBlock",
    "ResidualEncoder",
    "ResidualPixelCNN",
    "Scaled",
    "ShapedSequential",
    "SigmoidNormalHead",
    "StandardNormal",
    "WeightHead",
    "as_posterior",
    "bottleneck_block",
    "bounded_scale",
    "concatenate",
    "gated_block",
    "initialise_weight_norm",
    "large_ladder",
    "medium_ladder",
    "mlp_ladder",
    "observe",
    "of_length",
    "pixel_cnn_layers",
    "pixel_cnn_window",
    "plain_block",
    "residual_block",
    "small_ladder",
    "weight_norm",
]
