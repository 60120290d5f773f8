"""Draws from a pair, many at a time: latents, importance weights, replicated observations, streamed in chunks."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vaes.infer.batches import as_batches
from pyro_vaes.infer.bound import Program
from pyro_vaes.infer.importance import (
    DataPlate,
    find_data_plate,
    guide_and_model_traces,
    per_datum_log_prob,
    per_datum_log_weights,
)
from pyro_vaes.infer.pair import Pair, preserve_rng

__all__ = ["Draws", "Particles", "random_sites"]

logger = logging.getLogger(__name__)


def random_sites(trace: Trace, *, observed: bool | None = None) -> dict[str, Message]:
    """Sample sites of a trace without plates' subsampling and deterministic ones; all, observed ones or latent ones."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
        and (observed is None or site["is_observed"] == observed)
    }


@dataclass
class Draws:
    """K particles for B data.

    Attributes:
        log_weights: ``(K, B)``.
        guide_sites: The guide's sites, values with shape ``(K, *plates, *event)``.
        model_sites: The model's sites replayed against the guide, likewise; observed ones with a ``"log_prob"``
            ``(K, *plates)``, or ``(K, *plates, *event)`` pointwise.
    """

    log_weights: Tensor
    guide_sites: dict[str, Message]
    model_sites: dict[str, Message]

    def latents(self) -> dict[str, Message]:
        """The guide's sites that are latent sites of the model."""
        return {n: s for n, s in self.guide_sites.items() if n in self.model_sites and not s["is_observed"]}


class Particles:
    """Draws from a pair under evaluation conditions; nothing of the pair changes.

    Particles are drawn in one pass where the programs broadcast over a leading dimension; that is tried out once,
    against one pass per particle. Programs that do not broadcast are run particle by particle.

    Arguments:
        model: The model.
        guide: The guide.
        data: A tensor, a tuple of tensors, a data set's part, or a loader: the programs' arguments.
        batch_size: Rows per pass.
        chunk_size: Particles per pass.
        seed: Seed of the draws.
        pointwise: Whether the observed sites' log-densities are per element of the events, where these factorise.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: object,
        *,
        batch_size: int = 128,
        chunk_size: int = 50,
        seed: int = 0,
        pointwise: bool = False,
    ) -> None:
        self.pointwise = pointwise
        self.pair = Pair(model, guide)
        self.place = self.pair.device() or torch.device("cpu")
        self.batches = as_batches(data, batch_size, shuffle=False).to(self.place)
        self.chunk_size, self.seed = chunk_size, seed
        self.plate: DataPlate | None = None
        self.vectorized = False

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The programs' arguments, batch by batch, in evaluation mode and with the seed set."""
        with self.pair.evaluating(), pyro.validation_enabled(False):
            pyro.util.set_rng_seed(self.seed)
            for batch in self.batches.epoch(self.seed, 0, self.place):
                args = self.pair.arguments(batch)
                if self.plate is None:
                    self.plate = find_data_plate(self.pair.model, self.pair.guide, args)
                    self.vectorized = self._broadcasts(args)
                yield args

    def chunks(self, num_particles: int) -> Iterator[int]:
        """Sizes of the passes that make up so many particles."""
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, but got {num_particles}.")
        full, rest = divmod(num_particles, self.chunk_size)
        yield from [self.chunk_size] * full + ([rest] if rest else [])

    def draw(self, args: tuple[object, ...], num: int) -> Draws:
        """Draw ``num`` particles for the rows in ``args``; call it inside the loop over :meth:`rows`."""
        assert self.plate is not None
        model, guide = self.pair.model, self.pair.guide
        if self.vectorized:
            log_weights, guide_trace, model_trace = per_datum_log_weights(model, guide, args, num, self.plate)
            guide_sites, model_sites = random_sites(guide_trace), self._scored(model_trace)
            depth = self.plate.depth
            return Draws(log_weights, _squeezed(guide_sites, depth), _squeezed(model_sites, depth))
        each = [self._one(args) for _ in range(num)]
        return Draws(
            torch.stack([d.log_weights for d in each]),
            _stacked([d.guide_sites for d in each]),
            _stacked([d.model_sites for d in each]),
        )

    def replicate(self, args: tuple[object, ...], draws: Draws) -> dict[str, Tensor]:
        """Replicated observations ``(K, B, *event)`` given drawn latents: the model without its data."""
        latents = draws.latents()
        model = poutine.uncondition(self.pair.model)
        replicates = []
        for k in range(len(draws.log_weights)):
            values = {n: s["value"][k] for n, s in latents.items()}
            with poutine.block():
                trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args)
            replicates.append({n: s["value"] for n, s in trace.nodes.items() if was_observed(s)})
        return {n: torch.stack([r[n] for r in replicates]) for n in replicates[0]}

    def prior(self, args: tuple[object, ...]) -> dict[str, Message]:
        """All sites of the model run forward, without its data: latents from the prior and new observations."""
        with poutine.block():
            return random_sites(poutine.trace(poutine.uncondition(self.pair.model)).get_trace(*args))

    def _one(self, args: tuple[object, ...]) -> Draws:
        assert self.plate is not None
        with poutine.block():
            guide_trace, model_trace = guide_and_model_traces(self.pair.model, self.pair.guide, args)
        log_p, log_q = (per_datum_log_prob(t, self.plate.dim, particles=False) for t in (model_trace, guide_trace))
        return Draws(log_p - log_q, random_sites(guide_trace), self._scored(model_trace))

    def _scored(self, trace: Trace) -> dict[str, Message]:
        """The sites of a model's trace, observed ones with their log-densities."""
        sites = random_sites(trace)
        for name, site in sites.items():
            if site["is_observed"]:
                fn = site["fn"]
                while self.pointwise and isinstance(fn, Independent | MaskedDistribution):
                    fn = fn.base_dist
                sites[name] = {**site, "log_prob": fn.log_prob(site["value"])}
        return sites

    def _broadcasts(self, args: tuple[object, ...]) -> bool:
        """Whether one pass for several particles gives the weights of one pass per particle."""
        assert self.plate is not None
        if self.plate.full_size is not None:
            return False  # a plate that draws its own rows must draw the same ones for every particle
        model, guide, plate = self.pair.model, self.pair.guide, self.plate
        try:
            with preserve_rng():
                _, guide_trace, model_trace = per_datum_log_weights(model, guide, args, 2, plate)
            together = per_datum_log_prob(model_trace, plate.dim, particles=True)
            sites = _squeezed(random_sites(guide_trace), plate.depth)
            for k in range(2):
                values = {n: s["value"][k] for n, s in sites.items() if n in model_trace}
                with poutine.block():
                    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args)
                alone = per_datum_log_prob(trace, plate.dim, particles=False)
                if not torch.allclose(alone, together[k].expand_as(alone), rtol=1e-3, atol=1e-2):
                    raise ValueError("several particles in one pass give other densities than one by one")
        except (RuntimeError, ValueError, IndexError, NotImplementedError, TypeError) as error:
            logger.info("The programs do not broadcast over particles (%s); drawing them one by one.", error)
            return False
        return True


def was_observed(site: Message) -> bool:
    """Whether a site of an unconditioned program had data."""
    return site["type"] == "sample" and bool(site["infer"].get("was_observed"))


def _squeezed(sites: dict[str, Message], depth: int) -> dict[str, Message]:
    """Sites of a pass over particles with values ``(K, *plates, *event)``: plate dimensions a site has not go."""
    result = {}
    for name, site in sites.items():
        used = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
        value, event_shape = site["value"], site["fn"].event_shape
        batch_shape = torch.broadcast_shapes(site["fn"].batch_shape, value.shape[: value.dim() - len(event_shape)])
        result[name] = {**site, "value": _without(value.expand(batch_shape + event_shape), len(event_shape), depth, used)}
        if "log_prob" in site:
            log_prob = site["log_prob"]
            result[name]["log_prob"] = _without(log_prob, log_prob.dim() - len(batch_shape), depth, used)
    return result


def _without(value: Tensor, event_dim: int, depth: int, used: set[int]) -> Tensor:
    """Drop the plate dimensions of a value that its site does not use."""
    unused = [dim - event_dim for dim in range(-depth, 0) if dim not in used]
    return value.squeeze([d for d in unused if value.shape[d] == 1])


def _stacked(each: list[dict[str, Message]]) -> dict[str, Message]:
    """Sites of several single passes, their values stacked in front."""
    return {
        name: {**site, **{key: torch.stack([e[name][key] for e in each]) for key in ("value", "log_prob") if key in site}}
        for name, site in each[0].items()
    }
