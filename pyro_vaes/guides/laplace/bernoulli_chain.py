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
from torch import Tensor
from torch.nn.functional import linear

from .linear_region import ReluChain, select
from .linearise import Linearised


@dataclass(frozen=True)
class BernoulliChain(ReluChain):
    """The chain with bits at its end and a Gaussian at its start."""

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :class:`~pyro_vaes.guides.laplace.linearise.Lineariser`."""
        hidden, region = self.around(z)
        probs = self.last(hidden).sigmoid()
        information = self.weight * probs * (1 - probs)

        def pull(bits: Tensor) -> Tensor:
            return region.pull(bits @ self.last.weight)

        gradient = None
        if score:
            gradient = pull(self.weight * (self.x - probs)) - self.prior_precision * (z - self.prior_loc)

        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            used_region, used = region.without_idle_units()
            weight = select(self.last.weight, 1, used)
            blocks = []
            for rows, tangents in used_region.push_all(z, width=len(weight)):
                jacobian = linear(tangents, weight)
                blocks.append((jacobian * information[rows].unsqueeze(-2)) @ jacobian.mT)
            precision = torch.cat(blocks) + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            assert gradient is not None
            moved = linear(region.push(step.unsqueeze(-2)).squeeze(-2), self.last.weight)
            return gradient - pull(information * moved) - self.prior_precision * step

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)
