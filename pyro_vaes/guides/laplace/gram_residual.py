r"""The data's side of Newton's equation around each datum, with a gradient in few and large matrix products.

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

from pyro_vaes.guides.laplace.linear_region import LinearRegion
from pyro_vaes.ops import GradientContext

__all__ = ["gram_residual"]


def gram_residual(
    value: Tensor,
    point: Tensor,
    data: Tensor,
    gram: Tensor,
    region: LinearRegion,
) -> Tensor:
    """r with shape ``(B, d)``; it can be differentiated once.

    Arguments:
        value: r itself, which whoever has score and precision knows already.
        point: z', shape ``(B, d)``.
        data, gram: c and G, shapes ``(B, H)`` and ``(H, H)``.
        region: The network up to its last hidden layer, around z.
    """
    return _GramResidual.apply(value, point, data, gram, *region.parts)


class _GramResidual(torch.autograd.Function):
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
