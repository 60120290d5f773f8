"""Pyro's bounds without host synchronisation.

Pyro's ELBOs read every site's log-density into Python (``.item()``) and look for NaN, which
on a GPU waits for the device several times in each step. The training loop keeps the loss
on the device and has a NaN policy of its own.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo
from torch import Tensor

__all__ = ["without_host_sync"]

_MODULES = (trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo)


class _Depth(threading.local):
    """How deep this thread is inside :func:`without_host_sync`."""

    value = 0


_depth = _Depth()
_lock = threading.Lock()
_threads_inside = 0
_pyros: list[tuple[object, str, Callable[..., object]]] = []


@contextlib.contextmanager
def without_host_sync() -> Iterator[None]:
    """Inside, Pyro's ELBOs return tensors instead of numbers and do not look for NaN.

    For this thread alone: others meet Pyro's own functions.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _threads_inside
    _depth.value += 1
    if _depth.value > 1:
        return

    with _lock:
        _threads_inside += 1
        if _threads_inside == 1:
            for module in _MODULES:
                for name, replacement in (("torch_item", _item), ("warn_if_nan", _warn)):
                    if hasattr(module, name):
                        original = getattr(module, name)
                        _pyros.append((module, name, original))
                        setattr(module, name, replacement(original))


def _leave() -> None:
    global _threads_inside
    _depth.value -= 1
    if _depth.value:
        return

    with _lock:
        _threads_inside -= 1
        if not _threads_inside:
            while _pyros:
                setattr(*_pyros.pop())


def _item(original: Callable[..., object]) -> Callable[..., object]:
    def torch_item(value: object) -> object:
        if _depth.value and isinstance(value, Tensor):
            return value.detach()
        return original(value)

    return torch_item


def _warn(original: Callable[..., object]) -> Callable[..., object]:
    def warn_if_nan(value: object, *args: object, **kwargs: object) -> object:
        return None if _depth.value else original(value, *args, **kwargs)

    return warn_if_nan
