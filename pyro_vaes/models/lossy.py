r"""The variational lossy auto-encoder: an autoregressive flow prior and an autoregressive decoder.

    z = f(eps),    eps ~ N(0, I),    x ~ prod_i p(x_i | z, x_window(i)),    q(z | x) given by the encoder

What the decoder can model without z it models without z, for every use of z costs KL(q(z | x) || p(z | x)): the window
of the decoder decides what z holds. With eps = f⁻¹(z) the bound is that of an inverse autoregressive flow posterior
over eps with the decoder p(x | f(eps)), a deeper one at the same cost:

    E_q[log p(x | z) + log p(z) - log q(z | x)] = E_q[log p(x | f(eps)) + log N(eps; 0, I) - log q(eps | x)]

Named in full, since "VLAE" has meant the ladder and the Laplace auto-encoder as well.

References:
    | Variational Lossy Autoencoder (Chen et al., 2017)
    | https://arxiv.org/abs/1611.02731
"""

import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import AutoregressiveLikelihood, AutoregressivePrior, ProgramModule, observe

from .vae import VAE


class LossyVAE(VAE):
    """A :class:`VAE` with a flow prior and a decoder that makes the context of an autoregressive likelihood.

    Sites, model and guide are those of :class:`VAE`. ``lossy.prior().whiten(z)`` gives eps, for a comparison of the
    aggregate posterior with N(0, I); draws of the prior itself come from the flow.

    Arguments:
        encoder: ``x -> distribution`` over vectors of length ``latent_dim`` (or a pair ``(loc, scale)``).
        decoder: ``z -> context`` with shape ``(..., *likelihood.context_shape)``; leading dimensions of z are free.
        likelihood: ``context -> distribution`` of x: an :class:`AutoregressiveLikelihood`; a factorised likelihood
            makes the paper's "AF VAE".
        latent_dim: Dimension d of z.
        prior: A module whose ``forward()`` returns the distribution of z, event shape ``(d,)``; the paper's mean-only
            flow with 4 steps, ``AutoregressivePrior(latent_dim)``, by default.

    Raises:
        ValueError: The decoder's output is not the context that the likelihood takes (at the first call).

    Example:
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, ConvDecoder, ConvEncoder, NormalHead
        >>> from pyro_vaes.nn import AutoregressivePrior, PixelCNN, pixel_cnn_layers
        >>> encoder = Chain(ConvEncoder((1, 8, 8), [8], 32), NormalHead(32, 4))
        >>> network = PixelCNN((1, 8, 8), 8, pixel_cnn_layers(2), context_channels=4)
        >>> likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)
        >>> prior = AutoregressivePrior(4, [16], steps=2)
        >>> lossy = LossyVAE(encoder, ConvDecoder(4, [8], (4, 8, 8)), likelihood, latent_dim=4, prior=prior)
        >>> lossy.model(size=3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dim: int,
        *,
        prior: nn.Module | None = None,
    ) -> None:
        prior = AutoregressivePrior(latent_dim) if prior is None else prior
        super().__init__(encoder, decoder, likelihood, latent_dim, prior=prior)


class UnconditionalDecoder(ProgramModule):
    """The same autoregressive network without z: its context is a constant that is learned. The decoder's own baseline.

    The site ``"x"`` lies in the plate ``"data"``; there is no latent site, so the bound is log p(x) itself.

    Arguments:
        likelihood: An :class:`AutoregressiveLikelihood` built as that of the model with z, for a model of its own.

    Example:
        >>> from pyro_vaes.nn import BernoulliLikelihood, PixelCNN, pixel_cnn_layers
        >>> network = PixelCNN((1, 8, 8), 8, pixel_cnn_layers(2), context_channels=4)
        >>> decoder = UnconditionalDecoder(AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network))
        >>> decoder.model(size=3).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, likelihood: AutoregressiveLikelihood) -> None:
        super().__init__()
        if not isinstance(likelihood, AutoregressiveLikelihood):
            raise ValueError(
                f"UnconditionalDecoder takes an AutoregressiveLikelihood, but got {type(likelihood).__name__}; a "
                "factorised likelihood without latents would be one distribution per pixel."
            )
        self.likelihood = likelihood
        self.context = nn.Parameter(torch.zeros(likelihood.context_shape))

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program; ``x`` with shape ``(B, ...)`` is observed, or ``size`` data are drawn."""
        with self.data_plate(x, size):
            return observe("x", self.likelihood(self.context), x)

    @pyro_method
    def guide(self, x: Tensor, **_: object) -> None:
        """Nothing to infer; same arguments as :meth:`model`."""
