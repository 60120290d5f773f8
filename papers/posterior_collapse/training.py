"""Training a pair that may collapse, beside what the linear theory says of it before training."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyro.infer import ELBO
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from papers.study import Job
from pyro_vaes.diagnostics import CollapseForecast, forecast_collapse
from pyro_vaes.infer import Callback, ClipGradNorm, LearningRate, fit, scale_latents
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE

__all__ = ["AnyPair", "Fitted", "Rows", "Scale", "kl_weights", "observed", "train"]

AnyPair = VAE | ConditionalVAE | HierarchicalVAE
Scale = float | Sequence[float] | None
Rows = Tensor | tuple[Tensor, Tensor]


def observed(rows: Rows) -> Tensor:
    """What the likelihood is of: all data, or those beside the covariate."""
    return rows[0] if isinstance(rows, tuple) else rows


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
        epochs, lr, batch_size: Passes, learning rate and batch size of Adam.
        clip: Largest norm of the gradient.
        decay: Whether the learning rate falls to 0 along a cosine.
        encoder_scales: Fixed standard deviations of q: the first is that of z or z_1, the second that of z_2.
    """
    model = scale_latents(weights)(pair.model)
    guide = scale_latents(weights)(pair.guide)

    first, top = encoder_scales
    if isinstance(pair, HierarchicalVAE):
        assert first is None or isinstance(first, float)
        forecast = forecast_collapse(model, rows, encoder_scales=(first, top))
    else:
        forecast = forecast_collapse(model, rows, encoder_scale=first)

    uncentred = None
    if forecast.centred and forecast.conditional:
        uncentred = forecast_collapse(model, rows, centred=False)

    callbacks: list[Callback] = []
    if clip is not None:
        callbacks.append(ClipGradNorm(clip))
    if decay:
        steps = epochs * math.ceil(len(observed(rows)) / batch_size)
        cosine = functools.partial(CosineAnnealingLR, T_max=steps)
        callbacks.append(LearningRate(cosine, per_step=True))

    fit(
        model,
        guide,
        rows,
        loss=loss,
        optim=functools.partial(Adam, lr=lr, fused=job.device.type in ("cpu", "cuda")),
        epochs=epochs,
        batch_size=batch_size,
        callbacks=callbacks,
        seed=job.seed,
        device=job.device,
        progress=job.progress,
    )

    site = "z_2" if isinstance(pair, HierarchicalVAE) else "z"
    return Fitted(pair, site, forecast, uncentred)
