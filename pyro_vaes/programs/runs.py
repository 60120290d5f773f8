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
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .aside import preserve_rng
from .reach import Program, identity

Args = tuple[object, ...]


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
    trace: Trace


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
    named = kwargs or {}
    values = (*args, *named, *named.values())
    shared = _shared.get()
    for entry in shared or ():
        same_program = identity(entry.program) == identity(program)
        if same_program and _are_same(entry.values, values):
            return entry.trace

    token = _is_dry.set(True)
    try:
        with poutine.block(), torch.no_grad(), preserve_rng():
            trace = prune_subsample_sites(run(program, args, kwargs))
    finally:
        _is_dry.reset(token)

    if shared is not None:
        shared.append(_Shared(program, values, trace))
    return trace


def dry_run_pair(model: Program, guide: Program, args: Args) -> PairTraces:
    """A dry run of each program: the model's draws are its own, not those of the guide.

    Where the model cannot draw by itself (an improper prior), it is run against the guide.
    """
    guide_trace = dry_run(guide, args)
    try:
        return PairTraces(guide_trace, dry_run(model, args))
    except Exception:
        with poutine.block(), torch.no_grad(), preserve_rng():
            against = run(model, args, against=guide_trace)
        return PairTraces(guide_trace, prune_subsample_sites(against))


def _are_same(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    if len(one) != len(two):
        return False
    return all(a is b for a, b in zip(one, two, strict=True))
