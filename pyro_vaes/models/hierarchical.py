"""The hierarchical variational auto-encoder with L levels, level 1 nearest the data.

    Markovian:   p(x, z) = p(z_L) prod_l p(z_l | z_{l+1}) p(x | z_1)
    with skips:  p(x, z) = p(z_L) prod_l p(z_l | z_{l+1..L}) p(x | z_{1..L})

    bottom-up guide:  q(z_1 | x) prod_l q(z_{l+1} | z_l)              (with skips: given z_l, .., z_1 and x)
    top-down guide:   q(z_L | x) prod_l q(z_l | x, z_{l+1})           (with skips: given x and z_{l+1}, .., z_L)

A bottom-up guide draws z_1 before z_2, on which p(z_1 | z_2) depends, so analytic KL divergences
(:class:`~pyro.infer.TraceMeanField_ELBO`) are wrong for it; use :class:`~pyro.infer.Trace_ELBO`.

References:
    | Ladder Variational Autoencoders (Sønderby et al., 2016)
    | https://arxiv.org/abs/1602.02282
    | Beyond Vanilla Variational Autoencoders (Dang et al., 2024)
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Sequence

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, StandardNormal, observe, of_length


class HierarchicalVAE(ProgramModule):
    """A model/guide pair with the latent sites ``"z_1" .. "z_L"`` nested in the plate ``"data"``.

    Arguments:
        encoders: L modules that return distributions, of z_1, .., z_L in this order, given what the guide above says,
            in the order in which it is listed there.
        decoder: ``z_1 -> parameters`` (with skips: ``(z_1, .., z_L)``).
        likelihood: ``parameters -> distribution`` of x.
        latent_dims: Dimensions of z_1, .., z_L.
        priors: L - 1 modules that return the distributions of z_1, .., z_{L-1} given z_{l+1} (with skips: given
            z_{l+1}, .., z_L).
        skip: Whether there are skip connections.
        top_down: Whether the guide runs from the top.
        prior_scale: Standard deviation of the top prior.

    Example:
        >>> import torch
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> encoders = [Chain(MLP(64, [32], 32), NormalHead(32, 4)), Chain(MLP(4, [32], 32), NormalHead(32, 2))]
        >>> priors = [Chain(MLP(2, [32], 32), NormalHead(32, 4))]
        >>> hvae = HierarchicalVAE(encoders, MLP(4, [32], 64), BernoulliLikelihood(), [4, 2], priors=priors)
        >>> hvae.model(size=3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        decoder: nn.Module,
        likelihood: nn.Module,
        latent_dims: Sequence[int],
        *,
        priors: Sequence[nn.Module],
        skip: bool = False,
        top_down: bool = False,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__()
        levels = len(latent_dims)
        if levels < 1 or len(encoders) != levels or len(priors) != levels - 1:
            raise ValueError(
                f"{levels} latent_dims need {levels} encoders and {levels - 1} priors (the top level's prior is "
                f"N(0, I)), but got {len(encoders)} encoders and {len(priors)} priors."
            )

        self.encoders, self.priors = nn.ModuleList(encoders), nn.ModuleList(priors)
        self.decoder, self.likelihood = decoder, likelihood
        self.top_prior = StandardNormal(latent_dims[-1], prior_scale)
        self.latent_dims = tuple(latent_dims)
        self.skip, self.top_down = skip, top_down

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """The generative program; ``x`` with shape ``(B, ...)`` is observed, or ``size`` data are drawn."""
        levels = len(self.latent_dims)
        with self.data_plate(x, size):
            z = [pyro.sample(f"z_{levels}", self.top_prior())]  # z[0] is the lowest level so far
            for level in range(levels - 1, 0, -1):
                prior = self._latent(self.priors[level - 1], self._parents(z), level, f"the prior of z_{level}")
                z.insert(0, pyro.sample(f"z_{level}", prior))
            return observe("x", self.likelihood(self.decoder(*self._parents(z))), x)

    def _latent(self, network: nn.Module, inputs: list[Tensor], level: int, source: str) -> TorchDistribution:
        """What a network says about z_level, whose length is compared."""
        length, argument = self.latent_dims[level - 1], f"latent_dims[{level - 1}]"
        return of_length(network(*inputs), length, network, source=source, argument=argument)

    def _parents(self, above: list[Tensor]) -> list[Tensor]:
        return above if self.skip else above[:1]

    @pyro_method
    def guide(self, x: Tensor, **_: object) -> None:
        """The recognition program; same arguments as :meth:`model`."""
        levels = range(1, len(self.latent_dims) + 1)
        z: list[Tensor] = []  # z[0] is the level drawn last
        with pyro.plate("data", len(x)):
            for level in reversed(levels) if self.top_down else levels:
                inputs = [x, *self._parents(z)] if self.top_down else self._parents([*z, x])
                q = self._latent(self.encoders[level - 1], inputs, level, f"the encoder of z_{level}")
                z.insert(0, pyro.sample(f"z_{level}", q))
