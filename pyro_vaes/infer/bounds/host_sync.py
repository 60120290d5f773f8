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

_is_inside: ContextVar[bool] = ContextVar("_is_inside", default=False)  # this thread's own
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
        for name, replacement in (("torch_item", _item), ("warn_if_nan", _warn)):
            if hasattr(module, name):
                original = getattr(module, name)
                _pyros.append((module, name, original))
                setattr(module, name, replacement(original))


def _item(original: Callable[..., object]) -> Callable[..., object]:
    def torch_item(value: object) -> object:
        if _is_inside.get() and isinstance(value, Tensor):
            return value.detach()
        return original(value)

    return torch_item


def _warn(original: Callable[..., object]) -> Callable[..., object]:
    def warn_if_nan(*args: object, **kwargs: object) -> object:
        return None if _is_inside.get() else original(*args, **kwargs)

    return warn_if_nan
