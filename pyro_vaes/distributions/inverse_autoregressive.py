r"""One step of an inverse autoregressive flow, with context.

    z'_i = sigmoid(s_i) z_i + (1 - sigmoid(s_i)) m_i,    (m, s) = network(z, context)

where m_i and s_i see the context and those z_j that come before z_i in the step's order.

Pyro's ``ConditionalAffineAutoregressive`` computes the same, but starts its inverse in the default dtype, takes no
value with fewer leading dimensions than the context, and has torch's cache, which hands what was computed without
gradients to a density that needs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class _Pass:
    """The last input and output, and what is known of them."""

    x: Tensor
    y: Tensor
    log_det: Tensor
    has_graph: bool

    @property
    def valid(self) -> bool:
        return self.has_graph or not torch.is_grad_enabled()


class InverseAutoregressive(Transform):
    r"""The bijection of one inverse autoregressive step in its stable form, as a transform of vectors.

    .. math::
        z' = \sigma(s) \odot z + (1 - \sigma(s)) \odot m, \qquad
        \log \left| \det \frac{\partial z'}{\partial z} \right| = \sum_i \log \sigma(s_i)

    The map takes one pass of the network, its inverse d of them, one per dimension. The last pass is remembered, so
    that the density of a draw costs nothing more; its gradient with respect to the draw itself is that of
    ``log_prob(z.clone())``, since the remembered pass runs from the noise to z.

    Arguments:
        network: Called with z ``(..., d)`` and the context ``(..., F)`` of the same leading dimensions; returns m and
            s, with shape ``(..., d)``, that are autoregressive in ``order``: such as Pyro's
            ``ConditionalAutoRegressiveNN``.
        context: What the step depends on besides z, with shape ``(..., F)``.
        order: The d dimensions, each once, in the order in which they depend on each other.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Example:
        >>> from pyro.distributions import Normal, TransformedDistribution
        >>> from pyro.nn import ConditionalAutoRegressiveNN
        >>> network = ConditionalAutoRegressiveNN(2, 3, [8], permutation=torch.tensor([0, 1]))
        >>> step = InverseAutoregressive(network, torch.randn(5, 3), order=[0, 1])
        >>> q = TransformedDistribution(Normal(torch.zeros(5, 2), 1.0).to_event(1), [step])
        >>> q.log_prob(torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(
        self, network: Callable[[Tensor, Tensor], Sequence[Tensor]], context: Tensor, order: Sequence[int]
    ) -> None:
        super().__init__()  # torch's own cache stays off
        self.network, self.context, self.order = network, context, tuple(order)
        self._last: _Pass | None = None

    def _call(self, x: Tensor) -> Tensor:
        x, context = self._broadcast(x)
        m, s = self.network(x, context)
        gate = torch.sigmoid(s)
        y = gate * x + (1 - gate) * m
        self._last = _Pass(x, y, logsigmoid(s).sum(-1), torch.is_grad_enabled())
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        if self._last is not None and y is self._last.y and self._last.valid:
            return self._last.x
        y, context = self._broadcast(y)
        columns, log_gates = list(torch.zeros_like(y).unbind(-1)), []
        for i in self.order:  # m_i and s_i see only what is known already
            m, s = self.network(torch.stack(columns, -1), context)
            columns[i] = m[..., i] + (y[..., i] - m[..., i]) * (1 + torch.exp(-s[..., i]))
            log_gates.append(logsigmoid(s[..., i]))
        x = torch.stack(columns, -1)
        self._last = _Pass(x, y, torch.stack(log_gates, -1).sum(-1), torch.is_grad_enabled())
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is None or x is not self._last.x or not self._last.valid:
            x, context = self._broadcast(x)
            return logsigmoid(self.network(x, context)[1]).sum(-1)
        return self._last.log_det

    def _broadcast(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z and the context with the same leading dimensions; z itself where it has them, so that it is recognised."""
        lead = torch.broadcast_shapes(z.shape[:-1], self.context.shape[:-1])
        return z if z.shape[:-1] == lead else z.expand(lead + z.shape[-1:]), self.context.expand(*lead, -1)
