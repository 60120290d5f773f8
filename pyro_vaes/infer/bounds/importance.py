"""Per-datum importance weights of a guide for a model, and the bound that averages them.

    log w_nk = log p(x_n, z_nk) - log q(z_nk | x_n),    z_nk ~ q(z | x_n)

The weights are those of the programs themselves: plate subsampling, ``poutine.scale`` and KL weights change an
objective, not a density, so the sites' scales are left out; masks are kept. Factors of the objective alone, such as the
classification term of a guide with labels (``infer={"objective_only": True}``), are no densities either and left out.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from pyro_vaes.infer.bounds.bound import Bound, Program, Seen, with_keywords
from pyro_vaes.infer.handlers import is_objective_only
from pyro_vaes.programs.pair import preserve_rng

__all__ = [
    "DataPlate",
    "ImportanceWeighted_ELBO",
    "find_data_plate",
    "guide_and_model_traces",
    "objective_terms",
    "over_particles",
    "per_datum_log_prob",
    "per_datum_log_weights",
    "per_datum_terms",
]


def guide_and_model_traces(model: Program, guide: Program, args: tuple[object, ...]) -> tuple[Trace, Trace]:
    """A trace of the guide and the model's trace replayed against it, without subsampling sites."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)


@dataclass(frozen=True)
class DataPlate:
    """The plate of the data in a model/guide pair.

    Attributes:
        name: Its name.
        dim: Its batch dimension, negative.
        depth: Number of batch dimensions that the pair's plates use.
        size: Number of rows in the run that was looked at.
        full_size: Number of data that the plate stood for if it subsampled in that run; None if it did not.
    """

    name: str
    dim: int
    depth: int
    size: int
    full_size: int | None

    def scale(self, trace: Trace) -> float:
        """How many data a row of this run stands for, 1 unless the plate subsamples: other batches may have others."""
        frame = next(f for s in _random_sites(trace) for f in s["cond_indep_stack"] if f.name == self.name)
        return 1.0 if frame.full_size is None else frame.full_size / frame.size


def _random_sites(trace: Trace) -> list[Message]:
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    ]


def find_data_plate(model: Program, guide: Program, args: tuple[object, ...]) -> DataPlate:
    """Run the pair once, aside, and find the outermost plate that holds all its sample sites.

    Raises:
        ValueError: A site lies outside every plate, the sites share none, or the guide lacks a latent site.
    """
    with poutine.block(), torch.no_grad(), preserve_rng():
        guide_trace, model_trace = guide_and_model_traces(model, guide, args)
    sites = [*_random_sites(guide_trace), *_random_sites(model_trace)]
    stacks = {s["name"]: [f for f in s["cond_indep_stack"] if f.vectorized] for s in sites}
    for site in sites:
        if not stacks[site["name"]]:
            kind = "observed" if site["is_observed"] else "latent"
            raise ValueError(
                f"The {kind} site {site['name']!r} lies outside the data plate, so nothing per datum can be said of "
                "it. Put it into `with pyro.plate('data', len(x)):`."
            )
    missing = [s["name"] for s in _random_sites(model_trace) if not s["is_observed"] and s["name"] not in guide_trace]
    if missing:
        raise ValueError(
            f"The guide does not draw the model's latent sites {missing}, so they have no importance weights. Draw "
            "them in the guide, or sum a discrete one out of the model (MixtureSameFamily)?"
        )
    shared = [f for f in stacks[sites[0]["name"]] if all(f.name in {g.name for g in s} for s in stacks.values())]
    if not shared:
        raise ValueError(f"The sites {sorted(stacks)} share no plate; put them all into one data plate.")
    frame = shared[0]  # frames come in the order in which the plates were entered
    subsamples = frame.full_size is not None and frame.full_size != frame.size
    depth = -min(f.dim for stack in stacks.values() for f in stack)
    return DataPlate(frame.name, frame.dim, depth, frame.size, frame.full_size if subsamples else None)


def per_datum_terms(trace: Trace, dim: int, *, particles: bool, scaled: bool = False) -> list[Tensor]:
    """The masked log-densities of a trace's sites, each with shape ``(K, B)`` (``(B,)`` without particles).

    Arguments:
        trace: A trace whose sample sites all lie in the data plate.
        dim: The data plate's batch dimension, negative; the particles, if any, are the outermost one.
        particles: Whether there is a dimension of particles.
        scaled: Whether the sites' scales enter, and the factors of the objective alone, as in an objective.
    """
    sites = [s for s in _random_sites(trace) if scaled or not is_objective_only(s)]
    return [_per_datum(s, dim, particles=particles, scaled=scaled) for s in sites]


def _per_datum(site: Message, dim: int, *, particles: bool, scaled: bool) -> Tensor:
    scale = site["scale"] if scaled else 1.0
    log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), scale, site["mask"])
    keep = {log_prob.dim() + dim} | ({0} if particles else set())
    others = [d for d in range(log_prob.dim()) if d not in keep]
    return log_prob.sum(others) if others else log_prob


def objective_terms(model_trace: Trace, guide_trace: Trace, dim: int) -> Tensor | float:
    """What factors of the objective alone add to a bound, averaged over the particles, ``(B,)``; 0 without any."""
    total: Tensor | float = 0.0
    for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
        for site in filter(is_objective_only, _random_sites(trace)):
            total = total + sign * _per_datum(site, dim, particles=True, scaled=False).mean(0)
    return total


def per_datum_log_prob(trace: Trace, dim: int, *, particles: bool) -> Tensor:
    """The unscaled sum of :func:`per_datum_terms`."""
    first, *rest = per_datum_terms(trace, dim, particles=particles) or [torch.zeros(())]  # a guide may have no site
    return sum(rest, start=first)


def over_particles(program: Program, num_particles: int, plate: DataPlate) -> Program:
    """The program inside a plate of particles, which takes the dimension in front of those that the pair uses."""

    def run(*args: object) -> object:
        with pyro.plate("_particles", num_particles, dim=-plate.depth - 1):
            return program(*args)

    return run


def per_datum_log_weights(
    model: Program, guide: Program, args: tuple[object, ...], num_particles: int, plate: DataPlate
) -> tuple[Tensor, Trace, Trace]:
    """Log importance weights with shape ``(num_particles, B)`` in one pass of each program, and the two traces.

    The programs must broadcast over a leading dimension of particles, as for Pyro's ``vectorize_particles``.
    Differentiable with respect to every parameter through reparameterised sites.
    """

    guide_trace, model_trace = guide_and_model_traces(
        over_particles(model, num_particles, plate), over_particles(guide, num_particles, plate), args
    )
    log_p = per_datum_log_prob(model_trace, plate.dim, particles=True)
    log_q = per_datum_log_prob(guide_trace, plate.dim, particles=True)
    return log_p - log_q, guide_trace, model_trace


class ImportanceWeighted_ELBO(Bound):
    """The importance-weighted bound with K particles, per datum and right under plates and scales.

        L_K = sum_n E[ log 1/K sum_k w_nk ]

    Each datum has its own logarithm of a mean (unlike :class:`~pyro.infer.RenyiELBO`, which takes one for the batch
    under scales). A subsampling plate multiplies the sum over its B rows by N / B. Factors of the objective alone
    (``infer={"objective_only": True}``) are added to the bound of a datum once, outside the logarithm; without their
    sites' scales, as all densities here, so that a weight of theirs belongs into the factor itself.

    Arguments:
        num_particles: K.

    References:
        | Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
        | https://arxiv.org/abs/1509.00519
    """

    def __init__(self, num_particles: int = 2) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
        super().__init__(num_particles=num_particles)
        self._seen = Seen[DataPlate]()

    def differentiable_loss(self, model: Program, guide: Program, *args: object, **kwargs: object) -> Tensor:
        """-sum_n log 1/K sum_k w_nk, differentiable through reparameterised sites."""
        model, guide = with_keywords((model, guide), kwargs)
        plate = self._plate(model, guide, args)
        log_weights, guide_trace, model_trace = per_datum_log_weights(model, guide, args, self.num_particles, plate)
        self._refuse_score_function(guide_trace)
        bound = log_weights.logsumexp(0) - math.log(self.num_particles)  # (B,)
        bound = bound + objective_terms(model_trace, guide_trace, plate.dim)
        return -plate.scale(model_trace) * bound.sum()

    def _plate(self, model: Program, guide: Program, args: tuple[object, ...]) -> DataPlate:
        """The pair's data plate."""
        return self._seen.of(model, guide, look=lambda: find_data_plate(model, guide, args))
