"""The mean KL of normal posteriors in its parts, and all that is measured of an aggregate posterior, as a table.

See :mod:`pyro_vaes.diagnostics.posterior.aggregate` for the formulas.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from pyro_vaes.distributions import AggregateGaussian
from pyro_vaes.tables import text_table

from ..summaries import ACTIVE_VARIANCE


@dataclass(frozen=True)
class KLDecomposition:
    """The mean KL of N posteriors from N(0, I) as that of their aggregate and the rest, nats per datum.

    Attributes:
        mean_kl: mean_i KL(q_i || p).
        aggregate_kl: KL(N(m, A) || p).
        spread: 1/2 sum_k log A_k less its mean over the posteriors' own log variances, 0 or more: what the posteriors
            pay for being narrower than their aggregate, and for correlations.
    """

    mean_kl: float
    aggregate_kl: float
    spread: float


def kl_decomposition(loc: Tensor, scale: Tensor, entropy: Tensor | None = None) -> KLDecomposition:
    """Split the mean KL divergence of normal posteriors from N(0, I); each part by its own formula.

    Arguments:
        loc: Means, ``(N, d)``.
        scale: Standard deviations of the single units, ``(N, d)``.
        entropy: Of each posterior, nats, ``(N,)``; by default that of independent units.

    Example:
        >>> import torch
        >>> found = kl_decomposition(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
        >>> found.mean_kl, round(found.aggregate_kl + found.spread, 6)
        (0.5, 0.5)
    """
    per_unit = 0.5 * (1 + math.log(2 * math.pi))
    entropy = (per_unit + scale.log()).sum(1) if entropy is None else entropy
    second = (loc.square() + scale.square()).sum(1)
    mean_kl = 0.5 * (second.mean() + loc.shape[1] * math.log(2 * math.pi)) - entropy.mean()
    aggregate = AggregateGaussian(loc, scale, "mixture", validate_args=False)
    spread = aggregate.entropy() - entropy.mean()
    return KLDecomposition(mean_kl.item(), aggregate.kl_units().sum().item(), spread.item())


@dataclass(frozen=True)
class AggregateReport:
    """The aggregate posterior of N data over U units, those of all sites in turn; prints itself.

    Attributes:
        sites: Number of units of each latent site.
        loc: m, ``(U,)``.
        mean_variance: V, the variance of the posterior means, ``(U,)``.
        mean_scale: mean_i sigma_i, ``(U,)``.
        variance: A, that of the aggregate itself, ``(U,)``.
        sensitivity: Mean absolute change of the observation's mean when a unit moves by 1 from the posterior mean, in
            the data's units, ``(U,)``; nan where it was not asked for.
        decomposition: The mean KL and its parts, nats per datum.
        means_kl: KL(N(m, V) || N(0, I)), nats: what the released objective makes small.
        mutual_information: I(i; z) of the mixture of ``mixture_size`` posteriors, nats; nan for full covariances.
        mutual_information_error: Its standard error.
        mixture_kl: KL of that mixture from N(0, I), nats.
        mixture_size: Number of posteriors in the mixture.
        num_data: N.
    """

    sites: dict[str, int]
    loc: Tensor
    mean_variance: Tensor
    mean_scale: Tensor
    variance: Tensor
    sensitivity: Tensor
    decomposition: KLDecomposition
    means_kl: float
    mutual_information: float
    mutual_information_error: float
    mixture_kl: float
    mixture_size: int
    num_data: int

    @property
    def num_dead(self) -> int:
        """Units whose posterior means do not vary, V < 0.01; not those that the decoder ignores."""
        return int((self.mean_variance < ACTIVE_VARIANCE).sum())

    def __repr__(self) -> str:
        per_unit = {
            "Var of the means": self.mean_variance,
            "mean scale": self.mean_scale,
            "aggregate variance": self.variance,
            "decoder sensitivity": self.sensitivity,
        }
        rows = [(name, t.min(), t.median(), t.max()) for name, t in per_unit.items()]
        lines = text_table("per unit:<26 | least:>9.4f | median:>9.4f | most:>9.4f", rows)

        parts, bound = self.decomposition, math.log(self.mixture_size)
        lines += [
            f"{self.num_dead} of {len(self.loc)} units have means with a variance below {ACTIVE_VARIANCE}",
            f"mean KL {parts.mean_kl:.3f} = aggregate Gaussian {parts.aggregate_kl:.3f} + spread {parts.spread:.3f}; "
            f"Gaussian of the means {self.means_kl:.3f}",
            f"mixture of {self.mixture_size}: KL {self.mixture_kl:.3f}, I(x;z) {self.mutual_information:.3f} "
            f"± {self.mutual_information_error:.3f}, at most {bound:.2f}",
            f"nats per datum, N = {self.num_data}",
        ]
        return "\n".join(lines)
