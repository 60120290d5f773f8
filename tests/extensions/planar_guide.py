"""A guide that a stranger writes: an encoder's normal behind planar flows of Pyro's.

    z_0 ~ N(loc(x), diag scale(x)²),    z = f_K(.. f_1(z_0)),    f(z) = z + u tanh(wᵀ z + b)

References:
    | Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015)
    | https://arxiv.org/abs/1505.05770
"""

from pyro.distributions import TransformedDistribution
from pyro.distributions.transforms import Planar
from torch import nn

from pyro_vaes.guides import AmortizedGuide


class AmortizedPlanar(AmortizedGuide):
    """The planar flow over all latent sites together; the flow is shared by the data."""

    def __init__(self, model, encoder, latent_numel, flows=2):
        super().__init__(model, encoder)
        self.flows = nn.ModuleList(Planar(latent_numel) for _ in range(flows))

    def encode(self, *args, rows=None, **kwargs):
        q = super().encode(*args, rows=rows, **kwargs)
        return TransformedDistribution(q, list(self.flows))
