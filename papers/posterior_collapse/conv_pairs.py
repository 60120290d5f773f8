r"""The collapse paper's pairs with convolutions where :mod:`~papers.posterior_collapse.pairs` has hidden layers.

    conditional VAE  p(y|z,x) = N(f(z) + g(x), noise²)         q(z|x,y), a network per argument, outputs added
                     x the bottom left quarter of an image, y the other three: to the networks the image with a hole
    hierarchical     p(z1|z2) = N(tanh f(z2), noise²)          q(z1|x) = N(tanh f(x), scale²), q(z2|z1)
                     p(x|z1)  = N(tanh f(z1), noise²)          f of q(z1|x) and p(x|z1) convolutional

What is known of the paper's networks is x -> conv(32, stride 2) -> conv(16, stride 2), y an image with a hole, and 64
hidden units in the hierarchy. Chosen here: the same two convolutions, 4 × 4, for y and in the hierarchy; ReLU behind
each; a hidden layer between them and what a network returns; their mirror in decoders; sums, separate networks for mean
and scale, biases and everything else as in the pairs without convolutions.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024), experiments and released code
    | https://arxiv.org/abs/2306.05023
"""

from torch import Tensor, nn

from papers.posterior_collapse.pairs import Added, AddedNormal, TanhNormal
from pyro_vaes.data import assemble, complete
from pyro_vaes.models import ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import MLP, ConvDecoder, ConvEncoder, GaussianLikelihood, ImageShape

__all__ = ["AroundHole", "WithHole", "conv_cvae", "conv_hierarchical_vae"]

CHANNELS = (32, 16)


class WithHole(nn.Module):
    """Three quarters ``(..., T)`` as images ``(..., C, H, W)`` whose bottom left quarter is 0.

    Arguments:
        image_shape: (C, H, W).

    Example:
        >>> import torch
        >>> WithHole((1, 2, 2))(torch.tensor([1.0, 2.0, 3.0]))
        tensor([[[1., 2.],
                 [0., 3.]]])
    """

    def __init__(self, image_shape: ImageShape) -> None:
        super().__init__()
        self.image_shape = image_shape

    def forward(self, target: Tensor) -> Tensor:
        channels, height, width = quarter_shape(self.image_shape)
        return assemble(target, target.new_zeros(channels * height * width), self.image_shape)


class AroundHole(nn.Module):
    """The three quarters ``(..., T)`` of images ``(..., C, H, W)``, without the bottom left one."""

    def forward(self, images: Tensor) -> Tensor:
        target, _ = complete(images)
        return target


def quarter_shape(image_shape: ImageShape) -> ImageShape:
    """That of the bottom left quarter, to which a middle row belongs."""
    channels, height, width = image_shape
    return channels, height - height // 2, width // 2


def conv_features(image_shape: ImageShape, hidden: int, out_features: int) -> list[nn.Module]:
    """An image to two convolutions, ``hidden`` units and ``out_features`` features."""
    return [ConvEncoder(image_shape, CHANNELS, hidden), MLP(hidden, [], out_features)]


def conv_image(in_features: int, image_shape: ImageShape, *, flat: bool = False) -> ConvDecoder:
    """Features to an image, by the mirror of the two convolutions."""
    return ConvDecoder(in_features, CHANNELS[::-1], image_shape, flat=flat)


def conv_cvae(
    image_shape: ImageShape,
    latent_dim: int,
    hidden: int,
    *,
    noise: float,
    prior_scale: float = 1.0,
) -> ConditionalVAE:
    """Completes an image from its bottom left quarter; three sums of networks: mean and scale of q, mean of p.

    Arguments:
        image_shape: (C, H, W) of the whole image; target and covariate are flat, as :func:`pyro_vaes.data.complete`
            cuts it.
        latent_dim: Units of z.
        hidden: Units behind the convolutions of each encoder.
        noise: Standard deviation of p(y|z,x).
        prior_scale: Standard deviation of p(z).

    Example:
        >>> import torch
        >>> conv_cvae((1, 28, 28), 16, 100, noise=0.5).model(None, torch.zeros(5, 196)).shape
        torch.Size([5, 588])
    """
    quarter = quarter_shape(image_shape)

    def added() -> Added:
        of_target = nn.Sequential(WithHole(image_shape), *conv_features(image_shape, hidden, latent_dim))
        return Added(of_target, nn.Sequential(*conv_features(quarter, hidden, latent_dim)))

    encoder = AddedNormal(added(), added())
    of_quarter = nn.Sequential(
        ConvEncoder(quarter, CHANNELS, hidden),
        conv_image(hidden, image_shape),
        AroundHole(),
    )
    of_latent = nn.Sequential(conv_image(latent_dim, image_shape), AroundHole())
    return ConditionalVAE(
        encoder,
        Added(of_latent, of_quarter),
        GaussianLikelihood(noise),
        latent_dim,
        prior_scale=prior_scale,
    )


def conv_hierarchical_vae(
    image_shape: ImageShape,
    latent_dims: tuple[int, int],
    hidden: int,
    *,
    noise: float,
    prior_scale: float,
    encoder_scale: float,
) -> HierarchicalVAE:
    """tanh on all outputs; convolutions between flat images and z1, one hidden layer between z1 and z2.

    Example:
        >>> pair = conv_hierarchical_vae((1, 28, 28), (16, 16), 64, noise=0.5, prior_scale=0.5, encoder_scale=0.5)
        >>> pair.model(size=3).shape
        torch.Size([3, 784])
    """
    d1, d2 = latent_dims
    bottom = TanhNormal(nn.Sequential(*conv_features(image_shape, hidden, d1)), encoder_scale)
    top = TanhNormal(MLP(d1, [hidden], d2), MLP(d1, [hidden], d2))

    prior = TanhNormal(MLP(d2, [hidden], d1), noise)
    decoder = nn.Sequential(conv_image(d1, image_shape, flat=True), nn.Tanh())
    likelihood = GaussianLikelihood(noise)
    return HierarchicalVAE(
        [bottom, top],
        decoder,
        likelihood,
        latent_dims,
        priors=[prior],
        prior_scale=prior_scale,
    )
