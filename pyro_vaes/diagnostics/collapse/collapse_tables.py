"""The definitions of posterior collapse as numbers of one latent site, and as a table of all sites.

See :mod:`pyro_vaes.diagnostics.collapse.collapse` for the definitions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vaes.tables import text_table

from ..summaries import ACTIVE_VARIANCE, standard_error

ACTIVE_KL = 0.01


@dataclass(frozen=True)
class SiteCollapse:
    """One latent site with d units, measured on N data; nats.

    A guide that draws several sites from one joint distribution has one entry for all of them, ``"a, b"``.

    Attributes:
        name: The site.
        kl_draws: KL of each datum and unit given S draws of the other latents, ``(S, N, d)``; S = 1 where the posterior
            depends on the datum alone, and for estimates, which are averages over draws. d = 1 where the
            distributions do not factorise.
        mean_variance: Var_x E[z_i | x], one for each element of z.
        mutual_information: I_q(x; z) estimated with a mixture of ``mixture_size`` posteriors, at most the logarithm of
            that; nan for a site whose posterior the guide draws given other latents.
        mutual_information_error: Its standard error over the data.
        mixture_size: Number of posteriors in the mixture.
        aggregate_kl: E KL - I_q over the data of the mixture; nan likewise, and where the prior depends on other
            latents or on the datum, for then I_q is no part of E KL.
        analytic: Whether the KLs are closed forms rather than estimates from draws.
    """

    name: str
    kl_draws: Tensor
    mean_variance: Tensor
    mutual_information: float
    mutual_information_error: float
    mixture_size: int
    aggregate_kl: float
    analytic: bool

    @property
    def kl_per_datum(self) -> Tensor:
        """KL of each datum and unit, ``(N, d)``."""
        return self.kl_draws.mean(0)

    @property
    def kl(self) -> Tensor:
        """KL of each unit, ``(d,)``."""
        return self.kl_per_datum.mean(0)

    @property
    def kl_error(self) -> Tensor:
        """Standard error of :attr:`kl` over the data, ``(d,)``."""
        return standard_error(self.kl_per_datum)

    @property
    def total_kl(self) -> float:
        """Sum over the units, nats per datum."""
        return self.kl.sum().item()

    @property
    def total_kl_error(self) -> float:
        """Standard error of :attr:`total_kl` over the data."""
        return standard_error(self.kl_per_datum.sum(1)).item()

    @property
    def active_units(self) -> int:
        """Burda's count: units whose posterior mean varies, Var_x E[z_i | x] > 0.01."""
        return int((self.mean_variance > ACTIVE_VARIANCE).sum())

    @property
    def active_pairs(self) -> float:
        """Share of (datum, unit) pairs with a KL of at least 0.01 nats."""
        return (self.kl_draws >= ACTIVE_KL).double().mean().item()

    def collapse_curve(self, epsilon: Tensor | None = None, delta: float = 0.05) -> tuple[Tensor, Tensor]:
        """Share of units that are (epsilon, delta)-collapsed, against epsilon.

        The probability is over the data and, for a site that the guide draws given other latents, over these.

        Arguments:
            epsilon: Thresholds in nats; 100 from 1e-3 to 10 by default.
            delta: Share of the data that may exceed the threshold, in [0, 1).

        Returns:
            epsilon and the shares, tensors of one length; the shares never fall.
        """
        epsilon = default_epsilon().to(self.kl_draws) if epsilon is None else epsilon
        return epsilon, (self.collapse_epsilon(delta) < epsilon[:, None]).double().mean(1)

    def collapse_epsilon(self, delta: float = 0.05) -> Tensor:
        """The epsilon above which each unit is (epsilon, delta)-collapsed, nats, ``(d,)``.

        Arguments:
            delta: Share of the data that may exceed the threshold, in [0, 1).
        """
        if not 0 <= delta < 1:
            raise ValueError(f"delta is a share of the data in [0, 1), but got {delta}.")
        kl = self.kl_draws.flatten(0, 1)  # (S * N, d)
        enough = math.ceil((1 - delta) * len(kl) - 1e-9)  # so many must lie below epsilon
        return kl.kthvalue(max(enough, 1), dim=0).values


def default_epsilon() -> Tensor:
    """Thresholds of (epsilon, delta)-collapse, nats: 100 from 1e-3 to 10."""
    return torch.logspace(-3, 1, 100, dtype=torch.float64)


@dataclass(frozen=True)
class CollapseReport:
    """All latent sites of a pair, see :class:`SiteCollapse`; prints itself as a table."""

    sites: dict[str, SiteCollapse]
    num_data: int

    def __getitem__(self, name: str) -> SiteCollapse:
        return self.sites[name]

    def __repr__(self) -> str:
        width = max(8, *(len(name) + 2 for name in self.sites))
        columns = (
            f"site:<{width} | units:>6 | KL:>9.3f | ±:>7.3f | active (Burda):>16 | pairs KL>=.01:>15.1% | "
            "collapsed (.1, .05):>21.1% | I(x;z):>9.3f | ±:>7.3f | agg. KL:>9.3f"
        )
        rows = []
        for site in self.sites.values():
            collapsed = (site.collapse_epsilon() < 0.1).double().mean()
            kl = (site.total_kl, site.total_kl_error)
            information = (site.mutual_information, site.mutual_information_error)
            counts = (site.active_units, site.active_pairs, collapsed.item())
            rows.append((site.name, len(site.mean_variance), *kl, *counts, *information, site.aggregate_kl))

        lines = text_table(columns, rows)
        bound = math.log(next(iter(self.sites.values())).mixture_size)
        lines.append(f"nats per datum, N = {self.num_data}; the estimate of I(x;z) cannot exceed {bound:.2f}")
        return "\n".join(lines)
