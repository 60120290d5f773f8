"""Draws from a pair, many at a time: latents, importance weights, replicated observations, streamed in chunks."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor

from pyro_vaes.infer import SourceBatches, as_batches, check
from pyro_vaes.programs import (
    VALUED,
    DataPlate,
    FixedRows,
    Pair,
    Program,
    Sites,
    WithoutData,
    find_data_plate,
    over_particles,
    per_datum_log_prob,
    preserve_rng,
    run,
    run_pair,
    sites,
    was_observed,
)

from .sites import Args, aligned, expanded, observed_mean, scored, stacked

logger = logging.getLogger(__name__)
FAILURES = (RuntimeError, TypeError, ValueError, IndexError)  # of programs on rows that do not suit them

T = TypeVar("T")
Values = dict[str, Tensor]


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


@dataclass(frozen=True)
class _WayToDraw:
    """What the first batch told about a pair.

    Attributes:
        plate: The data plate.
        all_data: The arguments with all N data, for programs that draw B rows of them
            themselves; None for programs that take their rows from outside.
        vectorized: Whether one pass may hold several particles.
    """

    plate: DataPlate
    all_data: Args | None
    vectorized: bool


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
        self.model, self.guide = self.fixed(model), self.fixed(guide)

        batches = as_batches(data, batch_size, shuffle=False)
        place = self.pair.device()
        if place is None:  # no module: the programs compute where the data are
            tensors = getattr(getattr(batches, "source", None), "tensors", ())
            place = next((t.device for t in tensors), torch.device("cpu"))
        self.place, self.batches = place, batches.to(place)

        self.chunk_size, self.seed = chunk_size, seed
        self.scored, self.pointwise = scored or pointwise, pointwise
        self._way: _WayToDraw | None = None

    @property
    def _known(self) -> _WayToDraw:
        assert self._way is not None, "there are no rows yet"
        return self._way

    @property
    def plate(self) -> DataPlate:
        """The data plate."""
        return self._known.plate

    @property
    def vectorized(self) -> bool:
        """Whether one pass may hold several particles."""
        return self._known.vectorized

    @property
    def limit(self) -> int | None:
        """Number of data where the last block is filled up with rows that do not count; else None."""
        if self._known.all_data is None:
            return None
        return self.plate.full_size

    # rows

    @contextlib.contextmanager
    def rows(self) -> Iterator[Iterator[Args]]:
        """The programs' arguments, pass by pass, in evaluation mode and with the seed set.

        A context, ``with particles.rows() as rows: for args in rows: ...``, so that all comes back whatever is raised.
        """
        with self.pair.evaluating():
            pyro.util.set_rng_seed(self.seed)
            yield self._passes()

    def for_each_pass(self, function: Callable[[Args], T]) -> list[T]:
        """What a function of the programs' arguments returns for each pass of :meth:`rows`."""
        with self.rows() as rows:
            return [function(args) for args in rows]

    def joined(self, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The results of all passes, one after the other, without rows that do not count."""
        whole = torch.cat(list(parts), dim)
        if self.limit is None:
            return whole
        return whole.narrow(dim, 0, self.limit)

    def num_counted(self, size: int, before: int) -> int:
        """How many of a pass's rows count, of which so many went before."""
        return size if self.limit is None else min(size, self.limit - before)

    def _passes(self) -> Iterator[Args]:
        for batch in self.batches.epoch(self.seed, 0, self.place):
            args = self.pair.arguments(batch)
            if self._way is None:
                self._way = self._find_way(args)
            if self._way.all_data is not None:
                yield from self._blocks(self._way.all_data)
                return
            yield args

    def _find_way(self, args: Args) -> _WayToDraw:
        """Find the plate and how to draw, by runs on the first batch and perhaps on all data."""
        of_batch = self._try_plate(args)
        all_data = self._all_data(args)
        of_all = None if all_data is None else self._try_plate(all_data)

        if isinstance(of_all, DataPlate) and of_all.full_size is not None:
            assert all_data is not None
            plate, first = of_all, all_data
        elif isinstance(of_batch, DataPlate):
            plate, first, all_data = of_batch, args, None
        else:
            if isinstance(of_batch, RuntimeError | TypeError):
                self._raise_known_problems(args)
            raise of_batch

        with preserve_rng():
            self._validate(plate, first)
            return _WayToDraw(plate, all_data, self._broadcasts(plate, first))

    def _try_plate(self, args: Args) -> DataPlate | Exception:
        """The data plate on these rows, or why there is none."""
        try:
            return find_data_plate(self.model, self.guide, args)
        except FAILURES as error:
            return error

    def _all_data(self, args: Args) -> Args | None:
        """All data, if a subsampling plate stands for as many."""
        batches, sizes = self.batches, self.fixed.full_sizes
        if isinstance(batches, SourceBatches) and batches.num_data in sizes:
            return self.pair.arguments(batches.source.batch(slice(0, batches.num_data)))
        rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), None)
        return args if rows in sizes else None

    def _blocks(self, all_data: Args) -> Iterator[Args]:
        """The same arguments for each block of rows; the last one is filled up with row 0."""
        total, size = self.limit, self.plate.size
        assert total is not None

        self.fixed.full_size = total
        for start in range(0, total, size):
            index = torch.arange(start, start + size)
            self.fixed.index = torch.where(index < total, index, 0)
            yield all_data

    # draws, to be taken inside the loop over the rows

    def chunks(self, num_particles: int) -> Iterator[int]:
        """Sizes of the passes that make up so many particles."""
        full, rest = divmod(num_particles, self.chunk_size)
        yield from [self.chunk_size] * full + ([rest] if rest else [])

    def draw(self, args: Args, num: int, guide: Program | None = None) -> Draws:
        """Draw ``num`` particles for the rows in ``args``.

        Another guide than the pair's own may be given for this draw; it sees the same rows.
        """
        guide = self.guide if guide is None else self.fixed(guide)
        wide_model, wide_guide = self._wide(self.model, num), self._wide(guide, num)
        with poutine.block():
            pairs = [run_pair(wide_model, wide_guide, args) for _ in self._passes_for(num)]

        log_weights = self._together([self._log_prob(p.model) - self._log_prob(p.guide) for p in pairs])
        guide_sites = self._gathered([p.guide for p in pairs])
        return Draws(log_weights, guide_sites, self._gathered([p.model for p in pairs], self._add_scores))

    def log_weights(self, args: Args, num: int, guide: Program | None = None) -> Tensor:
        """Log importance weights ``(num, B)`` on the CPU, drawn chunk by chunk."""
        return torch.cat([self.draw(args, k, guide).log_weights.cpu() for k in self.chunks(num)])

    def log_density(self, program: Program, args: Args, given: Values) -> Tensor:
        """Unscaled log-density ``(K, B)`` of a program at given values ``(K, *batch, *event)`` of its random sites."""
        num = len(next(iter(given.values())))
        return self.log_prob(self.traces(program, args, num, given))

    def replicate(self, args: Args, draws: Draws) -> Values:
        """Replicated observations ``(K, B, *plates, *event)`` given drawn latents: the model without its data."""
        latents = values_of(draws.latents())
        sites = self.run_many(WithoutData()(self.model), args, len(draws.log_weights), latents)
        return {n: aligned(s, self.plate) for n, s in sites.items() if was_observed(s)}

    def observed_means(self, args: Args, draws: Draws, through: Sequence[str] | None = None) -> Values:
        """Means ``(K, B, *plates, *event)`` of the observed sites' distributions given drawn latents.

        Where ``through`` names some of these, the others are drawn anew by the model.
        """
        given = values_of(draws.latents())
        unknown = sorted(set(through or ()) - given.keys())
        if unknown:
            raise ValueError(f"through names {unknown}, but the latent sites are {sorted(given)}.")
        if through is not None:
            given = {n: given[n] for n in through}

        sites = self.run_many(self.model, args, len(draws.log_weights), given, means=True)
        return {n: aligned(s, self.plate, key="mean") for n, s in sites.items() if n in draws.observations()}

    def prior(self, args: Args, num: int) -> Sites:
        """All sites of the model run forward, without its data: latents from the prior and new observations."""
        return self.run_many(WithoutData()(self.model), args, num, {})

    def run_many(self, program: Program, args: Args, num: int, given: Values, *, means: bool = False) -> Sites:
        """The sites of ``num`` runs of a program given values of some, with shape ``(K, *batch, *event)``."""

        def add_means(found: Sites) -> Sites:
            for name, site in found.items():
                if site["is_observed"] and name not in given:
                    found[name] = {**site, "mean": observed_mean(name, site)}
            return found

        traces = self.traces(program, args, num, given)
        return self._gathered(traces, add_means) if means else self._gathered(traces)

    def traces(self, program: Program, args: Args, num: int, given: Values) -> list[Trace]:
        """Traces of ``num`` runs given values of some sites: one of all particles, or one for each."""
        with poutine.block():
            if self.vectorized:
                return [run(self._wide(program, num), args, given=given)]
            each = [{n: v[k] for n, v in given.items()} for k in range(num)]
            return [run(program, args, given=values) for values in each]

    def log_prob(self, traces: list[Trace], keep: Callable[[str], bool] = lambda name: True) -> Tensor:
        """Unscaled log-density ``(K, B)`` of :meth:`traces`, of the sites whose names to keep."""
        return self._together([self._log_prob(trace, keep) for trace in traces])

    # one pass for all particles, or one for each

    def _passes_for(self, num: int) -> range:
        return range(1 if self.vectorized else num)

    def _wide(self, program: Program, num: int) -> Program:
        if self.vectorized:
            return over_particles(program, num, self.plate)
        return program

    def _together(self, values: list[Tensor]) -> Tensor:
        if self.vectorized:
            return values[0]
        return torch.stack(values)

    def _log_prob(self, trace: Trace, keep: Callable[[str], bool] = lambda name: True) -> Tensor:
        return per_datum_log_prob(trace, self.plate.dim, particles=self.vectorized, keep=keep)

    def _gathered(self, traces: list[Trace], amend: Callable[[Sites], Sites] = lambda found: found) -> Sites:
        """The sites of all traces, with what is added to those of each, as those of one."""
        each = [amend(expanded(sites(trace, VALUED))) for trace in traces]
        if self.vectorized:
            return each[0]
        return stacked(each)

    def _add_scores(self, found: Sites) -> Sites:
        """Log-densities of observed sites, if these were asked for."""
        return scored(found, pointwise=self.pointwise) if self.scored else found

    # before the first draw

    def _validate(self, plate: DataPlate, args: Args) -> None:
        """One validated pass: data outside a support and parameters that are not finite end here."""
        try:
            with pyro.validation_enabled(True), poutine.block():
                for trace in run_pair(self.model, self.guide, args):
                    per_datum_log_prob(trace, plate.dim, particles=False)
        except ValueError:
            self._raise_known_problems(args)
            raise

    def _raise_known_problems(self, args: Args) -> None:
        """Raise what is wrong with the programs on these rows in words, where it is known."""
        with torch.enable_grad():
            check(self.model, self.guide, args).raise_if_fatal()

    def _broadcasts(self, plate: DataPlate, args: Args) -> bool:
        """Whether one pass for several particles gives the densities of one pass per particle."""
        try:
            with poutine.block():
                self._compare_with_single_passes(plate, args)
        except Exception as error:  # whatever the programs raise: one by one they have just run
            logger.info("The programs do not broadcast over particles (%s); drawing them one by one.", error)
            return False
        return True

    def _compare_with_single_passes(self, plate: DataPlate, args: Args) -> None:
        model, guide = self.model, self.guide
        traces = run_pair(over_particles(model, 2, plate), over_particles(guide, 2, plate), args)

        drawn = expanded(sites(traces.guide, VALUED))
        # a Delta has a density only at the very value that the guide computes
        free = {n: s for n, s in drawn.items() if not isinstance(s["fn"], Delta)}

        for program, trace, given in ((model, traces.model, drawn), (guide, traces.guide, free)):
            together = per_datum_log_prob(trace, plate.dim, particles=True)
            for k in range(2):
                values = {n: s["value"][k] for n, s in given.items()}
                alone = per_datum_log_prob(run(program, args, given=values), plate.dim, particles=False)
                if not torch.allclose(alone, together[k], rtol=1e-3, atol=1e-2, equal_nan=True):
                    raise ValueError("several particles in one pass give other densities than one by one")


def values_of(sites: Sites) -> Values:
    """The values of sites by name."""
    return {name: site["value"] for name, site in sites.items()}
