"""The conditional variational auto-encoder.

    p(x, z | c) = p(z | c) p(x | z, c),    q(z | x, c),    with p(z | c) = p(z) unless a prior network is given

The covariate c may be labels, any tensor, or a part of the image of which x is the rest.

References:
    | Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee & Yan, 2015)
    | https://papers.nips.cc/paper/5775
"""

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, StandardNormal, observe, of_length


class ConditionalVAE(ProgramModule):
    """A model/guide pair with one latent vector per datum, given a covariate.

    Sites: ``"z"`` and ``"x"`` in the plate ``"data"``. ``model(None, c)`` draws one x for each covariate, as for
    class-conditional samples or image completion.

    Arguments:
        encoder: ``(x, c) -> distribution`` over vectors of length ``latent_dim`` (or a pair ``(loc, scale)``).
        decoder: ``(z, c) -> parameters`` of the likelihood.
        likelihood: ``parameters -> distribution`` of x.
        latent_dim: Dimension d of z.
        prior: ``c -> distribution`` of z; None for N(0, prior_scale² I) whatever c.
        embedding: Applied to the covariate before every network, for example ``OneHot(10)`` for labels.
        prior_scale: Standard deviation of the prior where there is no prior network.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead, OneHot
        >>> encoder = Chain(MLP(64 + 10, [32], 32), NormalHead(32, 4))
        >>> decoder = MLP(4 + 10, [32], 64)
        >>> cvae = ConditionalVAE(encoder, decoder, BernoulliLikelihood(), latent_dim=4, embedding=OneHot(10))
        >>> cvae.model(None, torch.arange(10)).shape
        torch.Size([10, 64])
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dim: int,
        *,
        prior: nn.Module | None = None,
        embedding: nn.Module | None = None,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim = latent_dim
        self.marginal_prior = StandardNormal(latent_dim, prior_scale) if prior is None else None
        self.conditional_prior = prior
        self.embedding = nn.Identity() if embedding is None else embedding

    @pyro_method
    def model(self, x: Tensor | None, covariate: Tensor) -> Tensor:
        """The generative program; x with shape ``(B, ...)`` or None, covariate with shape ``(B, ...)``."""
        if x is not None and len(x) != len(covariate):
            raise ValueError(f"x has {len(x)} rows but the covariate has {len(covariate)}; they must belong together.")
        with pyro.plate("data", len(covariate)):
            c = self.embedding(covariate)
            z = pyro.sample("z", self.prior(c))
            return observe("x", self.likelihood(self.decoder(z, c)), x)

    @pyro_method
    def guide(self, x: Tensor, covariate: Tensor) -> Tensor:
        """The recognition program; same arguments as :meth:`model`."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, covariate))

    def posterior(self, x: Tensor, covariate: Tensor) -> TorchDistribution:
        """q(z | x, c) with batch shape ``(B,)`` and event shape ``(d,)``."""
        return of_length(self.encoder(x, self.embedding(covariate)), self.latent_dim, self.encoder)

    def prior(self, embedded: Tensor) -> TorchDistribution:
        """p(z | c) for an embedded covariate."""
        if self.marginal_prior is not None:
            return self.marginal_prior()
        network = self.conditional_prior
        assert network is not None
        return of_length(network(embedded), self.latent_dim, network, source="the prior network")
