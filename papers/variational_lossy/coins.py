"""Sixteen coins with a global bit and a local dependence: the window of the decoder decides what the code holds.

    g ~ Bernoulli(1/2);   c_i ~ Bernoulli(0.85 if g else 0.15);   x_1 = c_1;   x_i = x_{i-1} with chance 0.6, else c_i

All entropies are known by enumeration. Without a window z must hold everything; a decoder that sees the bit before
leaves the global bit to z; one that sees all bits leaves nothing, for any use of z costs KL(q(z | x) || p(z | x)).

References:
    | Variational Lossy Autoencoder (Chen et al., 2017), section 2; the toy is not theirs
    | https://arxiv.org/abs/1611.02731
"""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.study import Case, Job, Result, Study
from pyro_vaes.diagnostics import code_length
from pyro_vaes.infer import fit
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
from pyro_vaes.programs import preserve_rng

__all__ = [
    "LOSSY_COINS",
    "CoinSetting",
    "coin_vae",
    "draw",
    "entropies",
    "log_prob",
    "log_prob_given_bit",
]

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


def entropies() -> tuple[float, float]:
    """H(x) and H(x | g) in nats, by a sum over all 65,536 sequences."""
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=N)))
    whole, parts = log_prob(x), log_prob_given_bit(x)
    return -(whole.exp() * whole).sum().item(), -(parts.exp() * parts).sum(0).mean().item()


class _Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(-3) - 1


class _Positions(nn.Module):
    """z beside the one-hot position, for every position: ``(..., 4) -> (..., 4 + 16, 1, 16)``."""

    eye: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("eye", torch.eye(N).unsqueeze(1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        z = z[..., None, None].expand(*z.shape, 1, N)
        return torch.cat([z, self.eye.expand(*z.shape[:-3], N, 1, N)], -3)


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

    features = MLP(N, [64], 64, activation=nn.ELU, activate_output=True)
    encoder = Chain(_Flat(), features, NormalHead(64, 4))
    likelihood = AutoregressiveLikelihood(BernoulliLikelihood(event_dim=3), network)
    return LossyVAE(encoder, _Positions(), likelihood, 4, prior=StandardNormal(4))


@dataclass(frozen=True)
class CoinSetting:
    """Windows in bits, steps of 256 fresh sequences with Adam at 3e-3, and how many sequences are measured."""

    data: str
    windows: tuple[int, ...] = (0, 1, 2, 4, 15)
    steps: int = 2000
    test_sequences: int = 20_000


def setting(budget: str, data: str) -> CoinSetting:
    """Two thousand steps take half a minute for each window; "smoke" takes fifty."""
    return CoinSetting(data, (0, 1, 15), 50, 1000) if budget == "smoke" else CoinSetting(data)


def cases(s: CoinSetting) -> Mapping[str, Case[CoinSetting]]:
    """One for each window."""
    return {f"window {w}": functools.partial(_case, w) for w in s.windows}


def _case(window: int, s: CoinSetting, job: Job) -> Result:
    generator = torch.Generator().manual_seed(job.seed)
    train, test = draw(256 * s.steps, generator), draw(s.test_sequences, generator)

    with preserve_rng(job.seed):
        vae = coin_vae(window).to(job.device)
        fit(
            vae.model,
            vae.guide,
            train,
            optim=functools.partial(torch.optim.Adam, lr=3e-3),
            epochs=1,  # no sequence is seen twice
            batch_size=256,
            seed=job.seed,
            progress=job.progress,
        )
        lengths = code_length(vae.model, vae.guide, test.to(job.device), num_particles=2, batch_size=4000)

    bound = lengths.bits_back.mean().item()
    figures = {
        "KL": lengths.code.mean().item(),
        "-ELBO": bound,
        "-ELBO - H": bound + log_prob(test).mean().item(),
    }
    return Result(figures)


def remark(_: CoinSetting) -> str:
    """What the figures are held against."""
    whole, given = entropies()
    return (
        f"Exact: H(x) = {whole:.4f} nats, H(x | g) = {given:.4f}, so the global bit tells {whole - given:.4f}. H in "
        "the last column is the mean of -log p(x) over the sequences measured."
    )


LOSSY_COINS: Study[CoinSetting] = Study(
    "lossy_coins",
    "sixteen coins: the decoder's window decides what the code holds",
    ("coins",),
    setting,
    cases,
    remark=remark,
)
