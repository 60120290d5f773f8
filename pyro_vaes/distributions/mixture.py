r"""Finite mixtures of components of one family, with the component of a draw within reach.

p(z) = sum_k pi_k p(z | k),    log p(z, k) = log pi_k + log p(z | k),    p(k | z) = p(z, k) / p(z)
"""

import torch
from pyro.distributions import MixtureSameFamily
from torch import Tensor
from torch.distributions import constraints


class Mixture(MixtureSameFamily):
    """:class:`~pyro.distributions.MixtureSameFamily` on the support of its components, with its joint density.

    Pyro's own has a support onto which :func:`~torch.distributions.biject_to` knows no map, so that no guide can be
    made for a latent site that it is the prior of. All densities are computed in log space.

    Arguments:
        mixture_distribution: A ``Categorical`` over the K components.
        component_distribution: The components, with batch shape ``(..., K)`` and a support that does not depend on k.

    Example:
        >>> from pyro.distributions import Categorical, Normal
        >>> p = Mixture(Categorical(logits=torch.zeros(3)), Normal(torch.randn(3, 2), 1.0).to_event(1))
        >>> p.event_shape, p.log_joint(torch.zeros(5, 2)).shape, p.responsibilities(torch.zeros(5, 2)).sum(-1)
        (torch.Size([2]), torch.Size([5, 3]), tensor([1., 1., 1., 1., 1.]))
    """

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.component_distribution.support

    def log_joint(self, value: Tensor) -> Tensor:
        """log pi_k + log p(value | k), with shape ``(..., K)``."""
        weights = torch.log_softmax(self.mixture_distribution.logits, -1)
        return weights + self.component_distribution.log_prob(self._pad(value))

    def responsibilities(self, value: Tensor) -> Tensor:
        """p(k | value), with shape ``(..., K)``; they sum to one over k."""
        return torch.softmax(self.log_joint(value), -1)
