"""Log-densities of a pair per datum, for one or many particles.

    log w_nk = log p(x_n, z_nk) - log q(z_nk | x_n),    z_nk ~ q(z | x_n)

These are the densities of the programs themselves: plate subsampling, ``poutine.scale``
and KL weights change an objective, not a density, so the sites' scales are left out
unless they are asked for; masks are kept. Factors of the objective alone are no densities
either, and are left out likewise.
"""

from collections.abc import Callable, Iterator, Sequence

import pyro
import torch
from pyro.distributions import Unit
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from torch import Tensor

from .reach import Program
from .runs import PairTraces, run_pair
from .sites import DENSITIES, OBJECTIVE, Role, log_density, sites
from .units import DataPlate

Args = tuple[object, ...]


def per_datum_terms(
    trace: Trace,
    dim: int,
    *,
    particles: bool,
    scaled: bool = False,
    keep: Callable[[str], bool] = lambda name: True,
) -> list[Tensor]:
    """The masked log-densities of a trace's sites, each with shape ``(K, B)``.

    Arguments:
        trace: A trace whose sample sites all lie in the data plate.
        dim: The data plate's batch dimension, negative.
        particles: Whether the outermost dimension is one of K particles; without it the
            shape is ``(B,)``.
        scaled: Whether the sites' scales enter, and the factors of the objective alone,
            as in an objective.
        keep: Whether the site of a name counts.
    """
    found = sites(trace, OBJECTIVE if scaled else DENSITIES)
    kept = [site for name, site in found.items() if keep(name)]
    return [_per_datum(s, dim, particles=particles, scaled=scaled) for s in kept]


def _per_datum(site: Message, dim: int, *, particles: bool, scaled: bool) -> Tensor:
    log_prob = log_density(site, scaled=scaled)

    kept = {log_prob.dim() + dim}
    if particles:
        kept.add(0)

    others = [d for d in range(log_prob.dim()) if d not in kept]
    return log_prob.sum(others) if others else log_prob


def per_datum_log_prob(
    trace: Trace,
    dim: int,
    *,
    particles: bool,
    keep: Callable[[str], bool] = lambda name: True,
) -> Tensor:
    """The unscaled sum of :func:`per_datum_terms`."""
    terms = per_datum_terms(trace, dim, particles=particles, keep=keep)
    if not terms:  # a guide may have no site
        return torch.zeros(())
    return sum(terms[1:], start=terms[0])


def objective_terms(
    model_trace: Trace,
    guide_trace: Trace,
    dim: int,
    *,
    particles: bool = True,
) -> Tensor | float:
    """What factors of the objective alone add to a bound, ``(B,)``; 0 without any.

    They are averaged over the particles; those of the guide count negatively.

    Arguments:
        model_trace, guide_trace: The runs.
        dim: The data plate's batch dimension, negative.
        particles: Whether their outermost dimension is one of particles.
    """
    total: Tensor | float = 0.0
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        for site in sites(trace, Role.OBJECTIVE_ONLY).values():
            term = _per_datum(site, dim, particles=particles, scaled=False)
            if particles:
                term = term.mean(0)
            total = total + sign * term
    return total


def over_particles(program: Program, num_particles: int, plate: DataPlate) -> Program:
    """The program inside a plate of particles, in front of the pair's dimensions."""

    def vectorised(*args: object) -> object:
        with pyro.plate("_particles", num_particles, dim=-plate.depth - 1):
            return program(*args)

    return vectorised


def run_particles(
    model: Program,
    guide: Program,
    args: Args,
    num_particles: int,
    plate: DataPlate,
) -> Iterator[PairTraces]:
    """Runs of a pair with that many particles: one for all, or one after the other."""
    if not plate.broadcasts:
        for _ in range(num_particles):
            yield run_pair(model, guide, args)
        return

    many_models = over_particles(model, num_particles, plate)
    many_guides = over_particles(guide, num_particles, plate)
    yield run_pair(many_models, many_guides, args)


def per_datum_log_weights(
    model: Program,
    guide: Program,
    args: Args,
    num_particles: int,
    plate: DataPlate,
) -> tuple[Tensor, Trace, Trace]:
    """Log importance weights ``(K, B)``, and a trace of each program.

    All particles are drawn in one pass where the programs broadcast over a leading
    dimension, as for Pyro's ``vectorize_particles``; ``plate.broadcasts`` says so
    (:func:`find_particle_plate` finds out). Else the traces are those of the first
    particle, with the factors of the objective alone of all of them. Differentiable with
    respect to every parameter through reparameterised sites.
    """
    pairs, weights = [], []
    for traces in run_particles(model, guide, args, num_particles, plate):
        # at once: a flow knows the densities of its latest draw alone
        pairs.append(traces)
        log_p = per_datum_log_prob(traces.model, plate.dim, particles=plate.broadcasts)
        log_q = per_datum_log_prob(traces.guide, plate.dim, particles=plate.broadcasts)
        weights.append(log_p - log_q)

    if plate.broadcasts:
        return weights[0], *pairs[0]
    guide_traces, model_traces = zip(*pairs, strict=True)
    log_w = torch.stack(weights)
    return log_w, _with_factors(guide_traces), _with_factors(model_traces)


def _with_factors(traces: Sequence[Trace]) -> Trace:
    """The first of several traces, with the objective's own factors of all, ``(K, ...)``."""
    found = traces[0].copy()
    for name, site in sites(found, Role.OBJECTIVE_ONLY).items():
        each = [log_density(t.nodes[name], scaled=False) for t in traces]
        joined = Unit(torch.stack(each), has_rsample=False)
        own = {"fn": joined, "value": joined.sample(), "mask": None}
        found.nodes[name] = {**site, **own}
    return found
