"""Recording the expectations of Pyro's enumerating bounds.

:class:`pyro.infer.util.Dice` picks out the costs whose probability is not zero, so that the
size of what it sums depends on numbers. In a graph all costs are summed, and those of
probability zero count as zero.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from pyro.infer.util import Dice
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vaes.ops import is_capturing

_lock = threading.Lock()


class _AllCosts(TorchFunctionMode):
    """Inside ``Dice.compute_expectation``: no probability is asked whether it is zero."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is Tensor.all:
            return True
        if func is torch.tensordot:
            prob, cost, *rest = args
            assert isinstance(prob, Tensor) and isinstance(cost, Tensor)
            args = [prob, torch.where(prob > 0, cost, 0.0), *rest]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def costs_summed_as_they_are() -> Iterator[None]:
    """Inside, expectations can be recorded; those who record nothing meet Pyro's own."""
    with _lock:
        original = Dice.compute_expectation

        def compute_expectation(dice: Dice, costs: Mapping[object, object]) -> object:
            if not is_capturing():
                return original(dice, costs)
            with _AllCosts():
                return original(dice, costs)

        Dice.compute_expectation = compute_expectation
        try:
            yield
        finally:
            Dice.compute_expectation = original
