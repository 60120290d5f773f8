"""A function of tensors on a GPU as one CUDA graph, which is replayed without the host's work.

A CUDA graph reads and writes the memory that it was recorded with. Batches are copied into
that memory; what a step moves in place, such as the optimiser's state, is used where it is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reads import CannotCapture, in_one_line

WARM_UPS = 3  # runs before the recording, which torch's libraries need


class CudaGraph:
    """A recorded run of a function.

    Arguments:
        function: The function; it is run a few times, on copies of the moving tensors.
        tensors: Its arguments.
        num_fixed: How many of the last ones are used in place. They must be the same tensors
            in each call.

    Raises:
        CannotCapture: The function waits for the host, or torch cannot record it.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        num_fixed: int = 0,
    ) -> None:
        self.num_moving = len(tensors) - num_fixed
        self.moving = [tensor.clone() for tensor in tensors[: self.num_moving]]
        self.fixed = list(tensors[self.num_moving :])
        self.graph = torch.cuda.CUDAGraph()

        try:
            self._warm_up(function)
            with torch.cuda.graph(self.graph), torch.no_grad():
                self.outputs = list(function(*self.moving, *self.fixed))
        except Exception as error:
            why = f"no CUDA graph of a step can be recorded ({in_one_line(error)})"
            raise CannotCapture(why) from error

    def _warm_up(self, function: Callable[..., Sequence[Tensor]]) -> None:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(WARM_UPS):
                function(*self.moving, *self.fixed)
        torch.cuda.current_stream().wait_stream(aside)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Replay the run on other tensors; numbers are copied, larger results overwritten."""
        given = tensors[self.num_moving :]
        if not all(one is two for one, two in zip(given, self.fixed, strict=True)):
            moved = "the optimiser's state is held by other tensors than before"
            raise CannotCapture(moved)

        for kept, tensor in zip(self.moving, tensors, strict=False):
            kept.copy_(tensor)
        self.graph.replay()
        return [out.clone() if out.dim() == 0 else out for out in self.outputs]
