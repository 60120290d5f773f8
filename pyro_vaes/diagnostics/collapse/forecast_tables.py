"""Forecasts of posterior collapse, and forecast beside measurement, as tables."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vaes.tables import text_table
from pyro_vaes.theory import LinearHierarchicalVAE, LinearVAE

from .chi_square import chi_square_collapse_curve
from .collapse_tables import CollapseReport, SiteCollapse

SHOWN = 12  # units in the printed tables


@dataclass(frozen=True, eq=False)
class SiteForecast:
    """One latent site with d units, strongest first.

    Attributes:
        name: The site.
        kl: Nats per datum of each unit, without KL weight, ``(d,)``.
        encoder_singular_values: Standard deviations of the posterior means, ``(d,)``.
        encoder_scale: Standard deviations of the posteriors, ``(d,)``.
        prior_scale: Standard deviation of the prior; None for z_1 of a hierarchy, whose prior depends on z_2 and whose
            ``kl`` is E_q[log q(z_1|x) - log p(z_1|z_2)].
        critical_beta: KL weight (of this site, all else equal) from which on each unit is collapsed, ``(d,)``; None for
            z_1 of a hierarchy.
        critical_noise: Noise (in a hierarchy: of both levels) from which on each unit is collapsed, ``(d,)``; likewise.
    """

    name: str
    kl: Tensor
    encoder_singular_values: Tensor
    encoder_scale: Tensor
    prior_scale: float | None = None
    critical_beta: Tensor | None = None
    critical_noise: Tensor | None = None

    @property
    def total_kl(self) -> float:
        """Sum over the units, nats per datum."""
        return self.kl.sum().item()

    @property
    def active(self) -> Tensor:
        """Whether each unit's posterior depends on the data, ``(d,)``."""
        return self.encoder_singular_values > 0

    @property
    def num_active(self) -> int:
        """Number of active units."""
        return int(self.active.sum())

    def collapse_curve(self, epsilon: Tensor | None = None, delta: float = 0.05) -> tuple[Tensor, Tensor]:
        """Share of units that will be (epsilon, delta)-collapsed, for normal data; see
        :func:`~pyro_vaes.diagnostics.chi_square_collapse_curve`.

        Raises:
            ValueError: The site's prior depends on another latent site.
        """
        if self.prior_scale is None:
            raise ValueError(
                f"The prior of {self.name!r} depends on the level above, so (epsilon, delta)-collapse has no closed "
                "form for it; ask the top level."
            )
        scales = self.encoder_singular_values, self.encoder_scale, self.prior_scale
        return chi_square_collapse_curve(*scales, epsilon=epsilon, delta=delta)

    def table(self) -> list[str]:
        """The lines in which a forecast prints this site."""
        lines = [f"{self.name}: {self.num_active} of {len(self.kl)} units active, KL {self.total_kl:.3f} nats"]
        columns, values = "unit:>6 | KL:>10.3f", [torch.arange(len(self.kl)) + 1, self.kl]
        if self.critical_beta is not None and self.critical_noise is not None:
            columns += " | dies at beta:>15.4g | dies at noise:>15.4g"
            values += [self.critical_beta, self.critical_noise]

        shown = [tensor[:SHOWN].tolist() for tensor in values]
        lines += text_table(columns, zip(*shown, strict=True))
        if len(self.kl) > SHOWN:
            lines.append(f"{'...':>6}{len(self.kl) - SHOWN:>10} more")
        return lines


@dataclass(frozen=True, eq=False)
class CollapseForecast:
    """What to expect of a pair, site by site; prints itself as a table.

    Attributes:
        sites: Forecasts by site, the one nearest the data first.
        theory: The closed form they come from.
        num_data: Number of data in the spectrum.
        centred: Whether the spectrum is that of the centred data.
        conditional: Whether it is that of the residuals of regression on covariates.
    """

    sites: dict[str, SiteForecast]
    theory: LinearVAE | LinearHierarchicalVAE
    num_data: int
    centred: bool
    conditional: bool

    def __getitem__(self, name: str) -> SiteForecast:
        return self.sites[name]

    def beside(self, report: CollapseReport) -> "ForecastComparison":
        """Put the forecast beside what :func:`~pyro_vaes.diagnostics.collapse_report` measured after training.

        Arguments:
            report: The measurement, of a pair with the same latent sites.

        Raises:
            ValueError: The report lacks a site of the forecast.
        """
        missing = sorted(self.sites.keys() - report.sites.keys())
        if missing:
            raise ValueError(
                f"The report has no site {missing[0]!r}: it measured {sorted(report.sites)}. Forecast and report must "
                "be of one model, and a guide with one joint distribution for several sites has one entry for all."
            )
        return ForecastComparison({n: SiteComparison(f, report[n]) for n, f in self.sites.items()})

    def __repr__(self) -> str:
        kind = "residual " if self.conditional else ""
        moments = "covariance" if self.centred else "second moment"
        lines = [
            f"linear forecast from the {kind}{moments} of {self.num_data} data, exact for linear networks with a "
            f"shared encoder scale (noise {self.theory.noise:.4g})"
        ]
        for site in self.sites.values():
            lines += site.table()
        if isinstance(self.theory, LinearHierarchicalVAE) and self.theory.undetermined:
            lines.append("with equal weights and both encoder scales learnable the loss does not decide about z_2")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class SiteComparison:
    """Forecast and measurement of one site."""

    forecast: SiteForecast
    measured: SiteCollapse

    @property
    def kl(self) -> Tensor:
        """KL of each unit, largest first, ``(2, d)``: forecast, measured. Without units, the totals ``(2, 1)``."""
        forecast, measured = self.forecast.kl, self.measured.kl.to(self.forecast.kl)
        if len(forecast) != len(measured):
            forecast, measured = forecast.sum(0, keepdim=True), measured.sum(0, keepdim=True)
        return torch.stack([forecast.sort(descending=True).values, measured.sort(descending=True).values])


@dataclass(frozen=True, eq=False)
class ForecastComparison:
    """Forecast and measurement side by side; prints itself as a table, and ``plots.kl_forecast`` draws each site."""

    sites: dict[str, SiteComparison]

    def __getitem__(self, name: str) -> SiteComparison:
        return self.sites[name]

    def __repr__(self) -> str:
        lines = []
        for name, site in self.sites.items():
            forecast, measured = site.forecast, site.measured
            units = site.kl.T.tolist()
            rows = [
                ("KL", forecast.total_kl, measured.total_kl, measured.total_kl_error),
                ("active", str(forecast.num_active), str(measured.active_units), None),
            ]
            for i, (expected, found) in enumerate(units[:SHOWN]):
                rows.append((f"unit {i + 1}", expected, found, None))
            lines += text_table(f"{name}:<10 | linear forecast:>17.3f | measured:>12.3f | ±:>8.3f", rows)
            if len(units) > SHOWN:
                lines.append(f"... {len(units) - SHOWN} more units")
        lines.append("nats per datum, units sorted by KL; measured active units are those with Var_x E[z_i|x] > 0.01")
        return "\n".join(lines)
