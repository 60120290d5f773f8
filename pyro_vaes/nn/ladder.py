"""The networks of a variational ladder, and their constructor as MLPs for any number of rungs.

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from .heads import SigmoidNormalHead
from .merge import Concatenate, GatedAdd
from .mlp import MLP, Activation, Chain

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
    levels = len(latent_dims)
    hidden = partial(MLP, activation=activation, activate_output=True)
    sources = [in_features, *[width] * (levels - 1)]

    merges = [merge(hidden(dim, [], width), (width,)) for dim in latent_dims[:-1]]
    merged = [m.out_shape[0] for m in merges]

    out = in_features if out_features is None else out_features

    return LadderNetworks(
        encoders=[hidden(i, [width], width) for i in sources[:-1]],
        rungs=[
            Chain(hidden(i, [width], width), SigmoidNormalHead(width, d))
            for i, d in zip(sources, latent_dims, strict=True)
        ],
        merges=merges,
        decoders=[
            MLP(i, [width, width], o, activation=activation)
            for i, o in zip([*merged, latent_dims[-1]], [out, *[width] * (levels - 1)], strict=True)
        ],
    )
