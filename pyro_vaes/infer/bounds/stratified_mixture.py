"""The evidence lower bound of a mixture guide, with a draw from each component.

    L(Q) = sum_n sum_m alpha_m(x_n) E_{q_m}[ log p(x_n, z_m) - log Q(z_m | x_n) ]

References:
    | Recursive Inference for Variational Autoencoders (Kim & Pavlovic, 2020)
    | https://arxiv.org/abs/2011.08544
"""

import math

from torch import Tensor

from pyro_vaes.programs import Program

from .component_draws import MixtureBound


class StratifiedMixture_ELBO(MixtureBound):
    """The bound of :class:`~pyro.infer.Trace_ELBO` for a mixture guide, without its score function.

    One draw picks a component, which leaves no pathwise gradient for the weights; a draw from each component, weighted,
    has the same expectation, an exact gradient for the weights and reparameterised gradients for the components. All of
    components, weights and model are trained on the one bound: plain ("blind") mixture estimation.

    Arguments:
        num_particles: Draws from each component.
        vectorize_components: Whether the model runs on all draws at once, broadcasting over a leading dimension; else
            on one component after the other.

    Raises:
        ValueError: ``num_particles`` is below 1; at the first call, the guide does not sample from one
            :class:`~pyro_vaes.distributions.RecursiveMixture`.

    Example:
        >>> import torch
        >>> from pyro_vaes.guides import AmortizedMixture
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead, WeightHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> guide = AmortizedMixture(vae.model, [NormalHead(3, 2), NormalHead(3, 2)], [WeightHead(3)])
        >>> StratifiedMixture_ELBO().differentiable_loss(vae.model, guide, torch.zeros(4, 3)).shape
        torch.Size([])
    """

    def __init__(self, num_particles: int = 1, *, vectorize_components: bool = True) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
        super().__init__(num_particles=num_particles)
        self.vectorize_components = vectorize_components

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-L(Q), differentiable with respect to everything."""
        draws = self._draw(model, guide, args, num_particles=self.num_particles)

        # each component's weight is shared by its draws
        log_alpha = draws.log_alpha.repeat_interleave(self.num_particles, 0)
        return -draws.bound(log_alpha - math.log(self.num_particles))
