"""The variational auto-encoder.

    p(x, z) = p(z) p(x | z),    q(z | x) given by the encoder

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
"""

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, StandardNormal, observe, of_length


class VAE(ProgramModule):
    """A model/guide pair with one latent vector per datum.

    Sites: ``"z"`` (latent) and ``"x"`` (observation) in the plate ``"data"``. Without ``x`` the same program draws
    ``size`` new data, so ``Predictive(vae.model, num_samples=64)()`` samples images.

    Arguments:
        encoder: ``x -> distribution`` over vectors of length ``latent_dim`` (or a pair ``(loc, scale)``).
        decoder: ``z -> parameters`` of the likelihood; leading dimensions of z are free.
        likelihood: ``parameters -> distribution`` of x, see :mod:`pyro_vaes.nn.likelihoods`.
        latent_dim: Dimension d of z.
        prior: A module whose ``forward()`` returns the distribution of z, event shape ``(d,)``; None for
            N(0, prior_scale² I).
        prior_scale: Standard deviation of the prior where none is given.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> encoder = Chain(MLP(64, [32], 32), NormalHead(32, 4))
        >>> vae = VAE(encoder, MLP(4, [32], 64), BernoulliLikelihood(), latent_dim=4)
        >>> vae.model(size=3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dim: int,
        *,
        prior: nn.Module | None = None,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.prior = StandardNormal(latent_dim, prior_scale) if prior is None else prior
        self.latent_dim = latent_dim

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program; ``x`` with shape ``(B, ...)`` is observed, or ``size`` data are drawn."""
        with self.data_plate(x, size):
            z = pyro.sample("z", self.prior())
            return observe("x", self.likelihood(self.decoder(z)), x)

    @pyro_method
    def guide(self, x: Tensor, **_: object) -> Tensor:
        """The recognition program; same arguments as :meth:`model`."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) with batch shape ``(B,)`` and event shape ``(d,)``."""
        return of_length(self.encoder(x), self.latent_dim, self.encoder)
