r"""(epsilon, delta)-collapse in closed form: linear encoders with a shared scale, on normal data.

    q(z_i|x) = N(m_i(x), sigma_i²),   m_i(x) ~ N(0, lambda_i²) over the data,   p(z_i) = N(0, eta²)

    KL_i(x) = a_i + g_i X,   X ~ chi² with one degree of freedom,
    a_i = ½ (sigma_i²/eta² - 1 - log(sigma_i²/eta²)),   g_i = lambda_i² / (2 eta²)

so unit i is (epsilon, delta)-collapsed iff P[KL_i < epsilon] = F((epsilon - a_i) / g_i) >= 1 - delta, with F the
distribution function of X; a unit with g_i = 0 iff a_i < epsilon. For the top level of a hierarchy the same holds over
x and z_1 together.

References:
    | Don't Blame the ELBO! (Lucas, Tucker, Grosse & Norouzi, 2019)
    | https://arxiv.org/abs/1911.02469
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

import torch
from torch import Tensor

from .collapse_tables import default_epsilon


def chi_square_collapse_probability(
    epsilon: Tensor, encoder_singular_values: Tensor, encoder_scale: Tensor, prior_scale: float = 1.0
) -> Tensor:
    """P_x[KL(q(z_i|x) ‖ p(z_i)) < epsilon] of each unit.

    Arguments:
        epsilon: Thresholds in nats, ``(E,)``.
        encoder_singular_values: Standard deviations lambda of the posterior means over the data, ``(d,)``.
        encoder_scale: Standard deviations sigma of the posteriors, ``(d,)``.
        prior_scale: Standard deviation eta of the prior.

    Returns:
        Probabilities with shape ``(E, d)``.

    Raises:
        ValueError: The shapes do not match, or a standard deviation is not positive (lambda: negative).

    Example:
        >>> chi_square_collapse_probability(torch.tensor([0.1]), torch.tensor([0.9, 0.0]), torch.tensor([0.5, 1.0]))
        tensor([[0., 1.]])
    """
    if epsilon.dim() != 1 or encoder_scale.dim() != 1 or encoder_scale.shape != encoder_singular_values.shape:
        raise ValueError(
            "epsilon has shape (E,) and encoder_singular_values and encoder_scale have shape (d,), but got "
            f"{tuple(epsilon.shape)}, {tuple(encoder_singular_values.shape)} and {tuple(encoder_scale.shape)}."
        )
    if not (encoder_scale > 0).all() or not (encoder_singular_values >= 0).all() or not prior_scale > 0:
        raise ValueError(
            "encoder_scale and prior_scale are positive standard deviations and encoder_singular_values cannot be "
            f"negative, but the smallest are {encoder_scale.min().item():g}, {prior_scale:g} and "
            f"{encoder_singular_values.min().item():g}; are these logarithms?"
        )
    ratio = (encoder_scale / prior_scale).square()
    offset = 0.5 * (ratio - 1 - ratio.log())
    gain = 0.5 * (encoder_singular_values / prior_scale).square()
    above = epsilon.to(offset).unsqueeze(-1) - offset  # (E, d)
    x = above.clamp(min=0) / torch.where(gain > 0, gain, 1.0)
    return torch.where(gain > 0, (x / 2).sqrt().erf(), (above > 0).to(offset))


def chi_square_collapse_curve(
    encoder_singular_values: Tensor,
    encoder_scale: Tensor,
    prior_scale: float = 1.0,
    *,
    epsilon: Tensor | None = None,
    delta: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Share of units that are (epsilon, delta)-collapsed against epsilon; ``SiteCollapse.collapse_curve`` measures it.

    Arguments:
        encoder_singular_values: Standard deviations lambda of the posterior means over the data, ``(d,)``.
        encoder_scale: Standard deviations sigma of the posteriors, ``(d,)``.
        prior_scale: Standard deviation eta of the prior.
        epsilon: Thresholds in nats; 100 from 1e-3 to 10 by default.
        delta: Share of the data that may exceed the threshold, in [0, 1).

    Returns:
        epsilon and the shares, tensors of one length; the shares never fall.

    Raises:
        ValueError: delta is out of range, or see :func:`chi_square_collapse_probability`.

    Example:
        >>> from pyro_vaes.theory import linear_vae
        >>> vae = linear_vae([3.0, 2.0, 0.5], 3)
        >>> epsilon, share = chi_square_collapse_curve(vae.encoder_singular_values, vae.encoder_scale)
        >>> share[0], share[-1]
        (tensor(0.3333, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta is a share of the data in [0, 1), but got {delta}.")
    epsilon = default_epsilon().to(encoder_scale) if epsilon is None else epsilon
    below = chi_square_collapse_probability(epsilon, encoder_singular_values, encoder_scale, prior_scale)
    return epsilon, (below >= 1 - delta).double().mean(1)
