"""Refusing to capture a function that reads numbers of its tensors into Python.

While a graph is recorded, torch itself raises at ``.item()`` and ``bool(tensor)`` only.
Other ways to a number or an array would be baked into the graph without a word. Functions of
torch that look at numbers merely to check them are recorded without.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

from pyro_vaes.ops import assert_in_graph

READS: dict[object, str] = {
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "np.asarray(tensor)",
    Tensor.tolist: ".tolist()",
    Tensor.__dlpack__: "DLPack",
}


class CannotCapture(Exception):
    """Why a function cannot be captured, in words that end a sentence."""


def in_one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says.

    Example:
        >>> in_one_line(ValueError("too small"))
        'ValueError: too small'
    """
    first, _, _ = str(error).partition("\n")
    return f"{type(error).__name__}: {first[:120]}"


class RefuseReads(TorchFunctionMode):
    """Inside, ways to read a tensor into Python that torch does not notice are refused.

    Raises:
        CannotCapture: A function uses one of them.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in READS:
            how = READS[func]
            raise CannotCapture(f"the programs read tensors into Python ({how})")
        if func is one_hot:
            return _one_hot(*args, **(kwargs or {}))  # type: ignore[arg-type]
        return func(*args, **(kwargs or {}))


def _one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """What ``one_hot`` returns, whose check of the labels is a part of the graph."""
    if num_classes < 1:
        reads = "one_hot without num_classes reads the largest label into Python"
        raise CannotCapture(reads)
    known = (labels >= 0) & (labels < num_classes)
    assert_in_graph(known, f"Labels must lie in 0..{num_classes - 1}.")
    classes = torch.arange(num_classes, device=labels.device)
    return (labels.unsqueeze(-1) == classes).long().contiguous()  # as torch lays it out
