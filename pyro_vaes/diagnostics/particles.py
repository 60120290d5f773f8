"""Draws from a pair, many at a time: latents, importance weights, replicated observations, streamed in chunks."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.nn.functional import pad

from pyro_vaes.infer import SourceBatches, as_batches, check
from pyro_vaes.programs import (
    DRAWN,
    VALUED,
    DataPlate,
    FixedRows,
    Pair,
    Program,
    Role,
    Sites,
    WithoutData,
    broadcasts,
    draw_enumerated,
    expanded,
    find_data_plate,
    is_inside,
    log_density,
    over_particles,
    per_datum_log_prob,
    preserve_rng,
    run,
    run_pair,
    sites,
    summed_log_prob,
    was_observed,
)

from .proposals import refuse_points, refuse_swapped
from .sites import Args, aligned, innermost, stacked, with_mean

FAILURES = (RuntimeError, TypeError, ValueError, IndexError)  # of programs on rows that do not suit them

T = TypeVar("T")
Values = dict[str, Tensor]
Read = Callable[[Message], Message]


@dataclass
class Draws:
    """K particles for B data.

    Attributes:
        log_weights: ``(K, B)``.
        guide_sites: The guide's sites, values with shape ``(K, *batch, *event)``.
        model_sites: The model's sites replayed against the guide, likewise.
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
class GlobalDraw:
    """One draw of the latents outside the data plate.

    Attributes:
        values: Their values by name, those of auxiliary sites among them.
        kl: log q - log p of the draw, nats.
        is_point: Whether the guide has one value for each (``Delta``).
    """

    values: Values
    kl: Tensor
    is_point: bool


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
        unit: Name of the plate whose rows are the data; found by default.
        globals_too: Whether latents may lie outside that plate. They have no part in what
            is per datum, and are to be given by :meth:`fix_globals`.
        enumerated_too: Whether the guide may lack sites that the model sums over. Their sum
            enters the weights, and they themselves are drawn given all else.

    Attributes:
        plate: The data plate; known from the first batch on, as are the other two.
        vectorized: Whether one pass may hold several particles.
        all_data: The arguments with all N data, for programs that draw B rows of them
            themselves; None for programs that take their rows from outside.
    """

    plate: DataPlate
    vectorized: bool
    all_data: Args | None

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: object,
        *,
        batch_size: int = 128,
        chunk_size: int = 50,
        seed: int = 0,
        unit: str | None = None,
        globals_too: bool = False,
        enumerated_too: bool = True,
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
        self.unit, self.globals_too = unit, globals_too
        self.enumerated_too = enumerated_too
        self._programs = self.model, self.guide
        self._is_known = False

    # rows

    @contextlib.contextmanager
    def rows(self) -> Iterator[Iterator[Args]]:
        """The programs' arguments, pass by pass, in evaluation mode and with the seed set.

        A context, ``with particles.rows() as rows: for args in rows: ...``, so that all comes back whatever is raised.
        """
        with self.pair.evaluating(), poutine.block():
            pyro.util.set_rng_seed(self.seed)
            yield self._passes()

    def for_each_pass(self, function: Callable[[Args], T]) -> list[T]:
        """What a function of the programs' arguments returns for each pass of :meth:`rows`."""
        with self.rows() as rows:
            return [function(args) for args in rows]

    def joined(self, parts: Sequence[T], dim: int = 0) -> T:
        """The results of all passes, one after the other, without rows that do not count.

        Tensors are joined, on the CPU, also those in dictionaries and in dataclasses. What
        else a dataclass holds is that of the first pass.
        """
        each: list[Any] = list(parts)
        first = each[0]
        whole: Any = first

        if isinstance(first, Tensor):
            tensor = torch.cat(each, dim).cpu()
            whole = tensor.narrow(dim, 0, self.num_counted(tensor.shape[dim]))
        elif isinstance(first, dict):
            whole = {}
            for name in list(first):
                whole[name] = self.joined([part.pop(name) for part in each], dim)
        elif is_dataclass(first):
            fields = [dict(vars(part)) for part in each]
            whole = replace(each[0], **self.joined(fields, dim))
        return whole

    def num_counted(self, size: int, before: int = 0) -> int:
        """How many of a pass's rows count, of which so many went before.

        The last block of a program that draws its rows itself is filled up with others.
        """
        total = self.fixed.full_size
        return size if total is None else min(size, total - before)

    def _passes(self) -> Iterator[Args]:
        for batch in self.batches.epoch(self.seed, 0, self.place):
            args = self.pair.arguments(batch)
            if not self._is_known:
                self._find_way(args)
                self._is_known = True

            if self.all_data is not None:
                yield from self._blocks(self.all_data)
                return
            yield args

    def _find_way(self, args: Args) -> None:
        """Find the plate and how to draw, by runs on the first batch and perhaps on all data."""
        of_batch = self._try_plate(args)
        all_data = self._all_data(args)
        of_all = None if all_data is None else self._try_plate(all_data)

        # a program that draws its own rows is to see all of them
        if isinstance(of_all, DataPlate) and of_all.full_size is not None:
            assert all_data is not None
            self.plate, self.all_data, args = of_all, all_data, all_data
            self.fixed.full_size = of_all.full_size
        elif isinstance(of_batch, DataPlate):
            self.plate, self.all_data = of_batch, None
        else:
            if isinstance(of_batch, RuntimeError | TypeError):
                self._raise_known_problems(args)
            raise of_batch

        if self.plate.global_sites:
            self.vectorized = False
            return  # there are densities per datum once these are given

        with preserve_rng():
            self._validate(args)
            self.vectorized = broadcasts(self.model, self.guide, args, self.plate)

    def _try_plate(self, args: Args) -> DataPlate | Exception:
        """The data plate on these rows, or why there is none."""
        try:
            return find_data_plate(
                self.model,
                self.guide,
                args,
                self.unit,
                globals_too=self.globals_too,
                enumerated_too=self.enumerated_too,
            )
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
        size = self.plate.size
        for rows in torch.arange(self.plate.full_size or size).split(size):
            self.fixed.index = pad(rows, (0, size - len(rows)))
            yield all_data

    # globals

    def first_rows(self) -> Args:
        """The arguments of the first pass; afterwards the plate is known."""
        with self.rows() as rows:
            return next(iter(rows))

    def all_globals(self, args: Args, num: int) -> list[GlobalDraw]:
        """So many draws of the latents outside the data plate; one where they are points."""
        with self.pair.evaluating(), poutine.block():
            pyro.util.set_rng_seed(self.seed)
            draws = [self.draw_globals(args)]
            while len(draws) < num and not draws[0].is_point:
                draws.append(self.draw_globals(args))
        return draws

    def draw_globals(self, args: Args) -> GlobalDraw:
        """One draw of the latents outside the data plate, from the original guide."""
        model, guide = self._programs
        traces = run_pair(model, guide, args)

        totals = []
        for trace in traces:
            total = torch.zeros(())
            for site in self._outside(trace).values():
                total = total + log_density(site, scaled=False).sum()
            totals.append(total.double().cpu())

        drawn = self._outside(traces.guide)
        is_point = all(isinstance(innermost(s["fn"]), Delta) for s in drawn.values())
        log_q, log_p = totals
        return GlobalDraw(values_of(drawn), log_q - log_p, is_point)

    def _outside(self, trace: Trace) -> Sites:
        """The latents of a trace outside the data plate."""
        drawn = sites(trace, DRAWN)
        return {n: s for n, s in drawn.items() if not self._is_local(s)}

    def fix_globals(self, values: Values) -> None:
        """Go on with the pair given these values of its global latents."""
        first = self.model is self._programs[0]
        model, guide = (poutine.condition(p, data=values) for p in self._programs)
        self.model = poutine.block(model, hide=list(values))
        self.guide = poutine.block(guide, hide=list(values))
        self._is_known = not first

    def _is_local(self, site: Message) -> bool:
        return is_inside(site, self.plate.name)

    # draws, to be taken inside the loop over the rows

    def chunks(self, num_particles: int) -> Iterator[int]:
        """Sizes of the passes that make up so many particles."""
        for start in range(0, num_particles, self.chunk_size):
            yield min(self.chunk_size, num_particles - start)

    def draw(self, args: Args, num: int, guide: Program | None = None, *, read: Read = expanded) -> Draws:
        """Draw ``num`` particles for the rows in ``args``.

        Another guide than the pair's own may be given for this draw; it sees the same rows.
        The model's sites are read, such as by :func:`scored`.
        """
        guide = self.guide if guide is None else self.fixed(guide)
        model, guide = self._wide(self.model, num), self._wide(guide, num)
        passes = range(1 if self.vectorized else num)
        if self.plate.enumerated:
            return self._draw_summed(model, guide, args, passes, read)
        pairs = [run_pair(model, guide, args) for _ in passes]

        guide_traces, model_traces = zip(*pairs, strict=True)
        # a guide that runs the model observes what the model does: no draws of its own
        seen = sites(guide_traces[0], Role.OBSERVED).keys()
        log_q = self.log_prob(guide_traces, lambda name: name not in seen)
        log_weights = self.log_prob(model_traces) - log_q
        return Draws(log_weights, self._gathered(guide_traces), self._gathered(model_traces, read))

    def _draw_summed(
        self,
        model: Program,
        guide: Program,
        args: Args,
        passes: range,
        read: Read,
    ) -> Draws:
        """Draws from a model that sums over some of its sites."""
        guides, models, log_p = [], [], []
        for _ in passes:
            drawn = run(guide, args)
            guides.append(prune_subsample_sites(drawn))
            arguments = (model, args, drawn, self.plate)
            log_p.append(summed_log_prob(*arguments, particles=self.vectorized))
            models.append(draw_enumerated(*arguments, particles=self.vectorized))

        total = torch.stack(log_p)
        if self.vectorized:
            total = log_p[0]
        found = self._gathered(models, read)
        return Draws(total - self.log_prob(guides), self._gathered(guides), found)

    def log_weights(
        self,
        args: Args,
        num: int,
        guide: Program | None = None,
    ) -> Tensor:
        """Log importance weights ``(num, B)`` on the CPU, drawn chunk by chunk.

        Raises:
            ValueError: A guide's site has no density at its draws.
        """
        each = []
        for size in self.chunks(num):
            draws = self.draw(args, size, guide)
            refuse_points(draws.guide_sites, draws.model_sites)
            each.append(draws.log_weights.cpu())
        return torch.cat(each)

    def log_density(self, program: Program, args: Args, given: Values) -> Tensor:
        """Unscaled log-density ``(K, B)`` of a program at given values ``(K, *batch, *event)`` of its random sites."""
        num = len(next(iter(given.values())))
        return self.log_prob(self.traces(program, args, num, given))

    def replicate(self, args: Args, draws: Draws) -> Values:
        """Replicated observations ``(K, B, *plates, *event)`` given drawn latents: the model without its data."""
        latents = values_of(draws.latents())
        return self.simulated(self.prior(args, len(draws.log_weights), latents))

    def simulated(self, sites: Sites) -> Values:
        """The new observations ``(K, B, *plates, *event)`` among the sites of :meth:`prior`."""
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

        sites = self.run_many(self.model, args, len(draws.log_weights), given, with_mean)
        return {n: aligned(s, self.plate, key="mean") for n, s in sites.items() if n in draws.observations()}

    def prior(self, args: Args, num: int, given: Values | None = None) -> Sites:
        """All sites of the model run forward, without its data: latents from the prior and new observations."""
        return self.run_many(WithoutData()(self.model), args, num, given or {})

    def run_many(self, program: Program, args: Args, num: int, given: Values, read: Read = expanded) -> Sites:
        """The sites of ``num`` runs of a program given values of some, with shape ``(K, *batch, *event)``.

        The others are read, such as by :func:`with_mean`.
        """
        traces = self.traces(program, args, num, given)
        return self._gathered(traces, read, given)

    def traces(self, program: Program, args: Args, num: int, given: Values) -> list[Trace]:
        """Traces of ``num`` runs given values of some sites: one of all particles, or one for each."""
        if self.vectorized:
            return [run(self._wide(program, num), args, given=given)]
        each = [{n: v[k] for n, v in given.items()} for k in range(num)]
        return [run(program, args, given=values) for values in each]

    def log_prob(self, traces: Sequence[Trace], keep: Callable[[str], bool] = lambda name: True) -> Tensor:
        """Unscaled log-density ``(K, B)`` of :meth:`traces`, of the sites whose names to keep."""
        dim, particles = self.plate.dim, self.vectorized
        each = []
        for trace in traces:
            local = {n for n, s in sites(trace).items() if self._is_local(s)}
            kept = {name for name in local if keep(name)}
            log_prob = per_datum_log_prob(
                trace,
                dim,
                particles=particles,
                keep=kept.__contains__,
            )
            each.append(log_prob)

        if particles or each[0].dim() == 0:  # nothing has a density
            return each[0]
        return torch.stack(each)

    # one pass for all particles, or one for each

    def _wide(self, program: Program, num: int) -> Program:
        if self.vectorized:
            return over_particles(program, num, self.plate)
        return program

    def _gathered(self, traces: Sequence[Trace], read: Read = expanded, given: Collection[str] = ()) -> Sites:
        """The sites of all traces as those of one, read unless they were given."""
        each = []
        for trace in traces:
            found = sites(trace, VALUED)
            for name, site in list(found.items()):
                if not self._is_local(site):
                    del found[name]
                    continue
                found[name] = expanded(site) if name in given else read(site)
            each.append(found)

        if self.vectorized:
            return each[0]
        return stacked(each)

    # before the first draw

    def _validate(self, args: Args) -> None:
        """One validated pass: data outside a support and parameters that are not finite end here."""
        self.vectorized = False
        try:
            with pyro.validation_enabled(True):
                traces = run_pair(self.model, self.guide, args)
                for trace in traces:
                    self.log_prob([trace])
        except ValueError:
            self._raise_known_problems(args)
            raise
        refuse_swapped(*traces)

    def _raise_known_problems(self, args: Args) -> None:
        """Raise what is wrong with the programs on these rows in words, where it is known."""
        with torch.enable_grad():
            check(self.model, self.guide, args).raise_if_fatal()


def values_of(sites: Sites) -> Values:
    """The values of sites by name."""
    return {name: site["value"] for name, site in sites.items()}
