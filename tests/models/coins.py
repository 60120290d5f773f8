"""Sixteen coins with a global bit and a local dependence: a distribution whose entropies are known by enumeration.

g ~ Bernoulli(1/2);    c_i ~ Bernoulli(0.85 if g else 0.15);    x_1 = c_1;    x_i = x_{i-1} with chance 0.6, else c_i
"""

import math

import torch
from torch import Tensor, nn

from pyro_vaes.models import LossyVAE
from pyro_vaes.nn import (
    MLP,
    AutoregressiveLikelihood,
    BernoulliLikelihood,
    Chain,
    NormalHead,
    PixelCNN,
    Reach,
    StandardNormal,
    plain_block,
)

N, STAY, BIAS = 16, 0.6, 0.85


def draw(num: int, generator: torch.Generator) -> Tensor:
    """Sequences with shape ``(num, 1, 1, 16)``."""
    bias = torch.where(torch.rand(num, 1, generator=generator) < 0.5, BIAS, 1 - BIAS)
    coins = (torch.rand(num, N, generator=generator) < bias).float()
    stay = torch.rand(num, N, generator=generator) < STAY
    x = [coins[:, 0]]
    for i in range(1, N):
        x.append(torch.where(stay[:, i], x[-1], coins[:, i]))
    return torch.stack(x, -1).reshape(num, 1, 1, N)


def log_prob_given_bit(x: Tensor) -> Tensor:
    """log p(x | g) for g = 0, 1, shape ``(num, 2)`` in float64."""
    x = x.double().flatten(1)
    terms = []
    for bias in (1 - BIAS, BIAS):
        coin = x * bias + (1 - x) * (1 - bias)
        later = STAY * (x[:, 1:] == x[:, :-1]) + (1 - STAY) * coin[:, 1:]
        terms.append(coin[:, 0].log() + later.log().sum(-1))
    return torch.stack(terms, -1)


def log_prob(x: Tensor) -> Tensor:
    """log p(x), shape ``(num,)``."""
    return log_prob_given_bit(x).logsumexp(-1) - math.log(2)


class _Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(-3) - 1


class _Positions(nn.Module):
    """z beside the one-hot position, for every position: ``(..., 4) -> (..., 4 + 16, 1, 16)``."""

    def forward(self, z: Tensor) -> Tensor:
        z = z[..., None, None].expand(*z.shape, 1, N)
        position = torch.eye(N).unsqueeze(1).expand(*z.shape[:-3], N, 1, N)
        return torch.cat([z, position], -3)


def coin_vae(window: int) -> LossyVAE:
    """Encoder 16-64-64-4, decoder 64-64-1 at every position, which sees z and the bits of a window before it."""
    network = PixelCNN(
        (1, 1, N),
        64,
        [Reach(0, window, 0)],
        context_channels=4 + N,
        context_size=1,
        num_pointwise=1,
        block=plain_block,
        weight_norm=False,
    )
    encoder = Chain(_Flat(), MLP(N, [64], 64, activation=nn.ELU, activate_output=True), NormalHead(64, 4))
    likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)
    return LossyVAE(encoder, _Positions(), likelihood, 4, prior=StandardNormal(4))
