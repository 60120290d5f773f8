r"""What n diagonal normals are together: their uniform mixture, and the one Gaussian with its moments.

    q(z) = 1/n sum_i N(mu_i, diag sigma_i²)
    m_k = mean_i mu_ik,    V_k = mean_i (mu_ik - m_k)²
    N(m, V)                        the Gaussian of the means alone
    N(m, V + mean_i sigma_i²)      the Gaussian with the mixture's own means and variances

References:
    | How to Train Your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.kl import register_kl

from .vector_distribution import VectorDistribution, base_normal

Moment = Literal["means", "mixture"]
MAX_ELEMENTS = 2**22  # of a tensor of draws, posteriors and units
SMALL = 1e-8  # as released: the variance ratio at which the logarithm of the KL stops running off to minus infinity


class _Posteriors(VectorDistribution):
    """A distribution over vectors made of n diagonal normals, with means and standard deviations ``(..., n, d)``."""

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 2 or scale.dim() < 2 or loc.shape[-2:] != scale.shape[-2:]:
            raise ValueError(
                f"loc and scale are those of n posteriors over d units, with shape (..., n, d), but got "
                f"{tuple(loc.shape)} and {tuple(scale.shape)}; scale.expand_as(loc)?"
            )
        self.num_posteriors = loc.shape[-2]
        super().__init__(loc=loc, scale=scale, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc.mean(-2)

    @property
    def variance(self) -> Tensor:
        return self.loc.var(-2, correction=0) + self.scale.square().mean(-2)


class AggregateGaussian(_Posteriors):
    """The Gaussian, diagonal, that is fitted to n posteriors.

    Its KL divergence from a diagonal normal is a closed form, and finite where the means coincide: below a variance of
    1e-8 times the prior's, the logarithm goes on along its tangent.

    Arguments:
        loc: The posteriors' means, with shape ``(..., n, d)``.
        scale: Their standard deviations, likewise.
        moment: ``"means"`` for N(m, V), in which the standard deviations have no part (as released), or ``"mixture"``
            for N(m, V + mean_i sigma_i²), which has the moments of :class:`MixturePosterior`.

    Raises:
        ValueError: The shapes do not fit, ``moment`` is unknown, or a single mean is asked for its variance.

    Example:
        >>> q = AggregateGaussian(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.5))
        >>> q.mean, q.variance, torch.distributions.kl_divergence(q, Normal(0.0, 1.0).expand([1]).to_event(1))
        (tensor([0.]), tensor([1.]), tensor(0.))
        >>> AggregateGaussian(q.loc, q.scale, "mixture").variance
        tensor([1.2500])
    """

    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, moment: Moment = "means", validate_args: bool | None = None) -> None:
        if moment not in get_args(Moment):
            raise ValueError(f"moment must be one of {get_args(Moment)}, but got {moment!r}.")
        super().__init__(loc, scale, validate_args=validate_args)
        if moment == "means" and self.num_posteriors < 2:
            raise ValueError(
                f"The variance of the means of {self.num_posteriors} posterior is 0, which makes no Gaussian: give at "
                "least two, or moment='mixture'?"
            )
        self.moment = moment

    @property
    def variance(self) -> Tensor:
        if self.moment == "means":
            return self.loc.var(-2, correction=0)
        return super().variance

    def _normal(self) -> TorchDistribution:
        return Normal(self.mean, self.variance.sqrt(), validate_args=False).to_event(1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self._normal().rsample(sample_shape)

    def _log_density(self, value: Tensor) -> Tensor:
        return self._normal().log_prob(value)

    def entropy(self) -> Tensor:
        return self._normal().entropy()

    def kl_units(self, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
        """KL(N(m_k, V_k) || N(loc_k, scale_k²)) of each unit k, nats, with shape ``(..., d)``."""
        ratio = self.variance / scale**2
        log_ratio = ratio.clamp(min=SMALL).log() + (ratio.clamp(max=SMALL) / SMALL - 1)
        return -0.5 * (1 + log_ratio - ((self.mean - loc) / scale).square() - ratio)


class MixturePosterior(_Posteriors):
    """The uniform mixture of n posteriors, the aggregate posterior of the n data themselves.

    Arguments:
        loc: The posteriors' means, with shape ``(..., n, d)``.
        scale: Their standard deviations, likewise.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> q = MixturePosterior(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.5))
        >>> q.sample((3,)).shape, q.variance
        (torch.Size([3, 1]), tensor([1.2500]))
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        with torch.no_grad():
            wide = self.expand(torch.Size(sample_shape) + self.batch_shape)
            index = torch.randint(self.num_posteriors, wide.batch_shape, device=self.loc.device)
            index = index[..., None, None]  # (*S, *B, 1, 1) of (*S, *B, n, d)

            loc = wide.loc.take_along_dim(index, -2).squeeze(-2)
            scale = wide.scale.take_along_dim(index, -2).squeeze(-2)
            return loc + scale * torch.randn_like(loc)

    def _log_density(self, value: Tensor) -> Tensor:
        log_q = self._parts().log_prob(value.unsqueeze(-2))  # (..., n)
        return log_q.logsumexp(-1) - math.log(self.num_posteriors)

    def _parts(self) -> TorchDistribution:
        return Normal(self.loc, self.scale, validate_args=False).to_event(1)

    def kl_estimate(self, p: TorchDistribution, num_samples: int = 100) -> tuple[Tensor, Tensor]:
        """KL(q || p) for a mixture without batch shape, from draws of each posterior in turn, and its standard error.

        Arguments:
            p: The other distribution, of the same vectors.
            num_samples: Draws of each posterior, at least 2.

        Returns:
            Both in nats, with shape ``()``.

        Raises:
            ValueError: ``num_samples`` is below 2, or there is a batch shape.
        """
        return self._average(lambda z, log_q, _: log_q - p.log_prob(z), num_samples)

    def information(self, num_samples: int = 4) -> tuple[Tensor, Tensor]:
        """I(i; z) = mean_i KL(q_i || q), what a draw tells of the posterior that it is from, and its standard error.

        It lies between 0 and log n, and no estimate exceeds log n. Arguments, results and errors are those of
        :meth:`kl_estimate`.
        """
        return self._average(lambda _, log_q, own: own - log_q, num_samples)

    def _average(
        self, integrand: Callable[[Tensor, Tensor, Tensor], Tensor], num_samples: int
    ) -> tuple[Tensor, Tensor]:
        """The mean over the mixture of a function of z, log q(z) and log q_i(z), z ~ q_i, and its standard error."""
        if num_samples < 2 or self.batch_shape:
            raise ValueError(
                f"The estimate is of one mixture from at least 2 draws of each of its parts, but got batch shape "
                f"{tuple(self.batch_shape)} and num_samples={num_samples}."
            )

        parts = self._parts()
        rows = max(1, MAX_ELEMENTS // self.loc.numel())
        values = []
        for z in parts.sample(torch.Size([num_samples])):  # (n, d), one draw of each
            log_q = torch.cat([self.log_prob(some) for some in z.split(rows)])
            values.append(integrand(z, log_q, parts.log_prob(z)))

        value = torch.stack(values)  # (S, n)
        return value.mean(), value.var(0).mean().div(value.numel()).sqrt()


@register_kl(AggregateGaussian, torch.distributions.Normal)
def _kl_normal(p: AggregateGaussian, q: torch.distributions.Normal) -> Tensor:
    return p.kl_units(q.loc, q.scale).sum(-1)  # the last batch dimension of q are the independent units


@register_kl(AggregateGaussian, Independent)
def _kl_diagonal_normal(p: AggregateGaussian, q: Independent) -> Tensor:
    return _kl_normal(p, base_normal(p, q))
