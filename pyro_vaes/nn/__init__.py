"""Networks; a head's forward returns a distribution."""

from pyro_vaes.nn.autoregressive import AutoregressiveNetwork
from pyro_vaes.nn.causal_conv import Reach, gated_block, plain_block, residual_block
from pyro_vaes.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from pyro_vaes.nn.conv_ladder import large_ladder, medium_ladder, small_ladder
from pyro_vaes.nn.default_networks import (
    ConvNetworks,
    Labelled,
    LinearNetworks,
    MLPNetworks,
    Networks,
    Scaled,
)
from pyro_vaes.nn.flow_heads import HouseholderHead, IAFHead
from pyro_vaes.nn.flow_prior import AutoregressivePrior
from pyro_vaes.nn.heads import (
    LogVarianceHead,
    MultivariateNormalHead,
    NormalHead,
    SigmoidNormalHead,
    WeightHead,
    bounded_scale,
)
from pyro_vaes.nn.ladder import LadderNetworks, mlp_ladder
from pyro_vaes.nn.layer_builder import LayerBuilder, ShapedSequential
from pyro_vaes.nn.likelihoods import (
    AutoregressiveLikelihood,
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
from pyro_vaes.nn.made import MADE
from pyro_vaes.nn.merge import Concatenate, GatedAdd
from pyro_vaes.nn.mixture_prior import MixturePrior
from pyro_vaes.nn.mlp import MLP, Chain, OneHot, concatenate
from pyro_vaes.nn.module import ProgramModule, StandardNormal, as_posterior, observe, of_length
from pyro_vaes.nn.patch_discriminator import PatchDiscriminator
from pyro_vaes.nn.pixel_cnn import PixelCNN, pixel_cnn_layers, pixel_cnn_window
from pyro_vaes.nn.residual_encoder import ResidualEncoder
from pyro_vaes.nn.residual_pixel_cnn import ResidualPixelCNN, bottleneck_block
from pyro_vaes.nn.resnet_v2 import ResNetV2Decoder, ResNetV2Encoder
from pyro_vaes.nn.shapes import ImageShape
from pyro_vaes.nn.weight_norm import initialise_weight_norm, weight_norm

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
