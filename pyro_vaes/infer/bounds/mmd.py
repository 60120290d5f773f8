"""The bound's KL divergence replaced by the maximum mean discrepancy between aggregate posterior and prior (MMD-VAE).

    L = sum_n E log p(x_n | z_n) - kappa sum_n E log q(z_n | x_n) / p(z_n) - lambda N sum_l MMD²(q(z_l), p(z_l))
    MMD²(q, p) = E k(z, z') - 2 E k(z, y) + E k(y, y'),    z, z' ~ q(z) = E_n q(z | x_n),    y, y' ~ p(z)

with one term for each latent site l. InfoVAE's alpha and lambda are ``kappa = 1 - alpha`` and
``lambda = alpha + lambda_InfoVAE - 1``. With kappa = 0 the objective is no bound on log p(x).

References:
    | InfoVAE: Balancing Learning and Inference in Variational Autoencoders (Zhao, Song & Ermon, 2019)
    | https://arxiv.org/abs/1706.02262
    | A Kernel Two-Sample Test (Gretton et al., 2012)
    | https://jmlr.org/papers/v13/gretton12a.html
"""

from collections.abc import Callable

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import (
    DENSITIES,
    DataPlate,
    Program,
    Role,
    find_data_plate,
    is_latent,
    log_density,
    log_density_sum,
    sites,
)

from .bound import Args, Bound, found_once

Kernel = Callable[[Tensor, Tensor], Tensor]


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The authors' kernel ``exp(-|x - y|² / d²)`` of all pairs.

    Arguments:
        x, y: Points, with shapes ``(N, d)`` and ``(M, d)``.

    Returns:
        Tensor with shape ``(N, M)``.

    Example:
        >>> gaussian_kernel(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        tensor([[1.0000, 0.3679]])
    """
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1) - 2 * x @ y.mT
    return torch.exp(-squares / x.shape[-1] ** 2)


def maximum_mean_discrepancy(
    x: Tensor, y: Tensor, *, kernel: Kernel = gaussian_kernel, weight: Tensor | None = None
) -> Tensor:
    """MMD² between two samples, the biased estimate that keeps the diagonals, which is never negative.

    Between samples of N from one distribution it is ``2 (1 - E k) / N`` in expectation rather than 0.

    Arguments:
        x, y: Draws, with shape ``(N, d)`` each.
        kernel: ``(x, y) -> `` Gram matrix, positive definite.
        weight: Of the rows of both, ``(N,)``; equal by default.

    Example:
        >>> maximum_mean_discrepancy(torch.zeros(4, 1), torch.zeros(4, 1))
        tensor(0.)
    """
    weight = x.new_ones(len(x)) if weight is None else weight
    share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)  # all rows may be masked
    return share @ (kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)) @ share


class MMD_ELBO(Bound):
    """The objective of MMD-VAE and InfoVAE, for any pair whose guide is reparameterised.

    Each latent site's draws are compared, over the batch, with draws from its prior (given the guide's draws of
    the sites on which that depends), so the batch should be large; draws come from torch's global generator. Only draws
    of the guide are needed, so guides that draw all sites from one joint distribution will do. Masks take rows out,
    scales weigh them: a KL weight (``scale_latents``) weighs the discrepancy too.

    Arguments:
        weight: lambda, the nats per datum that an MMD² of 1 costs in each site, 0 or more. The authors' ladder has the
            loss ``100 mean|x - mean| + 100 sum_l MMD²``, which is this objective up to a factor for a Laplace
            likelihood of scale b on n pixels with ``weight = n / b``.
        kl_weight: kappa, the share of the KL divergence that is kept, 0 or more.
        kernel: ``(x, y) -> `` Gram matrix of the rows.

    Raises:
        ValueError: A weight is negative; at the first call, the guide is not reparameterised, nor a prior that learns.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, GaussianLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), GaussianLikelihood(), latent_dim=2)
        >>> MMD_ELBO(10.0).differentiable_loss(vae.model, vae.guide, torch.zeros(4, 3)).shape
        torch.Size([])
    """

    def __init__(self, weight: float, *, kl_weight: float = 0.0, kernel: Kernel = gaussian_kernel) -> None:
        if not weight >= 0 or not kl_weight >= 0:
            raise ValueError(
                f"The weights of MMD_ELBO are 0 or more, but got weight={weight} and kl_weight={kl_weight}; for "
                "InfoVAE's alpha and lambda pass weight=alpha + lambda - 1 and kl_weight=1 - alpha."
            )
        super().__init__()
        self.weight, self.kl_weight, self.kernel = weight, kl_weight, kernel

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """-L, summed over the data."""
        plate = self._plate(model, guide, args)
        guide_trace, model_trace = self._run_reparameterised(model, guide, args)

        loss = torch.zeros(()) + log_density_sum(guide_trace, Role.OBJECTIVE_ONLY)
        for site in sites(model_trace).values():
            share = 1.0  # of log p, in the objective
            if is_latent(site):
                loss = loss + self.weight * self._discrepancy(site, plate)
                share = self.kl_weight
            if share:
                loss = loss - share * log_density(site).sum()

        if self.kl_weight:
            loss = loss + self.kl_weight * log_density_sum(guide_trace, DENSITIES)
        return loss

    @found_once
    def _plate(self, model: Program, guide: Program, args: Args) -> DataPlate:
        return find_data_plate(model, guide, args)

    def _discrepancy(self, site: Message, plate: DataPlate) -> Tensor:
        """N MMD² of one latent site, where N counts scales and masks."""
        fn, value = site["fn"], site["value"]
        event_dim = len(fn.event_shape)

        if torch.is_grad_enabled() and not fn.has_rsample and fn.log_prob(value.detach()).requires_grad:
            raise UsageError(
                f"MMD_ELBO learns a prior by the gradients of its draws, but the prior of {site['name']!r} "
                f"({type(fn).__name__}) has none.",
                use_bound(),
                Cure("prior", words="a prior that is fixed"),
            )
        prior = fn().expand_as(value)

        ones = value.new_ones(value.shape[: value.dim() - event_dim])
        weight = scale_and_mask(ones, site["scale"], site["mask"])
        row_weight = _rows(weight, plate.dim).mean(1)

        rows = (_rows(v, plate.dim - event_dim) for v in (value, prior))
        mmd = maximum_mean_discrepancy(*rows, kernel=self.kernel, weight=row_weight)
        return row_weight.sum() * mmd


def _rows(tensor: Tensor, dim: int) -> Tensor:
    """The rows along a negative dimension as ``(B, everything else)``."""
    tensor = tensor.movedim(dim, 0)
    return tensor.reshape(len(tensor), -1)
