"""A model and its guide, seen as one trainable thing: its modules, its parameters, its state."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from pyro_vaes.infer.handlers import local_parameters

__all__ = ["Pair", "Program", "preserve_rng"]

Program = Callable[..., object]


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


def _modules_of(program: object, label: str, depth: int = 0) -> list[tuple[str, nn.Module]]:
    """The modules a program can reach: itself, its owner, its closure, the globals and partial arguments it names."""
    if isinstance(program, nn.Module):
        return [(label, program)]
    if inspect.ismethod(program) and isinstance(program.__self__, nn.Module):
        return [(label, program.__self__)]
    if depth > 3:
        return []
    if isinstance(program, functools.partial):  # effect handlers wrap programs in partials too
        inner = [*((label, a) for a in (program.func, *program.args))]
        inner += [(f"{label}.{name}", value) for name, value in program.keywords.items()]
    elif inspect.ismethod(program):
        owner = sorted(getattr(program.__self__, "__dict__", {}).items())
        inner = [(label, program.__func__), *((f"{label}.{name}", value) for name, value in owner)]
    elif inspect.isfunction(program):
        names = inspect.getclosurevars(program)
        inner = [(f"{label}.{n}", v) for n, v in [*sorted(names.nonlocals.items()), *sorted(names.globals.items())]]
    else:
        inner = []
    return [
        found
        for name, value in inner
        if isinstance(value, nn.Module | functools.partial) or inspect.isroutine(value)
        for found in _modules_of(value, name, depth + 1)
    ]


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
            if isinstance(program, nn.Module) and type(program).forward in (nn.Module.forward, pyro.nn.PyroModule.forward):
                raise ValueError(
                    f"The {label} is a {type(program).__name__}, which has no forward: pass its method, as in "
                    "fit(vae.model, vae.guide, data)."
                )
        self.model, self.guide = model, guide
        self.modules: dict[str, nn.Module] = {}
        for label, module in [*_modules_of(model, "model"), *_modules_of(guide, "guide")]:
            if all(module is not m for m in self.modules.values()):
                self.modules[label if label not in self.modules else f"{label}.{len(self.modules)}"] = module
        self.parameters: dict[str, Tensor] = {}  # the unconstrained leaves that training moves
        self.unreached: list[str] = []  # names of those that no gradient of the bound reaches
        self._num_args = _num_positional(model)

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
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; every module's mode and every generator's state come back afterwards."""
        modes = {m: m.training for module in self.modules.values() for m in module.modules()}
        self.train(False)
        try:
            with torch.no_grad(), local_parameters(), preserve_rng():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def discover(self, loss: ELBO, args: tuple[object, ...]) -> dict[str, Tensor]:
        """Find the parameters that training moves by one dry evaluation of the loss that leaves no trace.

        These are the parameters that ``pyro.param`` and ``pyro.module`` statements name, and those of the owners of
        ``model`` and ``guide`` that a gradient reaches; all of them only where they require a gradient.
        """
        buffers = {b: b.clone() for m in self.modules.values() for b in m.buffers()}  # BatchNorm statistics move
        with preserve_rng(), local_parameters():
            with poutine.trace(param_only=True) as capture:
                value = _dry_loss(loss, self.model, self.guide, args)
        owned = {label: list(m.named_parameters()) for label, m in self.modules.items()}
        names = {id(p): f"{label}.{n}" for label, parameters in owned.items() for n, p in parameters}
        traced: dict[int, tuple[str, Tensor]] = {}
        for name, site in capture.trace.nodes.items():
            if site["type"] == "param":
                leaf = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
                traced[id(leaf)] = (names.get(id(leaf), f"param.{name}"), leaf)
        own = {id(p): (names[id(p)], p) for label in ("model", "guide") for _, p in owned.get(label, ())}
        candidates = {i: (n, p) for i, (n, p) in (own | traced).items() if p.requires_grad}
        reached: set[int] = set()
        if candidates and isinstance(value, Tensor) and value.requires_grad:
            gradients = torch.autograd.grad(value, [p for _, p in candidates.values()], allow_unused=True)
            reached = {i for i, g in zip(candidates, gradients, strict=True) if g is not None}
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
        found = [(n, p) for i, (n, p) in candidates.items() if i in traced or i in reached]
        found.sort(key=lambda item: item[0])
        self.parameters = dict(found)
        self.unreached = [n for n, p in found if id(p) not in reached]
        if not self.parameters:
            raise ValueError(
                "No parameter requires a gradient in this model and guide. Are the networks registered (pyro.module, "
                "or attributes of a PyroModule whose methods carry @pyro_method), and not all frozen?"
            )
        return self.parameters

    def state(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, each tensor once."""
        tensors: dict[str, Tensor] = {}
        for label, module in self.modules.items():
            tensors |= {f"{label}.{name}": t for name, t in module.state_dict(keep_vars=True).items()}
        tensors |= {n: p for n, p in self.parameters.items() if n.startswith("param.")}
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
        wrong = [f"{n}: saved {tuple(state[n].shape)}, here {tuple(t.shape)}" for n, t in live.items() if state[n].shape != t.shape]
        if wrong:
            raise ValueError(f"Saved weights have other shapes than this model and guide: {'; '.join(wrong[:5])}.")
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])


def _num_positional(program: Program) -> int | None:
    """How many positional arguments a program takes; None for any number."""
    program = unwrap(program)
    function = program.forward if isinstance(program, nn.Module) else program
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _dry_loss(loss: ELBO, model: Program, guide: Program, args: tuple[object, ...]) -> object:
    if hasattr(loss, "differentiable_loss"):
        return loss.differentiable_loss(model, guide, *args)
    return loss.loss(model, guide, *args)
