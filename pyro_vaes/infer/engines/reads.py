"""Refusing to capture a function that reads numbers of its tensors into Python.

While a graph is recorded, torch itself raises at ``.item()`` and ``bool(tensor)`` only.
Other ways to a number or an array would be baked into the graph without a word.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.overrides import TorchFunctionMode

READS: dict[object, str] = {
    Tensor.numpy: ".numpy()",
    Tensor.__array__: "np.asarray(tensor)",
    Tensor.tolist: ".tolist()",
    Tensor.__dlpack__: "DLPack",
}


class CannotCapture(Exception):
    """Why a function cannot be captured, in words that end a sentence."""


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
            raise CannotCapture(f"the programs read tensors into Python ({READS[func]})")
        return func(*args, **(kwargs or {}))
