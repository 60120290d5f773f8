"""The networks of the lossy experiment: one autoregressive network, with z and without it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pyro_vaes.models import LossyVAE, UnconditionalDecoder
from pyro_vaes.nn import (
    MLP,
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    Chain,
    ConvDecoder,
    ConvEncoder,
    ImageShape,
    NormalHead,
    PixelCNN,
    Reach,
    StandardNormal,
    pixel_cnn_layers,
    weight_norm,
)

__all__ = ["LossySetting", "likelihood", "lossy_vae", "unconditional_decoder"]


@dataclass(frozen=True)
class LossySetting:
    """What all cases share; the defaults are the paper's, where it states them.

    Attributes:
        data: Name of the data set; grey ones are binarised anew in every pass, and once for the test.
        latent_dim: Dimension of z.
        channels: Maps of the encoder's stride-2 convolutions; the decoder mirrors them.
        num_residual: Residual blocks behind each of them.
        features: Width of the fully connected layers.
        context: Maps that the decoder hands to the autoregressive network.
        width: Maps of the autoregressive network.
        layers: Masked 3 x 3 layers of it.
        num_pointwise: 1 x 1 blocks between them.
        tied: Whether the masked layers share their weights, as in the paper on static MNIST.
        elu: Whether the activation is an ELU; else a ReLU, three times as fast on a CPU.
        windows: Windows (width, height) of further decoders, with one masked layer each.
        flow: Widths of the hidden layers of each step of the prior.
        flow_steps: Steps of the prior, mean-only.
        free_bits: Floor under the KL in nats.
        epochs: Passes over the training data.
        batch_size: Images per step.
        lr: Learning rate of Adamax.
        average: Decay of the weight average.
        train_images, test_images: How many are used; None for all.
        num_particles: K of the importance-weighted estimate.
        with_validation: Whether the validation part is trained on too.
    """

    data: str
    latent_dim: int = 64
    channels: tuple[int, ...] = (16, 32, 32)
    num_residual: int = 2
    features: int = 450
    context: int = 4
    width: int = 12
    layers: int = 6
    num_pointwise: int = 4
    tied: bool = False
    elu: bool = True
    windows: tuple[tuple[int, int], ...] = ((4, 2), (7, 4))
    flow: tuple[int, ...] = (640, 640)
    flow_steps: int = 4
    free_bits: float = 7.84
    epochs: int = 400
    batch_size: int = 128
    lr: float = 2e-3
    average: float = 0.998
    train_images: int | None = None
    test_images: int | None = 2000
    num_particles: int = 512
    with_validation: bool = True

    def activation(self) -> nn.Module:
        return nn.ELU() if self.elu else nn.ReLU()


def likelihood(s: LossySetting, shape: ImageShape, layers: Sequence[Reach] | None) -> nn.Module:
    """The autoregressive network behind these masked layers; None for pixels that are independent given z."""
    bits = BernoulliLikelihood(event_dim=3)
    if layers is None:
        return bits

    network = PixelCNN(
        shape,
        s.width,
        layers,
        context_channels=s.context,
        num_pointwise=s.num_pointwise,
        tied=s.tied,
        activation=s.activation,
    )
    return AutoregressiveLikelihood(bits, network)


def lossy_vae(s: LossySetting, shape: ImageShape, layers: Sequence[Reach] | None, *, flow: bool) -> LossyVAE:
    """The pair with these masked layers (None: a factorised decoder) and a flow or N(0, I) as the prior."""
    images = ConvEncoder(
        shape,
        s.channels,
        s.features,
        num_residual=s.num_residual,
        activation=s.activation,
    )

    maps = ConvDecoder(
        s.features,
        s.channels[::-1],
        (shape[0] if layers is None else s.context, *shape[1:]),
        num_residual=s.num_residual,
        activation=s.activation,
    )
    encoder = Chain(images, NormalHead(s.features, s.latent_dim))
    features = MLP(
        s.latent_dim,
        [],
        s.features,
        activation=s.activation,
        activate_output=True,
    )
    network = likelihood(s, shape, layers)

    prior: nn.Module = StandardNormal(s.latent_dim)
    if flow:
        prior = AutoregressivePrior(s.latent_dim, s.flow, steps=s.flow_steps)
    return LossyVAE(
        weight_norm(encoder),
        weight_norm(nn.Sequential(features, maps)),
        network,
        s.latent_dim,
        prior=prior,
    )


def unconditional_decoder(s: LossySetting, shape: ImageShape) -> UnconditionalDecoder:
    """The same autoregressive network without z."""
    network = likelihood(s, shape, pixel_cnn_layers(s.layers))
    assert isinstance(network, AutoregressiveLikelihood)
    return UnconditionalDecoder(network)
