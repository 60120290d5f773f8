"""Which programs are z -> Linear -> ReLU -> ... -> Linear with Gaussian noise that all data share, or with bits.

That is seen from the modules that a program calls, so nothing has to be declared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn
from torch.distributions import Independent
from torch.distributions.distribution import Distribution

from pyro_vaes.guides.joint import JointSite
from pyro_vaes.guides.laplace.bernoulli_chain import BernoulliChain
from pyro_vaes.guides.laplace.gaussian_chain import GaussianChain
from pyro_vaes.nn import MLP, Chain

__all__ = ["Call", "find_chain", "record_chains", "same_noise"]

_CONTAINERS = (nn.Sequential, MLP, Chain)  # exact types: a subclass may compute something else
_SLOPES = (nn.ReLU, nn.LeakyReLU, nn.Identity)


@dataclass(frozen=True)
class Call:
    """One call of a network: its layers in order, what went in, what came out, and that output's version then."""

    module: nn.Module
    layers: tuple[nn.Module, ...]
    value: Tensor
    output: Tensor
    version: int  # moves when somebody changes the output in place


@contextmanager
def record_chains() -> Iterator[list[Call]]:
    """Inside, the calls of chains of linear and piecewise-linear layers are recorded."""
    calls: list[Call] = []

    def look(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            layers = _layers(module)
            if layers is not None:
                calls.append(Call(module, layers, args[0], output, _version(output)))

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
    layers = [m for m in layers if type(m) is not nn.Identity]
    return tuple(layers) if layers and plain and not hooked and type(layers[-1]) is nn.Linear else None


def _flatten(module: nn.Module) -> list[nn.Module]:
    if type(module) not in _CONTAINERS:
        return [module]
    children = [m for m in module._modules.values() if m is not None]  # .children() leaves out repetitions
    return [m for child in children for m in _flatten(child)]


def find_chain(calls: Sequence[Call], sites: Sequence[JointSite], z: Tensor) -> GaussianChain | BernoulliChain | str:
    """The chain in a program that was run at ``z`` under :func:`record_chains`, or why there is none."""
    latents, observed = [s for s in sites if s.latent is not None], [s for s in sites if s.latent is None]
    if len(latents) != 1 or len(observed) != 1:
        return f"it has {len(latents)} latent and {len(observed)} observed sites rather than one of each"
    prior, likelihood = (_base(site) for site in (latents[0], observed[0]))
    other = (
        "its latent site is not Normal(...).to_event(1), or its observed one neither that nor "
        "Bernoulli(logits=...).to_event(1), unmasked and in one plate"
    )
    if not isinstance(prior, Normal):
        return other
    if isinstance(likelihood, Normal):
        output = likelihood.loc
        if len(z) > 1 and likelihood.scale.stride(0) != 0:
            return "the scale of its observation is not shared by all data"
    elif isinstance(likelihood, Bernoulli) and "logits" in vars(likelihood):
        output = likelihood.logits
    else:
        return other
    if observed[0].value.dtype != output.dtype:
        return f"its data have dtype {observed[0].value.dtype} where its network returns {output.dtype}"
    weight = observed[0].scale
    if isinstance(weight, Tensor) and weight.numel() > 1:
        return "its data have different scales"
    matching = [
        c for c in calls if c.value is latents[0].value and _same(c.output, output) and _version(output) == c.version
    ]
    if not matching:
        return "its mean is not the output of one chain of Linear and ReLU layers of z alone"
    module, layers, x, precision = matching[-1].module, matching[-1].layers, observed[0].value, prior.scale**-2
    if isinstance(likelihood, Normal):
        return GaussianChain(module, layers, x, weight * likelihood.scale[0] ** -2, prior.loc, precision)
    return BernoulliChain(module, layers, x, weight, prior.loc, precision)


def same_noise(sites: Sequence[JointSite], moved: Sequence[JointSite]) -> bool:
    """Whether the likelihood's scale is the same at other latents; one datum does not show whether it is shared."""
    one, two = (next(_base(site) for site in group if site.latent is None) for group in (sites, moved))
    return isinstance(one, Normal) and isinstance(two, Normal) and torch.equal(one.scale, two.scale)


def _base(site: JointSite) -> Distribution | None:
    """The distribution under ``to_event(1)``, if that is all there is around it."""
    fn = site.fn
    if (
        not isinstance(fn, Independent)
        or fn.reinterpreted_batch_ndims != 1
        or not (site.mask is None or site.mask is True)
    ):
        return None
    plain = fn.batch_shape == site.value.shape[:1] and len(fn.batch_shape) == 1
    return fn.base_dist if plain and fn.event_shape == site.value.shape[1:] else None


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same elements."""
    return a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
