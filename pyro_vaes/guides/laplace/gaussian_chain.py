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

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear

from pyro_vaes.guides.laplace.gram_residual import gram_residual
from pyro_vaes.guides.laplace.linear_region import chunks, pull, push_basis, rerun, run, take, without_idle
from pyro_vaes.guides.laplace.linearise import Linearised

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
        use_gram = last.in_features <= last.out_features if self.gram is None else self.gram
        if not use_gram:
            return PreparedChain(self, last)
        centred = self.x if last.bias is None else self.x - last.bias
        data = linear(centred * self.noise_precision, last.weight.T)
        return PreparedChain(self, last, _Gram.apply(last.weight, self.noise_precision), data)


@dataclass(frozen=True)
class PreparedChain:
    """:class:`GaussianChain` with the products of its last layer.

    Arguments:
        chain, last: The chain and its last layer V₃.
        gram, data: V₃ᵀ R V₃ and V₃ᵀ R (x - a₃), shapes ``(H, H)`` and ``(B, H)``, for the Gram trick; else None.
    """

    chain: GaussianChain
    last: nn.Linear
    gram: Tensor | None = None
    data: Tensor | None = None

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``; see :func:`~pyro_vaes.guides.laplace.linearise.linearise`."""
        prior_loc, prior_precision = self.chain.prior_loc, self.chain.prior_precision
        with torch.no_grad():  # gradients of the score pass by the residual
            hidden, stages = run(self.chain.layers, z)
            gradient = self._score(z, hidden, stages) if score else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            precision = self._curvature(z, stages) + torch.diag_embed(prior_precision)

        def residual(step: Tensor) -> Tensor:
            point = z + step
            if self.gram is None or self.data is None:
                return self._score(point, rerun(self.chain.layers, stages, point), stages)
            assert gradient is not None
            prior = prior_precision * (point - prior_loc)
            with torch.no_grad():
                value = gradient - (precision @ step.unsqueeze(-1)).squeeze(-1) + prior
            return gram_residual(value, point, self.data, self.gram, self.chain.layers[:-1], stages) - prior

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _score(self, z: Tensor, hidden: Tensor, stages: list[Tensor]) -> Tensor:
        if self.gram is None or self.data is None:
            of_data = linear((self.chain.x - self.last(hidden)) * self.chain.noise_precision, self.last.weight.T)
        else:
            of_data = self.data - linear(hidden, self.gram)
        return pull(of_data, stages) - self.chain.prior_precision * (z - self.chain.prior_loc)

    def _curvature(self, z: Tensor, stages: list[Tensor]) -> Tensor:
        """W R Wᵀ, a few data at a time so that their tangents stay in the cache; ``(1, d, d)`` if the same for all."""
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        stages, on = without_idle(stages)
        matrix = take(self.last.weight if self.gram is None else take(self.gram, 0, on), 1, on)
        blocks = []
        for _, part in chunks(stages, z, matrix.shape[1]):
            rows = push_basis(basis, part)
            if self.gram is None:
                jacobian = linear(rows, matrix)
                blocks.append((jacobian * self.chain.noise_precision) @ jacobian.mT)
            else:
                blocks.append(_Congruence.apply(rows, matrix))
        return torch.cat(blocks)


class _Gram(torch.autograd.Function):
    """Vᵀ R V with a gradient that uses its symmetry: one product in place of autograd's two."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, precision: Tensor) -> Tensor:
        ctx.save_for_backward(weight, precision)
        return linear(weight.T, (precision.unsqueeze(-1) * weight).T)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, precision = ctx.saved_tensors  # type: ignore[attr-defined]
        product = linear(weight, gradient + gradient.mT)
        return precision.unsqueeze(-1) * product, 0.5 * (weight * product).sum(-1)


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
        return 2 * gradient @ half, rows.flatten(0, 1).T @ (gradient @ rows).flatten(0, 1)
