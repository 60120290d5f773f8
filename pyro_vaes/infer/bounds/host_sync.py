"""Pyro's bounds without host synchronisation.

Pyro's ELBOs read every site's log-density into Python (``.item()``) and look for NaN, which
on a GPU waits for the device several times in each step. The training loop keeps the loss
on the device and has a NaN policy of its own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo
from torch import Tensor

_MODULES = (trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo)

_is_inside = ContextVar("_is_inside", default=False)  # this thread's own
_lock = threading.Lock()
_num_inside = 0
_pyros: list[tuple[object, str, Callable[..., object]]] = []


@contextlib.contextmanager
def without_host_sync() -> Iterator[None]:
    """Inside, Pyro's ELBOs return tensors instead of numbers and do not look for NaN.

    For this thread alone: others meet Pyro's own functions.
    """
    global _num_inside
    with _lock:
        if not _num_inside:
            _replace()
        _num_inside += 1

    token = _is_inside.set(True)
    try:
        yield
    finally:
        _is_inside.reset(token)
        with _lock:
            _num_inside -= 1
            while _pyros and not _num_inside:
                setattr(*_pyros.pop())


def _replace() -> None:
    for module in _MODULES:
        for name in ("torch_item", "warn_if_nan"):
            original = getattr(module, name, None)
            if original is not None:
                _pyros.append((module, name, original))
                setattr(module, name, _leaving_tensors(original))


def _leaving_tensors(original: Callable[..., object]) -> Callable[..., object]:
    """A function of a value and, for its message, of what the value is called."""

    def leave_tensors(value: object, *about: object) -> object:
        if not _is_inside.get():
            return original(value, *about)
        return value.detach() if isinstance(value, Tensor) else value

    return leave_tensors
