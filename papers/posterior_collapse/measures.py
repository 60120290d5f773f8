"""What is measured of a pair that may have collapsed, beside what the linear theory said before training."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from papers.findings import Findings
from papers.posterior_collapse.training import AnyPair, Fitted, Rows, observed
from papers.study import Result
from pyro_vaes import plots
from pyro_vaes.diagnostics import (
    CollapseReport,
    collapse_report,
    log_likelihood,
    reconstruct,
    take_means,
)

__all__ = ["measured", "rank_correlation"]


def measured(
    fitted: Fitted,
    rows: Rows,
    num_likelihood: int,
    num_particles: int,
    *,
    pictures: Mapping[str, Figure] | None = None,
) -> Result:
    """The collapse of a trained pair on data, in figures and two pictures.

    Arguments:
        fitted: The pair.
        rows: The data, the model's arguments.
        num_likelihood: Data for which -log p(x) is estimated; KL weights do not enter.
        num_particles: K of that importance-weighted estimate.
        pictures: More pictures.
    """
    model, guide = fitted.pair.model, fitted.pair.guide
    report = collapse_report(model, guide, rows)
    site, forecast = report[fitted.site], fitted.forecast[fitted.site]
    _, shares = site.collapse_curve(torch.tensor([0.1, 0.5], dtype=torch.float64))

    if isinstance(rows, tuple):
        few: Rows = (rows[0][:num_likelihood], rows[1][:num_likelihood])
    else:
        few = rows[:num_likelihood]
    estimate = log_likelihood(model, guide, few, num_particles)

    figures = {
        "KL": site.total_kl,
        "linear KL": forecast.total_kl,
        "Burda AU": site.active_units,
        "linear AU": forecast.num_active,
        "released AU": site.active_pairs,
        "% collapsed (.1, .05)": 100 * shares[0].item(),
        "% collapsed (.5, .05)": 100 * shares[1].item(),
        "squared error": _squared_error(fitted.pair, rows, None),
        "NLL": -estimate.log_likelihood.mean().item(),
    }
    if fitted.uncentred is not None:
        figures["linear KL, not centred"] = fitted.uncentred[fitted.site].total_kl
    if fitted.site == "z_2":
        figures["error through z2"] = _squared_error(fitted.pair, rows, ["z_2"])

    return Result(figures, {"units": _units(fitted, report), **(pictures or {})})


def _squared_error(pair: AnyPair, rows: Rows, through: Sequence[str] | None) -> float:
    """E‖x - f(z)‖² with all latents at their means, or with only some kept."""
    model, guide = take_means()(pair.model), take_means()(pair.guide)
    found = reconstruct(model, guide, rows, through=through, batch_size=1000)["x"]
    return (found - observed(rows).cpu()).square().sum(1).mean().item()


def _units(fitted: Fitted, report: CollapseReport) -> Figure:
    """KL of each unit, and the share of units that are collapsed: forecast and measurement."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plots.kl_forecast(fitted.forecast.beside(report)[fitted.site], ax=left)

    epsilon, shares = report[fitted.site].collapse_curve()
    _, expected = fitted.forecast[fitted.site].collapse_curve(epsilon)
    plots.collapse_curve(
        epsilon,
        torch.stack([shares, expected]),
        labels=["measured", "linear, normal data"],
        title=None,
        ax=right,
    )
    return figure


def rank_correlation(
    findings: Findings,
    cases: str,
    forecast: str = "linear KL",
    *,
    label: str | None = None,
) -> str | None:
    """A line with the Spearman correlation of forecast and trained KL over the cases of one sweep.

    Arguments:
        findings: What the study found.
        cases: What the names of the cases begin with.
        forecast: Column of the forecast.
        label: What the line calls the sweep; by default ``cases``.

    Returns:
        The line, or None for fewer than three such cases.
    """
    forecasts, trained = findings.column(forecast), findings.column("KL")
    names = [name for name in trained if name.startswith(cases)]
    sweep = [name for name in names if not name.endswith("released weighting")]
    if len(sweep) < 3:
        return None

    means = ([fmean(column[name]) for name in sweep] for column in (forecasts, trained))
    rho = spearmanr(*means).statistic
    return f"{label or cases}: rank correlation of {forecast} and trained KL over {len(sweep)} settings {rho:.3f}"
