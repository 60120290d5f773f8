r"""Score and curvature of any program's log joint density, per datum.

    score(z) = d log p(x, z) / dz,    P(z) = sum over sites of J_iᵀ I_i(eta_i) J_i  +  (H)₊

with eta_i(z) the parameters of site i, J_i their Jacobian and I_i their Fisher information. Latent sites count through
their residuals; those without an entry in the registry (a gamma prior, say) through the Hessian H of minus their
log-density in the unconstrained space, whose negative eigenvalues are raised to zero.

The Jacobians are forward-mode tangents, one per latent direction, all at once under ``vmap`` with the batch explicit,
so that each linear layer sees one matrix of ``numel · B`` rows.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""

import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pyro
import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.distribution import Distribution
from torch.func import grad, jvp, vmap

from pyro_vaes.distributions import Autoregressive
from pyro_vaes.guides.joint import Joint, JointSite
from pyro_vaes.guides.laplace.eigenvalues import floor_eigenvalues
from pyro_vaes.guides.laplace.fisher import Fisher, find_fisher

__all__ = ["Linearised", "ProgramRun", "depends", "linearise", "run_program"]

Derivatives = TypeVar("Derivatives", Tensor, tuple[tuple[Tensor, ...], ...])
DEPENDENT = (
    "The density of a datum changes with the latents of its batch mates, or from one "
    "evaluation to the next; the Laplace posterior needs data that are independent given "
    "their latents. Is there a dropout, a normalisation over the batch, or a sample outside "
    "Pyro in the model?"
)
Overrides = Mapping[type[Distribution], Fisher]


@dataclass(frozen=True)
class Linearised:
    """What a Newton step needs at one point per datum.

    Attributes:
        score: Gradient of log p(x, z), shape ``(B, d)``, a number; None where it was not asked for.
        precision: The curvature P, symmetric and positive semi-definite, shape ``(B, d, d)``.
        residual: ``step -> score - P step`` with shape ``(B, d)``, from tangents and cotangents of one direction: its
            gradients cost a few evaluations of the program, where those of ``precision`` cost d.
    """

    score: Tensor | None
    precision: Tensor
    residual: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProgramRun:
    """The sites of a program at one point per datum, with the gradient's graph that leads there from z.

    Attributes:
        given: The point that the run was asked for.
        z: The same numbers, where the graph starts.
        sites: The sites.
    """

    given: Tensor
    z: Tensor
    sites: list[JointSite]


def run_program(joint: Joint, given: Tensor) -> ProgramRun:
    """Run a program at the vectors ``(B, d)``; gradients are recorded in it even where they are disabled around it."""
    recording = torch.is_grad_enabled() and given.requires_grad
    with torch.enable_grad():
        z = given if recording else given.detach().requires_grad_()
        return ProgramRun(given, z, joint.sites(z))


def linearise(
    joint: Joint,
    z: Tensor,
    *,
    score: bool = True,
    constant: bool = False,
    fallback: str | None = None,
    overrides: Overrides | None = None,
    chunk_size: int | None = None,
    known: ProgramRun | None = None,
) -> Linearised:
    """Linearise a program around the vectors ``z`` with shape ``(B, d)``, with gradients where they are enabled.

    Arguments:
        joint: The program and its batch.
        z: Where.
        score: Whether to compute it.
        constant: Whether gradients stop at ``precision``, which then holds no graph of the Jacobian.
        fallback: ``"hessian"`` for the Hessian of observed sites without an entry in the registry; None refuses them.
        overrides: Entries that take precedence over the registry's.
        chunk_size: How many latent directions to push through the program at once; None for all.
        known: A run of the program, which is not repeated if it was at ``z``.

    Raises:
        NotImplementedError: An observed site has no entry in the registry, and there is no fallback.
    """
    recording = torch.is_grad_enabled()
    run = known if known is not None and known.given is z else run_program(joint, z)
    gradient = None
    with torch.enable_grad():  # what depends on z is seen from the graph of gradients
        plans = [_plan(site, run.z, fallback, overrides) for site in run.sites]
        if score:
            log_prob = joint.log_prob(run.sites, len(z)).sum()
            (gradient,) = torch.autograd.grad(log_prob, run.z, create_graph=recording, retain_graph=True)

    z = run.z if recording else run.z.detach()
    basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    by_hessian = [plan.name for plan in plans if plan.entry is None]
    hessian: Tensor | None = None
    with pyro.validation_enabled(False):  # checks of values cannot run under vmap
        if by_hessian:
            hessian = _floored_hessian(joint, z, by_hessian, basis, chunk_size)
        with torch.set_grad_enabled(recording and not constant):
            precision = _gauss_newton(joint, z, plans, basis, chunk_size)
            if hessian is not None:
                precision = precision + hessian

    def residual(step: Tensor) -> Tensor:
        assert gradient is not None
        with torch.enable_grad(), pyro.validation_enabled(False):
            v = step.detach().requires_grad_()
            half = 0.5 * _gauss_newton(joint, z, plans, v.unsqueeze(0), None).sum()  # P v is the gradient of ½ vᵀ P v
            (product,) = torch.autograd.grad(half, v, create_graph=recording, materialize_grads=True)
        if hessian is not None:
            product = product + (hessian @ step.unsqueeze(-1)).squeeze(-1)
        return gradient - product

    return Linearised(gradient, 0.5 * (precision + precision.mT), residual)


@dataclass(frozen=True)
class _Plan:
    """How one site enters the curvature."""

    name: str
    base: Distribution  # without its wrappers, expanded over everything that broadcasts
    event_dims: int  # how many of its batch dimensions are events of the site
    weight: Tensor | float  # scale and masks, broadcasting against its batch
    entry: Fisher | None  # None for the Hessian
    dependent: tuple[bool, ...]  # which of its parameters depend on z


def _unwrap(site: JointSite) -> tuple[Distribution, int, list[tuple[Tensor | bool, int]]]:
    """The base distribution, how many batch dimensions of it are events, and the masks with the depth they lie at."""
    fn, depth, masks = site.fn, 0, []
    while isinstance(fn, Autoregressive | Independent | MaskedDistribution | ExpandedDistribution):
        if isinstance(fn, Autoregressive):
            fn = fn.given(site.value)  # its conditionals at what was observed, whose parameters depend on the latents
            continue
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, depth))
        elif isinstance(fn, Independent):
            depth += fn.reinterpreted_batch_ndims
        fn = fn.base_dist

    observed = site.value.shape[: site.value.dim() - len(fn.event_shape)]
    full = torch.Size(broadcast_shape(site.fn.batch_shape + site.fn.event_shape[:depth], observed))
    return fn if fn.batch_shape == full else fn.expand(full), depth, masks


def _plan(site: JointSite, z: Tensor, fallback: str | None, overrides: Overrides | None) -> _Plan:
    base, event_dims, masks = _unwrap(site)
    entry = find_fisher(base, overrides)
    name = type(base).__name__
    if site.latent is not None and not site.latent.is_real:
        entry = None
    if entry is not None and any(depends(t, z) for t in entry.constants(base)):
        entry, name = None, f"{name} of which a parameter that the registry takes as constant depends on the latents"
    if entry is None and site.latent is None and fallback is None:
        raise NotImplementedError(
            f"No Fisher information is registered for the observed site {site.name!r}, a {name}. Register one with "
            "pyro_vaes.guides.register_fisher, or pass fallback='hessian' to use the Hessian of its log-density with "
            "negative eigenvalues raised to zero."
        )

    parameters = () if entry is None else entry.parameters(base, site.value)
    dependent = tuple(depends(t, z) for t in parameters)

    weight = _right(site.scale, event_dims)
    for mask, depth in [(site.mask, 0), *masks]:
        if mask is not None and mask is not True:
            weight = weight * _right(torch.as_tensor(mask, device=z.device).to(z.dtype), event_dims - depth)
    return _Plan(site.name, base, event_dims, weight, entry, dependent)


def _right(t: Tensor | float, dims: int) -> Tensor | float:
    """A tensor with singleton dimensions on the right; numbers stay numbers."""
    return t.reshape(t.shape + (1,) * dims) if isinstance(t, Tensor) else t


def depends(t: Tensor, z: Tensor) -> bool:
    """Whether z lies upstream of t in the graph of gradients."""
    if t is z:
        return True

    todo, seen = [t.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node is z.grad_fn or getattr(node, "variable", None) is z:
            return True
        seen.add(node)
        todo += [parent for parent, _ in node.next_functions]
    return False


def _tangents(
    function: Callable[[Tensor], Derivatives], z: Tensor, directions: Tensor, chunk_size: int | None
) -> Derivatives:
    """Those of a function at z along all directions ``(k, ...)``; they have that dimension more on the left."""

    def along(direction: Tensor) -> Derivatives:
        tangent: Derivatives = jvp(function, (z,), (direction.expand_as(z),))[1]
        return tangent

    with warnings.catch_warnings():  # torch announces at the first use of forward mode that it scripts a few formulae
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=category)
        try:
            tangents: Derivatives = vmap(along, chunk_size=chunk_size)(directions)
        except RuntimeError as error:
            if "randomness" in str(error):  # of vmap, where the program draws outside Pyro
                raise ValueError(DEPENDENT) from error
            raise
    return tangents


def _gauss_newton(joint: Joint, z: Tensor, plans: list[_Plan], directions: Tensor, chunk_size: int | None) -> Tensor:
    """uᵀ P v for all pairs of k directions, shape ``(B, k, k)``, from directions ``(k, d)`` or ``(k, B, d)``."""
    plans = [plan for plan in plans if plan.entry is not None and any(plan.dependent)]
    total = directions.new_zeros(len(z), len(directions), len(directions))
    if not plans:
        return total

    def parameters(z: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        sites = {site.name: site for site in joint.sites(z)}
        return tuple(_dependent_parameters(plan, sites[plan.name]) for plan in plans)

    jacobians = _tangents(parameters, z, directions, chunk_size)
    for plan, tangents in zip(plans, jacobians, strict=True):
        total = total + _quadratic(joint, plan, tangents)
    return total


def _dependent_parameters(plan: _Plan, site: JointSite) -> tuple[Tensor, ...]:
    """The parameters of a site that depend on z."""
    assert plan.entry is not None
    parameters = plan.entry.parameters(_unwrap(site)[0], site.value)
    return tuple(itertools.compress(parameters, plan.dependent))


def _quadratic(joint: Joint, plan: _Plan, tangents: tuple[Tensor, ...]) -> Tensor:
    """J I Jᵀ per datum, from tangents with shape ``(k, *batch of the base, ...)``."""
    assert plan.entry is not None
    given = iter(tangents)
    zero = tangents[0].new_zeros(())
    every = tuple(next(given) if depends_on_z else zero for depends_on_z in plan.dependent)
    products = plan.entry.product(plan.base, every)

    total = zero
    for tangent, product, depends_on_z in zip(every, products, plan.dependent, strict=True):
        if not depends_on_z:
            continue
        trailing = tangent.dim() - 1 - len(plan.base.batch_shape)
        weighted = product * _right(plan.weight, trailing)
        left, right = (
            joint.rows_first(t, right=trailing + plan.event_dims, left=1).unsqueeze(-1).flatten(2)  # (k, B, n)
            for t in (tangent, weighted)
        )
        total = total + left.transpose(0, 1) @ right.permute(1, 2, 0)  # (B, k, n) @ (B, n, k)
    return total


def _floored_hessian(joint: Joint, z: Tensor, names: list[str], basis: Tensor, chunk_size: int | None) -> Tensor:
    def energy(z: Tensor) -> Tensor:
        sites = [site for site in joint.sites(z) if site.name in names]
        return -joint.log_prob(sites, len(z)).sum()

    hessian = _tangents(grad(energy), z, basis, chunk_size).movedim(0, -1)
    floored, lowest, highest = floor_eigenvalues(0.5 * (hessian + hessian.mT))
    if bool((lowest < -1e-4 * highest.abs().clamp(min=1e-3)).any()):
        warnings.warn(
            f"The log-density of the sites {names} is not concave at the mode of some data; negative eigenvalues of "
            "its Hessian count as zero in the Laplace posterior.",
            stacklevel=2,
        )
    return floored
