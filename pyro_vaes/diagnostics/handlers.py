"""Effect handlers for evaluation: which rows a program covers, programs without their data, latents at their means."""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vaes.programs import Role, is_latent, role

__all__ = ["FixedRows", "WithoutData", "take_means"]


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
        if role(msg) is Role.OBSERVED:
            super()._pyro_sample(msg)


class take_means(Messenger):
    """Let latent sites take the means of their distributions instead of draws.

    Around model and guide, what is computed from the latents no longer depends on chance; densities are those at the
    means, so bounds are not to be computed under it.

    Raises:
        ValueError: A site's distribution has no mean, or takes finitely many values.

    Example:
        >>> import pyro
        >>> from pyro.distributions import Normal
        >>> with take_means():
        ...     pyro.sample("z", Normal(torch.tensor(3.0), 1.0))
        tensor(3.)
    """

    def _pyro_sample(self, msg: Message) -> None:
        if not is_latent(msg) or msg["value"] is not None:
            return
        fn = msg["fn"]
        try:
            mean = None if fn.has_enumerate_support else fn.mean  # of a category there is none to compute with
        except NotImplementedError:
            mean = None
        if mean is None:
            raise ValueError(
                f"The distribution of {msg['name']!r} ({type(fn).__name__}) has no mean in its support; take draws?"
            )
        msg["value"] = mean
        msg["done"] = True
