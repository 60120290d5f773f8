"""Small pairs for the tests of training: a binary VAE, plain functions, and a linear model whose posterior is exact."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vaes.infer import evaluate
from pyro_vaes.models import VAE, HierarchicalVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, GaussianLikelihood, NormalHead

D = 12


def binary(rows=96, seed=1):
    return torch.bernoulli(torch.full((rows, D), 0.4), generator=torch.Generator().manual_seed(seed))


def binary_vae(*, seed=0, middle=None, latent_dim=2):
    torch.manual_seed(seed)
    trunk = MLP(D, [8], 8, activate_output=True)
    encoder = Chain(trunk, middle, NormalHead(8, latent_dim)) if middle else Chain(trunk, NormalHead(8, latent_dim))
    return VAE(encoder, MLP(latent_dim, [8], D), BernoulliLikelihood(), latent_dim)


def linear_vae(*, seed=0):
    torch.manual_seed(seed)
    return VAE(NormalHead(D, 2, scale=1.0), MLP(2, [], D), GaussianLikelihood(scale=0.7), 2)


def hierarchical_vae(*, top_down):
    encoders = [
        Chain(MLP(D + 2 * top_down, [8], 8), NormalHead(8, 3)),
        Chain(MLP(D if top_down else 3, [8], 8), NormalHead(8, 2)),
    ]
    encoders = [TopDown(encoders[0]), encoders[1]] if top_down else encoders
    priors = [Chain(MLP(2, [8], 8), NormalHead(8, 3))]
    return HierarchicalVAE(encoders, MLP(3, [8], D), BernoulliLikelihood(), [3, 2], priors=priors, top_down=top_down)


class TopDown(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, z):
        return self.net(torch.cat([x, z], -1))


def exact_linear(*, full_size=None):
    """p(z) = N(0, I), p(x | z) = N(Wz, s²) with the exact posterior as guide: every draw's bound is log p(x)."""
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(D, 2, generator=generator, dtype=torch.float64))
    scale = 0.8
    precision = torch.eye(2, dtype=torch.float64) + weight.T @ weight / scale**2
    covariance = torch.linalg.inv(precision).detach()

    def plate(x):
        if full_size is None:
            return pyro.plate("data", len(x))
        return pyro.plate("data", full_size, subsample_size=len(x))

    def model(x):
        w = pyro.param("weight", weight)
        with plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T, scale).to_event(1), obs=x)

    def guide(x):
        with plate(x):
            loc = x @ weight.detach() @ covariance / scale**2
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    marginal = weight.detach() @ weight.detach().T + scale**2 * torch.eye(D, dtype=torch.float64)
    evidence = dist.MultivariateNormal(torch.zeros(D, dtype=torch.float64), marginal)
    return model, guide, evidence


def function_pair(seed=0):
    """Plain functions that register networks under names that every such pair uses."""
    torch.manual_seed(seed)
    encoder, decoder = Chain(MLP(D, [8], 8), NormalHead(8, 2)), MLP(2, [8], D)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    return model, guide, nn.ModuleList([encoder, decoder])


def param_pair():
    """Free-standing param statements only, one of them constrained."""

    def model(x):
        weight = pyro.param("weight", lambda: 0.1 * torch.randn(D, 2))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, scale).to_event(1), obs=x)

    def guide(x):
        back = pyro.param("back", lambda: 0.1 * torch.randn(D, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ back, 0.5).to_event(1))

    return model, guide


def weights(module):
    return {n: t.clone() for n, t in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def losses(history):
    return history.train, history.valid, history.grad_norm, history.learning_rate, history.skipped


def held_out(vae, x):
    return evaluate(vae.model, vae.guide, x)
