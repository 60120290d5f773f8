"""Amortised flows as guides for any Pyro program: richer than a diagonal normal, cheaper than their covariance.

    z_0 ~ N(loc(x), diag scale(x)²),    z = T_x(z_0),    log q(z | x) = log q_0(z_0) - log |det dT_x / dz_0|

over all latent sites together, concatenated and unconstrained. The heads that go with them are in
:mod:`pyro_vaes.nn`.

References:
    | Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016)
    | https://arxiv.org/abs/1611.09630
    | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
    | https://arxiv.org/abs/1606.04934
"""

from pyro.distributions import TorchDistribution, TransformedDistribution

from pyro_vaes.distributions import HouseholderNormal, InverseAutoregressive

from .amortized import AmortizedGuide


class AmortizedHouseholder(AmortizedGuide):
    """The reflected normal over all latent sites together: a full covariance from a few vectors per datum.

    Arguments:
        model: Any Pyro program whose latents are continuous and lie in one data plate.
        encoder: Called with the model's arguments; returns a
            :class:`~pyro_vaes.distributions.HouseholderNormal`, as a network that ends in ``HouseholderHead`` does.

    Raises:
        ValueError: At the first call: the encoder returns something else.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, HouseholderHead
        >>> encoder = Chain(MLP(16, [8], 8), HouseholderHead(8, 3, flows=2))
        >>> vae = VAE(encoder, MLP(3, [8], 16), BernoulliLikelihood(), latent_dim=3)
        >>> AmortizedHouseholder(vae.model, encoder).posterior(torch.zeros(5, 16)).mean.shape
        torch.Size([5, 3])
    """

    family = HouseholderNormal
    needs = (
        "a HouseholderNormal",
        "put HouseholderHead behind the trunk, or use AmortizedNormal for a diagonal normal",
    )


class AmortizedIAF(AmortizedGuide):
    """The inverse autoregressive flow over all latent sites together; no normal in general.

    Draws know their density. That of other values is exact too, at as many passes of the networks as there are
    dimensions: multi-sample diagnostics that compare every draw with every datum take a while.

    Arguments:
        model: Any Pyro program whose latents are continuous and lie in one data plate.
        encoder: Called with the model's arguments; returns a distribution transformed by
            :class:`~pyro_vaes.distributions.InverseAutoregressive` steps, as a network that ends in ``IAFHead`` does.

    Raises:
        ValueError: At the first call: the encoder returns something else.

    Example:
        >>> import torch
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, IAFHead
        >>> encoder = Chain(MLP(16, [8], 8), IAFHead(8, 3, flows=2, hidden=[12]))
        >>> vae = VAE(encoder, MLP(3, [8], 16), BernoulliLikelihood(), latent_dim=3)
        >>> AmortizedIAF(vae.model, encoder)(torch.zeros(5, 16))["z"].shape
        torch.Size([5, 3])
    """

    needs = (
        "a flow with InverseAutoregressive steps",
        "put IAFHead behind the trunk, or use AmortizedNormal for a diagonal normal",
    )

    def _fits(self, q: TorchDistribution) -> bool:
        steps = q.transforms if isinstance(q, TransformedDistribution) else []
        return any(isinstance(step, InverseAutoregressive) for step in steps)
