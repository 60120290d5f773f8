r"""Newton's step P⁻¹ s per datum, with the gradient of a linear system rather than of its solution.

    P delta = s    =>    d delta = P⁻¹ (d s - dP delta)

so the gradient needs dP only along the one vector delta: tangents and cotangents of a single direction, a few
evaluations of the program, where the gradient of all of P takes as many as there are latent dimensions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .linearise import Linearised


def factorise(precision: Tensor) -> Tensor:
    """The Cholesky factor of the curvature.

    Raises:
        ValueError: The curvature is singular or not finite.
    """
    try:
        return torch.linalg.cholesky(precision)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "The curvature of log p(x, z) is singular or not finite at some datum: its prior is flat where the data "
            "say nothing, or a value is NaN. Give every latent a proper prior, look for NaN in the data, use float64?"
        ) from error


def newton_step(local: Linearised, factor: Tensor) -> Tensor:
    """The step ``P⁻¹ score`` with shape ``(B, d)``, given the Cholesky factor of P; it can be differentiated once.

    Example:
        >>> score, precision = torch.tensor([[6.0]], requires_grad=True), torch.tensor([[[4.0]]], requires_grad=True)
        >>> local = Linearised(score, precision.detach(), lambda v: score - (precision @ v.unsqueeze(-1)).squeeze(-1))
        >>> step = newton_step(local, factorise(local.precision))
        >>> step.item(), *(g.item() for g in torch.autograd.grad(step, (score, precision)))
        (1.5, 0.25, -0.375)
    """
    assert local.score is not None
    score, factor = local.score.detach(), factor.detach()
    step = torch.cholesky_solve(score.unsqueeze(-1), factor).squeeze(-1)
    if not torch.is_grad_enabled():
        return step

    residual = local.residual(step)
    if residual.requires_grad:
        residual.register_hook(_refuse_second_derivatives)
    nothing = (residual - residual.detach()).unsqueeze(-1)  # zero, for its gradient
    return step + torch.cholesky_solve(nothing, factor).squeeze(-1)


def _refuse_second_derivatives(_: Tensor) -> None:
    """Residual and factor are constants of the first derivative, whose own derivative would be wrong."""
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "Gradients of the Laplace guide's updates are of first order only, but create_graph=True asks for "
            "more. Leave it out, or pass detach_updates=True to the guide?"
        )


def improving(log_prob: Callable[[Tensor], Tensor], z: Tensor, step: Tensor, halvings: int) -> Tensor:
    """The fraction of a step per datum, 1, 1/2, .., 2^-halvings or 0, that leads to the largest log-density.

    Arguments:
        log_prob: From points ``(B, d)`` to log-densities ``(B,)``; a point where it is NaN is never chosen.
        z, step: From where, and the whole step, ``(B, d)``.
        halvings: How often the step is halved.

    Returns:
        Fractions ``(B, 1)``, without gradient.

    Example:
        >>> z, step = torch.zeros(3, 1), torch.tensor([[1.0], [3.0], [-1.0]])
        >>> improving(lambda z: -(z - 1).square().sum(-1), z, step, halvings=2).flatten()
        tensor([1.0000, 0.2500, 0.0000])
    """
    fractions = torch.tensor([*(0.5**k for k in range(halvings + 1)), 0.0], dtype=z.dtype, device=z.device)
    with torch.no_grad():
        found = torch.stack([log_prob(z + fraction * step) for fraction in fractions])
        return fractions[found.nan_to_num(nan=-math.inf).argmax(0)].unsqueeze(-1)
