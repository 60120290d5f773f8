"""Effect handlers for evaluation: which rows a program covers, and programs without data."""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from .sites import Role, role


class FixedRows(Messenger):
    """Let subsampling plates take given rows instead of random ones.

    Without an index they take the first rows: a mini-batch that is passed under
    ``plate("data", N, subsample_size=len(x))`` is its own subsample. A plate that is given
    its rows (``subsample=``) keeps them.

    Attributes:
        index: The rows for all plates that stand for ``full_size`` data; None for the
            first ones.
        full_size: Number of data that these rows are taken from.
        full_sizes: Full sizes of the subsampling plates so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor | None = None
        self.full_size: int | None = None
        self.full_sizes: set[int] = set()

    def _pyro_sample(self, msg: Message) -> None:
        if role(msg) is not Role.SUBSAMPLING:
            return

        fn = msg["fn"]
        takes_all = fn.subsample_size is None or fn.subsample_size >= fn.size
        if msg["value"] is not None or takes_all:
            return

        self.full_sizes.add(fn.size)
        if self.index is not None and fn.size == self.full_size:
            index = self.index
        else:
            index = torch.arange(fn.subsample_size)
        msg["value"] = index.to("cuda" if fn.use_cuda else fn.device or "cpu")
        msg["done"] = True


class WithoutData(UnconditionMessenger):
    """Draw what was observed, as ``poutine.uncondition`` does.

    Deterministic and factor statements, which count as observed too, are left as they are:
    drawn anew inside a plate, a deterministic value would come back once for each row.
    """

    def _pyro_sample(self, msg: Message) -> None:
        if role(msg) is Role.OBSERVED:
            super()._pyro_sample(msg)
