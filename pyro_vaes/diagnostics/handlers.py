"""Effect handlers for evaluation: which rows a subsampling program covers, and programs run without their data."""

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["AtMeans", "FixedRows", "WithoutData", "is_factor"]


class FixedRows(Messenger):
    """Let subsampling plates take given rows instead of random ones.

    Without an index they take the first rows: a mini-batch passed under ``plate("data", N, subsample_size=len(x))`` is
    its own subsample. A plate that is given its rows (``subsample=``) keeps them.

    Attributes:
        index: The rows for all plates that stand for ``full_size`` data; None for the first ones.
        full_size: Number of data that these rows are taken from.
        full_sizes: Full sizes of the subsampling plates seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index: Tensor | None = None
        self.full_size: int | None = None
        self.full_sizes: set[int] = set()

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        if not site_is_subsample(msg) or msg["value"] is not None:
            return
        if fn.subsample_size is None or fn.subsample_size >= fn.size:
            return
        self.full_sizes.add(fn.size)
        given = self.index is not None and fn.size == self.full_size
        index = self.index if given else torch.arange(fn.subsample_size)
        assert index is not None
        msg["value"] = index.to("cuda" if fn.use_cuda else fn.device or "cpu")
        msg["done"] = True


class WithoutData(UnconditionMessenger):
    """Draw what was observed, as ``poutine.uncondition`` does, but let deterministic and factor statements be.

    These count as observed too. Drawn anew inside a plate, a deterministic value would come back once for each row.
    """

    def _pyro_sample(self, msg: Message) -> None:
        if not msg["infer"].get("_deterministic") and not is_factor(msg):
            super()._pyro_sample(msg)


class AtMeans(Messenger):
    """Let each latent of a guide be the mean of its distribution instead of a draw."""

    def _pyro_sample(self, msg: Message) -> None:
        if msg["value"] is not None or site_is_subsample(msg) or is_factor(msg):
            return
        try:
            msg["value"] = msg["fn"].mean
        except NotImplementedError as error:
            raise ValueError(
                f"The guide's site {msg['name']!r} ({type(msg['fn']).__name__}) has no mean; average over draws "
                "instead: num_samples=100."
            ) from error
        msg["done"] = True


def is_factor(site: Message) -> bool:
    """Whether a site is a ``pyro.factor`` statement, which has a density but no value."""
    fn = site["fn"]
    while isinstance(fn, ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, Unit)
