r"""Heads that return flows: a diagonal normal that is reflected, or pushed through inverse autoregressive steps.

    z_0 ~ N(loc(h), diag scale(h)²),    z = T_K(.. T_1(z_0; h) .. ; h)

with h the features. More than a diagonal normal can say, at the cost of a few more layers.
"""

import warnings
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor, nn

from pyro_vaes.distributions import HouseholderNormal, InverseAutoregressive

from .heads import MAX_SCALE, MIN_SCALE, NormalHead
from .mlp import Activation

GATE_LOGIT = 2.0  # the authors' (Kingma et al., 2016): sigmoid(2) = 0.88, a step starts near the identity


class HouseholderHead(nn.Module):
    r"""A diagonal normal after Householder reflections along vectors that depend on the features.

    .. math::
        v_1 = A_1 h + a_1, \quad v_{k+1} = A_{k+1} v_k + a_{k+1}, \qquad
        q(z) = N(H \mu, H \operatorname{diag} \sigma^2 H^\top), \quad H = H_K \cdots H_1

    Arguments:
        in_features: Number of features F.
        out_features: Dimension d of the normal.
        flows: Number K of reflections, 0 or more; 0 is :class:`NormalHead`.
        min_scale, max_scale: Bounds of the standard deviations, min_scale < 1 < max_scale.

    Raises:
        ValueError: ``flows`` or the bounds are out of range.

    References:
        | Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016)
        | https://arxiv.org/abs/1611.09630

    Example:
        >>> HouseholderHead(32, 8, flows=2)(torch.zeros(5, 32)).covariance_matrix.shape
        torch.Size([5, 8, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        flows: int = 4,
        min_scale: float = MIN_SCALE,
        max_scale: float = MAX_SCALE,
    ) -> None:
        super().__init__()
        if not isinstance(flows, int) or flows < 0:
            raise ValueError(f"flows is the number of reflections, 0 or more, but got {flows!r}.")
        self.normal = NormalHead(in_features, out_features, min_scale=min_scale, max_scale=max_scale)
        self.vectors = nn.ModuleList(nn.Linear(out_features if k else in_features, out_features) for k in range(flows))

    def forward(self, features: Tensor) -> HouseholderNormal:
        loc, scale = self.normal.loc_scale(features)
        vectors, v = [loc.new_zeros((*loc.shape[:-1], 0, loc.shape[-1]))], features
        for layer in self.vectors:
            v = layer(v)
            vectors.append(v.unsqueeze(-2))
        return HouseholderNormal(loc, scale, torch.cat(vectors, -2))


class IAFHead(nn.Module):
    r"""A diagonal normal after inverse autoregressive steps, each conditioned on the features.

    .. math::
        (m_k, s_k) = \mathrm{MADE}_k(z_{k-1}, h), \quad
        z_k = \sigma(s_k) \odot z_{k-1} + (1 - \sigma(s_k)) \odot m_k, \quad
        \log q(z_K) = \log q_0(z_0) - \sum_{k,i} \log \sigma(s_{k,i})

    The features enter every hidden unit of every masked network. The order of the dimensions is reversed from step to
    step. A draw and its density take K network passes; the exact density of any other z takes K d of them.

    Arguments:
        in_features: Number of features F.
        out_features: Dimension d of the latent vector.
        flows: Number K of steps, 1 or more.
        hidden: Widths of the hidden layers of each step's network, each d or more.
        activation: Constructor of the activation behind each hidden layer.
        min_scale, max_scale: Bounds of the base's standard deviations, min_scale < 1 < max_scale.

    Raises:
        ValueError: ``flows``, the widths or the bounds are out of range.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509

    Example:
        >>> q = IAFHead(32, 8, flows=2)(torch.zeros(5, 32))
        >>> q.rsample((3,)).shape, q.log_prob(torch.zeros(8)).shape
        (torch.Size([3, 5, 8]), torch.Size([5]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        flows: int = 4,
        hidden: Sequence[int] = (320,),
        activation: Activation = nn.ELU,
        min_scale: float = MIN_SCALE,
        max_scale: float = MAX_SCALE,
    ) -> None:
        super().__init__()
        if not isinstance(flows, int) or flows < 1:
            raise ValueError(f"flows is the number of steps, 1 or more, but got {flows!r}; use NormalHead for none?")

        widths = list(hidden)
        if not widths or any(not isinstance(w, int) or w < out_features for w in widths):
            raise ValueError(
                f"hidden holds the widths of the masked networks' layers, at least one and each at least "
                f"out_features={out_features}, or some dimensions would be cut off; but got {widths}."
            )

        self.normal = NormalHead(in_features, out_features, min_scale=min_scale, max_scale=max_scale)
        forwards = list(range(out_features))
        self.orders = [forwards[::-1] if k % 2 else forwards for k in range(flows)]
        self.networks = nn.ModuleList(_masked(in_features, order, widths, activation()) for order in self.orders)

    def forward(self, features: Tensor) -> TorchDistribution:
        pairs = zip(self.networks, self.orders, strict=True)
        steps = [InverseAutoregressive(network, features, order) for network, order in pairs]
        return TransformedDistribution(self.normal(features), steps)


def _masked(context: int, order: list[int], widths: list[int], activation: nn.Module) -> ConditionalAutoRegressiveNN:
    """The network of one step: its masks are no weights, and its gates start nearly open."""
    d = len(order)
    with warnings.catch_warnings():  # one dimension is allowed: the step is then affine, given the features
        warnings.filterwarnings("ignore", message="ConditionalAutoRegressiveNN input_dim = 1")
        network = ConditionalAutoRegressiveNN(
            d, context, widths, permutation=torch.LongTensor(order), nonlinearity=activation
        )

    network.register_buffer("permutation", network.permutation, persistent=False)
    for layer in network.layers:
        assert isinstance(layer, MaskedLinear)
        layer.register_buffer("mask", layer.mask, persistent=False)
        bias = layer.bias

    with torch.no_grad():
        bias[d:] += GATE_LOGIT  # the outputs are m, then s
    return network
