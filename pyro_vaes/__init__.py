"""Variational auto-encoders as probabilistic programs: p, q and the bound compose.

    vae = VAE(encoder, decoder, likelihood, latent_dim=32)
    fit(vae.model, vae.guide, load_data("digits"))

Rooms: :mod:`~pyro_vaes.models` (p), :mod:`~pyro_vaes.guides` (q), :mod:`~pyro_vaes.infer` (bounds, handlers, training),
:mod:`~pyro_vaes.nn`, :mod:`~pyro_vaes.distributions`, :mod:`~pyro_vaes.theory`, :mod:`~pyro_vaes.diagnostics`,
:mod:`~pyro_vaes.plots`, :mod:`~pyro_vaes.data`.
"""

from pyro_vaes.data import load_data
from pyro_vaes.infer import (
    check,
    describe,
    evaluate,
    fit,
    load_weights,
    save_weights,
)
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "ConditionalVAE",
    "HierarchicalVAE",
    "__version__",
    "check",
    "describe",
    "evaluate",
    "fit",
    "load_data",
    "load_weights",
    "save_weights",
]
