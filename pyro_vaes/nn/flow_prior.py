"""The autoregressive flow prior, as a module whose forward returns the distribution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vaes.distributions import AutoregressiveFlow

from .made import MADE
from .mlp import Activation
from .module import StandardNormal

LARGEST_LOG_SCALE = 3.0  # a factor of 20 per step: affine flows blow up without a bound


class AutoregressivePrior(StandardNormal):
    """z = f(eps) with eps ~ N(0, I) and f an autoregressive flow of MADEs, the order reversed between its steps.

    The density of z is one parallel pass; sampling takes D calls of each MADE. Mean-only steps have log-determinant 0
    and are the more stable; affine ones have ``log sigma = 3 tanh(raw / 3)``.

    Arguments:
        dim: D.
        hidden: Widths of each MADE's hidden layers; the paper's "3-layer MADE with 640 hidden units" by default.
        steps: Number T of steps.
        affine: Whether the steps scale as well as shift.
        activation: Constructor of the activation.

    Raises:
        ValueError: ``steps`` is below 1, or a size is not a positive whole number.

    References:
        | Variational Lossy Autoencoder (Chen et al., 2017)
        | https://arxiv.org/abs/1611.02731

    Example:
        >>> prior = AutoregressivePrior(3, [16], steps=2)
        >>> z = prior().sample((5,))
        >>> prior().log_prob(z).shape, prior().whiten(z)[0].shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (640, 640),
        *,
        steps: int = 4,
        affine: bool = False,
        activation: Activation = nn.ReLU,
    ) -> None:
        super().__init__(dim)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"A flow needs steps >= 1, but got {steps!r}; for N(0, I) use StandardNormal.")
        self.steps = nn.ModuleList(
            _Step(MADE(dim, hidden, 2 if affine else 1, activation=activation)) for _ in range(steps)
        )

    def forward(self) -> AutoregressiveFlow:
        return AutoregressiveFlow(self.loc, self.scale, list(self.steps))


class _Step(nn.Module):
    """``y -> (mu, log sigma or None)`` of a MADE with one or two numbers per element."""

    def __init__(self, net: MADE) -> None:
        super().__init__()
        self.net = net

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.net.num_params == 1:
            return self.net(y), None
        mu, raw = self.net(y).chunk(2, dim=-1)
        return mu, LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE)
