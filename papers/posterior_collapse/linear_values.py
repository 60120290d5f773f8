r"""Singular values, scales and KL of a trained linear pair, to be put beside the closed forms of its optimum.

    sv(U)             of the decoder's matrix (of the columns that z meets)
    sv(V)             of the encoder's, W E[x xᵀ]^(1/2): the roots of eig(W E[x xᵀ] Wᵀ), root mean squares of the means
    KL_i              ½ ((E m_i² + scale_i²) / eta² - 1) - log(scale_i / eta),  m = W x

For a conditional pair sv(V) is W2 E^(1/2) with E the Schur complement, for z2 of a hierarchy x is z1 ~ q(z1|x).

References:
    | Beyond Vanilla Variational Autoencoders (Dang, Tran, Nguyen & Ho, 2024)
    | https://arxiv.org/abs/2306.05023
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from papers.posterior_collapse.training import AnyPair, Rows
from pyro_vaes.models import ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import NormalHead, StandardNormal
from pyro_vaes.theory import schur_complement, second_moment

__all__ = ["TrainedValues", "trained_values"]


@dataclass(frozen=True)
class TrainedValues:
    """What training found, in the words of the theory.

    Attributes:
        values: Singular values and scales: sv(U), sv(V), scale; of a hierarchy also sv(U2) and scale of z2.
        encoder: Singular values of the encoder of the site that may collapse.
        kl: KL of each of its units, nats.
    """

    values: Mapping[str, Tensor]
    encoder: Tensor
    kl: Tensor


@torch.no_grad()
def trained_values(pair: AnyPair, rows: Rows) -> TrainedValues:
    """Read off a linear pair.

    Arguments:
        pair: A pair of :mod:`papers.posterior_collapse.pairs` with linear parts.
        rows: The data, the model's arguments.
    """
    moment = second_moment(rows if isinstance(rows, Tensor) else torch.cat(list(rows), 1))
    if isinstance(pair, HierarchicalVAE):
        return _of_hierarchy(pair, moment)

    u, w, scale = _matrix(pair.decoder), _matrix(pair.encoder), _scale(pair.encoder)
    if isinstance(pair, ConditionalVAE):
        prior: object = pair.marginal_prior
        size = len(u)  # of the target
        residual = schur_complement(
            moment[:size, :size],
            moment[:size, size:],
            moment[size:, size:],
        )
        u, v = u[:, : pair.latent_dim], _weighted(w[:, :size], residual)
    else:
        prior = pair.prior
        v = _weighted(w, moment)

    values = {"sv(U)": torch.linalg.svdvals(u), "sv(V)": v, "scale": scale}
    return TrainedValues(values, v, _kl(w, moment, scale, prior))


def _of_hierarchy(pair: HierarchicalVAE, moment: Tensor) -> TrainedValues:
    first, second = pair.encoders
    w1, scale1 = _matrix(first), _scale(first)
    w2, scale2 = _matrix(second), _scale(second)
    middle = w1 @ moment @ w1.mT + scale1.square().diag()  # E_q[z1 z1ᵀ]

    values = {
        "sv(U)": torch.linalg.svdvals(_matrix(pair.decoder)),
        "sv(V)": _weighted(w1, moment),
        "scale": scale1,
        "sv(U2)": torch.linalg.svdvals(_matrix(pair.priors[0])),
        "scale of z2": scale2,
    }
    return TrainedValues(
        values,
        _weighted(w2, middle),
        _kl(w2, middle, scale2, pair.top_prior),
    )


def _matrix(module: nn.Module) -> Tensor:
    """The matrix of a linear head or of an MLP without hidden layers, in the moments' float64."""
    linear = module.loc if isinstance(module, NormalHead) else next(iter(module.children()))
    assert isinstance(linear, nn.Linear)
    return linear.weight.cpu().double()


def _scale(head: nn.Module) -> Tensor:
    assert isinstance(head, NormalHead) and head.log_scale is not None
    return head.log_scale.exp().cpu().double()


def _weighted(w: Tensor, moment: Tensor) -> Tensor:
    """Singular values of W moment^(1/2)."""
    return torch.linalg.eigvalsh(w @ moment @ w.mT).clamp(min=0).sqrt()


def _kl(w: Tensor, moment: Tensor, scale: Tensor, prior: object) -> Tensor:
    assert isinstance(prior, StandardNormal)
    eta = prior.scale.cpu().double()
    square = ((w @ moment) * w).sum(1)  # E m_i²
    return 0.5 * ((square + scale.square()) / eta.square() - 1) - (scale / eta).log()
