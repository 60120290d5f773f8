"""Running a program, or a pair of them, and keeping the traces.

Every run of the library goes through :func:`run`: with the values of some sites given,
or against the trace of another program.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from .aside import preserve_rng
from .reach import Program, identity

Args = tuple[object, ...]
MAX_PLATES = 4  # to the right of enumerated dimensions


class PairTraces(NamedTuple):
    """A trace of the guide, and the model's trace replayed against it."""

    guide: Trace
    model: Trace


def run(
    program: Program,
    args: Args = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    against: Trace | None = None,
) -> Trace:
    """The trace of one run of a program.

    Arguments:
        program: The program.
        args, kwargs: Its arguments.
        given: Values of sample sites by name, which count as observed.
        against: A trace of another program, whose draws this one takes over.
    """
    if given is not None:
        program = poutine.condition(program, data=dict(given))
    if against is not None:
        program = poutine.replay(program, trace=against)
    return poutine.trace(program).get_trace(*args, **(kwargs or {}))


def run_pair(model: Program, guide: Program, args: Args) -> PairTraces:
    """Run the guide, and the model against it; without the subsampling of plates."""
    guide_trace = run(guide, args)
    model_trace = run(model, args, against=guide_trace)
    return PairTraces(prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace))


class _Shared(NamedTuple):
    """A dry run, and the objects that it is known by, which must stay alive for that."""

    program: Program
    values: tuple[object, ...]
    against: Trace | None
    traces: "_DryTraces"


class _DryTraces(NamedTuple):
    """The trace of a dry run, with and without the subsampling of plates."""

    whole: Trace
    pruned: Trace


_shared: ContextVar[list[_Shared] | None] = ContextVar("shared dry runs", default=None)
_is_dry: ContextVar[bool] = ContextVar("inside a dry run", default=False)


@contextlib.contextmanager
def share_dry_runs() -> Iterator[None]:
    """Inside, dry runs of a program on the same arguments are one run.

    All who want to know something of a pair before its first step then read it off one run
    of each program. Parameters must not change meanwhile.
    """
    if _shared.get() is not None:
        yield
        return

    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


def is_dry_run() -> bool:
    """Whether only sites, plates and shapes of this run are looked at.

    Guides that optimise on the way to their draws may leave that out.
    """
    return _is_dry.get()


def dry_run(program: Program, args: Args, kwargs: Mapping[str, object] | None = None) -> Trace:
    """Run a program aside, to look at its sites, plates and shapes.

    It runs without gradients and unseen by handlers, and generators stay as they are;
    buffers are the caller's (:class:`Findings`, :meth:`Pair.aside`). Subsampling sites are
    left out.
    """
    return _dry(program, args, kwargs).pruned


def dry_run_pair(model: Program, guide: Program, args: Args) -> PairTraces:
    """A dry run of each program: the model's draws are its own, not those of the guide.

    The rows of plates are the guide's where it draws them. Where the model cannot draw
    by itself (an improper prior), it is run against the guide.
    """
    of_guide = _dry(guide, args)
    try:
        of_model = _dry(model, args, rows=of_guide.whole)
    except Exception:
        with poutine.block(), torch.no_grad(), preserve_rng():
            against = _run_somehow(model, args, of_guide.whole)
        return PairTraces(of_guide.pruned, prune_subsample_sites(against))
    return PairTraces(of_guide.pruned, of_model.pruned)


def _run_somehow(model: Program, args: Args, against: Trace) -> Trace:
    """A run of a model that cannot draw by itself.

    Against the guide's draws; or, for a model that is written for sites which are
    summed over, with these enumerated to the left of as many plates as it takes.
    """
    ways = [model]
    for num_plates in range(1, MAX_PLATES + 1):
        ways.append(poutine.enum(model, first_available_dim=-1 - num_plates))

    for way in ways:
        with contextlib.suppress(Exception):
            return run(way, args, against=against)
    return run(model, args, against=against)  # which says what is wrong


def _dry(
    program: Program,
    args: Args,
    kwargs: Mapping[str, object] | None = None,
    *,
    rows: Trace | None = None,
) -> _DryTraces:
    """A dry run with its subsampling sites, on the rows that another program has drawn."""
    named = kwargs or {}
    values = (*args, *named, *named.values())
    against = _drawn_rows(rows)

    shared = _shared.get()
    for entry in shared or ():
        same_program = identity(entry.program) == identity(program)
        same_rows = (entry.against is None) == (against is None)
        if same_program and same_rows and _are_same(entry.values, values):
            return entry.traces

    token = _is_dry.set(True)
    try:
        with poutine.block(), torch.no_grad(), preserve_rng():
            trace = run(program, args, kwargs, against=against)
    finally:
        _is_dry.reset(token)

    traces = _DryTraces(trace, prune_subsample_sites(trace))
    if shared is not None:
        shared.append(_Shared(program, values, against, traces))
    return traces


def _drawn_rows(trace: Trace | None) -> Trace | None:
    """The sites of a trace at which plates have drawn some of their rows, if any."""
    if trace is None:
        return None

    found = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            fn = site["fn"]
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                found.add_node(name, **site)

    if not found.nodes:
        return None
    return found


def _are_same(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    if len(one) != len(two):
        return False
    return all(a is b for a, b in zip(one, two, strict=True))
