"""The networks of a variational ladder, what merges its rungs, and their constructor as MLPs for any number of rungs.

A merge puts what a rung codes into the features that come from the rungs above:

    gated addition:  t + gate * v(z)          concatenation:  [t; v(z)]

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017), the authors' code
    | https://arxiv.org/abs/1702.08396
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .heads import SigmoidNormalHead
from .mlp import MLP, Activation, Chain, concatenate


class _Merge(nn.Module):
    """Runs the injecting network and compares shapes."""

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        injected: Sequence[int],
    ) -> None:
        super().__init__()
        self.network, self.shape, self.injected = network, tuple(shape), tuple(injected)

    def _inject(self, above: Tensor, z: Tensor) -> Tensor:
        """v(z)."""
        v = self.network(z)

        found = {
            "comes from above": (above, self.shape),
            "the network injects": (v, self.injected),
        }
        for name, (tensor, shape) in found.items():
            if tensor.shape[tensor.dim() - len(shape) :] != shape:
                raise ValueError(
                    f"{type(self).__name__}: what {name} has shape "
                    f"{tuple(tensor.shape)}, but {shape} is wanted behind the leading "
                    "dimensions. Does the network in front of the merge return as many "
                    "features?"
                )
        return v


class GatedAdd(_Merge):
    """``t + gate * v(z)``, with one learned gate per feature, on what is injected and not on the path from above.

    Arguments:
        network: v, ``z -> features`` with shape ``(..., *shape)``.
        shape: Shape of the features of one datum, ``(F,)`` or ``(C, H, W)``.
        gate: Initial value of the gates; the authors' 0.1.

    Attributes:
        out_shape: Shape of the merged features.

    Example:
        >>> GatedAdd(nn.Linear(2, 8), (8,))(torch.zeros(5, 8), torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 8])
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        gate: float = 0.1,
    ) -> None:
        super().__init__(network, shape, shape)
        self.gate = nn.Parameter(torch.full(self.shape, float(gate)))
        self.out_shape = self.shape

    def forward(self, above: Tensor, z: Tensor) -> Tensor:
        v = self._inject(above, z)
        return above + self.gate * v


class Concatenate(_Merge):
    """``[t; v(z)]``, along the features or channels.

    Arguments:
        network: v, ``z -> features``.
        shape: Shape of the features from above of one datum, ``(F,)`` or ``(C, H, W)``.
        injected: Number of features or channels that v returns; None for as many as come from above.

    Attributes:
        out_shape: Shape of the merged features.

    Example:
        >>> Concatenate(nn.Identity(), (8,), injected=2)(torch.zeros(5, 8), torch.zeros(7, 5, 2)).shape
        torch.Size([7, 5, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        injected: int | None = None,
    ) -> None:
        first, *rest = shape
        injected = first if injected is None else injected
        super().__init__(network, shape, (injected, *rest))
        self.out_shape = (first + injected, *rest)

    def forward(self, above: Tensor, z: Tensor) -> Tensor:
        v = self._inject(above, z)
        return concatenate([above, v], dim=-len(self.shape))


Merge = Callable[[nn.Module, Sequence[int]], GatedAdd | Concatenate]


class LadderNetworks(NamedTuple):
    """The networks of a ladder with L rungs, each list from the rung nearest the data upwards.

    Attributes:
        encoders: g_1 .. g_{L-1}, the deterministic path upwards: x to h_1, h_1 to h_2, ...
        rungs: L recognition networks, of z_1 given x, z_2 given h_1, ...
        merges: L - 1 modules ``(t, z_l) -> features``.
        decoders: L networks: of the parameters of x, of t_1, .., and the last one of t_{L-1} given z_L.
    """

    encoders: Sequence[nn.Module]
    rungs: Sequence[nn.Module]
    merges: Sequence[nn.Module]
    decoders: Sequence[nn.Module]


def mlp_ladder(
    in_features: int,
    latent_dims: Sequence[int],
    *,
    width: int = 256,
    out_features: int | None = None,
    merge: Merge = GatedAdd,
    activation: Activation = nn.ReLU,
) -> LadderNetworks:
    """A ladder of MLPs with two hidden layers per block, for flat data and any number of rungs.

    Arguments:
        in_features: Number of features of x.
        latent_dims: Dimensions of z_1 .. z_L.
        width: Width of every hidden layer.
        out_features: Number of likelihood parameters of x; None for one per feature.
        merge: :class:`~pyro_vaes.nn.GatedAdd` or :class:`~pyro_vaes.nn.Concatenate`.
        activation: Constructor of the activation.

    Example:
        >>> networks = mlp_ladder(64, [2, 2, 2, 2], width=16)
        >>> [len(part) for part in networks]
        [3, 4, 3, 4]
    """
    *below, top = latent_dims
    hidden = partial(MLP, activation=activation, activate_output=True)
    sources = [in_features, *[width] * len(below)]

    merges = [merge(hidden(dim, [], width), (width,)) for dim in below]
    inputs = [*(m.out_shape[0] for m in merges), top]
    out = in_features if out_features is None else out_features
    outputs = [out, *[width] * len(below)]
    sizes = zip(inputs, outputs, strict=True)

    return LadderNetworks(
        encoders=[hidden(i, [width], width) for i in sources[:-1]],
        rungs=[
            Chain(hidden(i, [width], width), SigmoidNormalHead(width, d))
            for i, d in zip(sources, latent_dims, strict=True)
        ],
        merges=merges,
        decoders=[MLP(i, [width, width], o, activation=activation) for i, o in sizes],
    )
