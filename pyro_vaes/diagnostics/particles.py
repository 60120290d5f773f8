"""Draws from a pair, many at a time: latents, importance weights, replicated observations, streamed in chunks."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.diagnostics.handlers import FixedRows, WithoutData
from pyro_vaes.diagnostics.sites import Args, aligned, expanded, observed_mean, scored, stacked
from pyro_vaes.infer import SourceBatches, as_batches, check
from pyro_vaes.programs import (
    VALUED,
    DataPlate,
    Pair,
    Program,
    Sites,
    find_data_plate,
    per_datum_log_prob,
    per_datum_log_weights,
    preserve_rng,
    run,
    run_pair,
    sites,
    was_observed,
)

__all__ = ["Draws", "Particles"]

logger = logging.getLogger(__name__)
FAILURES = (RuntimeError, TypeError, ValueError, IndexError)  # of programs on rows that do not suit them


@dataclass
class Draws:
    """K particles for B data.

    Attributes:
        log_weights: ``(K, B)``.
        guide_sites: The guide's sites, values with shape ``(K, *batch, *event)``.
        model_sites: The model's sites replayed against the guide, likewise. Where scores were asked for, observed ones
            have a ``"log_prob"`` with shape ``(K, *batch)``, or ``(K, *batch, *event)`` pointwise.
    """

    log_weights: Tensor
    guide_sites: Sites
    model_sites: Sites

    def latents(self) -> Sites:
        """The guide's sites that are latent sites of the model."""
        return {n: s for n, s in self.guide_sites.items() if n in self.model_sites and not s["is_observed"]}

    def observations(self) -> Sites:
        """The model's sites that have data."""
        return {n: s for n, s in self.model_sites.items() if s["is_observed"]}


class Particles:
    """Draws from a pair under evaluation conditions; nothing of the pair changes.

    Particles are drawn in one pass where the programs broadcast over a leading dimension; that is tried out once,
    against one pass per particle. Programs that do not broadcast are run particle by particle. A program that takes all
    N data and draws B of them itself is run on one block of B rows after the other, so that each row has its turn.

    Arguments:
        model: The model.
        guide: The guide.
        data: A tensor, a tuple of tensors, a data set's part, or a loader: the programs' arguments.
        batch_size: Rows per pass.
        chunk_size: Particles per pass.
        seed: Seed of the draws.
        scored: Whether the observed sites' log-densities are kept.
        pointwise: Whether these are per element of the events, where these factorise.

    Attributes:
        plate: The data plate, once there are rows.
        limit: Number of data where the last block is filled up with rows that do not count; else None.
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
        scored: bool = False,
        pointwise: bool = False,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 particle per pass, but got {chunk_size}.")
        self.pair = Pair(model, guide)
        self.fixed = FixedRows()
        self.pair.model, self.pair.guide = self.fixed(model), self.fixed(guide)
        batches = as_batches(data, batch_size, shuffle=False)
        place = self.pair.device()
        if place is None:  # no module: the programs compute where the data are
            tensors = getattr(getattr(batches, "source", None), "tensors", ())
            place = next((t.device for t in tensors), torch.device("cpu"))
        self.place, self.batches = place, batches.to(place)
        self.chunk_size, self.seed = chunk_size, seed
        self.scored, self.pointwise = scored or pointwise, pointwise
        self.vectorized = False
        self.limit: int | None = None
        self._plate: DataPlate | None = None

    @property
    def plate(self) -> DataPlate:
        assert self._plate is not None
        return self._plate

    @contextlib.contextmanager
    def rows(self) -> Iterator[Iterator[Args]]:
        """The programs' arguments, pass by pass, in evaluation mode and with the seed set.

        A context, ``with particles.rows() as rows: for args in rows: ...``, so that all comes back whatever is raised.
        """
        with self.pair.evaluating(), pyro.validation_enabled(False):
            pyro.util.set_rng_seed(self.seed)
            yield self._passes()

    def _passes(self) -> Iterator[Args]:
        for batch in self.batches.epoch(self.seed, 0, self.place):
            args = self.pair.arguments(batch)
            if self._plate is None:
                whole = self._start(args)
                if whole is not None:
                    yield from self._blocks(whole)
                    return
            yield args

    def _start(self, args: Args) -> Args | None:
        """Find the plate and how to draw. Returns all N data for a program that draws its rows from them itself."""
        failure, whole = None, None
        try:
            self._plate = find_data_plate(self.pair.model, self.pair.guide, args)
        except FAILURES as error:
            failure = error
        candidate = self._all_data(args)
        if candidate is not None:
            with contextlib.suppress(*FAILURES):  # then the plate is that of a mini-batch
                plate = find_data_plate(self.pair.model, self.pair.guide, candidate)
                if plate.full_size is not None:
                    self._plate, whole = plate, candidate
        if self._plate is None:
            assert failure is not None
            if isinstance(failure, RuntimeError | TypeError):
                self._say(args)
            raise failure
        first = args if whole is None else whole
        with preserve_rng():
            self._first_look(first)
            self.vectorized = self._broadcasts(first)
        return whole

    def _all_data(self, args: Args) -> Args | None:
        """All data, if a subsampling plate stands for as many."""
        batches, sizes = self.batches, self.fixed.full_sizes
        if isinstance(batches, SourceBatches) and batches.num_data in sizes:
            return self.pair.arguments(batches.source.batch(slice(0, batches.num_data)))
        rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), None)
        return args if rows in sizes else None

    def _blocks(self, whole: Args) -> Iterator[Args]:
        """The same arguments for each block of rows; the last one is filled up with row 0."""
        total, size = self.plate.full_size, self.plate.size
        assert total is not None
        self.limit, self.fixed.full_size = total, total
        for start in range(0, total, size):
            index = torch.arange(start, start + size)
            self.fixed.index = torch.where(index < total, index, 0)
            yield whole

    def chunks(self, num_particles: int) -> Iterator[int]:
        """Sizes of the passes that make up so many particles."""
        full, rest = divmod(num_particles, self.chunk_size)
        yield from [self.chunk_size] * full + ([rest] if rest else [])

    def draw(self, args: Args, num: int, guide: Program | None = None) -> Draws:
        """Draw ``num`` particles for the rows in ``args``; call it inside the loop over :meth:`rows`.

        Another guide than the pair's own may be given for this draw; it sees the same rows.
        """
        q = self.pair.guide if guide is None else self.fixed(guide)
        with poutine.block():
            if not self.vectorized:
                each = [self._one(args, q) for _ in range(num)]
                weights = torch.stack([d.log_weights for d in each])
                return Draws(weights, stacked([d.guide_sites for d in each]), stacked([d.model_sites for d in each]))
            log_weights, guide_trace, model_trace = per_datum_log_weights(self.pair.model, q, args, num, self.plate)
        return Draws(log_weights, expanded(sites(guide_trace, VALUED)), self._scored(model_trace))

    def log_density(self, program: Program, args: Args, given: dict[str, Tensor]) -> Tensor:
        """Unscaled log-density ``(K, B)`` of a program at given values ``(K, *batch, *event)`` of its random sites."""
        num = len(next(iter(given.values())))

        def density(values: dict[str, Tensor], *, particles: bool) -> Tensor:
            trace = run(program, args, given=values)
            return per_datum_log_prob(trace, self.plate.dim, particles=particles)

        with poutine.block():
            if self.vectorized:
                with self._in_particles(num):
                    return density(given, particles=True)
            each = [{n: v[k] for n, v in given.items()} for k in range(num)]
            return torch.stack([density(values, particles=False) for values in each])

    def _in_particles(self, num: int) -> pyro.plate:
        """The plate of that many particles, in front of the pair's own."""
        return pyro.plate("_particles", num, dim=-self.plate.depth - 1)

    def replicate(self, args: Args, draws: Draws) -> dict[str, Tensor]:
        """Replicated observations ``(K, B, *plates, *event)`` given drawn latents: the model without its data."""
        sites = self.run(WithoutData()(self.pair.model), args, len(draws.log_weights), draws.latents())
        return {n: aligned(s, self.plate) for n, s in sites.items() if was_observed(s)}

    def observed_means(self, args: Args, draws: Draws, through: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Means ``(K, B, *plates, *event)`` of the observed sites' distributions given drawn latents.

        Where ``through`` names some of these, the others are drawn anew by the model.
        """
        given = draws.latents()
        unknown = sorted(set(through or ()) - given.keys())
        if unknown:
            raise ValueError(f"through names {unknown}, but the latent sites are {sorted(given)}.")
        given = given if through is None else {n: given[n] for n in through}
        sites = self.run(self.pair.model, args, len(draws.log_weights), given, means=True)
        return {n: aligned(s, self.plate, key="mean") for n, s in sites.items() if n in draws.observations()}

    def prior(self, args: Args, num: int) -> Sites:
        """All sites of the model run forward, without its data: latents from the prior and new observations."""
        return self.run(WithoutData()(self.pair.model), args, num, {})

    def run(self, program: Program, args: Args, num: int, given: Sites, *, means: bool = False) -> Sites:
        """The sites of ``num`` runs of a program given values of some, with shape ``(K, *batch, *event)``."""

        def run_given(values: dict[str, Tensor]) -> Sites:
            found = expanded(sites(run(program, args, given=values), VALUED))
            if not means:
                return found
            for name, site in found.items():
                if site["is_observed"] and name not in values:
                    found[name] = {**site, "mean": observed_mean(name, site)}
            return found

        with poutine.block():
            if self.vectorized:
                with self._in_particles(num):
                    return run_given({n: s["value"] for n, s in given.items()})
            each = [{n: s["value"][k] for n, s in given.items()} for k in range(num)]
            return stacked([run_given(values) for values in each])

    def _one(self, args: Args, guide: Program) -> Draws:
        guide_trace, model_trace = run_pair(self.pair.model, guide, args)
        dim = self.plate.dim
        log_p = per_datum_log_prob(model_trace, dim, particles=False)
        log_q = per_datum_log_prob(guide_trace, dim, particles=False)
        guide_sites = expanded(sites(guide_trace, VALUED))
        return Draws(log_p - log_q, guide_sites, self._scored(model_trace))

    def _scored(self, trace: Trace) -> Sites:
        """The sites of a model's trace, observed ones with log-densities if these were asked for."""
        found = expanded(sites(trace, VALUED))
        return scored(found, pointwise=self.pointwise) if self.scored else found

    def _first_look(self, args: Args) -> None:
        """One validated pass: data outside a support and parameters that are not finite end here."""
        try:
            with pyro.validation_enabled(True), poutine.block():
                for trace in run_pair(self.pair.model, self.pair.guide, args):
                    per_datum_log_prob(trace, self.plate.dim, particles=False)
        except ValueError:
            self._say(args)
            raise

    def _say(self, args: Args) -> None:
        """Raise what is wrong with the programs on these rows in words, where it is known."""
        with torch.enable_grad():
            check(self.pair.model, self.pair.guide, args).raise_if_fatal()

    def _broadcasts(self, args: Args) -> bool:
        """Whether one pass for several particles gives the densities of one pass per particle."""
        model, guide, plate = self.pair.model, self.pair.guide, self.plate
        try:
            with poutine.block():
                _, guide_trace, model_trace = per_datum_log_weights(model, guide, args, 2, plate)
            drawn = expanded(sites(guide_trace, VALUED))
            # a Delta has a density only at the very value that the guide computes
            free = {n: s for n, s in drawn.items() if not isinstance(s["fn"], Delta)}
            for program, trace, given in (
                (model, model_trace, drawn),
                (guide, guide_trace, free),
            ):
                together = per_datum_log_prob(trace, plate.dim, particles=True)
                for k in range(2):
                    values = {n: s["value"][k] for n, s in given.items()}
                    with poutine.block():
                        single = run(program, args, given=values)
                    alone = per_datum_log_prob(single, plate.dim, particles=False)
                    if not torch.allclose(alone, together[k], rtol=1e-3, atol=1e-2, equal_nan=True):
                        raise ValueError("several particles in one pass give other densities than one by one")
        except Exception as error:  # whatever the programs raise: one by one they have just run
            logger.info("The programs do not broadcast over particles (%s); drawing them one by one.", error)
            return False
        return True
