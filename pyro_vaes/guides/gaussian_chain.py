r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear -> N(g(z), noise shared by all data).

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    R = noise precision
    P = W R Wᵀ + prior precision = A (V₃ᵀ R V₃) Aᵀ + ...,       score = A (V₃ᵀ R (x - g)) - ...

The second form of P (the Gram trick) never holds a Jacobian of the data's size; it is used where H <= D. Around each
datum the network is linear, so the score at z + step of that linear network is the residual of Newton's equation.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from pyro_vaes.guides.linearise import Linearised
from pyro_vaes.guides.stages import chunks, pull, push, push_basis, run, take
from pyro_vaes.ops import linear

__all__ = ["GaussianChain", "PreparedChain"]


@dataclass(frozen=True)
class GaussianChain:
    """The chain with the Gaussians at both of its ends.

    Arguments:
        module: The network.
        layers: Its layers, linear and (leaky) ReLU, the last one linear.
        x: Data, shape ``(B, D)``.
        noise_precision: R, the diagonal, shape ``(D,)``.
        prior_loc, prior_precision: Mean and diagonal precision of z, shape ``(B, d)``.
        gram: Whether to use the Gram trick; None decides by the sizes.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    x: Tensor
    noise_precision: Tensor
    prior_loc: Tensor
    prior_precision: Tensor
    gram: bool | None = None

    def prepare(self) -> "PreparedChain":
        """Compute what all steps share."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        weighted = self.noise_precision.unsqueeze(-1) * last.weight
        use_gram = last.in_features <= last.out_features if self.gram is None else self.gram
        gram = linear(last.weight.T, weighted.T) if use_gram else None
        centred = self.x if last.bias is None else self.x - last.bias
        return PreparedChain(self, last, weighted, gram, linear(centred, weighted.T))


@dataclass(frozen=True)
class PreparedChain:
    """:class:`GaussianChain` with the products of its last layer.

    Arguments:
        chain, last: The chain and its last layer V₃.
        weighted: R V₃, shape ``(D, H)``.
        gram: V₃ᵀ R V₃, shape ``(H, H)``, or None.
        data: V₃ᵀ R (x - a₃), shape ``(B, H)``.
    """

    chain: GaussianChain
    last: nn.Linear
    weighted: Tensor
    gram: Tensor | None
    data: Tensor

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :func:`~pyro_vaes.guides.linearise.linearise`."""
        hidden, stages, on = run(self.chain.layers, z)
        prior_loc, prior_precision = self.chain.prior_loc, self.chain.prior_precision
        gradient = None
        if score:
            with torch.no_grad():  # in the data's space, where x - g does not cancel; gradients pass by the residual
                pulled = pull(take(linear(self.chain.x - self.last(hidden), self.weighted.T), -1, on), stages)
                gradient = pulled - prior_precision * (z - prior_loc)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            precision = self._curvature(z, stages, on) + torch.diag_embed(prior_precision)

        def residual(step: Tensor) -> Tensor:
            moved = take(hidden, -1, on) + push(step.unsqueeze(-2), stages).squeeze(-2)
            if self.gram is None:
                half = linear(linear(moved, take(self.last.weight, 1, on)), take(self.weighted, 1, on).T)
            else:
                half = linear(moved, take(take(self.gram, 0, on), 1, on).T)
            return pull(take(self.data, 1, on) - half, stages) - prior_precision * (z + step - prior_loc)

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _curvature(self, z: Tensor, stages: list[Tensor], on: Tensor | None) -> Tensor:
        """W R Wᵀ, a few data at a time so that their tangents stay in the cache; ``(1, d, d)`` if the same for all."""
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        weight = take(self.last.weight, 1, on)
        gram = None if self.gram is None else take(take(self.gram, 0, on), 1, on)
        blocks = []
        for chunk in chunks(stages, z, weight.shape[1]):
            rows = push_basis(basis, chunk)
            if gram is None:
                jacobian = linear(rows, weight)
                blocks.append((jacobian * self.chain.noise_precision) @ jacobian.mT)
            else:
                blocks.append(_Congruence.apply(rows, gram))
        return torch.cat(blocks)


class _Congruence(torch.autograd.Function):
    """A G Aᵀ with a gradient that uses the symmetry of G: one product of A's size less than autograd's own."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, gram: Tensor) -> Tensor:
        half = linear(rows, gram.T)
        ctx.save_for_backward(rows, gram, half)
        return half @ rows.mT

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, gram, half = ctx.saved_tensors  # type: ignore[attr-defined]
        half = linear(rows, gram.T) if torch.is_grad_enabled() else half  # a second derivative sees where it comes from
        gradient = 0.5 * (gradient + gradient.mT)
        return 2 * gradient @ half, linear(rows.flatten(0, 1).T, (gradient @ rows).flatten(0, 1).T)
