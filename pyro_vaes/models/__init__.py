"""Generative models p: each a Pyro program with a matching guide, as methods of one module."""

from pyro_vaes.models.conditional import ConditionalVAE
from pyro_vaes.models.hierarchical import HierarchicalVAE
from pyro_vaes.models.ladder import LadderVAE
from pyro_vaes.models.lossy import LossyVAE, UnconditionalDecoder
from pyro_vaes.models.vae import VAE

__all__ = ["VAE", "ConditionalVAE", "HierarchicalVAE", "LadderVAE", "LossyVAE", "UnconditionalDecoder"]
