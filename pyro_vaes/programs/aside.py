"""Running programs without leaving a trace: generators, modes, Pyro's parameter store.

Buffers have a file of their own, :mod:`pyro_vaes.programs.buffers`.
"""

import contextlib
from collections.abc import Iterator

import pyro
import torch
from pyro.params.param_store import ParamStoreDict, StateDict
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import nn


@contextlib.contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the states of all random number generators afterwards.

    Arguments:
        seed: Seed to start from inside; None leaves the generators where they are.
    """
    state = pyro.util.get_rng_state()
    on_cuda = torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []

    try:
        if seed is not None:
            pyro.util.set_rng_seed(seed)
        yield
    finally:
        pyro.util.set_rng_state(state)
        if on_cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def modes(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Put modules into training or evaluation mode; each part's own mode comes back."""
    before: dict[nn.Module, bool] = {}
    for module in modules:
        before |= {part: part.training for part in module.modules()}

    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


class _ModuleParameters(Messenger):
    """Let ``pyro.module`` use a module's own parameters, whatever the store holds."""

    def _pyro_param(self, msg: Message) -> None:
        args = msg["args"]
        if len(args) > 1 and isinstance(args[1], nn.Parameter):
            msg["value"] = args[1]


class ParameterRecorder(Messenger):
    """Note the name and value of every param statement.

    Also of several under one name, which a trace would merge.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, object]] = []

    def _pyro_post_param(self, msg: Message) -> None:
        self.found.append((str(msg["name"]), msg["value"]))


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Run programs on their modules' own parameters, with Pyro's global store aside.

    Inside, PyroModules and ``pyro.module`` statements neither see nor change what the
    store holds of other modules, so two pairs that use the same names do not touch each
    other. Free-standing ``pyro.param`` statements use the store as ever, and what they
    create there stays.
    """
    store = pyro.get_param_store()
    outside = store.get_state()
    _replace(store, _free_standing(outside))

    try:
        with _ModuleParameters():
            yield
    finally:
        inside = _free_standing(store.get_state())
        merged: StateDict = {
            "params": {**outside["params"], **inside["params"]},
            "constraints": {**outside["constraints"], **inside["constraints"]},
        }
        _replace(store, merged)


@contextlib.contextmanager
def untouched_store() -> Iterator[None]:
    """Afterwards Pyro's parameter store holds what it held before."""
    store = pyro.get_param_store()
    outside = store.get_state()
    try:
        yield
    finally:
        _replace(store, outside)


def _free_standing(state: StateDict) -> StateDict:
    """The entries of ``pyro.param`` statements, without those of modules."""
    params, constraints = {}, {}
    for name, parameter in state["params"].items():
        if not isinstance(parameter, nn.Parameter):
            params[name] = parameter
            constraints[name] = state["constraints"][name]
    return {"params": params, "constraints": constraints}


def _replace(store: ParamStoreDict, state: StateDict) -> None:
    store.clear()
    store.set_state(state)
