"""Linear pairs of the library, their exact expected losses, and training on these.

Every loss is L = 2 (-ELBO_beta) - D log(2 pi noise²) per datum, in closed form in the pair's own matrices and the
data's second moments: E‖error‖² / noise² plus 2 beta times each KL-type term. Written out from the definitions of the
models, with nothing of what theory says about the optimum.
"""

import torch
from torch import Tensor, nn

from papers.posterior_collapse import pairs
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import NormalHead

THETA = torch.tensor([2.5, 1.8, 1.3, 0.9, 0.5, 0.3], dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def moment_of(theta: Tensor, seed: int = 0) -> Tensor:
    """A second moment with these roots of eigenvalues, along random directions."""
    turn = rotation(len(theta), seed)
    return turn @ torch.diag(theta.square()) @ turn.T


def data_with(theta: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Data whose second moment is exactly ``moment_of(theta, seed)``."""
    generator = torch.Generator().manual_seed(seed + 1)
    white = torch.linalg.qr(torch.randn(rows, len(theta), generator=generator, dtype=torch.float64)).Q * rows**0.5
    return white * theta @ rotation(len(theta), seed).T


def svd(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.detach())


def linear_vae_pair(features, units, **options) -> VAE:
    return pairs.linear_vae_pair(features, units, **options).double()


def linear_cvae_pair(target, covariate, units, **options) -> ConditionalVAE:
    return pairs.linear_cvae_pair(target, covariate, units, **options).double()


def linear_hierarchical_pair(features, units, **options) -> HierarchicalVAE:
    return pairs.linear_hierarchical_pair(features, units, **options).double()


def weight(decoder: nn.Sequential) -> Tensor:
    return decoder[0].weight


def variances(encoder: NormalHead) -> Tensor:
    return (2 * encoder.log_scale).exp()


def _weighted_square(matrix: Tensor, moment: Tensor) -> Tensor:
    """E‖A x‖² = tr(A E[x xᵀ] Aᵀ)."""
    return ((matrix @ moment) * matrix).sum()


def _twice_kl(second_moment: Tensor, q_var: Tensor, prior_scale: float) -> Tensor:
    """2 E KL(N(m, diag(q_var)) ‖ N(0, prior_scale² I)) with second_moment = E‖m‖²."""
    ratio = q_var / prior_scale**2
    return second_moment / prior_scale**2 + (ratio - 1 - ratio.log()).sum()


def vae_loss(vae: VAE, xx: Tensor, *, noise=1.0, prior_scale=1.0, beta=1.0, yx=None, yy=None) -> Tensor:
    """The linear VAE; with yy and yx the one that encodes x and decodes y."""
    u, w, q_var = weight(vae.decoder), vae.encoder.loc.weight, variances(vae.encoder)
    yx, yy = (xx, xx) if yx is None else (yx, yy)
    error = yy.trace() - 2 * ((u @ w) * yx).sum() + _weighted_square(u @ w, xx) + (u.square() * q_var).sum()
    return error / noise**2 + beta * _twice_kl(_weighted_square(w, xx), q_var, prior_scale)


def cvae_loss(cvae: ConditionalVAE, joint: Tensor, target: int, *, noise=1.0, prior_scale=1.0, beta=1.0) -> Tensor:
    """The linear conditional VAE; joint is the second moment of (y, x)."""
    decoder, w, q_var = weight(cvae.decoder), cvae.encoder.loc.weight, variances(cvae.encoder)
    units = w.shape[0]
    u1, u2 = decoder[:, :units], decoder[:, units:]
    identity = torch.eye(target, dtype=w.dtype)
    residual = u1 @ w + torch.cat([-identity, u2], 1)  # applied to (y, x)
    error = _weighted_square(residual, joint) + (u1.square() * q_var).sum()
    return error / noise**2 + beta * _twice_kl(_weighted_square(w, joint), q_var, prior_scale)


def hierarchical_loss(vae: HierarchicalVAE, xx: Tensor, *, noise=1.0, prior_scale=1.0, betas=(1.0, 1.0)) -> Tensor:
    """The linear Markovian hierarchical VAE with a bottom-up guide."""
    first, second = vae.encoders
    u1, u2, w1, w2 = weight(vae.decoder), vae.priors[0].loc.weight, first.loc.weight, second.loc.weight
    var1, var2 = variances(first), variances(second)
    z1 = w1 @ xx @ w1.T + torch.diag(var1)  # E_q[z1 z1ᵀ]
    identity = torch.eye(len(xx), dtype=xx.dtype)
    error = _weighted_square(u1 @ w1 - identity, xx) + (u1.square() * var1).sum()
    gap = _weighted_square(u2 @ w2 - torch.eye(len(z1), dtype=xx.dtype), z1) + (u2.square() * var2).sum()
    middle = gap / noise**2 - (1 + (var1 / noise**2).log()).sum()
    return error / noise**2 + betas[0] * middle + betas[1] * _twice_kl(_weighted_square(w2, z1), var2, prior_scale)


def minimise(module: nn.Module, loss, *, seed: int = 1, steps: int = 200, lr: float = 0.08) -> float:
    """Adam from a random start, then L-BFGS until the gradient vanishes; returns the loss."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            if parameter.dim() == 2:  # the scales start at 1
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    adam = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        adam.zero_grad()
        loss().backward()
        adam.step()
    newton = torch.optim.LBFGS(
        parameters,
        max_iter=1500,
        history_size=40,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure():
        newton.zero_grad()
        value = loss()
        value.backward()
        return value

    newton.step(closure)
    return loss().item()
