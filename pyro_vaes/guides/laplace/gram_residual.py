r"""The data's side of Newton's equation around each datum, with a gradient in few and large matrix products.

    r = Wᵀ R (x - b - W z'),    z' = z + step,    W = V₃ M₂ V₂ M₁ V₁ the region's Jacobian (D, d), b its offset

Along a cotangent u of r all that a gradient needs is one number per datum, in which z' and u pass the same network:

    u · r = t · (c - G h),    h = M₂ (V₂ M₁ (V₁ z' + a₁) + a₂),    t = M₂ V₂ M₁ V₁ u,
    c = V₃ᵀ R (x - a₃),       G = V₃ᵀ R V₃

Both go through each layer as one matrix of 2 B rows, and their adjoints, -G t and c - G h, come back as one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import linear

__all__ = ["gram_residual"]


def gram_residual(
    value: Tensor, point: Tensor, data: Tensor, gram: Tensor, layers: Sequence[nn.Module], stages: Sequence[Tensor]
) -> Tensor:
    """r with shape ``(B, d)``; it can be differentiated once.

    Arguments:
        value: r itself, which whoever has score and precision knows already.
        point: z', shape ``(B, d)``.
        data, gram: c and G, shapes ``(B, H)`` and ``(H, H)``.
        layers, stages: The network up to its last hidden layer, and what
            :func:`~pyro_vaes.guides.laplace.linear_region.run` made of it at z.
    """
    affine = [layer for layer in layers if isinstance(layer, nn.Linear)]
    parameters = [p for layer in affine for p in (layer.weight, layer.bias)]
    return _GramResidual.apply(value, [s if s.dim() == 3 else None for s in stages], point, data, gram, *parameters)


class _GramResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        value: Tensor,
        slopes: list[Tensor | None],
        point: Tensor,
        data: Tensor,
        gram: Tensor,
        *parameters: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(point, data, gram, *parameters)  # type: ignore[arg-type]
        ctx.slopes = slopes  # type: ignore[attr-defined]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        point, data, gram, *parameters = ctx.saved_tensors  # type: ignore[attr-defined]
        slopes: list[Tensor | None] = ctx.slopes  # type: ignore[attr-defined]
        wanted: tuple[bool, ...] = ctx.needs_input_grad[2:]  # type: ignore[attr-defined]
        layers = iter(zip(parameters[::2], parameters[1::2], strict=True))
        both, inputs = torch.stack([point, cotangent]), []
        for slope in slopes:
            if slope is None:
                weight, bias = next(layers)
                inputs.append(both)
                both = linear(both, weight)
                if bias is not None:
                    both[0] += bias
            else:
                both = both * slope.squeeze(-2)
        hidden, tangent = both
        adjoint = linear(both.flip(0), -gram)
        adjoint[1] += data
        of_gram = -tangent.T @ hidden if wanted[2] else None
        of_parameters: list[Tensor | None] = []
        for slope in reversed(slopes):
            if slope is None:
                at = len(parameters) - 2 - len(of_parameters)
                rows, columns = adjoint.flatten(0, 1), inputs.pop().flatten(0, 1)
                of_parameters.append(adjoint[0].sum(0) if wanted[4 + at] else None)
                of_parameters.append(rows.T @ columns if wanted[3 + at] else None)
                adjoint = linear(adjoint, parameters[at].T)
            else:
                adjoint = adjoint * slope.squeeze(-2)
        return None, None, adjoint[0], tangent, of_gram, *reversed(of_parameters)
