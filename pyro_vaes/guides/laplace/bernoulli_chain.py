r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear -> Bernoulli(logits g(z)).

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    p = sigmoid(g),    S = p (1 - p)
    P = W S Wᵀ + prior precision,        score = W (x - p) - ...

S is each datum's own, so the tangents go up to the data's size; a few data at a time, they stay in the cache.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pyro_vaes.guides.laplace.linear_region import chunks, pull, push, push_basis, run, take, without_idle
from pyro_vaes.guides.laplace.linearise import Linearised

__all__ = ["BernoulliChain"]


@dataclass(frozen=True)
class BernoulliChain:
    """The chain with the bits at its end and the Gaussian at its start.

    Arguments:
        module: The network.
        layers: Its layers, linear and (leaky) ReLU, the last one linear.
        x: Data, shape ``(B, D)``.
        weight: By which the bits' log-probabilities are multiplied, a number.
        prior_loc, prior_precision: Mean and diagonal precision of z, shape ``(B, d)``.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    x: Tensor
    weight: Tensor | float
    prior_loc: Tensor
    prior_precision: Tensor

    def prepare(self) -> "BernoulliChain":
        """Nothing is shared by the steps."""
        return self

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :func:`~pyro_vaes.guides.laplace.linearise.linearise`."""
        hidden, stages = run(self.layers, z)
        probs = self.layers[-1](hidden).sigmoid()
        last = self.layers[-1].weight
        assert isinstance(last, Tensor)
        information = self.weight * probs * (1 - probs)

        def down(bits: Tensor) -> Tensor:
            return pull(linear(bits, last.T), stages)

        gradient = down(self.weight * (self.x - probs)) - self.prior_precision * (z - self.prior_loc) if score else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            precision = self._curvature(z, stages, last, information) + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            assert gradient is not None
            moved = linear(push(step.unsqueeze(-2), stages).squeeze(-2), last)
            return gradient - down(information * moved) - self.prior_precision * step

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _curvature(self, z: Tensor, stages: list[Tensor], last: Tensor, information: Tensor) -> Tensor:
        """W S Wᵀ."""
        basis, blocks = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device), []
        stages, on = without_idle(stages)
        last = take(last, 1, on)
        for chunk, part in chunks(stages, z, last.shape[0]):
            jacobian = linear(push_basis(basis, part), last)
            blocks.append((jacobian * information[chunk].unsqueeze(-2)) @ jacobian.mT)
        return torch.cat(blocks)
