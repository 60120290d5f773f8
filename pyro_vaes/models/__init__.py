"""Generative models p: each a Pyro program with a matching guide, as methods of one module."""

from pyro_vaes.models.conditional import ConditionalVAE
from pyro_vaes.models.gaussian_mixture_dgm import M2, GaussianMixtureDGM
from pyro_vaes.models.hierarchical import HierarchicalVAE
from pyro_vaes.models.ladder import LadderVAE
from pyro_vaes.models.ladder_clustering import LadderClusteringVAE
from pyro_vaes.models.lossy import LossyVAE, UnconditionalDecoder
from pyro_vaes.models.vae import VAE

__all__ = [
    "M2",
    "VAE",
    "ConditionalVAE",
    "GaussianMixtureDGM",
    "HierarchicalVAE",
    "LadderClusteringVAE",
    "LadderVAE",
    "LossyVAE",
    "UnconditionalDecoder",
]
