"""Pyro's bounds without host synchronisation.

Pyro's ELBOs read every site's log-density into Python (``.item()``) and look for NaN, which on a GPU waits for the
device several times in each step. The training loop keeps the loss on the device and has a NaN policy of its own.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType

from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo
from torch import Tensor

__all__ = ["quiet_elbo"]

_MODULES: tuple[ModuleType, ...] = (trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo)


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value


def _nothing(*_: object, **__: object) -> None:
    return None


@contextlib.contextmanager
def quiet_elbo() -> Iterator[None]:
    """Inside, Pyro's ELBOs return tensors instead of numbers and do not look for NaN."""
    replaced = {"torch_item": _detached, "warn_if_nan": _nothing}
    saved = [(m, name, getattr(m, name)) for m in _MODULES for name in replaced if hasattr(m, name)]
    for module, name, _ in saved:
        setattr(module, name, replaced[name])
    try:
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)
