"""The context of a hand-written gradient, with the attributes that torch's own annotations leave out."""

from typing import Protocol

from torch import Tensor


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
