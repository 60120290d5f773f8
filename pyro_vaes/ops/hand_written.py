"""What a hand-written gradient needs: when it may stand in for torch's own, and the context that it is given."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .capturing import is_capturing


def is_eager(*tensors: Tensor) -> bool:
    """Whether all are single-precision CPU tensors and nothing looks at or rewrites the operations on them.

    Transforms of ``torch.func``, forward-mode derivatives, autocast, compilation, tracing and dispatch modes know
    torch's operations only. A captured graph holds what the kernel does, operation by operation, so that it gives the
    same numbers.

    Example:
        >>> is_eager(torch.ones(2)), is_eager(torch.ones(2).double())
        (True, False)
        >>> torch.func.vmap(lambda t: torch.tensor(is_eager(t)))(torch.ones(2))
        tensor([False, False])
    """
    plain = all(
        type(t) in (Tensor, nn.Parameter)
        and t.dtype is torch.float32
        and t.device.type == "cpu"
        and t.layout is torch.strided
        for t in tensors
    )

    return (
        plain
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and (is_capturing() or not torch._C._len_torch_dispatch_stack())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class GradientContext(Protocol):
    """What ``forward`` keeps for ``backward`` in a :class:`torch.autograd.Function`.

    Attributes:
        saved_tensors: What ``save_for_backward`` was given.
        needs_input_grad: For each argument of ``forward``, whether its gradient is asked for.
    """

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...
