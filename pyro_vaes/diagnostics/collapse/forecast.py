"""Posterior collapse before any training: what the linear theory says of a model on its data.

The forecast reads noise, prior scale, latent sizes and KL weights off a trace of the model, the spectrum off the data
(for a model that is given covariates: of what linear regression on them leaves), and evaluates the closed forms of
:mod:`pyro_vaes.theory`. It is exact for linear networks with a shared encoder scale; for any other pair it is the
forecast of the linear pair with the same noise, weight and size: good for order along a sweep rather than for digits.

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Sequence

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vaes.infer import as_batches, train_and_valid
from pyro_vaes.programs import Pair, Program
from pyro_vaes.theory import (
    LinearHierarchicalVAE,
    LinearVAE,
    linear_cvae,
    linear_hierarchical_vae,
    linear_vae,
    moment_spectrum,
    schur_complement,
)

from .forecast_tables import CollapseForecast, SiteForecast
from .model_facts import ModelFacts, Moments, model_facts


def forecast_collapse(
    model: Program,
    data: object,
    *,
    noise: float | None = None,
    beta: float | None = None,
    betas: Sequence[float] | None = None,
    encoder_scale: float | Sequence[float] | None = None,
    encoder_scales: Sequence[float | None] = (None, None),
    embedding: nn.Module | None = None,
    centred: bool | None = None,
    batch_size: int = 1024,
) -> CollapseForecast:
    """Forecast which latent units will collapse, before any training.

    The model has one latent site, or two in a chain z_2 -> z_1 -> x, and one observed site. Its other tensor arguments
    are covariates. What is not given is read off a trace of the model: the noise off a normal likelihood (one with a
    standard deviation for each feature is whitened; a learnable one counts as it stands), the KL weights off the
    programs' scales (:class:`~pyro_vaes.infer.scale_latents` around the model), sizes and scales of the priors.

    The spectrum costs a matrix of (features + covariates)² and time cubic in the features. No parameter, buffer, mode
    or generator changes.

    Arguments:
        model: The model, trained or not; its parameters matter only through the scales.
        data: As for :func:`~pyro_vaes.infer.fit`: the training data.
        noise: Standard deviation of x around its reconstruction; needed where the likelihood is not normal.
        beta: KL weight; needed where ``scale_latents`` goes around the step instead of the model.
        betas: KL weights of z_1 and z_2, likewise, for a hierarchy.
        encoder_scale: Standard deviation of q if it is fixed (or d of them); None if it is learnt.
        encoder_scales: Those of q(z_1|x) and q(z_2|z_1), for a hierarchy.
        embedding: Turns the covariate into features, as ``OneHot(10)``; by default the model's own ``embedding``.
        centred: Whether the mean of the data comes for free; by default if the model has biases.
        batch_size: Rows per pass.

    Returns:
        The forecast for each latent site; ``forecast.beside(report)`` compares it with a measurement.

    Raises:
        ValueError: The closed forms do not cover the model, or something that they need is missing.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead
        >>> encoder = Chain(MLP(6, [16], 16), NormalHead(16, 4))
        >>> vae = VAE(encoder, MLP(4, [16], 6), GaussianLikelihood(0.5), latent_dim=4)
        >>> x = torch.randn(1000, 6) * torch.tensor([2.0, 1.0, 0.3, 0.2, 0.1, 0.1])
        >>> forecast_collapse(vae.model, x)["z"].num_active
        2
    """
    if beta is not None and betas is not None:
        raise ValueError("beta is the weight of the one latent site and betas are those of z_1 and z_2; give one.")
    pair = Pair(model, _no_guide)
    facts, moments = _read(pair, data, embedding=embedding, noise=noise, batch_size=batch_size)
    if centred is None:
        centred = any(n.endswith("bias") for m in pair.modules.values() for n, _ in m.named_parameters())

    moment = moments.second_moment(centred=centred)
    conditional = len(moment) > facts.num_features
    variances = _spectrum(moment, facts.num_features)

    theory: LinearVAE | LinearHierarchicalVAE
    if len(facts.sites) == 2:
        if beta is not None or encoder_scale is not None:
            raise ValueError(
                f"The model has the latent sites {[s.name for s in facts.sites]}: give betas and encoder_scales, one "
                "entry for z_1 and one for z_2, instead of beta and encoder_scale."
            )
        theory = _hierarchical(facts, variances, betas, encoder_scales)
    else:
        if betas is not None or tuple(encoder_scales) != (None, None):
            raise ValueError("The model has one latent site: give beta and encoder_scale instead of those of two.")
        theory = _one_site(facts, variances, beta, encoder_scale, conditional=conditional)

    return CollapseForecast(_sites(theory, facts), theory, moments.count, centred, conditional)


def _read(
    pair: Pair, data: object, *, embedding: nn.Module | None, noise: float | None, batch_size: int
) -> tuple[ModelFacts, Moments]:
    """The facts of the model, read off the first batch, and the moments of all data."""
    train, _ = train_and_valid(data, None)
    place = pair.device() or torch.device("cpu")
    batches = as_batches(train, batch_size, shuffle=False).to(place)

    facts, moments = None, Moments()
    with pair.evaluating(), poutine.block():
        for batch in batches.epoch(0, 0, place):
            args = pair.arguments(batch)
            if facts is None:
                facts = model_facts(pair, args, embedding=embedding, noise=noise)
            moments.add(torch.cat(facts.features(args), 1))

    if facts is None:
        raise ValueError("The data has no batches. Is the loader's data set empty?")
    return facts, moments


def _no_guide(*_: object) -> None:
    """A forecast needs none."""


def _spectrum(moment: Tensor, size: int) -> Tensor:
    """Eigenvalues of the target's second moment, or of its Schur complement where there are covariates."""
    if moment.shape[0] == size:
        return moment_spectrum(moment)
    residual = schur_complement(moment[:size, :size], moment[:size, size:], moment[size:, size:])
    return torch.linalg.eigvalsh(residual).flip(0).clamp(min=0)


def _one_site(
    facts: ModelFacts,
    variances: Tensor,
    beta: float | None,
    encoder_scale: float | Sequence[float] | None,
    *,
    conditional: bool,
) -> LinearVAE:
    site = facts.sites[0]
    weight = site.weight if beta is None else beta
    numbers = {"noise": facts.noise, "prior_scale": site.scale, "beta": weight}
    if conditional and encoder_scale is None:
        return linear_cvae(variances, site.size, **numbers)
    return linear_vae(variances.sqrt(), site.size, encoder_scale=encoder_scale, **numbers)


def _hierarchical(
    facts: ModelFacts, variances: Tensor, betas: Sequence[float] | None, encoder_scales: Sequence[float | None]
) -> LinearHierarchicalVAE:
    """z_1 in units in which p(z_1|z_2) has the likelihood's noise, as the closed form has it."""
    first, second = facts.sites
    unit = facts.noise / first.scale  # of z_1
    fixed, top = encoder_scales
    return linear_hierarchical_vae(
        variances.sqrt(),
        (first.size, second.size),
        noise=facts.noise,
        prior_scale=second.scale,
        betas=(first.weight, second.weight) if betas is None else betas,
        encoder_scales=(None if fixed is None else fixed * unit, top),
    )


def _sites(theory: LinearVAE | LinearHierarchicalVAE, facts: ModelFacts) -> dict[str, SiteForecast]:
    """The forecasts by site, the one nearest the data first."""
    bottom, top = facts.sites[0], facts.sites[-1]
    sites = {}

    if isinstance(theory, LinearVAE):
        vae, critical_beta, critical_noise = theory, theory.critical_beta, theory.critical_noise
    else:
        vae = theory.top
        critical_beta, critical_noise = theory.top_critical_beta, theory.top_critical_noise
        unit = facts.noise / bottom.scale  # of z_1, see _hierarchical
        sites[bottom.name] = SiteForecast(
            name=bottom.name,
            kl=theory.kl,
            encoder_singular_values=theory.encoder_singular_values / unit,
            encoder_scale=theory.encoder_scale / unit,
        )

    sites[top.name] = SiteForecast(
        name=top.name,
        kl=vae.kl,
        encoder_singular_values=vae.encoder_singular_values,
        encoder_scale=vae.encoder_scale,
        prior_scale=vae.prior_scale,
        critical_beta=critical_beta,
        critical_noise=critical_noise,
    )
    return sites
