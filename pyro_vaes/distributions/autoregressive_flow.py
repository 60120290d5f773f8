r"""The autoregressive flow, as a distribution with a parallel density.

    z_i = eps_i sigma_i(z_<i) + mu_i(z_<i),        eps ~ N(loc, scale²)
    eps_i = (z_i - mu_i(z_<i)) / sigma_i(z_<i),    log |det d eps / dz| = -sum_i log sigma_i

the first (sampling) one element after the other, the second (density) in parallel. Steps follow one another with the
order of the elements reversed in between: two of one order would compose into one triangular map. The inverse
autoregressive flow is the whitening map z -> eps used the other way round, to transform a posterior.

References:
    | Variational Lossy Autoencoder (Chen et al., 2017)
    | https://arxiv.org/abs/1611.02731
    | Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017)
    | https://arxiv.org/abs/1705.07057
"""

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import Normal
from torch import Tensor
from torch.distributions import constraints

from .vector_distribution import VectorDistribution

Step = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class AutoregressiveFlow(VectorDistribution):
    """A diagonal normal pushed through T autoregressive steps.

    Arguments:
        loc: Mean of eps, shape ``(..., D)``.
        scale: Standard deviation of eps, shape ``(..., D)``, positive.
        steps: T callables ``y (..., D) -> (mu, log_sigma)``, both ``(..., D)``, with element i a function of the
            elements before i. ``log_sigma`` None makes a mean-only step, whose log-determinant is 0. The first step is
            the one nearest z.

    Raises:
        ValueError: ``loc`` has no dimension for the event.

    Example:
        >>> def step(y):  # mu_1 = 0, mu_2 = y_1²
        ...     return torch.stack([torch.zeros_like(y[..., 0]), y[..., 0] ** 2], -1), None
        >>> p = AutoregressiveFlow(torch.zeros(2), torch.ones(2), [step])
        >>> eps, log_det = p.whiten(torch.tensor([3.0, 10.0]))
        >>> eps, p.colour(eps)
        (tensor([3., 1.]), tensor([ 3., 10.]))
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    has_rsample = True
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, steps: Sequence[Step], *, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or scale.dim() < 1:
            raise ValueError(
                f"loc and scale have shape (..., D), but got {tuple(loc.shape)} and {tuple(scale.shape)}; for one "
                "dimension use shape (1,)?"
            )
        self.steps = tuple(steps)
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    def whiten(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """eps of z with shape ``(..., D)``, and log |det d eps / dz| with shape ``(...)``; one parallel pass."""
        eps, log_det = value, torch.zeros_like(value[..., 0])
        for t, step in enumerate(self.steps):
            eps = eps.flip(-1) if t else eps
            mu, log_sigma = step(eps)
            eps = eps - mu
            if log_sigma is not None:
                eps, log_det = eps * torch.exp(-log_sigma), log_det - log_sigma.sum(-1)
        return eps, log_det

    def colour(self, eps: Tensor) -> Tensor:
        """z of eps, both with shape ``(..., D)``; D sequential calls of each step."""
        for t, step in reversed(list(enumerate(self.steps))):
            value = torch.zeros_like(eps)
            for i in range(eps.shape[-1]):
                mu, log_sigma = step(value)
                element = eps[..., i] if log_sigma is None else eps[..., i] * torch.exp(log_sigma[..., i])
                parts = [value[..., :i], (element + mu[..., i]).unsqueeze(-1), value[..., i + 1 :]]
                value = torch.cat(parts, -1)  # out of place, so that gradients flow
            eps = value.flip(-1) if t else value
        return eps

    def _log_density(self, value: Tensor) -> Tensor:
        eps, log_det = self.whiten(value)
        return Normal(self.loc, self.scale, validate_args=False).log_prob(eps).sum(-1) + log_det

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.colour(self.loc + self.scale * self._noise(sample_shape))
