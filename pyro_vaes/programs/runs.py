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

from pyro_vaes.programs.aside import preserve_rng
from pyro_vaes.programs.reach import Program

__all__ = ["PairTraces", "dry_run", "run", "run_pair", "share_dry_runs"]

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

    known_by: tuple[object, ...]
    result: PairTraces


_shared: ContextVar[list[_Shared] | None] = ContextVar("shared dry runs", default=None)


@contextlib.contextmanager
def share_dry_runs() -> Iterator[None]:
    """Inside, :func:`dry_run` runs a pair once for the same arguments.

    All who want to know something of the pair before its first step then read it off one
    run. Parameters must not change meanwhile.
    """
    if _shared.get() is not None:
        yield
        return

    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


def dry_run(model: Program, guide: Program, args: Args) -> PairTraces:
    """Run a pair aside: without gradients, unseen by handlers, generators untouched."""
    known_by = (model, guide, *args)
    shared = _shared.get()
    for entry in shared or ():
        if _same(entry.known_by, known_by):
            return entry.result

    with poutine.block(), torch.no_grad(), preserve_rng():
        result = run_pair(model, guide, args)

    if shared is not None:
        shared.append(_Shared(known_by, result))
    return result


def _same(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    """Whether these are the same objects; a bound method is a new one at each access."""
    if len(one) != len(two):
        return False
    for a, b in zip(one, two, strict=True):
        equal_methods = callable(a) and not isinstance(a, Tensor) and a == b
        if a is not b and not equal_methods:
            return False
    return True
