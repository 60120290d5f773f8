r"""The products of the Gram trick, with gradients in few and large matrix products.

The residual is the data's side of Newton's equation around each datum:

    r = Wᵀ R (x - b - W z'),    z' = z + step,    W = V₃ M₂ V₂ M₁ V₁ the region's Jacobian (D, d), b its offset

Along a cotangent u of r all that a gradient needs is one number per datum, in which z' and u pass the same network:

    u · r = t · (c - G h),    h = M₂ (V₂ M₁ (V₁ z' + a₁) + a₂),    t = M₂ V₂ M₁ V₁ u,
    c = V₃ᵀ R (x - a₃),       G = V₃ᵀ R V₃

Both go through each layer, and back, as one matrix of 2 B rows.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from pyro_vaes.ops import GradientContext

from .linear_region import LinearRegion


class Gram(torch.autograd.Function):
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


class Congruence(torch.autograd.Function):
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


class GramResidual(torch.autograd.Function):
    """r with shape ``(B, d)``; it can be differentiated once.

    Arguments:
        value: r itself, which whoever has score and precision knows already.
        inputs: z', c and G with shapes ``(B, d)``, ``(B, H)`` and ``(H, H)``, and the parts of the region around z, the
            network up to its last hidden layer.
    """

    @staticmethod
    def forward(ctx: GradientContext, value: Tensor, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: GradientContext, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [t.detach() for t in ctx.saved_tensors]
        for tensor, wanted in zip(inputs, ctx.needs_input_grad[1:], strict=True):
            tensor.requires_grad_(wanted)
        point, data, gram, *parts = inputs

        with torch.enable_grad():
            both = torch.stack([point, cotangent]).unsqueeze(-2)  # (2, B, 1, d)
            for part in parts:
                if part.dim() == 1:
                    no_offset = torch.zeros_like(part)  # of a tangent
                    both = both + torch.stack([part, no_offset])[:, None, None]
                else:
                    both = LinearRegion([part]).push(both)
            hidden, tangent = both.squeeze(-2)
            (tangent * (data - linear(hidden, gram))).sum().backward()
        return None, *(t.grad for t in inputs)
