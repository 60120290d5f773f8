"""A model that a stranger writes: a VAE whose prior is a mixture of posteriors of pseudo-data.

    p(z) = 1/K sum_k q(z | u_k),    u_k learned

References:
    | VAE with a VampPrior (Tomczak & Welling, 2018)
    | https://arxiv.org/abs/1705.07120
"""

import pyro
import torch
from pyro.distributions import Categorical, MixtureSameFamily
from pyro.nn import pyro_method
from torch import nn

from pyro_vaes.nn import ProgramModule, as_posterior, observe


class VampVAE(ProgramModule):
    def __init__(self, encoder, decoder, likelihood, features, num_pseudo):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.pseudo = nn.Parameter(torch.randn(num_pseudo, features))

    def prior(self):
        posteriors = as_posterior(self.encoder(self.pseudo))
        equal = Categorical(logits=torch.zeros(len(self.pseudo)))
        return MixtureSameFamily(equal, posteriors)

    @pyro_method
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return observe("x", self.likelihood(self.decoder(z)), x)

    @pyro_method
    def guide(self, x, **_):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", as_posterior(self.encoder(x)))
