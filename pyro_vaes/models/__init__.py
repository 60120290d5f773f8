"""Generative models p: each a Pyro program with a matching guide, as methods of one module."""

from .conditional import ConditionalVAE
from .deep_markov import Backward, DeepMarkovVAE
from .gaussian_mixture_dgm import M2, GaussianMixtureDGM
from .grouped import GroupedVAE, MeanOfMembers
from .hierarchical import HierarchicalVAE
from .ladder import LadderVAE
from .ladder_clustering import LadderClusteringVAE
from .lossy import LossyVAE, UnconditionalDecoder
from .vae import VAE

__all__ = [
    "M2",
    "VAE",
    "Backward",
    "ConditionalVAE",
    "DeepMarkovVAE",
    "GaussianMixtureDGM",
    "GroupedVAE",
    "HierarchicalVAE",
    "LadderClusteringVAE",
    "LadderVAE",
    "LossyVAE",
    "MeanOfMembers",
    "UnconditionalDecoder",
]
