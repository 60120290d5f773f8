"""What is measured of a pair that may have collapsed, beside what the linear theory said before training."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from pyro.infer import ELBO
from scipy.stats import spearmanr
from torch import Tensor

from papers.findings import Findings
from papers.study import Job, Result
from pyro_vaes import plots
from pyro_vaes.diagnostics import (
    CollapseForecast,
    CollapseReport,
    collapse_report,
    forecast_collapse,
    log_likelihood,
    reconstruct,
    take_means,
)
from pyro_vaes.infer import Callback, ClipGradNorm, LearningRate, fit, scale_latents
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE

__all__ = ["Fitted", "AnyPair", "kl_weights", "measured", "rank_correlation", "train"]

AnyPair = VAE | ConditionalVAE | HierarchicalVAE
Scale = float | Sequence[float] | None
Rows = Tensor | tuple[Tensor, Tensor]


def kl_weights(betas: Mapping[str, float], *, released: bool) -> dict[str, float]:
    """KL weights of the ELBO by site.

    The authors' programs weigh the reconstruction without its ½ but the KL with it,

        E‖x - f(z)‖² / noise² + beta KL  =  2 (-ELBO_{beta / 2}) + const,

    so their beta is half as strong as it says.

    Arguments:
        betas: beta by latent site.
        released: Whether they are betas of the authors' programs rather than of the ELBO.

    Example:
        >>> kl_weights({"z": 1.0}, released=True)
        {'z': 0.5}
    """
    return {site: beta / 2 if released else beta for site, beta in betas.items()}


@dataclass(frozen=True)
class Fitted:
    """A trained pair, what its bound weighed, and what had been forecast.

    Attributes:
        pair: The pair.
        site: The latent site that may collapse.
        forecast: From the moments that decide for this pair: centred if it has biases.
        uncentred: From the uncentred moments, as in the paper's closed forms; for conditional pairs alone.
    """

    pair: AnyPair
    site: str
    forecast: CollapseForecast
    uncentred: CollapseForecast | None


def train(
    pair: AnyPair,
    rows: Rows,
    weights: Mapping[str, float],
    loss: ELBO,
    job: Job,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    clip: float | None = None,
    decay: bool = False,
    encoder_scales: tuple[Scale, float | None] = (None, None),
) -> Fitted:
    """Forecast, then train with these KL weights.

    Arguments:
        pair: A new pair.
        rows: Training data, the model's arguments.
        weights: KL weights of the ELBO by latent site.
        loss: The bound.
        job: Seed, device, progress.
        epochs, lr, batch_size: Of Adam.
        clip: Largest norm of the gradient.
        decay: Whether the learning rate falls to 0 along a cosine.
        encoder_scales: Fixed standard deviations of q: the first is that of z or z_1, the second that of z_2.
    """
    model, guide = scale_latents(weights)(pair.model), scale_latents(weights)(pair.guide)
    if isinstance(pair, HierarchicalVAE):
        first, top = encoder_scales
        assert first is None or isinstance(first, float)
        forecast = forecast_collapse(model, rows, encoder_scales=(first, top))
    else:
        forecast = forecast_collapse(model, rows, encoder_scale=encoder_scales[0])
    uncentred = forecast_collapse(model, rows, centred=False) if forecast.centred and forecast.conditional else None
    callbacks: list[Callback] = [] if clip is None else [ClipGradNorm(clip)]
    if decay:
        steps = epochs * math.ceil(len(rows[0] if isinstance(rows, tuple) else rows) / batch_size)
        callbacks.append(LearningRate(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps), per_step=True))
    fit(
        model,
        guide,
        rows,
        loss=loss,
        optim=functools.partial(torch.optim.Adam, lr=lr, fused=job.device.type in ("cpu", "cuda")),
        epochs=epochs,
        batch_size=batch_size,
        callbacks=callbacks,
        seed=job.seed,
        device=job.device,
        progress=job.progress,
    )
    return Fitted(pair, "z_2" if isinstance(pair, HierarchicalVAE) else "z", forecast, uncentred)


def measured(
    fitted: Fitted, rows: Rows, num_likelihood: int, num_particles: int, *, pictures: Mapping[str, Figure] | None = None
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
    few = tuple(r[:num_likelihood] for r in rows) if isinstance(rows, tuple) else rows[:num_likelihood]
    shares = site.collapse_curve(torch.tensor([0.1, 0.5], dtype=torch.float64))[1]
    figures = {
        "KL": site.total_kl,
        "linear KL": forecast.total_kl,
        "Burda AU": site.active_units,
        "linear AU": forecast.num_active,
        "released AU": site.active_pairs,
        "% collapsed (.1, .05)": 100 * shares[0].item(),
        "% collapsed (.5, .05)": 100 * shares[1].item(),
        "squared error": _squared_error(fitted.pair, rows, None),
        "NLL": -log_likelihood(model, guide, few, num_particles).log_likelihood.mean().item(),
    }
    if fitted.uncentred is not None:
        figures["linear KL, not centred"] = fitted.uncentred[fitted.site].total_kl
    if fitted.site == "z_2":
        figures["error through z2"] = _squared_error(fitted.pair, rows, ["z_2"])
    return Result(figures, {"units": _units(fitted, report), **(pictures or {})})


def _squared_error(pair: AnyPair, rows: Rows, through: Sequence[str] | None) -> float:
    """E‖x - f(z)‖² with all latents at their means, or with only some kept."""
    with_means = take_means()(pair.model), take_means()(pair.guide)
    found = reconstruct(*with_means, rows, through=through, batch_size=1000)["x"]
    target = rows[0] if isinstance(rows, tuple) else rows
    return (found - target.cpu()).square().sum(1).mean().item()


def _units(fitted: Fitted, report: CollapseReport) -> Figure:
    """KL of each unit, and the share of units that are collapsed: forecast and measurement."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    site, forecast = report[fitted.site], fitted.forecast[fitted.site]
    plots.kl_forecast(fitted.forecast.beside(report)[fitted.site], ax=left)
    epsilon, shares = site.collapse_curve()
    _, expected = forecast.collapse_curve(epsilon)
    plots.collapse_curve(
        epsilon, torch.stack([shares, expected]), labels=["measured", "linear, normal data"], title=None, ax=right
    )
    return figure


def rank_correlation(
    findings: Findings, cases: str, forecast: str = "linear KL", *, label: str | None = None
) -> str | None:
    """A line with the Spearman correlation of forecast and trained KL over the cases of one sweep.

    Arguments:
        findings: Of the study.
        cases: What the names of the cases begin with.
        forecast: Column of the forecast.
        label: What the line calls the sweep; by default ``cases``.

    Returns:
        The line, or None for fewer than three such cases.
    """
    columns = {c: findings.column(c) for c in (forecast, "KL")}
    sweep = [n for n in columns["KL"] if n.startswith(cases) and not n.endswith("released weighting")]
    if len(sweep) < 3:
        return None
    forecasts, trained = ([sum(columns[c][n]) / len(columns[c][n]) for n in sweep] for c in (forecast, "KL"))
    rho = spearmanr(forecasts, trained).statistic
    return f"{label or cases}: rank correlation of {forecast} and trained KL over {len(sweep)} settings {rho:.3f}"
