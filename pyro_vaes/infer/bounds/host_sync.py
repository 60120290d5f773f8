"""Pyro's bounds without host synchronisation and without bookkeeping that a training step does not need.

Pyro's ELBOs read every site's log-density into Python (``.item()``) and look for NaN, which on a GPU waits for the
device several times in each step. The training loop keeps the loss on the device and has a NaN policy of its own.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pyro
from pyro.infer import trace_elbo, trace_mean_field_elbo, traceenum_elbo, tracegraph_elbo
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from pyro_vaes.infer.handlers import ModuleParameters

__all__ = ["known_modules", "quiet_elbo"]

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


def _may_change_parameters(messenger: Messenger) -> bool:
    if isinstance(messenger, ReplayMessenger):
        return messenger.params is not None
    return hasattr(messenger, "_pyro_param") and not isinstance(messenger, ModuleParameters)


@contextlib.contextmanager
def known_modules() -> Iterator[None]:
    """Inside, ``pyro.module`` returns the module at once, unless a handler (``poutine.lift``) may want its parameters.

    The training loop has found the parameters beforehand; naming each of them again in every step is 2 to 4 % of the
    time of a step of a small network on a CPU. Not for bounds that look for param sites (those without
    ``differentiable_loss``).
    """
    statement = pyro.module

    def module(name: str, nn_module: nn.Module, update_module_params: bool = False) -> nn.Module:
        if any(_may_change_parameters(m) for m in _PYRO_STACK):
            return statement(name, nn_module, update_module_params)
        return nn_module

    pyro.module = module
    try:
        yield
    finally:
        pyro.module = statement
