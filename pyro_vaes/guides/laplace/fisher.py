r"""Fisher information of distributions in the parameters through which a latent reaches them.

    I(eta) = -E[ d² log p(x; eta) / d eta² ]

For a likelihood p(x | eta(z)) the Gauss-Newton matrix J(z)ᵀ I(eta(z)) J(z) stands for the Hessian of -log p(x | z); the
two agree where eta is the natural parameter and z -> eta is piecewise linear. :func:`register_fisher` adds a family.

References:
    | New Insights and Perspectives on the Natural Gradient Method (Martens, 2020)
    | https://jmlr.org/papers/v21/17-678.html
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.distribution import Distribution

from pyro_vaes.distributions import AutoregressiveFlow

Tensors = tuple[Tensor, ...]
Terms = Callable[..., Tensors]


class Fisher(NamedTuple):
    """How to read a family's parameters, and how to multiply tangents of them by its Fisher information.

    Arguments:
        parameters: ``(fn, value) -> (eta, ...)``, tensors with shape ``batch_shape`` or ``batch_shape + (...)``. A
            location family returns ``loc - value``, so that a latent site counts through its residual.
        product: ``(fn, tangents) -> I(eta) tangents``; each tangent has one more dimension on the left than its eta.
        constants: ``fn -> (tensor, ...)``: parameters that must not depend on a latent, or the entry does not apply.
    """

    parameters: Terms
    product: Terms
    constants: Terms = lambda fn: ()


def register_fisher(
    family: type[Distribution],
    parameters: Terms,
    product: Terms,
    constants: Terms = lambda fn: (),
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

    return Fisher(_LOGITS, _times(information))


def _read(name: str) -> Terms:
    """The parameter of that name alone."""
    return lambda fn, value=None: (getattr(fn, name),)


def _times(information: Callable[..., Tensor]) -> Terms:
    """The product with one number for each value of the only parameter."""
    return lambda fn, tangents: (information(fn) * tangents[0],)


def _location_scale(
    curvature: Callable[..., tuple[Tensor | float, Tensor | float]],
    constants: Terms = lambda fn: (),
) -> Fisher:
    """eta = (loc, log scale) with the curvatures of loc, times scale², and of log scale; diagonal by symmetry."""

    def parameters(fn: dist.Normal, value: Tensor) -> Tensors:
        return fn.loc - value, fn.scale.log()

    def product(fn: dist.Normal, tangents: Tensors) -> Tensors:
        (of_loc, of_scale), (loc, log_scale) = curvature(fn), tangents
        return of_loc * loc / fn.scale.square(), of_scale * log_scale

    return Fisher(parameters, product, constants)


def _binary_variance(fn: dist.Bernoulli) -> Tensor:
    return torch.sigmoid(fn.logits) * torch.sigmoid(-fn.logits)  # p (1 - p) without cancellation


def _categorical(fn: dist.Categorical, tangents: Tensors) -> Tensors:
    """(diag p - p pᵀ) t, applied to the last dimension without forming the matrix."""
    (tangent,) = tangents
    return (fn.probs * (tangent - (fn.probs * tangent).sum(-1, keepdim=True)),)


def _multivariate_normal(fn: dist.MultivariateNormal, tangents: Tensors) -> Tensors:
    tangent = tangents[0].unsqueeze(-1)
    scale_tril = fn.scale_tril.expand(tangent.shape[:-2] + fn.scale_tril.shape[-2:])
    return (torch.cholesky_solve(tangent, scale_tril).squeeze(-1),)


_LOGITS = _read("logits")
_COUNT = _read("total_count")
_REGISTRY: dict[type[Distribution], Fisher] = {
    dist.Normal: _location_scale(lambda fn: (1.0, 2.0)),
    dist.Laplace: _location_scale(lambda fn: (1.0, 1.0)),
    dist.StudentT: _location_scale(lambda fn: ((fn.df + 1) / (fn.df + 3), 2 * fn.df / (fn.df + 3)), _read("df")),
    dist.MultivariateNormal: Fisher(lambda fn, value: (fn.loc - value,), _multivariate_normal, _read("scale_tril")),
    dist.Bernoulli: Fisher(_LOGITS, _times(_binary_variance)),
    dist.Binomial: Fisher(_LOGITS, _times(lambda fn: fn.total_count * _binary_variance(fn)), _COUNT),
    dist.Poisson: Fisher(lambda fn, value: (fn.rate.log(),), _times(lambda fn: fn.rate)),
    # with mean r e^logits: E[x + r] p (1 - p) = r p
    dist.NegativeBinomial: Fisher(_LOGITS, _times(lambda fn: fn.total_count * torch.sigmoid(fn.logits)), _COUNT),
    dist.ContinuousBernoulli: Fisher(_LOGITS, _times(lambda fn: fn.variance)),
    dist.Categorical: Fisher(_LOGITS, _categorical),
    dist.OneHotCategorical: Fisher(_LOGITS, _categorical),
    # a prior: its residual is eps = f⁻¹(z), and that is all where the log-determinant is
    # constant (mean-only flows)
    AutoregressiveFlow: Fisher(
        lambda fn, value: (fn.whiten(value)[0],),
        lambda fn, tangents: (tangents[0] / fn.scale.square(),),
    ),
}
