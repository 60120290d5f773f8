"""What the guides of a comparison share: data, networks, training."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from pyro_vaes.data import Binarize, ImageData, MeanCentre, Split, ToUnit, load_data
from pyro_vaes.models import VAE
from pyro_vaes.nn import (
    MLP,
    BernoulliLikelihood,
    Chain,
    ConvDecoder,
    ConvEncoder,
    GaussianLikelihood,
    ImageShape,
    NormalHead,
    WeightHead,
)

__all__ = ["Networks", "Setting"]


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share.

    Attributes:
        data: Name of the data set.
        output: ``"gaussian"`` (pixels in [0, 1] less the training mean, one learned noise scale) or ``"bernoulli"``
            (fresh bits in every pass, fixed ones at evaluation).
        hidden: Widths of the decoder's hidden layers; the encoder mirrors them.
        latent_dim: Size of the code.
        channels: Channels of the encoder's stride-2 convolutions, behind which one layer of the first of `hidden`
            follows; none for perceptrons.
        epochs: Passes over the training data.
        train_images: How many training images are used; None for all.
        test_images: How many test images are measured; None for all.
        num_particles: K of the importance-weighted estimate.
        batch_size: Images per step.
        lr: Learning rate of Adam.
        budget: ``"smoke"``, ``"cpu"`` or ``"gpu"``, which decides what is compared.
    """

    data: str
    output: str = "gaussian"
    hidden: tuple[int, ...] = (256,)
    latent_dim: int = 16
    channels: tuple[int, ...] = ()
    epochs: int = 10
    train_images: int | None = None
    test_images: int | None = None
    num_particles: int = 100
    batch_size: int = 128
    lr: float = 5e-4
    budget: str = "cpu"

    def __post_init__(self) -> None:
        if self.output not in ("gaussian", "bernoulli"):
            raise ValueError(f"output must be 'gaussian' or 'bernoulli', but got {self.output!r}.")

    def load(self, root: str | os.PathLike[str] | None = None) -> ImageData:
        """The data as this setting wants them."""
        steps = [ToUnit(), Binarize()] if self.output == "bernoulli" else [ToUnit(), MeanCentre()]
        data = load_data(self.data, root, preprocess=steps)
        if self.train_images is not None and self.train_images < len(data.train):
            data = data.take(self.train_images)
        return data

    def measured(self, part: Split) -> Tensor:
        """The images that are measured: the first of a part, or random ones where it is sorted by class."""
        labels = part.labels
        in_order = labels is not None and bool((labels[1:] >= labels[:-1]).all())
        count = len(part) if self.test_images is None else self.test_images
        images = part.take(count, seed=0 if in_order else None)[:]
        assert isinstance(images, Tensor)
        return images


@dataclass(frozen=True)
class Networks:
    """Makes the networks of one data set and setting; every encoder is new, the model is made once."""

    setting: Setting
    image_shape: ImageShape
    scale: float

    @classmethod
    def for_data(cls, setting: Setting, data: ImageData) -> "Networks":
        """With the noise scale that the paper starts from: the root of the mean variance of the pixels."""
        train = data.train[:]
        assert isinstance(train, Tensor)
        return cls(setting, data.image_shape, train.var(dim=0).mean().sqrt().item())

    def initialise(self, module: nn.Module) -> nn.Module:
        """Uniform weights with bound sqrt(6 / ((1 + a²) fan_out)), a = 2^(1/3), as the Laplace paper's code has it."""
        for part in module.modules():
            if isinstance(part, nn.Linear):
                nn.init.kaiming_uniform_(part.weight, a=2 ** (1 / 3), mode="fan_out")
        return module

    def vae(self, head: Callable[[int, int], nn.Module] = NormalHead) -> VAE:
        """The model, with an encoder that ends in this head; the decoder is the same for all heads."""
        s = self.setting
        decoder: nn.Module
        if s.channels:
            decoder = nn.Sequential(
                MLP(s.latent_dim, [], s.hidden[0], activate_output=True),
                ConvDecoder(s.hidden[0], s.channels[::-1], self.image_shape, flat=True),
            )
        else:
            decoder = MLP(s.latent_dim, s.hidden, math.prod(self.image_shape))
        decoder = self.initialise(decoder)
        encoder = self.encoder(head)

        if s.output == "bernoulli":
            return VAE(encoder, decoder, BernoulliLikelihood(), s.latent_dim)
        likelihood = GaussianLikelihood(self.scale, learn_scale=True)
        return VAE(encoder, decoder, likelihood, s.latent_dim)

    def encoder(self, head: Callable[[int, int], nn.Module] = NormalHead) -> nn.Module:
        """An encoder over the code that mirrors the decoder."""
        last = head(self.setting.hidden[0], self.setting.latent_dim)
        trunk = self.trunk()
        if isinstance(last, NormalHead | nn.Linear):
            last = self.initialise(last)
        return Chain(trunk, last)

    def weight(self) -> nn.Module:
        """The logit of a mixture weight, with the encoder's trunk before it."""
        return Chain(self.trunk(), WeightHead(self.setting.hidden[0]))

    def trunk(self) -> nn.Module:
        """Pixels to features."""
        *widths, last = self.setting.hidden[::-1]
        if self.setting.channels:
            return self.initialise(ConvEncoder(self.image_shape, self.setting.channels, last))
        return self.initialise(MLP(math.prod(self.image_shape), widths, last, activate_output=True))
