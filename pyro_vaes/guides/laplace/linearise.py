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

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple, TypeVar

import pyro
import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.distribution import Distribution
from torch.func import grad, jvp, vmap

from pyro_vaes.distributions import Autoregressive
from pyro_vaes.ops import is_capturing

from ..joint import Joint, JointSite
from .eigenvalues import FloorEigenvalues
from .fisher import Fisher, find_fisher

Derivatives = TypeVar("Derivatives", Tensor, list[list[Tensor]])
DEPENDENT = (
    "The density of a datum changes with the latents of its batch mates, or from one "
    "evaluation to the next; the Laplace posterior needs data that are independent given "
    "their latents. Is there a dropout, a normalisation over the batch, or a sample outside "
    "Pyro in the model?"
)


class Linearised(NamedTuple):
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


class ProgramRun(NamedTuple):
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


@dataclass(frozen=True)
class _Plan:
    """How one site enters the curvature through its parameters."""

    name: str
    entry: Fisher
    base: Distribution  # without its wrappers, expanded over everything that broadcasts
    event_dims: int  # how many of its batch dimensions are events of the site
    weight: Tensor | float  # scale and masks, broadcasting against its batch
    dependent: list[bool]  # which of its parameters depend on z


@dataclass(frozen=True)
class Lineariser:
    """The linearisation of a program, with gradients where they are enabled.

    Arguments:
        joint: The program and its batch.
        fallback: ``"hessian"`` for the Hessian of observed sites without an entry in the registry; None refuses them.
        overrides: Entries that take precedence over the registry's.
        chunk_size: How many latent directions to push through the program at once; None for all.
        known: A run of the program, which is not repeated at its point.
    """

    joint: Joint
    fallback: str | None = None
    overrides: Mapping[type[Distribution], Fisher] | None = None
    chunk_size: int | None = None
    known: ProgramRun | None = None

    def __call__(self, z: Tensor, *, score: bool = True, constant: bool = False) -> Linearised:
        """Linearise around the vectors ``z`` with shape ``(B, d)``.

        Arguments:
            z: Where.
            score: Whether to compute it.
            constant: Whether gradients stop at ``precision``, which then holds no graph of the Jacobian.

        Raises:
            NotImplementedError: An observed site has no entry in the registry, and there is no fallback.
        """
        recording = torch.is_grad_enabled()
        run = self.known
        if run is None or run.given is not z:
            run = run_program(self.joint, z)

        gradient = None
        with torch.enable_grad():  # what depends on z is seen from the graph of gradients
            plans, by_hessian = self._plans(run)
            if score:
                log_prob = self.joint.log_prob(run.sites, len(z)).sum()
                (gradient,) = torch.autograd.grad(log_prob, run.z, create_graph=recording, retain_graph=True)

        z = run.z if recording else run.z.detach()
        basis = z.new_ones(z.shape[-1]).diag()
        hessian: Tensor | None = None
        with pyro.validation_enabled(False):  # checks of values cannot run under vmap
            if by_hessian:
                hessian = self._floored_hessian(z, by_hessian, basis)
            with torch.set_grad_enabled(recording and not constant):
                precision = self._gauss_newton(z, plans, basis)
                if hessian is not None:
                    precision = precision + hessian

        def residual(step: Tensor) -> Tensor:
            assert gradient is not None
            with torch.enable_grad(), pyro.validation_enabled(False):
                v = step.detach().requires_grad_()
                # P v is the gradient of ½ vᵀ P v
                half = 0.5 * self._gauss_newton(z, plans, v.unsqueeze(0)).sum()
                (product,) = torch.autograd.grad(half, v, create_graph=recording, materialize_grads=True)

            if hessian is not None:
                product = product + (hessian @ step.unsqueeze(-1)).squeeze(-1)
            return gradient - product

        return Linearised(gradient, 0.5 * (precision + precision.mT), residual)

    def _plans(self, run: ProgramRun) -> tuple[list[_Plan], list[str]]:
        """How sites enter through their parameters, and the names of those which enter through their Hessian."""
        plans, by_hessian = [], []
        for site in run.sites:
            base, event_dims, masks = _unwrap(site)
            entry = self._entry(site, base, run.z)
            if entry is None:
                by_hessian.append(site.name)
                continue

            weight = _right(site.scale, event_dims)
            for mask, depth in [(site.mask, 0), *masks]:
                if mask is not None and mask is not True:
                    mask = torch.as_tensor(mask, device=run.z.device).to(run.z.dtype)
                    weight = weight * _right(mask, event_dims - depth)

            parameters = entry.parameters(base, site.value)
            dependent = [depends(t, run.z) for t in parameters]
            if any(dependent):
                plans.append(_Plan(site.name, entry, base, event_dims, weight, dependent))
        return plans, by_hessian

    def _entry(self, site: JointSite, base: Distribution, z: Tensor) -> Fisher | None:
        """The entry of a site in the registry; None for its Hessian."""
        entry = find_fisher(base, self.overrides)
        name = type(base).__name__
        if site.latent is not None and not site.latent.is_real:
            return None

        if entry is not None and any(depends(t, z) for t in entry.constants(base)):
            entry = None
            name += " of which a parameter that the registry takes as constant depends on the latents"

        if entry is None and site.latent is None and self.fallback is None:
            raise NotImplementedError(
                f"No Fisher information is registered for the observed site {site.name!r}, a "
                f"{name}. Register one with pyro_vaes.guides.register_fisher, or pass "
                "fallback='hessian' to use the Hessian of its log-density with negative "
                "eigenvalues raised to zero."
            )
        return entry

    def _tangents(self, function: Callable[[Tensor], Derivatives], z: Tensor, directions: Tensor) -> Derivatives:
        """Those of a function at z along all directions ``(k, ...)``; they have that dimension more on the left."""

        def along(direction: Tensor) -> Derivatives:
            return jvp(function, (z,), (direction.expand_as(z),))[1]

        # torch announces at the first use of forward mode that it scripts a few formulae
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.script")
            try:
                return vmap(along, chunk_size=self.chunk_size)(directions)
            except RuntimeError as error:
                if "randomness" in str(error):  # of vmap, where the program draws outside Pyro
                    raise ValueError(DEPENDENT) from error
                raise

    def _gauss_newton(self, z: Tensor, plans: list[_Plan], directions: Tensor) -> Tensor:
        """uᵀ P v for all pairs of k directions, shape ``(B, k, k)``, from directions ``(k, d)`` or ``(k, B, d)``."""
        total = directions.new_zeros(len(z), len(directions), len(directions))
        if not plans:
            return total

        def parameters(z: Tensor) -> list[list[Tensor]]:
            sites = {site.name: site for site in self.joint.sites(z)}
            found = []
            for plan in plans:
                site = sites[plan.name]
                every = plan.entry.parameters(_unwrap(site)[0], site.value)
                found.append(list(compress(every, plan.dependent)))
            return found

        jacobians = self._tangents(parameters, z, directions)
        for plan, tangents in zip(plans, jacobians, strict=True):
            total = total + self._quadratic(plan, tangents)
        return total

    def _quadratic(self, plan: _Plan, tangents: list[Tensor]) -> Tensor:
        """J I Jᵀ per datum, from tangents with shape ``(k, *batch of the base, ...)``."""
        given = iter(tangents)
        zero = tangents[0].new_zeros(())
        every = tuple(next(given) if needed else zero for needed in plan.dependent)
        products = plan.entry.product(plan.base, every)

        def rows(t: Tensor, trailing: int) -> Tensor:
            right = trailing + plan.event_dims
            rows = self.joint.rows_first(t, right=right, left=1)
            return rows.unsqueeze(-1).flatten(2)  # (k, B, n)

        total = zero
        for tangent, product in compress(zip(every, products, strict=True), plan.dependent):
            trailing = tangent.dim() - 1 - len(plan.base.batch_shape)
            weighted = product * _right(plan.weight, trailing)
            left, right = rows(tangent, trailing), rows(weighted, trailing)
            total = total + left.transpose(0, 1) @ right.permute(1, 2, 0)  # (B, k, k)
        return total

    def _floored_hessian(self, z: Tensor, names: list[str], basis: Tensor) -> Tensor:
        def energy(z: Tensor) -> Tensor:
            sites = [site for site in self.joint.sites(z) if site.name in names]
            return -self.joint.log_prob(sites, len(z)).sum()

        hessian = self._tangents(grad(energy), z, basis).movedim(0, -1)
        floored, eigenvalues = FloorEigenvalues.apply(0.5 * (hessian + hessian.mT))
        lowest, highest = eigenvalues[..., 0], eigenvalues[..., -1]
        is_below = lowest < -1e-4 * highest.abs().clamp(min=1e-3)
        if not is_capturing() and bool(is_below.any()):
            warnings.warn(
                f"The log-density of the sites {names} is not concave at the mode of some "
                "data; negative eigenvalues of its Hessian count as zero in the Laplace "
                "posterior.",
                stacklevel=2,
            )
        return floored


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
    full = torch.broadcast_shapes(site.fn.batch_shape + site.fn.event_shape[:depth], observed)
    return fn if fn.batch_shape == full else fn.expand(full), depth, masks


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
