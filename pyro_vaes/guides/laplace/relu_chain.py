"""Which programs are z -> Linear -> ReLU -> ... -> Linear with Gaussian noise that all data share, or with bits.

That is seen from the modules that a program calls, so nothing has to be declared.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pyro.distributions import Bernoulli, Normal
from torch import Tensor, nn
from torch.distributions import Independent
from torch.distributions.distribution import Distribution

from pyro_vaes.nn import MLP, Chain

from ..joint import JointSite
from .chains import BernoulliChain, GaussianChain
from .linearise import depends

_CONTAINERS = (nn.Sequential, MLP, Chain)  # exact types: a subclass may compute something else
_SLOPES = (nn.ReLU, nn.LeakyReLU, nn.Identity)


class Call(NamedTuple):
    """One call of a network: its layers in order, what went in, what came out, and that output's version then."""

    module: nn.Module
    layers: tuple[nn.Module, ...]
    value: Tensor
    output: Tensor
    version: int  # moves when somebody changes the output in place

    def returned(self, t: Tensor) -> bool:
        """Whether a tensor is a view of this output's elements, and they are as they were."""
        same = t.shape == self.output.shape and t.stride() == self.output.stride()
        return same and t.data_ptr() == self.output.data_ptr() and _version(t) == self.version


@contextmanager
def record_chains() -> Iterator[list[Call]]:
    """Inside, the calls of chains of linear and piecewise-linear layers are recorded."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            layers = _chain_of_layers(module)
            if layers:
                calls.append(Call(module, layers, args[0], output, _version(output)))

    handle = nn.modules.module.register_module_forward_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


def _chain_of_layers(module: nn.Module) -> tuple[nn.Module, ...]:
    """The linear and piecewise-linear layers of a module, the last one linear; none if it is anything else."""
    modules = _flatten(module)
    if any(type(m) not in (nn.Linear, *_SLOPES) for m in modules):
        return ()
    if any(m._forward_hooks or m._forward_pre_hooks for m in [module, *modules]):
        return ()
    layers = tuple(m for m in modules if type(m) is not nn.Identity)
    return layers if layers and type(layers[-1]) is nn.Linear else ()


def _flatten(module: nn.Module) -> list[nn.Module]:
    if type(module) not in _CONTAINERS:
        return [module]
    children = [m for m in module._modules.values() if m is not None]  # .children() leaves out repetitions
    return [m for child in children for m in _flatten(child)]


def find_chain(calls: Sequence[Call], sites: Sequence[JointSite], z: Tensor) -> GaussianChain | BernoulliChain | str:
    """The chain in a program that was run at ``z`` under :func:`record_chains`, or why there is none.

    Gradients must have been recorded in the run for it to be seen that the scale of an observation depends on z.
    """
    latents = [site for site in sites if site.latent is not None]
    observed = [site for site in sites if site.latent is None]
    if len(latents) != 1 or len(observed) != 1:
        return f"it has {len(latents)} latent and {len(observed)} observed sites rather than one of each"
    latent, data = latents[0], observed[0]

    prior, likelihood = _base(latent), _base(data)
    kind: type[GaussianChain | BernoulliChain] | None = None
    if isinstance(likelihood, Normal):
        kind, output = GaussianChain, likelihood.loc
    elif isinstance(likelihood, Bernoulli) and "logits" in vars(likelihood):
        kind, output = BernoulliChain, likelihood.logits
    if kind is None or not isinstance(prior, Normal):
        return (
            "its latent site is not Normal(...).to_event(1), or its observed one neither that nor "
            "Bernoulli(logits=...).to_event(1), unmasked and in one plate"
        )

    weight = data.scale
    if isinstance(weight, Tensor) and weight.numel() > 1:
        return "its data have different scales"
    if isinstance(likelihood, Normal):
        if len(z) > 1 and likelihood.scale.stride(0) != 0:
            return "the scale of its observation is not shared by all data"
        if depends(likelihood.scale, z):  # a batch of one does not show whether it is shared
            return "the scale of its observation depends on the latents"
        weight = weight * likelihood.scale[0] ** -2

    if data.value.dtype != output.dtype:
        return f"its data have dtype {data.value.dtype} where its network returns {output.dtype}"
    calls = [call for call in calls if call.value is latent.value and call.returned(output)]
    if not calls:
        return "its mean is not the output of one chain of Linear and ReLU layers of z alone"
    return kind(calls[-1].module, calls[-1].layers, data.value, weight, prior.loc, prior.scale**-2)


def _base(site: JointSite) -> Distribution | None:
    """The distribution under ``to_event(1)``, if that is all there is around it."""
    fn, rows = site.fn, site.value.shape[:1]
    if not isinstance(fn, Independent) or fn.reinterpreted_batch_ndims != 1:
        return None
    if site.mask is not None and site.mask is not True:
        return None
    plain = fn.batch_shape == rows and len(rows) == 1 and fn.event_shape == site.value.shape[1:]
    return fn.base_dist if plain else None


def _version(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
