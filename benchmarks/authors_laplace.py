"""The variational Laplace posterior as its authors compute it, for comparison.

The whole Jacobian (B, D, d) at every update by broadcast products of weights (H, H) with (B, H, d), the inverse of the
precision for each step, a second factorisation for the draw, and autograd through all of it.
"""

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from pyro_vaes.guides import decaying
from pyro_vaes.models import VAE


def decode_with_jacobian(layers: list[nn.Linear], z: Tensor) -> tuple[Tensor, Tensor]:
    """g(z), shape ``(B, D)``, and W, shape ``(B, D, d)``."""
    first, *middle, last = layers
    value = torch.relu(first(z))
    jacobian = (value > 0).to(z.dtype).unsqueeze(-1) * first.weight
    for layer in middle:
        value = torch.relu(layer(value))
        jacobian = (value > 0).to(z.dtype).unsqueeze(-1) * (layer.weight @ jacobian)
    return last(value), last.weight @ jacobian


def posterior(vae: VAE, steps: int, x: Tensor) -> MultivariateNormal:
    layers = [m for m in vae.decoder.modules() if isinstance(m, nn.Linear)]
    mu = vae.encoder(x).mean
    variance = vae.likelihood(x[:1]).base_dist.scale[0, 0].square()
    eye = torch.eye(mu.shape[-1], device=x.device)
    for t in range(steps):
        g, w = decode_with_jacobian(layers, mu)
        covariance = torch.linalg.inv(w.mT @ w / variance + eye)
        bias = g - (w @ mu.unsqueeze(-1)).squeeze(-1)
        new = covariance @ w.mT @ (x - bias).unsqueeze(-1) / variance
        mu = (1 - decaying(t)) * mu + decaying(t) * new.squeeze(-1)
    _, w = decode_with_jacobian(layers, mu)
    covariance = torch.linalg.inv(w.mT @ w / variance + eye)
    return MultivariateNormal(mu, scale_tril=torch.linalg.cholesky(covariance))


def authors_guide(vae: VAE, steps: int) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        q = posterior(vae, steps, x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    return guide
