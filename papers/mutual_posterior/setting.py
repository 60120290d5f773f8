"""The data and the networks of the experiment on mutual posterior divergence, at three budgets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from papers.study import Job
from pyro_vaes.data import Binarize, ImageData, ToUnit, load_data
from pyro_vaes.models import LossyVAE
from pyro_vaes.nn import (
    AutoregressiveLikelihood,
    AutoregressivePrior,
    BernoulliLikelihood,
    Chain,
    ConvEncoder,
    ImageShape,
    NormalHead,
    PixelCNN,
    Reach,
    ResidualEncoder,
    ResidualPixelCNN,
)

__all__ = ["Setting", "lossy_vae", "setting"]

CONTEXT_CHANNELS = 4


@dataclass(frozen=True)
class Setting:
    """What the cases share.

    Attributes:
        data: Name of the data set; bits are drawn afresh in every pass, and are fixed at evaluation.
        residual: Whether encoder and decoder are the paper's residual networks rather than plain ones with ReLUs.
        encoder_channels: Channels of the encoder's layers with stride 2.
        features: Width of the encoder's last layer.
        decoder_channels: Channels of the PixelCNN.
        kernels: Sizes of the PixelCNN's masked kernels.
        wide_kernels: Those of the stronger decoder.
        latent_dim: Dimension D of z.
        prior_hidden: Width of the hidden layer of each affine map of the flow prior.
        prior_steps: Number of these maps.
        train_images: How many images are trained on; None for all.
        epochs: Passes over them, at most.
        wide_epochs: Passes with the stronger decoder.
        batch_size: Images per step, whose pairs are compared.
        lr: Learning rate of Adam at the start.
        patience: Epochs without a better validation bound before the learning rate is halved; training ends at the
            third time. None for a constant rate and no end.
        test_images: How many test images are measured.
        likelihood_images: How many of these have their likelihood estimated.
        num_particles: K of the importance-weighted estimate.
        num_labels: Numbers of labels that the probes are fitted on, beside all of them.
        valid_images: How many images are held out from training.
    """

    data: str
    residual: bool = False
    encoder_channels: tuple[int, ...] = (16, 32)
    features: int = 128
    decoder_channels: int = 24
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    wide_kernels: tuple[int, ...] = (7, 7, 7, 7)
    latent_dim: int = 32
    prior_hidden: int = 64
    prior_steps: int = 2
    train_images: int | None = 10_000
    epochs: int = 8
    wide_epochs: int = 8
    batch_size: int = 100
    lr: float = 2e-3
    patience: int | None = None
    test_images: int = 2000
    likelihood_images: int = 400
    num_particles: int = 50
    num_labels: tuple[int, ...] = (100, 1000)
    valid_images: int = 2000

    def load(self, job: Job) -> ImageData:
        """The data as this setting wants them."""
        data = load_data(
            self.data,
            job.root,
            preprocess=[ToUnit(), Binarize()],
            flatten=False,
            split=(self.valid_images, 0.1),
        )
        train = len(data.train) if self.train_images is None else self.train_images
        return data.take(train, test=self.test_images).to(job.device)


PAPER = Setting(
    "mnist",
    residual=True,
    encoder_channels=(32, 64, 64),
    features=512,
    decoder_channels=64,
    kernels=(7, 7, 7, 5, 5, 3, 3),
    wide_kernels=(7, 7, 7, 7, 7, 5, 5, 5, 5, 3, 3, 3, 3),
    prior_hidden=640,
    prior_steps=8,
    train_images=None,
    epochs=1000,
    wide_epochs=1000,
    lr=1e-3,
    patience=20,
    likelihood_images=2000,
    num_particles=512,
)
DIGITS = Setting(
    "digits",
    features=64,
    decoder_channels=16,
    kernels=(3, 3, 3),
    wide_kernels=(5, 5, 5),
    latent_dim=8,
    prior_hidden=32,
    train_images=None,
    epochs=60,
    wide_epochs=60,
    lr=4e-3,
    valid_images=100,
    test_images=179,  # a tenth of all
    likelihood_images=179,
)
TINY = Setting(
    "digits",
    encoder_channels=(4,),
    features=8,
    decoder_channels=4,
    kernels=(3, 3),
    wide_kernels=(5, 5),
    latent_dim=4,
    prior_hidden=8,
    prior_steps=1,
    train_images=300,
    epochs=1,
    wide_epochs=1,
    valid_images=100,
    test_images=100,
    likelihood_images=20,
    num_particles=8,
    num_labels=(50,),
)


def setting(budget: str, data: str) -> Setting:
    """The paper's networks and training at "gpu"; at "cpu" four minutes for each case, a minute on digits."""
    cpu = DIGITS if data == "digits" else Setting(data)
    chosen = replace({"smoke": TINY, "cpu": cpu, "gpu": PAPER}[budget], data=data)
    return replace(chosen, valid_images=100) if data == "digits" else chosen


def lossy_vae(s: Setting, image_shape: ImageShape, kernels: Sequence[int]) -> LossyVAE:
    """Encoder, flow prior and a decoder with masked kernels of these sizes, freshly initialised."""
    context_shape = (CONTEXT_CHANNELS, *image_shape[1:])
    context = nn.Linear(s.latent_dim, math.prod(context_shape))

    trunk: ResidualEncoder | ConvEncoder
    activation: nn.Module
    if s.residual:
        trunk = ResidualEncoder(image_shape, s.encoder_channels, s.features)
        network: PixelCNN = ResidualPixelCNN(
            image_shape,
            s.decoder_channels,
            kernels,
            context_channels=CONTEXT_CHANNELS,
        )
        activation = nn.ELU()
    else:
        trunk = ConvEncoder(image_shape, s.encoder_channels, s.features)
        network = PixelCNN(
            image_shape,
            s.decoder_channels,
            [Reach(k // 2, k // 2, k // 2) for k in kernels],
            context_channels=CONTEXT_CHANNELS,
            activation=nn.ReLU,
        )
        activation = nn.ReLU()

    encoder = Chain(trunk, NormalHead(s.features, s.latent_dim))
    prior = AutoregressivePrior(
        s.latent_dim,
        [s.prior_hidden],
        steps=s.prior_steps,
        affine=True,
    )
    return LossyVAE(
        encoder,
        nn.Sequential(context, nn.Unflatten(-1, context_shape), activation),
        AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network),
        s.latent_dim,
        prior=prior,
    )
