"""Distributions made anew from parameters that went through a function: moved, gathered or cut."""

from collections.abc import Callable
from typing import TypeGuard, TypeVar, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution

from .recursive_mixture import RecursiveMixture

D = TypeVar("D", bound=Distribution)
SAME_AS = {"logits": {"probs"}, "scale_tril": {"covariance_matrix", "precision_matrix"}}  # other ways to say it


def map_parameters(fn: D, function: Callable[[Tensor, int], Tensor]) -> D:
    """A distribution of the same family with ``function(parameter, event_dim)`` in place of each of its parameters.

    Parameters have all batch dimensions, and the given number of dimensions behind them. Maps of a transformed
    distribution stay as they are.

    Raises:
        TypeError, AttributeError, NotImplementedError: The family cannot be made from its named parameters.
    """
    return cast(D, _mapped(fn, function))


def _mapped(fn: Distribution, function: Callable[[Tensor, int], Tensor]) -> Distribution:
    if isinstance(fn, Independent):
        k = fn.reinterpreted_batch_ndims
        base = _mapped(fn.base_dist, lambda p, event_dim: function(p, event_dim + k))
        return type(fn)(base, k)  # Pyro's own stays one, which can be sampled from at a site
    if isinstance(fn, RecursiveMixture):
        components = [map_parameters(c, function) for c in fn.components]
        return RecursiveMixture(components, [function(a, 0) for a in fn.logits])
    if has_transforms(fn):
        return TransformedDistribution(_mapped(fn.base_dist, function), fn.transforms)

    names = fn.arg_constraints.keys()
    spare = set().union(*(SAME_AS[n] for n in names & SAME_AS.keys()))
    parameters = {}
    for name in names:  # in the family's order, which is that of every process
        if name in spare:
            continue
        event_dim, value = fn.arg_constraints[name].event_dim, torch.as_tensor(getattr(fn, name))
        event_shape = value.shape[value.dim() - event_dim :]
        parameters[name] = function(value.expand(fn.batch_shape + event_shape), event_dim)

    family: Callable[..., Distribution] = type(fn)
    return family(**parameters, validate_args=False)


def has_transforms(fn: Distribution) -> TypeGuard[TransformedDistribution]:
    """Whether a distribution is another one pushed through maps of its own (not a named family such as the Gumbel)."""
    return isinstance(fn, TransformedDistribution) and not fn.arg_constraints


def event_elements(fn: Distribution) -> Distribution:
    """The distribution of the elements of an event that factorises."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
