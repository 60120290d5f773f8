"""A categorical whose classes are numbers."""

from pyro import distributions as dist
from torch import Tensor


class IntegerCategorical(dist.Categorical):
    r"""A categorical over the integers 0, ..., K-1, with the moments that torch's leaves at nan.

    .. math:: E[x] = \sum_k k \, p_k, \qquad Var[x] = \sum_k (k - E[x])^2 \, p_k

    For classes that are levels (of grey, say) this is what a reconstruction shows; for unordered classes use
    ``mode``.

    Arguments:
        probs: Probabilities with shape ``(..., K)``; or
        logits: their unnormalised logarithms with shape ``(..., K)``.

    Example:
        >>> import torch
        >>> IntegerCategorical(torch.tensor([0.25, 0.5, 0.25])).mean
        tensor(1.)
    """

    @property
    def _levels(self) -> Tensor:
        return self.enumerate_support(expand=False).flatten().to(self.probs)

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._levels

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self._levels - self.mean.unsqueeze(-1)).square()).sum(-1)
