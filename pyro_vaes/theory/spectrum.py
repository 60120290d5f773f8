r"""The spectra that decide posterior collapse, from data or from second moments.

    linear VAE, hierarchical VAE    theta_i = sqrt(eig_i(E[x xᵀ]))                               units of x
    VAE that predicts y from x      theta_i = sv_i(E[y xᵀ] E[x xᵀ]^(-1/2))                       units of y
    linear conditional VAE          theta_i = eig_i(E[y yᵀ] - E[y xᵀ] E[x xᵀ]⁻¹ E[x yᵀ])         units of y, SQUARED

The second moments are not centred: linear maps without a bias see them as they are. Biases in encoder and decoder take
the mean out, and the centred moments decide (``centred=True``). Everything is computed in float64; the cost is cubic in
the number of features.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

import torch
from torch import Tensor

from .arguments import data_matrix

ROWS = 8192  # converted to float64 at a time
NEGLIGIBLE = 1e-10  # eigenvalues below this share of the largest count as 0: pixels that are always black, and rounding


def second_moment(x: Tensor, *, centred: bool = False) -> Tensor:
    """E[x xᵀ], or the covariance with divisor N.

    Arguments:
        x: Data, shape ``(N, D)``, floating point.
        centred: Whether the mean is taken out first, as biases do.

    Returns:
        Tensor with shape ``(D, D)``, float64.

    Raises:
        ValueError: x is no matrix of finite floating-point numbers.

    Example:
        >>> second_moment(torch.tensor([[3.0], [1.0]])), second_moment(torch.tensor([[3.0], [1.0]]), centred=True)
        (tensor([[5.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """
    x = data_matrix("x", x)
    moment = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    mean: Tensor | float = x.mean(0, dtype=torch.float64) if centred else 0.0
    for rows in x.split(ROWS):
        rows = rows.double() - mean
        moment += rows.mT @ rows
    return moment / len(x)


def moment_spectrum(moment: Tensor) -> Tensor:
    """Eigenvalues of a second moment, descending: variance units, whose square roots are a VAE's theta.

    Arguments:
        moment: Symmetric matrix without negative eigenvalues, shape ``(D, D)``.

    Returns:
        Tensor with shape ``(D,)``, float64.

    Raises:
        ValueError: The matrix is not square, not symmetric, not finite, or has negative eigenvalues.

    Example:
        >>> moment_spectrum(torch.diag(torch.tensor([1.0, 4.0])))
        tensor([4., 1.], dtype=torch.float64)
    """
    moment = moment.double()
    if moment.dim() != 2 or moment.shape[0] != moment.shape[1] or not moment.numel():
        raise ValueError(
            f"A second moment has shape (D, D), but got {tuple(moment.shape)}; for data with shape (N, D) use "
            "second_moment_spectrum or residual_spectrum."
        )

    if not moment.isfinite().all() or not torch.allclose(moment, moment.mT, rtol=1e-5, atol=1e-8):
        raise ValueError("A second moment is symmetric and finite, but this matrix is not; is it data, or E[y xᵀ]?")

    values = torch.linalg.eigvalsh((moment + moment.mT) / 2).flip(0)
    if values[-1] < -1e-6 * values[0].abs():
        raise ValueError(
            f"A second moment has no negative eigenvalues, but this matrix has {values[-1].item():.3g}; it is none."
        )
    return values.clamp(min=0)


def second_moment_spectrum(x: Tensor, *, centred: bool = False) -> Tensor:
    """theta of :func:`linear_vae` and :func:`linear_hierarchical_vae`: sqrt(eig(E[x xᵀ])), in the units of x.

    Arguments:
        x: Data, shape ``(N, D)``, floating point, as they go into training (pixels / 255, flattened).
        centred: Whether the mean is taken out first: True for encoders and decoders with biases.

    Returns:
        Tensor with shape ``(D,)``, descending, float64.

    Raises:
        ValueError: x is no matrix of finite floating-point numbers.

    Example:
        >>> (second_moment_spectrum(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) * 2**0.5).round(decimals=6)
        tensor([4., 3.], dtype=torch.float64)
    """
    return moment_spectrum(second_moment(x, centred=centred)).sqrt()


def _inverse_root(moment: Tensor) -> Tensor:
    """R with R Rᵀ the pseudo-inverse of a second moment, shape ``(D, rank)``."""
    values, vectors = torch.linalg.eigh(moment)
    keep = values > NEGLIGIBLE * values[-1]
    return vectors[:, keep] / values[keep].sqrt()


def _joint(target: Tensor, x: Tensor, centred: bool, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """E[y yᵀ], E[y xᵀ] and E[x xᵀ]; `name` is what errors call x."""
    target, x = data_matrix("target", target), data_matrix(name, x)
    if len(target) != len(x):
        raise ValueError(f"target has {len(target)} rows but {name} has {len(x)}; they must belong together.")
    joint = second_moment(torch.cat([target, x.to(target)], 1), centred=centred)
    size = target.shape[1]
    return joint[:size, :size], joint[:size, size:], joint[size:, size:]


def cross_spectrum(target: Tensor, x: Tensor, *, centred: bool = False) -> Tensor:
    """theta of a linear VAE that encodes x and decodes y: singular values of Z = E[y xᵀ] E[x xᵀ]^(-1/2).

    The loss of :func:`linear_vae` then lacks the constant (tr E[y yᵀ] - sum theta²) / noise², what no linear map of x
    can predict. For y = x these are the values of :func:`second_moment_spectrum`.

    Arguments:
        target: y, shape ``(N, T)``.
        x: What the encoder sees, shape ``(N, D)``.
        centred: Whether the means are taken out first.

    Returns:
        Tensor with shape ``(min(T, rank),)``, descending, float64, in the units of y.

    Raises:
        ValueError: The arguments are no matrices with the same number of rows.
    """
    _, yx, xx = _joint(target, x, centred, "x")
    return torch.linalg.svdvals(yx @ _inverse_root(xx))


def schur_complement(target: Tensor, cross: Tensor, covariate: Tensor) -> Tensor:
    """E = E[y yᵀ] - E[y xᵀ] E[x xᵀ]⁻¹ E[x yᵀ], the second moment of what is left of y after regression on x.

    The inverse is a pseudo-inverse: directions in which x has (next to) no second moment are left out.

    Arguments:
        target: E[y yᵀ], shape ``(T, T)``.
        cross: E[y xᵀ], shape ``(T, K)``.
        covariate: E[x xᵀ], shape ``(K, K)``.

    Returns:
        Tensor with shape ``(T, T)``, float64.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> one = torch.ones(1, 1)
        >>> schur_complement(one, 0.5 * one, one)
        tensor([[0.7500]], dtype=torch.float64)
    """
    if target.dim() != 2 or covariate.dim() != 2 or cross.shape != (len(target), len(covariate)):
        raise ValueError(
            f"E[y yᵀ], E[y xᵀ] and E[x xᵀ] have shapes (T, T), (T, K) and (K, K), but got {tuple(target.shape)}, "
            f"{tuple(cross.shape)} and {tuple(covariate.shape)}; transpose the second one?"
        )
    explained = cross.double() @ _inverse_root(covariate.double())
    return target.double() - explained @ explained.mT


def residual_spectrum(target: Tensor, covariate: Tensor, *, centred: bool = False) -> Tensor:
    """theta of :func:`linear_cvae`: eigenvalues of the Schur complement, in SQUARED units of the target.

    Arguments:
        target: y, what the model generates, shape ``(N, T)``.
        covariate: x, what it is given, shape ``(N, K)``, floating point (labels as ``OneHot``).
        centred: Whether the means are taken out first: True for networks with biases.

    Returns:
        Tensor with shape ``(T,)``, descending, float64.

    Raises:
        ValueError: The arguments are no matrices with the same number of rows.

    Example:
        >>> y = torch.randn(100, 2)
        >>> residual_spectrum(y, 3 * y).max() < 1e-9
        tensor(True)
    """
    residual = schur_complement(*_joint(target, covariate, centred, "covariate"))
    return torch.linalg.eigvalsh(residual).flip(0).clamp(min=0)  # where y = M x all of it is rounding, of either sign
