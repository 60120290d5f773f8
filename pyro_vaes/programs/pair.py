"""A model and its guide as one trainable thing: its modules, its parameters, its state."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .aside import (
    ParameterRecorder,
    local_parameters,
    modes,
    preserve_rng,
    untouched_store,
)
from .dependencies import reached
from .reach import Program, modules_of, num_positional
from .runs import Args, run_pair

NO_FORWARD = (nn.Module.forward, pyro.nn.PyroModule.forward)
OF_MODULES = (nn.Module.__call__, pyro.nn.PyroModule.__call__)


@runtime_checkable
class Prepares(Protocol):
    """A module that makes parameters when it first sees a program, or a saved state."""

    def prepare_state(self, state: Mapping[str, Tensor]) -> None:
        """Make those of a saved state, whose names are the module's own."""


class Pair:
    """A model and a guide together.

    Arguments:
        model: A Pyro program: a module, a method of one, or a function.
        guide: Likewise.

    Attributes:
        modules: The modules within reach of the programs, by name.
        parameters: The unconstrained leaves that training moves, by name.
        unreached: Names of those that no gradient of the bound reaches.
        free: The unconstrained leaves of param statements that belong to no module.

    Raises:
        ValueError: One of them is no Pyro program.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        _refuse_no_program("model", model)
        _refuse_no_program("guide", guide)
        self.model, self.guide = model, guide

        self.modules: dict[str, nn.Module] = {}
        for label, module in [*modules_of(model, "model"), *modules_of(guide, "guide")]:
            if all(module is not known for known in self.modules.values()):
                taken = label in self.modules
                name = f"{label}.{len(self.modules)}" if taken else label
                self.modules[name] = module
        self._all = nn.ModuleList(self.modules.values())

        self.parameters: dict[str, Tensor] = {}
        self.unreached: list[str] = []
        self.free: dict[str, Tensor] = {}
        self._num_args = num_positional(model)

    def arguments(self, batch: object) -> Args:
        """The programs' arguments for a batch: a tensor, or a sequence cut to length."""
        args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        return args[: self._num_args]

    def device(self) -> torch.device | None:
        """Where the modules' parameters live; None when there are none."""
        return getattr(next(self._all.parameters(), None), "device", None)

    def to(self, device: torch.device | str) -> None:
        self._all.to(device)

    def train(self, mode: bool = True) -> None:
        self._all.train(mode)

    # running aside

    @contextlib.contextmanager
    def aside(self, *, keep_params: bool = False) -> Iterator[None]:
        """Run the programs without leaving a trace.

        Buffers, generators and Pyro's parameter store come back.

        Arguments:
            keep_params: Whether free-standing ``pyro.param`` statements that are made
                inside stay in the store.
        """
        buffers = []
        for owner in self._all.modules():
            for name, buffer in owner._buffers.items():
                if buffer is not None and not is_lazy(buffer):
                    buffers.append((owner, name, buffer, buffer.clone()))

        store = contextlib.nullcontext() if keep_params else untouched_store()
        try:
            with store, preserve_rng(), local_parameters():
                yield
        finally:
            with torch.no_grad():
                for owner, name, buffer, before in buffers:
                    owner._buffers[name] = buffer.copy_(before)

    def in_evaluation_mode(self) -> contextlib.AbstractContextManager[None]:
        """Inside, all modules are in evaluation mode; each part's own mode comes back."""
        return modes(self._all, training=False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Aside, in evaluation mode, without gradients and without Pyro's validation."""
        with self.in_evaluation_mode(), self.aside(), torch.no_grad():
            with pyro.validation_enabled(False):
                yield

    # parameters

    def materialise(self, args: Args) -> None:
        """Run both programs once, so that lazy modules and param statements exist."""
        with self.aside(keep_params=True), torch.no_grad(), ParameterRecorder() as params:
            run_pair(self.model, self.guide, args)
        self._note_params(params)

    def _note_params(self, recorder: ParameterRecorder) -> dict[int, tuple[str, Tensor]]:
        """The leaves of all param statements by identity; keeps the free-standing ones."""
        known = self._parameters_of(*self.modules)

        self.free = {}
        found = {}
        for name, value in recorder.found:
            if hasattr(value, "unconstrained"):
                value = value.unconstrained()
            assert isinstance(value, Tensor)

            free = f"param.{name}"
            if id(value) not in known:
                self.free[free] = value
            found[id(value)] = known.get(id(value), (free, value))
        return found

    def discover(self, loss: ELBO, args: Args) -> Tensor | None:
        """Find the parameters that training moves by one dry evaluation of the loss.

        These are the parameters that ``pyro.param`` and ``pyro.module`` statements name,
        and those of the owners of ``model`` and ``guide`` that a gradient reaches; all of
        them only where they require a gradient.

        Returns:
            The loss, detached, or None where the bound has no differentiable loss.

        Raises:
            ValueError: There is no parameter to train.
        """
        with self.aside(keep_params=True):
            return self.find_parameters(loss, args)

    def find_parameters(self, loss: ELBO, args: Args) -> Tensor | None:
        """The same for those who run the pair aside already."""
        with ParameterRecorder() as recorder:
            # with a graph where the bound has a loss of that kind; else a number
            evaluate = getattr(loss, "differentiable_loss", loss.loss)
            value = evaluate(self.model, self.guide, *args)
        named = self._note_params(recorder)
        own = self._parameters_of("model", "guide")

        leaves = {key: p for key, (_, p) in (own | named).items() if p.requires_grad}
        moved = self._reached(loss, value, args, leaves)

        trained = leaves.keys() & (named.keys() | moved)
        names = {(own | named)[key][0]: key for key in trained}
        self.parameters = {name: leaves[key] for name, key in sorted(names.items())}
        self.unreached = sorted(name for name, key in names.items() if key not in moved)

        if not self.parameters:
            raise ValueError(
                "No parameter requires a gradient in this model and guide. Are the "
                "networks registered (pyro.module, or attributes of a PyroModule whose "
                "methods carry @pyro_method), and not all frozen?"
            )
        return value.detach() if isinstance(value, Tensor) else None

    def _parameters_of(self, *labels: str) -> dict[int, tuple[str, Tensor]]:
        """The parameters of the modules of these names, by identity."""
        found: dict[int, tuple[str, Tensor]] = {}
        for label in labels:
            if label in self.modules:
                for name, parameter in self.modules[label].named_parameters():
                    found[id(parameter)] = (f"{label}.{name}", parameter)
        return found

    def _reached(self, loss: ELBO, value: object, args: Args, leaves: dict[int, Tensor]) -> set[int]:
        """Which of these leaves a gradient of the loss reaches."""
        if hasattr(loss, "differentiable_loss"):
            return reached(value, leaves)

        # a bound without a differentiable loss puts its gradients into .grad
        before = [(p, p.grad) for p in leaves.values()]
        for parameter, _ in before:
            parameter.grad = None
        loss.loss_and_grads(self.model, self.guide, *args)
        found = {i for i, p in leaves.items() if p.grad is not None}
        for parameter, gradient in before:
            parameter.grad = gradient
        return found

    # state

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, each tensor once."""
        tensors = {}
        for label, module in self.modules.items():
            for name, value in module.state_dict(keep_vars=True).items():
                if isinstance(value, Tensor):  # a module may add state of other kinds
                    tensors[f"{label}.{name}"] = value
        tensors |= self.free

        first_names: dict[int, str] = {}
        for name, tensor in tensors.items():
            first_names.setdefault(id(tensor), name)
        return {name: tensors[name].detach() for name in first_names.values()}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of :meth:`state`."""
        return {name: tensor.clone() for name, tensor in self.state().items()}

    def _prepare(self, state: Mapping[str, Tensor]) -> None:
        """Let modules make the parameters that they have not seen a batch for.

        Such a module has a method ``prepare_state``, which takes its part of the state.
        """
        for label, module in self.modules.items():
            for name, part in module.named_modules():
                if isinstance(part, Prepares):
                    part.prepare_state(_part_of(state, [label, name]))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy tensors by name into the live parameters and buffers.

        Raises:
            ValueError: Names or shapes differ.
        """
        self._prepare(state)
        live = self.state()
        missing = sorted(live.keys() - state.keys())
        surplus = sorted(state.keys() - live.keys())
        if missing or surplus:
            raise ValueError(
                "The saved weights do not fit this model and guide: missing "
                f"{missing[:5]}, unexpected {surplus[:5]} ({len(missing)} and "
                f"{len(surplus)} in all). Build the pair with the arguments it was saved "
                "with."
            )

        wrong = []
        for name, tensor in live.items():
            saved, here = tuple(state[name].shape), tuple(tensor.shape)
            if saved != here:
                wrong.append(f"{name}: saved {saved}, here {here}")
        if wrong:
            raise ValueError(f"Saved weights have other shapes than this model and guide: {'; '.join(wrong[:5])}.")

        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])


def _part_of(state: Mapping[str, Tensor], path: list[str]) -> dict[str, Tensor]:
    """The entries of a state that lie under a path, by the rest of their names."""
    start = ".".join(filter(None, [*path, ""])) + "."
    found = {}
    for name, value in state.items():
        if name.startswith(start):
            found[name.removeprefix(start)] = value
    return found


def _refuse_no_program(label: str, program: object) -> None:
    if not callable(program):
        raise ValueError(f"The {label} must be a Pyro program, but got {type(program).__name__}.")
    if not isinstance(program, nn.Module) or type(program).__call__ not in OF_MODULES:
        return  # one that is called in its own way, as Pyro's GuideMessenger is
    if type(program).forward in NO_FORWARD:
        raise ValueError(
            f"The {label} is a {type(program).__name__}, which has no forward: pass its "
            "method, as in fit(vae.model, vae.guide, data)."
        )
