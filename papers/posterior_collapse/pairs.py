r"""The pairs of the collapse paper, linear and not: fixed noise, one normal prior, hidden layers without tricks.

    VAE              p(x|z)   = N(f(z), noise²)                q(z|x)
    conditional VAE  p(y|z,x) = N(f(z) + g(x), noise²)         q(z|x,y), a network per argument, outputs added
    hierarchical     p(z1|z2) = N(tanh f(z2), noise²)          q(z1|x) = N(tanh f(x), scale²), q(z2|z1)
                     p(x|z1)  = N(tanh f(z1), noise²)

Linear pairs have no biases and an encoder scale that all data share; two stacked linear layers instead of a hidden one
are a :func:`relu_cvae` without activation. With convolutions: :mod:`papers.posterior_collapse.conv_pairs`.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024), experiments and released code
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Callable

from torch import Tensor, nn

from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead, bounded_scale

__all__ = [
    "Added",
    "AddedNormal",
    "TanhNormal",
    "linear_cvae_pair",
    "linear_hierarchical_pair",
    "linear_vae_pair",
    "relu_cvae",
    "relu_hierarchical_vae",
    "relu_vae",
]


class Added(nn.Module):
    """The sum of what several networks return, each of an argument of its own.

    Arguments:
        branches: A network for each argument; leading dimensions of what they return broadcast.

    Example:
        >>> import torch
        >>> Added(MLP(4, [16], 3), MLP(6, [16], 3))(torch.zeros(5, 4), torch.zeros(5, 6)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *rest = (branch(x) for branch, x in zip(self.branches, inputs, strict=True))
        return sum(rest, first)


class AddedNormal(nn.Module):
    """Mean and standard deviation of a normal, each by an :class:`Added` of its own.

    Arguments:
        loc: The mean.
        raw_scale: The standard deviation before :func:`~pyro_vaes.nn.heads.bounded_scale`. The authors take a network's
            output as it is, of either sign.
    """

    def __init__(self, loc: Added, raw_scale: Added) -> None:
        super().__init__()
        self.loc, self.raw_scale = loc, raw_scale

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(*inputs), bounded_scale(self.raw_scale(*inputs))


class TanhNormal(nn.Module):
    """A normal whose mean is the tanh of a network.

    The authors take the tanh of another one, of either sign, for the standard deviation; here it is the sigmoid, which
    has the same range and one sign.

    Arguments:
        loc: The network of the mean.
        scale: A fixed standard deviation, or the network of one between 0 and 1 that depends on the input.
    """

    def __init__(self, loc: nn.Module, scale: nn.Module | float) -> None:
        super().__init__()
        self.loc = loc
        self.raw_scale = scale if isinstance(scale, nn.Module) else None
        self.scale = None if isinstance(scale, nn.Module) else scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.loc(x).tanh()
        if self.raw_scale is None:
            assert self.scale is not None
            return loc, loc.new_full((), self.scale).expand_as(loc)
        return loc, self.raw_scale(x).sigmoid() + 1e-3  # never 0, where the density has no bound


def relu_vae(
    features: int,
    latent_dim: int,
    hidden: int,
    *,
    noise: float,
    scale: float | None = None,
) -> VAE:
    """One hidden layer to either side; the encoder's scale depends on x, or is fixed."""
    head = NormalHead(hidden, latent_dim, scale=scale)
    encoder = Chain(MLP(features, [], hidden, activate_output=True), head)
    return VAE(
        encoder,
        MLP(latent_dim, [hidden], features),
        GaussianLikelihood(noise),
        latent_dim,
    )


def relu_cvae(
    target: int,
    covariate: int,
    latent_dim: int,
    hidden: int,
    *,
    noise: float,
    prior_scale: float = 1.0,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> ConditionalVAE:
    """One hidden layer for each argument, added; three such sums: mean and scale of q, mean of p.

    With ``activation=nn.Identity`` the paper's linear version: two stacked linear layers in each branch, with the
    biases and the data-dependent scale of q of the ReLU pair. Its forecast is that of wide layers: for MNIST's digit 2,
    with the settings of E6, 256 hidden units reach the 10.1 nats in 16 units, 16 hidden ones stop at 5 nats in 5 units.
    """

    def added(features: tuple[int, ...], out_features: int) -> Added:
        return Added(*(MLP(f, [hidden], out_features, activation=activation) for f in features))

    loc, raw_scale = (added((target, covariate), latent_dim) for _ in range(2))
    return ConditionalVAE(
        AddedNormal(loc, raw_scale),
        added((latent_dim, covariate), target),
        GaussianLikelihood(noise),
        latent_dim,
        prior_scale=prior_scale,
    )


def relu_hierarchical_vae(
    features: int,
    latent_dims: tuple[int, int],
    hidden: int,
    *,
    noise: float,
    prior_scale: float,
    encoder_scale: float,
) -> HierarchicalVAE:
    """tanh on all outputs; q(z1|x) has a fixed scale, p(z1|z2) and p(x|z1) have the scale ``noise``."""
    d1, d2 = latent_dims
    bottom = TanhNormal(MLP(features, [hidden], d1), encoder_scale)
    top = TanhNormal(MLP(d1, [hidden], d2), MLP(d1, [hidden], d2))

    prior = TanhNormal(MLP(d2, [hidden], d1), noise)
    decoder = nn.Sequential(MLP(d1, [hidden], features), nn.Tanh())
    likelihood = GaussianLikelihood(noise)
    return HierarchicalVAE(
        [bottom, top],
        decoder,
        likelihood,
        latent_dims,
        priors=[prior],
        prior_scale=prior_scale,
    )


def linear_head(features: int, units: int, scale: float | Tensor | None) -> NormalHead:
    """A linear mean and one scale for all data: learnt from 1 on if it is None, else fixed."""
    return NormalHead(
        features,
        units,
        scale=1.0 if scale is None else scale,
        learn_scale=scale is None,
        bias=False,
    )


def linear_vae_pair(
    features: int,
    latent_dim: int,
    *,
    noise: float = 1.0,
    prior_scale: float = 1.0,
    encoder_scale: float | Tensor | None = None,
) -> VAE:
    """p(x|z) = N(Uz, noise²), q(z|x) = N(Wx, scale²)."""
    encoder = linear_head(features, latent_dim, encoder_scale)
    decoder = MLP(latent_dim, [], features, bias=False)
    likelihood = GaussianLikelihood(noise)
    return VAE(encoder, decoder, likelihood, latent_dim, prior_scale=prior_scale)


def linear_cvae_pair(
    target: int,
    covariate: int,
    latent_dim: int,
    *,
    noise: float = 1.0,
    prior_scale: float = 1.0,
) -> ConditionalVAE:
    """p(y|z,x) = N(U1 z + U2 x, noise²), q(z|x,y) = N(W1 x + W2 y, scale²): one matrix for (z, x), one for (y, x)."""
    encoder = linear_head(target + covariate, latent_dim, None)
    decoder = MLP(latent_dim + covariate, [], target, bias=False)
    return ConditionalVAE(encoder, decoder, GaussianLikelihood(noise), latent_dim, prior_scale=prior_scale)


def linear_hierarchical_pair(
    features: int,
    latent_dims: tuple[int, int],
    *,
    noise: float = 1.0,
    prior_scale: float = 1.0,
    encoder_scales: tuple[float | None, float | None],
) -> HierarchicalVAE:
    """p(z1|z2) = N(U2 z2, noise²), p(x|z1) = N(U1 z1, noise²), q(z1|x) = N(W1 x, scale1²), q(z2|z1) likewise."""
    d1, d2 = latent_dims
    encoders = [
        linear_head(features, d1, encoder_scales[0]),
        linear_head(d1, d2, encoder_scales[1]),
    ]
    priors, decoder = [linear_head(d2, d1, noise)], MLP(d1, [], features, bias=False)
    likelihood = GaussianLikelihood(noise)
    return HierarchicalVAE(encoders, decoder, likelihood, latent_dims, priors=priors, prior_scale=prior_scale)
