r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear -> N(g(z), noise shared by all data).

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    R = noise precision
    P = W R Wᵀ + prior precision = A G Aᵀ + ...,                G = V₃ᵀ R V₃
    score = W R (x - g) - prior precision (z - prior mean) = A (V₃ᵀ R (x - a₃) - G h) - ...,    g = V₃ h + a₃

The second forms (the Gram trick) never hold a Jacobian of the data's size; they are used where H <= D. Around each
datum the network is linear, so the score at z + step of that linear network is the residual of Newton's equation.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from pyro_vaes.guides.laplace.gram_residual import gram_residual
from pyro_vaes.guides.laplace.linear_region import LinearRegion, ReluChain, find_region, select
from pyro_vaes.guides.laplace.linearise import Linearised
from pyro_vaes.ops import GradientContext

__all__ = ["GaussianChain"]


@dataclass(frozen=True)
class GaussianChain(ReluChain):
    """The chain with Gaussians at both of its ends.

    Arguments:
        gram, data: V₃ᵀ R V₃ and V₃ᵀ R (x - a₃), shapes ``(H, H)`` and ``(B, H)``, for the Gram trick; else None.
    """

    gram: Tensor | None = None
    data: Tensor | None = None

    def prepare(self, use_gram: bool | None = None) -> "GaussianChain":
        """Compute what all steps share; None decides by the sizes."""
        weight, bias = self.last.weight, self.last.bias
        if use_gram is None:
            use_gram = weight.shape[1] <= weight.shape[0]
        if not use_gram:
            return self

        centred = self.x if bias is None else self.x - bias
        return replace(self, gram=_Gram.apply(weight, self.weight), data=(centred * self.weight) @ weight)

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :func:`~pyro_vaes.guides.laplace.linearise.Lineariser`."""
        with torch.no_grad():  # gradients of the score pass by the residual
            hidden, region = find_region(self.layers, z)
            gradient = self._score(z, hidden, region) if score else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            precision = self._curvature(z, region) + torch.diag_embed(self.prior_precision)

        def residual(step: Tensor) -> Tensor:
            point = z + step
            if self.gram is None or self.data is None:
                return self._score(point, region(point), region)

            assert gradient is not None
            prior = self.prior_precision * (point - self.prior_loc)
            with torch.no_grad():
                value = gradient - (precision @ step.unsqueeze(-1)).squeeze(-1) + prior
            return gram_residual(value, point, self.data, self.gram, region) - prior

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _score(self, z: Tensor, hidden: Tensor, region: LinearRegion) -> Tensor:
        if self.gram is None or self.data is None:
            of_data = ((self.x - self.last(hidden)) * self.weight) @ self.last.weight
        else:
            of_data = self.data - linear(hidden, self.gram)
        return region.pull(of_data) - self.prior_precision * (z - self.prior_loc)

    def _curvature(self, z: Tensor, region: LinearRegion) -> Tensor:
        """W R Wᵀ, ``(1, d, d)`` if it is the same for all data."""
        region, used = region.without_idle_units()
        matrix = self.last.weight if self.gram is None else select(self.gram, 0, used)
        matrix = select(matrix, 1, used)

        blocks = []
        for _, tangents in region.push_all(z, width=matrix.shape[1]):
            if self.gram is None:
                jacobian = linear(tangents, matrix)
                blocks.append((jacobian * self.weight) @ jacobian.mT)
            else:
                blocks.append(_Congruence.apply(tangents, matrix))
        return torch.cat(blocks)


class _Gram(torch.autograd.Function):
    """Vᵀ R V with a gradient that uses its symmetry: one product in place of autograd's two."""

    @staticmethod
    def forward(ctx: GradientContext, weight: Tensor, precision: Tensor) -> Tensor:
        ctx.save_for_backward(weight, precision)
        return weight.T @ (precision.unsqueeze(-1) * weight)

    @staticmethod
    def backward(ctx: GradientContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, precision = ctx.saved_tensors
        product = weight @ (gradient + gradient.mT)
        return precision.unsqueeze(-1) * product, 0.5 * (weight * product).sum(-1)


class _Congruence(torch.autograd.Function):
    """A G Aᵀ with a gradient that uses the symmetry of G: one product of A's size less than autograd's own."""

    @staticmethod
    def forward(ctx: GradientContext, rows: Tensor, gram: Tensor) -> Tensor:
        half = linear(rows, gram)
        ctx.save_for_backward(rows, gram, half)
        return half @ rows.mT

    @staticmethod
    def backward(ctx: GradientContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rows, gram, half = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative has to see where the product comes from
            half = linear(rows, gram)
        gradient = 0.5 * (gradient + gradient.mT)
        return 2 * gradient @ half, rows.flatten(0, 1).T @ (gradient @ rows).flatten(0, 1)
