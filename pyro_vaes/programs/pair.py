"""A model and its guide, seen as one trainable thing: its modules, its parameters, its state."""

import contextlib
from collections.abc import Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vaes.infer.handlers import ParameterRecorder, local_parameters, untouched_store
from pyro_vaes.programs.reach import Program, modules_of, num_positional

__all__ = ["Pair", "Program", "modes", "preserve_rng"]


@contextlib.contextmanager
def preserve_rng(seed: int | None = None) -> Iterator[None]:
    """Restore the states of all random number generators afterwards; inside, start from the seed if there is one."""
    state = pyro.util.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            pyro.util.set_rng_seed(seed)
        yield
    finally:
        pyro.util.set_rng_state(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def modes(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Put modules into training or evaluation mode; afterwards each of their parts is in its own again."""
    before = {m: m.training for module in modules for m in module.modules()}
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


class Pair:
    """A model and a guide together.

    Arguments:
        model: A Pyro program: a module, a method of one, or a function.
        guide: Likewise.
    """

    def __init__(self, model: Program, guide: Program) -> None:
        for label, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise ValueError(f"The {label} must be a Pyro program, but got {type(program).__name__}.")
            if isinstance(program, nn.Module) and type(program).forward in (
                nn.Module.forward,
                pyro.nn.PyroModule.forward,
            ):
                raise ValueError(
                    f"The {label} is a {type(program).__name__}, which has no forward: pass its method, as in "
                    "fit(vae.model, vae.guide, data)."
                )
        self.model, self.guide = model, guide
        self.modules: dict[str, nn.Module] = {}
        for label, module in [*modules_of(model, "model"), *modules_of(guide, "guide")]:
            if all(module is not m for m in self.modules.values()):
                self.modules[label if label not in self.modules else f"{label}.{len(self.modules)}"] = module
        self.parameters: dict[str, Tensor] = {}  # the unconstrained leaves that training moves
        self.unreached: list[str] = []  # names of those that no gradient of the bound reaches
        self.free: dict[str, Tensor] = {}  # the unconstrained leaves of param statements that belong to no module
        self._num_args = num_positional(model)

    def arguments(self, batch: object) -> tuple[object, ...]:
        """The positional arguments for a batch: a tensor, or a sequence cut to what the model takes."""
        args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        return args[: self._num_args]

    def device(self) -> torch.device | None:
        """Where the modules' parameters live; None when there are none."""
        return next((p.device for m in self.modules.values() for p in m.parameters()), None)

    def to(self, device: torch.device | str) -> None:
        for module in self.modules.values():
            module.to(device)

    def train(self, mode: bool = True) -> None:
        for module in self.modules.values():
            module.train(mode)

    @contextlib.contextmanager
    def aside(self, *, keep_params: bool = False) -> Iterator[None]:
        """Run the programs without leaving a trace: buffers, generators and Pyro's parameter store come back.

        Arguments:
            keep_params: Whether free-standing ``pyro.param`` statements that are made inside stay in the store.
        """
        modules = {m for module in self.modules.values() for m in module.modules()}
        buffers = [
            (m, n, b, b.clone()) for m in modules for n, b in m._buffers.items() if b is not None and not is_lazy(b)
        ]
        try:
            with contextlib.nullcontext() if keep_params else untouched_store(), preserve_rng(), local_parameters():
                yield
        finally:
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    module._buffers[name] = buffer.copy_(before)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Aside, in evaluation mode and without gradients; every module's own mode comes back."""
        with modes(*self.modules.values(), training=False), self.aside(), torch.no_grad():
            yield

    def materialise(self, args: tuple[object, ...]) -> None:
        """Run both programs once, so that lazily made modules and free-standing param statements exist."""
        with self.aside(keep_params=True), torch.no_grad(), ParameterRecorder() as recorder:
            guide_trace = poutine.trace(self.guide).get_trace(*args)
            poutine.replay(self.model, trace=guide_trace)(*args)
        self._note_params(recorder)

    def _note_params(self, recorder: ParameterRecorder) -> dict[int, tuple[str, Tensor]]:
        """The leaves of all param statements by identity, with names; remembers the free-standing ones."""
        names = {id(p): f"{label}.{n}" for label, m in self.modules.items() for n, p in m.named_parameters()}
        leaves = [(name, _leaf(value)) for name, value in recorder.found]
        self.free = {f"param.{name}": leaf for name, leaf in leaves if id(leaf) not in names}
        return {id(leaf): (names.get(id(leaf), f"param.{name}"), leaf) for name, leaf in leaves}

    def discover(self, loss: ELBO, args: tuple[object, ...]) -> Tensor | None:
        """Find the parameters that training moves by one dry evaluation of the loss, aside.

        These are the parameters that ``pyro.param`` and ``pyro.module`` statements name, and those of the owners of
        ``model`` and ``guide`` that a gradient reaches; all of them only where they require a gradient.

        Returns:
            The loss, detached, or None where the bound has no differentiable loss.
        """
        with self.aside(keep_params=True):
            with ParameterRecorder() as recorder:
                value = _dry_loss(loss, self.model, self.guide, args)
            traced = self._note_params(recorder)
            own = {
                id(p): (f"{label}.{n}", p)
                for label in ("model", "guide")
                if label in self.modules
                for n, p in self.modules[label].named_parameters()
            }
            candidates = {i: (n, p) for i, (n, p) in (own | traced).items() if p.requires_grad}
            reached = self._reached(loss, value, args, {i: p for i, (_, p) in candidates.items()})
        found = [(n, p) for i, (n, p) in candidates.items() if i in traced or i in reached]
        found.sort(key=lambda item: item[0])
        self.parameters = dict(found)
        self.unreached = [n for n, p in found if id(p) not in reached]
        if not self.parameters:
            raise ValueError(
                "No parameter requires a gradient in this model and guide. Are the networks registered (pyro.module, "
                "or attributes of a PyroModule whose methods carry @pyro_method), and not all frozen?"
            )
        return value.detach() if isinstance(value, Tensor) else None

    def _reached(self, loss: ELBO, value: object, args: tuple[object, ...], candidates: dict[int, Tensor]) -> set[int]:
        """Which of these leaves a gradient of the loss reaches."""
        if isinstance(value, Tensor) and value.requires_grad and candidates:
            gradients = torch.autograd.grad(value, list(candidates.values()), allow_unused=True)
            return {i for i, g in zip(candidates, gradients, strict=True) if g is not None}
        if hasattr(loss, "differentiable_loss"):
            return set()
        before = [(p, p.grad) for p in candidates.values()]
        for parameter, _ in before:
            parameter.grad = None
        loss.loss_and_grads(self.model, self.guide, *args)
        reached = {i for i, p in candidates.items() if p.grad is not None}
        for parameter, gradient in before:
            parameter.grad = gradient
        return reached

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, each tensor once."""
        tensors: dict[str, Tensor] = {}
        for label, module in self.modules.items():
            state = module.state_dict(keep_vars=True)
            tensors |= {f"{label}.{name}": t for name, t in state.items() if isinstance(t, Tensor)}  # no extra state
        tensors |= self.free
        unique: dict[int, str] = {}
        for name, tensor in tensors.items():
            unique.setdefault(id(tensor), name)
        return {name: tensors[name].detach() for name in unique.values()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy tensors by name into the live parameters and buffers.

        Raises:
            ValueError: Names or shapes differ.
        """
        live = self.state()
        missing, surplus = sorted(live.keys() - state.keys()), sorted(state.keys() - live.keys())
        if missing or surplus:
            raise ValueError(
                f"The saved weights do not fit this model and guide: missing {missing[:5]}, unexpected {surplus[:5]} "
                f"({len(missing)} and {len(surplus)} in all). Build the pair with the arguments it was saved with."
            )
        wrong = [
            f"{n}: saved {tuple(state[n].shape)}, here {tuple(t.shape)}"
            for n, t in live.items()
            if state[n].shape != t.shape
        ]
        if wrong:
            raise ValueError(f"Saved weights have other shapes than this model and guide: {'; '.join(wrong[:5])}.")
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])


def _dry_loss(loss: ELBO, model: Program, guide: Program, args: tuple[object, ...]) -> object:
    if hasattr(loss, "differentiable_loss"):
        return loss.differentiable_loss(model, guide, *args)
    return loss.loss(model, guide, *args)


def _leaf(value: object) -> Tensor:
    """The unconstrained leaf tensor of a param statement's value."""
    return value.unconstrained() if hasattr(value, "unconstrained") else value  # type: ignore[return-value]
