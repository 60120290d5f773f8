r"""KL divergences between all ordered pairs of n normals, as matrix products.

For diagonal normals with v = scale² and w = 1 / v, dimension d of the pair (i, j) has

    P_ijd = KL(N(mu_id, v_id) || N(mu_jd, v_jd)) = 1/2 [ v_id w_jd + (mu_id - mu_jd)² w_jd - log v_id + log v_jd - 1 ]

Every term is a product of something of i with something of j, so sums over d are matrix products, O(n² d) in time and
O(n² + n d) in memory, and means over the pairs need O(n d) only. The square (mu_i - mu_j)² is expanded for that, which
cancels where the means are large beside the standard deviations. Hence two measures: P does not change under affine
maps of each dimension, so the normals are first standardised by the batch's own centre; and all is computed in float64,
where float32 arguments are exact. Where all n normals are equal the results, and their gradients, are exactly 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

MAX_ELEMENTS = 2**22  # of an n x n x chunk tensor in float64: 32 MiB


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries i != j of ``(n, n, ...)`` as ``(n (n - 1), ...)``.

    Example:
        >>> off_diagonal(torch.arange(9).reshape(3, 3))
        tensor([1, 2, 3, 5, 6, 7])
    """
    n = len(matrix)
    # without the last entry the diagonal is the first column of rows that are n + 1 long
    return matrix.flatten(0, 1)[:-1].unflatten(0, (n - 1, n + 1))[:, 1:].flatten(0, 1)


def normal_pairwise_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """KL(q_i || q_j) in nats of all ordered pairs of diagonal normals, summed over the dimensions.

    Arguments:
        loc: Means, ``(n, d)``.
        scale: Standard deviations, ``(n, d)``, positive.

    Returns:
        ``(n, n)``, row i and column j, never negative.

    Example:
        >>> normal_pairwise_kl(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
        tensor([[0., 2.],
                [2., 0.]])
    """
    mu, log_var = _standardised(loc, scale)
    var, precision = log_var.exp(), (-log_var).exp()

    products = (var + mu.square()) @ precision.mT - 2 * mu @ (mu * precision).mT  # (n, n)
    of_i, of_j = log_var.sum(1), (mu.square() * precision + log_var).sum(1)
    kl = 0.5 * (products - of_i.unsqueeze(1) + of_j - loc.shape[1])
    return kl.clamp(min=0).to(loc.dtype)


def normal_mean_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """The mean over the ordered pairs i != j of P_ijd, in nats for each dimension.

    The pairs enter through sums over n alone. With one scale for all it is the unbiased variance of the means over
    scale².

    Arguments:
        loc: Means, ``(n, d)`` with n >= 2.
        scale: Standard deviations, ``(n, d)``, positive.

    Returns:
        ``(d,)``.

    Example:
        >>> normal_mean_kl(torch.tensor([[0.0], [2.0]]), torch.ones(2, 1))
        tensor([2.])
    """
    n = len(loc)
    mu, log_var = _standardised(loc, scale)
    var, precision = log_var.exp(), (-log_var).exp()
    square_sums = mu.square().sum(0) - 2 * mu * mu.sum(0) + n * mu.square()  # sum_i (mu_i - mu_j)² for each j
    total = var.sum(0) * precision.sum(0) - n**2 + (precision * square_sums).sum(0)  # the logarithms cancel
    return (0.5 * total / (n * (n - 1))).clamp(min=0).to(loc.dtype)


def normal_mean_softplus(loc: Tensor, scale: Tensor) -> Tensor:
    """The mean over the ordered pairs i != j of softplus(-P_ijd) for each dimension.

    A function of each P_ijd by itself is no matrix product: this takes O(n² d) time with a softplus each, a few
    dimensions after the other, which the backward pass computes again instead of keeping them.

    Arguments:
        loc: Means, ``(n, d)`` with n >= 2.
        scale: Standard deviations, ``(n, d)``, positive.

    Returns:
        ``(d,)``, each in (0, ln 2].

    Example:
        >>> normal_mean_softplus(torch.zeros(3, 1), torch.ones(3, 1))  # ln 2
        tensor([0.6931])
    """
    mu, log_var = _standardised(loc, scale)
    size = max(1, MAX_ELEMENTS // len(loc) ** 2)
    parts = list(zip(mu.split(size, 1), log_var.split(size, 1), strict=True))
    if len(parts) == 1:
        return _mean_softplus(mu, log_var).to(loc.dtype)
    each = [checkpoint(_mean_softplus, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(each).to(loc.dtype)


def _mean_softplus(mu: Tensor, log_var: Tensor) -> Tensor:
    ratio = log_var.unsqueeze(1) - log_var  # (n, n, c)
    kl = 0.5 * (ratio.expm1() - ratio + (mu.unsqueeze(1) - mu).square() * (-log_var).exp())
    return off_diagonal(softplus(-kl)).mean(0)


def _standardised(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log variances in units of the batch's centre, in double precision; no KL changes by that.

    The centre is a constant to the gradient. It is the first row plus a mean deviation from it, which is exact where
    all rows are equal.
    """
    mu, log_var = _double(loc), 2 * _double(scale).log()
    with torch.no_grad():
        centre = mu[:1] + (mu - mu[:1]).mean(0)
        unit = log_var[:1] + (log_var - log_var[:1]).mean(0)
    return (mu - centre) * (-0.5 * unit).exp(), log_var - unit


def _double(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "mps" else tensor.double()  # Apple's GPUs have no float64


def multivariate_normal_pairwise_kl(loc: Tensor, factor: Tensor, inverse: Tensor) -> Tensor:
    """KL(q_i || q_j) in nats of all ordered pairs of normals with full covariances.

        1/2 [ <P_j, S_i + mu_i mu_iᵀ> - 2 mu_iᵀ P_j mu_j + mu_jᵀ P_j mu_j - d + log |S_j| - log |S_i| ],    P = S⁻¹

    as matrix products over the d² entries: O(n² d²) in time, O(n² + n d²) in memory. The normals are whitened by the
    first one before, which changes no KL and keeps the products small.

    Arguments:
        loc: Means, ``(n, d)``.
        factor: Triangular F with S = F Fᵀ, ``(n, d, d)``.
        inverse: F⁻¹, ``(n, d, d)``.

    Returns:
        ``(n, n)``, row i and column j, never negative.

    Example:
        >>> eye = torch.eye(2).expand(2, 2, 2)
        >>> multivariate_normal_pairwise_kl(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), eye, eye)
        tensor([[0., 2.],
                [2., 0.]])
    """
    mu, root, inverse_root = _double(loc), _double(factor), _double(inverse)
    half_log_det = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    first, back, origin = inverse_root[0].detach(), root[0].detach(), mu[0].detach()
    mu, root, inverse_root = (mu - origin) @ first.mT, first @ root, inverse_root @ back
    second_moment = root @ root.mT + mu.unsqueeze(-1) * mu.unsqueeze(-2)  # (n, d, d)
    precision = inverse_root.mT @ inverse_root
    weighted = (precision @ mu.unsqueeze(-1)).squeeze(-1)  # (n, d)
    products = second_moment.flatten(1) @ precision.flatten(1).mT - 2 * mu @ weighted.mT
    kl = 0.5 * (products + (mu * weighted).sum(1) - loc.shape[1]) + half_log_det - half_log_det.unsqueeze(1)
    return kl.clamp(min=0).to(loc.dtype)
