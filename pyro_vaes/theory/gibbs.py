r"""The Gibbs chain of a hierarchical model: why its bottom level suffices to represent the data, in finite tables.

    p(x, z) = p(z_L) prod_l p(z_l | z_{l+1}) p(x | z_1),    q(z_1 | x) = p(z_1) p(x | z_1) / p(x)
    T(x, x') = sum_{z_1} q(z_1 | x) p(x' | z_1),            p T = p

At the optimum of the bound q is the true posterior and p(x) the data's distribution. Alternating q(z_1 | x) and
p(x | z_1) is then a Gibbs sampler of p(x, z_1): if it is ergodic it draws the data without any level above z_1.

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
"""

from dataclasses import dataclass
from functools import reduce

import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GibbsChain:
    """A hierarchical model over K states of z_1 and D states of x, and its chain on x.

    Attributes:
        prior: p(z_1), shape ``(K,)``, all levels above summed out.
        marginal: p(x), shape ``(D,)``.
        posterior: q(z_1 | x), shape ``(D, K)``, rows sum to 1.
        transition: T, shape ``(D, D)``, rows sum to 1.
    """

    prior: Tensor
    marginal: Tensor
    posterior: Tensor
    transition: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes of states between which the chain never moves; 1 for an ergodic chain, whose only
        stationary distribution is p(x)."""
        # T is reversible, so its support is symmetric and classes are connected components; T(x, x) > 0: no periods
        return int(connected_components(self.transition.detach().cpu().numpy() > 0, directed=False)[0])

    @property
    def spectral_gap(self) -> float:
        """1 minus the second largest eigenvalue of T: the distance to p(x) shrinks by 1 - gap or more at each step."""
        root = self.marginal.sqrt()
        symmetric = root.unsqueeze(1) * self.transition / root  # same eigenvalues, in [0, 1]
        values = torch.linalg.eigvalsh(0.5 * (symmetric + symmetric.mT))
        return 1.0 - values[-2].item() if len(root) > 1 else 1.0

    def run(self, start: Tensor, steps: int) -> Tensor:
        """The distribution of x after some steps, shape ``(..., D)``.

        Arguments:
            start: The distribution of the first x, shape ``(..., D)``.
            steps: Number of steps.
        """
        return start @ torch.linalg.matrix_power(self.transition, steps)


def gibbs_chain(top: Tensor, *conditionals: Tensor) -> GibbsChain:
    """The chain of a hierarchical model that is given by tables.

    Arguments:
        top: p(z_L), shape ``(K_L,)``.
        conditionals: p(z_{L-1} | z_L) with shape ``(K_L, K_{L-1})``, and so on down to p(x | z_1) with shape
            ``(K_1, D)``; rows sum to 1.

    Returns:
        The chain, in the tables' dtype.

    Raises:
        ValueError: A table is missing, the tables do not fit together, do not hold distributions, or never produce
            some x.

    Example:
        >>> chain = gibbs_chain(torch.tensor([0.5, 0.5]), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]]))
        >>> torch.allclose(chain.marginal @ chain.transition, chain.marginal), chain.num_classes
        (True, 1)
    """
    if not conditionals:
        raise ValueError("gibbs_chain needs p(x | z_1) besides p(z_1); with L levels it takes L + 1 tables.")
    tables = (top, *conditionals)
    for index, table in enumerate(tables):
        rows = tables[index - 1].shape[-1:] if index else ()
        if not table.dim() or table.shape[:-1] != rows:
            raise ValueError(
                f"Table {index} has shape {tuple(table.shape)}, but its rows must be the {rows[0] if rows else 1} "
                "states of the level above; transpose it, or pass the tables from the top down?"
            )
        sums = table.sum(-1)
        if (table < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-5):
            raise ValueError(f"Table {index} holds negative numbers or rows that do not sum to 1; normalise it.")

    *above, likelihood = conditionals
    prior = reduce(torch.matmul, above, top)
    marginal = prior @ likelihood
    if (marginal == 0).any():
        raise ValueError("p(x) is 0 for some x, so q(z_1 | x) does not exist there; leave those columns out.")
    posterior = (prior.unsqueeze(-1) * likelihood / marginal).mT
    return GibbsChain(prior, marginal, posterior, posterior @ likelihood)
