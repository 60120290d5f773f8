r"""Score and curvature by hand for z -> Linear -> ReLU -> ... -> Linear -> N(g(z), noise shared by all data).

    A = tangents at the last hidden layer as rows (B, d, H),    W = A V₃ᵀ,    R = noise precision
    P = W R Wᵀ + prior precision = A (V₃ᵀ R V₃) Aᵀ + ...,       score = A (V₃ᵀ R (x - g)) - ...

The second form of P (the Gram trick) never holds a Jacobian of the data's size; it is used where H <= D. Whether a
program is of this kind is seen from the modules that it calls, so nothing has to be declared.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import linear

from pyro_vaes.guides.joint import JointSite
from pyro_vaes.guides.linearise import Linearised
from pyro_vaes.nn import MLP, Chain

__all__ = ["Call", "GaussianChain", "find_chain", "record_chains"]

_CONTAINERS = (nn.Sequential, MLP, Chain)  # exact types: a subclass may compute something else
_SLOPES = (nn.ReLU, nn.LeakyReLU, nn.Identity)


@dataclass(frozen=True)
class Call:
    """One call of a network: its layers in order, what went in, and what came out."""

    module: nn.Module
    layers: tuple[nn.Module, ...]
    value: Tensor
    output: Tensor


@contextmanager
def record_chains() -> Iterator[list[Call]]:
    """Inside, the calls of chains of linear and piecewise-linear layers are recorded."""
    calls: list[Call] = []

    def look(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            layers = _layers(module)
            if layers is not None:
                calls.append(Call(module, layers, args[0], output))

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield calls
    finally:
        handle.remove()


def _layers(module: nn.Module) -> tuple[nn.Module, ...] | None:
    """The linear and piecewise-linear layers of a module that is nothing else, the last one linear."""
    layers = _flatten(module)
    plain = all(type(m) is nn.Linear or type(m) in _SLOPES for m in layers)
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in [module, *layers])
    return tuple(layers) if layers and plain and not hooked and type(layers[-1]) is nn.Linear else None


def _flatten(module: nn.Module) -> list[nn.Module]:
    return [m for child in module.children() for m in _flatten(child)] if type(module) in _CONTAINERS else [module]


@dataclass(frozen=True)
class GaussianChain:
    """The chain with the Gaussians at both of its ends.

    Arguments:
        module: The network.
        layers: Its layers.
        x: Data, shape ``(B, D)``.
        noise_precision: R, the diagonal, shape ``(D,)``.
        prior_loc, prior_precision: Mean and diagonal precision of z, shape ``(B, d)``.
        gram: Whether to use the Gram trick; None decides by the sizes.
    """

    module: nn.Module
    layers: tuple[nn.Module, ...]
    x: Tensor
    noise_precision: Tensor
    prior_loc: Tensor
    prior_precision: Tensor
    gram: bool | None = None

    def prepare(self) -> "PreparedChain":
        """Compute what all steps share."""
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        weighted = self.noise_precision.unsqueeze(-1) * last.weight  # R V₃
        gram = last.in_features <= last.out_features if self.gram is None else self.gram
        return PreparedChain(self, last, weighted, last.weight.T @ weighted if gram else None)


@dataclass(frozen=True)
class PreparedChain:
    """:class:`GaussianChain` with the products of its last weights: R V₃, shape ``(D, H)``, and V₃ᵀ R V₃ or None."""

    chain: GaussianChain
    last: nn.Linear
    weighted: Tensor
    gram: Tensor | None

    def __call__(self, z: Tensor, *, score: bool = True) -> Linearised:
        """Linearise around ``z`` with shape ``(B, d)``."""
        hidden, tangents = _propagate(self.chain.layers[:-1], z)
        if tangents is None:  # a linear decoder: the same W for all data
            tangents = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        if self.gram is not None:
            half, other = tangents @ self.gram, tangents
        else:
            half, other = tangents @ self.weighted.T, tangents @ self.last.weight.T  # W R and W, (B, d, D)
        precision = half @ other.mT + torch.diag_embed(self.chain.prior_precision)
        gradient = None
        if score:
            residual = self.chain.x - self.last(hidden)  # (B, D)
            pulled = (tangents @ (residual @ self.weighted).unsqueeze(-1)).squeeze(-1)
            gradient = pulled - self.chain.prior_precision * (z - self.chain.prior_loc)
        return Linearised(gradient, 0.5 * (precision + precision.mT), [])


def _propagate(layers: Sequence[nn.Module], value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Push a value ``(B, F)`` and the d tangents, rows ``(B, d, F)``, through the layers; None: the identity."""
    tangents: Tensor | None = None
    for layer in layers:
        if isinstance(layer, nn.Linear):
            tangents = layer.weight.T if tangents is None else linear(tangents, layer.weight)
            value = layer(value)
        elif not isinstance(layer, nn.Identity):
            slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
            factor = (value > 0).to(value.dtype) if slope == 0 else torch.where(value > 0, 1.0, slope).to(value.dtype)
            tangents = torch.diag_embed(factor) if tangents is None else tangents * factor.unsqueeze(-2)
            value = layer(value)
    return value, tangents


def find_chain(calls: Sequence[Call], sites: Sequence[JointSite], z: Tensor) -> GaussianChain | str:
    """The chain in a program that was run at ``z`` under :func:`record_chains`, or why there is none."""
    latents, observed = [s for s in sites if s.latent is not None], [s for s in sites if s.latent is None]
    if len(latents) != 1 or len(observed) != 1:
        return f"it has {len(latents)} latent and {len(observed)} observed sites rather than one of each"
    prior, likelihood = (_normal(site) for site in (latents[0], observed[0]))
    if prior is None or likelihood is None:
        return "its latent and observed sites are not both unmasked Normal(...).to_event(1) in one plate"
    loc, scale = likelihood.loc, likelihood.scale
    if len(z) > 1 and scale.stride(0) != 0:
        return "the scale of its observation is not shared by all data"
    weight = observed[0].scale
    if isinstance(weight, Tensor) and weight.numel() > 1:
        return "its data have different scales"
    matching = [c for c in calls if c.value is latents[0].value and _same(c.output, loc)]
    if not matching:
        return "its mean is not the output of one chain of Linear and ReLU layers of z alone"
    call, noise_precision = matching[-1], weight * scale[0].square().reciprocal()
    return GaussianChain(
        call.module, call.layers, observed[0].value, noise_precision, prior.loc, prior.scale.square().reciprocal()
    )


def _normal(site: JointSite) -> Normal | None:
    fn = site.fn
    if not isinstance(fn, Independent) or fn.reinterpreted_batch_ndims != 1 or site.mask not in (None, True):
        return None
    plain = isinstance(fn.base_dist, Normal) and fn.batch_shape == site.value.shape[:1] and len(fn.batch_shape) == 1
    return fn.base_dist if plain and fn.event_shape == site.value.shape[1:] else None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same elements."""
    return a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
