r"""Fisher information of distributions in the parameters through which a latent reaches them.

    I(eta) = -E[ d² log p(x; eta) / d eta² ]

For a likelihood p(x | eta(z)) the Gauss-Newton matrix J(z)ᵀ I(eta(z)) J(z) stands for the Hessian of -log p(x | z); the
two agree where eta is the natural parameter and z -> eta is piecewise linear. :func:`register_fisher` adds a family.

References:
    | New Insights and Perspectives on the Natural Gradient Method (Martens, 2020)
    | https://jmlr.org/papers/v21/17-678.html
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.distribution import Distribution

from pyro_vaes.distributions import AutoregressiveFlow

__all__ = ["Fisher", "Parameters", "Product", "clipped_bernoulli", "find_fisher", "register_fisher"]

Parameters = Callable[..., tuple[Tensor, ...]]
Product = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Fisher:
    """How to read a family's parameters, and how to multiply tangents of them by its Fisher information.

    Arguments:
        parameters: ``(fn, value) -> (eta, ...)``, tensors with shape ``batch_shape`` or ``batch_shape + (...)``. A
            location family returns ``loc - value``, so that a latent site counts through its residual.
        product: ``(fn, tangents) -> I(eta) tangents``; each tangent has one more dimension on the left than its eta.
        constants: ``fn -> (tensor, ...)``: parameters that must not depend on a latent, or the entry does not apply.
    """

    parameters: Parameters
    product: Product
    constants: Callable[..., tuple[Tensor, ...]] = lambda fn: ()


_REGISTRY: dict[type[Distribution], Fisher] = {}


def register_fisher(
    family: type[Distribution],
    parameters: Parameters,
    product: Product,
    constants: Callable[..., tuple[Tensor, ...]] = lambda fn: (),
) -> Fisher:
    """Tell the Laplace guide how to linearise a family of distributions, and its subclasses that have no entry.

    Arguments:
        family: A univariate or multivariate distribution class, as it is without ``to_event``, ``expand`` or ``mask``.
        parameters, product, constants: See :class:`Fisher`.

    Returns:
        The entry.

    Raises:
        ValueError: ``family`` is not a class of distributions.

    Example:
        >>> entry = register_fisher(
        ...     dist.HalfNormal, lambda fn, value: (fn.scale.log(),), lambda fn, tangents: (2 * tangents[0],)
        ... )
        >>> find_fisher(dist.HalfNormal(torch.ones(3))) is entry
        True
    """
    if not (isinstance(family, type) and issubclass(family, Distribution)):
        raise ValueError(f"register_fisher takes a class of distributions such as dist.HalfNormal, but got {family!r}.")
    _REGISTRY[family] = Fisher(parameters, product, constants)
    return _REGISTRY[family]


def find_fisher(fn: Distribution, overrides: Mapping[type[Distribution], Fisher] | None = None) -> Fisher | None:
    """The entry of the nearest registered ancestor of a distribution's class; None where there is none."""
    table = {**_REGISTRY, **(overrides or {})}
    return next((table[ancestor] for ancestor in type(fn).__mro__ if ancestor in table), None)


def clipped_bernoulli(jitter: float) -> Fisher:
    """The Bernoulli entry with p clipped to [jitter, 1 - jitter] and the jitter added to p (1 - p)."""

    def information(fn: dist.Bernoulli) -> Tensor:
        probs = fn.probs.clamp(jitter, 1 - jitter)
        return probs * (1 - probs) + jitter

    return _one_each(_logits, information)


def _location_scale(
    curvature_loc: Callable[..., Tensor | float], curvature_scale: Callable[..., Tensor | float]
) -> Fisher:
    """eta = (loc, log scale) with information (curvature_loc / scale², curvature_scale), diagonal by symmetry."""

    def parameters(fn: dist.Normal, value: Tensor) -> tuple[Tensor, ...]:
        return fn.loc - value, fn.scale.log()

    def product(fn: dist.Normal, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        loc, log_scale = tangents
        return curvature_loc(fn) * loc / fn.scale.square(), curvature_scale(fn) * log_scale

    return Fisher(parameters, product, lambda fn: (fn.df,) if isinstance(fn, dist.StudentT) else ())


def _one_each(
    parameter: Callable[..., Tensor],
    information: Callable[..., Tensor],
    constants: Callable[..., tuple[Tensor, ...]] = lambda fn: (),
) -> Fisher:
    """One parameter per value, with its information."""
    return Fisher(lambda fn, value: (parameter(fn),), lambda fn, tangents: (information(fn) * tangents[0],), constants)


def _logits(fn: dist.Bernoulli) -> Tensor:
    return fn.logits


def _binary_variance(fn: dist.Bernoulli) -> Tensor:
    return torch.sigmoid(fn.logits) * torch.sigmoid(-fn.logits)  # p (1 - p) without cancellation


def _categorical(fn: dist.Categorical, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(diag p - p pᵀ) t, applied to the last dimension without forming the matrix."""
    (tangent,) = tangents
    return (fn.probs * (tangent - (fn.probs * tangent).sum(-1, keepdim=True)),)


def _multivariate_normal(fn: dist.MultivariateNormal, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    tangent = tangents[0].unsqueeze(-1)
    scale_tril = fn.scale_tril.expand(tangent.shape[:-2] + fn.scale_tril.shape[-2:])
    return (torch.cholesky_solve(tangent, scale_tril).squeeze(-1),)


def _total_count(fn: dist.Binomial) -> tuple[Tensor, ...]:
    return (fn.total_count,)


for _family, _entry in {
    dist.Normal: _location_scale(lambda fn: 1.0, lambda fn: 2.0),
    dist.Laplace: _location_scale(lambda fn: 1.0, lambda fn: 1.0),
    dist.StudentT: _location_scale(lambda fn: (fn.df + 1) / (fn.df + 3), lambda fn: 2 * fn.df / (fn.df + 3)),
    dist.MultivariateNormal: Fisher(
        lambda fn, value: (fn.loc - value,), _multivariate_normal, lambda fn: (fn.scale_tril,)
    ),
    dist.Bernoulli: _one_each(_logits, _binary_variance),
    dist.Binomial: _one_each(_logits, lambda fn: fn.total_count * _binary_variance(fn), _total_count),
    dist.Poisson: _one_each(lambda fn: fn.rate.log(), lambda fn: fn.rate),
    # with mean r e^logits: E[x + r] p (1 - p) = r p
    dist.NegativeBinomial: _one_each(_logits, lambda fn: fn.total_count * torch.sigmoid(fn.logits), _total_count),
    dist.ContinuousBernoulli: _one_each(_logits, lambda fn: fn.variance),
    dist.Categorical: Fisher(lambda fn, value: (fn.logits,), _categorical),
    dist.OneHotCategorical: Fisher(lambda fn, value: (fn.logits,), _categorical),
    # a prior: its residual is eps = f⁻¹(z), and that is all where the log-determinant is constant (mean-only flows)
    AutoregressiveFlow: Fisher(
        lambda fn, value: (fn.whiten(value)[0],), lambda fn, tangents: (tangents[0] / fn.scale.square(),)
    ),
}.items():
    _REGISTRY[_family] = _entry
